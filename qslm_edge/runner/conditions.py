"""The conditions of a measurement, read before, during and after a run, and what of them makes it doubtful.

`read_conditions` gives a flat set of named values, each with its source or the reason why it is absent;
`compare` turns two of them, and the clocks read during the run, into flags. Counters are cumulative since the
start of the machine, so only their movement counts. What could not be read raises no flag, since it proves
nothing either way; `not_read` says what that is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from qslm_edge.runner.condition_readers import Conditions, read_conditions

__all__ = ["Conditions", "compare", "mode_flags", "not_read", "read_conditions", "sustained_low_clocks"]

Samples = Sequence[Sequence[Conditions]]

CLOCK_SHARE = 0.95  # clocks move in steps of some percent: only what is clearly below the maximum is flagged
OTHER_LOAD_CORES = 0.2
LOAD_AVERAGE = 0.5
MIN_INTERVAL_S = 1.0
SWAP_BYTES = 2**20
LOW_CLOCK_SAMPLES = 3
NVML_BAD_REASONS = {
    0x8: "hardware slowdown",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}
NVML_IDLE = 0x1
PI_BITS = {0: "under-voltage", 1: "capped clock", 2: "throttled", 3: "soft temperature limit"}


def _low_clock(values: Conditions, name: str) -> str | None:
    """A sentence on a clock below its maximum; `name` is the part before ".clock_hz"."""
    now_hz, most_hz = values.get(f"{name}.clock_hz"), values.get(f"{name}.max_clock_hz")
    if now_hz is None or most_hz is None or now_hz >= CLOCK_SHARE * most_hz:
        return None
    if name.startswith("gpu") and (values.get(f"{name}.throttle_reasons") or 0) & NVML_IDLE:
        return None  # an idle GPU lowers its clock by itself
    return f"{name}: clock {now_hz / 1e6:.0f} MHz, below the maximum of {most_hz / 1e6:.0f} MHz"


def _clock_names(values: Conditions) -> list[str]:
    return [name.removesuffix(".clock_hz") for name in values.values if name.endswith(".clock_hz")]


def _moved(before: Conditions, after: Conditions) -> list[str]:
    """Counters that moved and settings that changed."""
    flags = []
    for name, then in before.values.items():
        if then.value is None:
            continue
        now = after.values.get(name)
        if name.startswith("counter."):
            if now is None or now.value is None:
                why = "gone" if now is None else now.reason
                flags.append(f"{name}: read before the run but not after it ({why})")
            elif now.value != then.value:
                flags.append(f"{name}: moved from {then.value} to {now.value}")
        elif name == "cpu.online" or name.endswith((".governor", ".max_clock_hz", "power.mode")):
            changed = None if now is None else now.value
            if changed != then.value:
                flags.append(f"{name}: changed from {then.value} to {changed}")
    return flags


def _states(moment: str, values: Conditions) -> list[str]:
    """What is wrong at one of the two moments, whatever the other one says."""
    flags = [
        f"{key}: {item.value} {moment}"
        for key, item in values.values.items()
        if key.startswith("alarm.") and item.value not in (None, 0)
    ]
    for key in [key.removesuffix(".celsius") for key in values.values if key.endswith(".celsius")]:
        now, trip = values.get(f"{key}.celsius"), values.get(f"{key}.passive_trip_celsius")
        if now is not None and trip is not None and now >= trip:
            kind = values.get(f"{key}.type") or "unnamed"
            flags.append(f"{key} ({kind}): {now:g} C {moment}, at or above its passive trip of {trip:g} C")
    for key, item in values.values.items():
        if key.endswith(".throttle_reasons") and item.value is not None:
            flags += [f"{key}: {text} {moment}" for bit, text in NVML_BAD_REASONS.items() if item.value & bit]
    bits = values.get("pi.throttled") or 0
    flags += [f"pi.throttled: {text} {moment}" for bit, text in PI_BITS.items() if bits >> bit & 1]
    return flags


def _other_load(before: Conditions, after: Conditions) -> list[str]:
    """Processor time that other processes took between the two readings."""
    deltas = []
    for name in ("time_s", "cpu.busy_s", "cpu.own_s"):
        then, now = before.get(name), after.get(name)
        if then is None or now is None:
            load = before.get("load.1min")
            if load is not None and load > LOAD_AVERAGE:
                return [f"load.1min: {load:g} before the run"]
            return []
        deltas.append(now - then)
    elapsed_s, busy_s, own_s = deltas
    if elapsed_s < MIN_INTERVAL_S:
        return []
    cores = (busy_s - own_s) / elapsed_s
    return [f"other load: {cores:.2f} cores on average"] if cores > OTHER_LOAD_CORES else []


def compare(before: Conditions, after: Conditions, samples: Samples = ()) -> list[str]:
    """Say what makes a measurement between two readings doubtful.

    Args:
        before: read before the run.
        after: read at its end, while the clocks are still those of the run.
        samples: clocks read 1 s apart during the run, one list for each repeat. Where one has three or more,
            they judge the clocks, and the single reading at the end does not.

    Returns:
        One line per flag: a counter moved, a setting changed, an alarm or throttle reason was on, a zone was
        at its passive trip, a clock was below its maximum, swap grew, others used the processor. Empty if
        nothing speaks against the run. What could not be read raises no flag: look at the reasons.
    """
    flags = _moved(before, after)
    flags += _states("before the run", before) + _states("at its end", after)
    if any(len(run) >= LOW_CLOCK_SAMPLES for run in samples):
        flags += _during(before, samples, flags)
    else:
        clocks = (_low_clock(after, name) for name in _clock_names(after))
        flags += [f"{text} at the end of the run" for text in clocks if text is not None]
    then, now = before.get("pi.throttled"), after.get("pi.throttled")
    if then is not None and now is not None:
        new = (now & ~then) >> 16
        flags += [f"pi.throttled: {text} during the run" for bit, text in PI_BITS.items() if new >> bit & 1]
    swap_then, swap_now = before.get("swap.used_bytes"), after.get("swap.used_bytes")
    if swap_then is not None and swap_now is not None and swap_now - swap_then > SWAP_BYTES:
        flags.append(f"swap.used_bytes: grew by {(swap_now - swap_then) / 2**20:.0f} MiB")
    return flags + _other_load(before, after)


def _during(before: Conditions, samples: Samples, known: Sequence[str]) -> list[str]:
    """What the readings during the run say and those at its edges did not."""
    found = [flag for run in samples for flag in sustained_low_clocks(run)]
    readings = [sample for run in samples for sample in run]
    trips = {
        key.removesuffix(".passive_trip_celsius"): item.value
        for key, item in before.values.items()
        if key.endswith(".passive_trip_celsius") and item.value is not None
    }
    for zone, trip in trips.items():
        hottest = max((sample.get(f"{zone}.celsius") or -math.inf for sample in readings), default=-math.inf)
        if hottest >= trip and not any(flag.startswith(f"{zone} ") for flag in known):
            found.append(f"{zone} (in the run): {hottest:g} C, at or above its passive trip of {trip:g} C")
    names = {name for sample in readings for name in sample.values if name.endswith(".throttle_reasons")}
    for name in sorted(names):
        bits = 0
        for sample in readings:
            bits |= sample.get(name) or 0
        texts = [f"{name}: {text}" for bit, text in NVML_BAD_REASONS.items() if bits & bit]
        found += [
            f"{text} during the run" for text in texts if not any(flag.startswith(text) for flag in known)
        ]
    return list(dict.fromkeys(found))


def mode_flags(values: Conditions, planned: Sequence[str]) -> list[str]:
    """Whether the power mode of the board is one that its profile knows, by name.

    Args:
        values: read before the run.
        planned: names of the profile's modes; without any, or without a mode that can be read, no flag.
    """
    mode = values.get("power.mode")
    if mode is None or not planned or mode in planned:
        return []
    return [f"power.mode: {mode} is not a mode of the profile ({', '.join(planned)})"]


def not_read(before: Conditions, samples: Samples = ()) -> str | None:
    """Which of clocks, temperatures and counters nobody watched, with the reason; None if all were read."""
    absent: list[str] = []

    def look(what: str, ending: str, *places: str) -> None:
        names = [name for name in before.values if ending in name]
        if not any(before.values[name].value is not None for name in names):
            entries = [before.values[name] for name in (*names, *places) if name in before.values]
            absent.append(f"{what} ({entries[0].reason})" if entries else f"{what} (none on this system)")

    look("clocks", ".clock_hz", "cpu.governor")
    look("temperatures", ".celsius", "thermal")
    look("throttle counters", "counter.")
    if not absent and not any(len(run) >= LOW_CLOCK_SAMPLES for run in samples):
        absent.append("clocks during the run (it was shorter than 3 s)")
    return f"not read: {'; '.join(absent)}" if absent else None


def sustained_low_clocks(samples: Sequence[Conditions]) -> list[str]:
    """Clocks that stayed below their maximum for three consecutive readings, taken 1 s apart in the run."""
    flags = []
    for name in dict.fromkeys(name for sample in samples for name in _clock_names(sample)):
        in_row = 0
        for sample in samples:
            text = _low_clock(sample, name)
            in_row = in_row + 1 if text is not None else 0
            if in_row == LOW_CLOCK_SAMPLES:
                flags.append(f"{text} in {LOW_CLOCK_SAMPLES} consecutive readings")
                break
    return flags
