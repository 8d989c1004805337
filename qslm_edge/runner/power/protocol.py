"""The measurement protocol: settle, idle with the model loaded, warm-up, run, idle again.

gross = E_run / tokens, and net = (E_run - P_idle_loaded x T) / tokens, over the run window of length T.
With s the standard deviation of the idle power in means of 1 s, a net energy below 3 s T is below resolution
and not a number. If the idle power after the run differs from the one before by more than 3 s or 5 %, the
baseline has drifted. A window that breaks a rule of the integrator is rejected. Readings are taken by a
thread of their own, each with the monotonic time of the reading, and are kept beside the result.
"""

from __future__ import annotations

import dataclasses
import operator
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict

from qslm_edge.runner.power.base import PowerSource, Reading, Unavailable
from qslm_edge.runner.power.integrate import (
    energy_by_counter,
    energy_by_trapezoid,
    energy_of,
    one_second_means,
    window_fault,
)
from qslm_edge.runner.power.result import EnergyResult, RepeatSummary, summarise_repeats

__all__ = [
    "PRESETS",
    "EnergyResult",
    "Phases",
    "RepeatSummary",
    "Sampler",
    "energy_by_counter",
    "energy_by_trapezoid",
    "measure_energy",
    "summarise_repeats",
]

DRIFT_SHARE = 0.05
NOISE_FACTOR = 3.0
MIN_MEANS = 3
TAIL_S = 1.0  # left out after the run: one update of a counter at run power would pass for idle power


class Lengths(TypedDict):
    """Lengths of the phases in seconds, as keyword arguments."""

    settle_s: float
    idle_s: float
    warmup_s: float
    run_s: float
    idle_after_s: float


@dataclass(frozen=True)
class Phases:
    """Lengths of the phases in seconds, and how often the whole is repeated for a release."""

    settle_s: float
    idle_s: float
    warmup_s: float
    run_s: float
    idle_after_s: float
    repeats: int = 1

    def lengths(self) -> Lengths:
        """Keyword arguments of `measure_energy`."""
        return Lengths(
            settle_s=self.settle_s,
            idle_s=self.idle_s,
            warmup_s=self.warmup_s,
            run_s=self.run_s,
            idle_after_s=self.idle_after_s,
        )


PRESETS: dict[str, Phases] = {
    "smoke": Phases(settle_s=2, idle_s=6, warmup_s=3, run_s=10, idle_after_s=4),
    "release": Phases(settle_s=10, idle_s=30, warmup_s=3, run_s=60, idle_after_s=10, repeats=3),
}


class Recorder(Protocol):
    """What collects readings while the phases pass."""

    def start(self) -> None:
        """Begin to read."""

    def stop(self) -> tuple[Reading, ...]:
        """End, and give every reading in order of time."""


class Sampler:
    """Reads a source from a thread of its own at a given rate.

    A late reading is not made up for: its time stamp tells, and the integrator's gap rule judges.

    Args:
        source: what is read; its readings carry their own time stamps.
        rate_hz: readings per second.
    """

    def __init__(self, source: PowerSource, rate_hz: float) -> None:
        self._source, self._period_s = source, 1.0 / rate_hz
        self._readings: list[Reading] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="power-sampler", daemon=True)

    def _work(self) -> None:
        due = time.monotonic()
        while not self._end.is_set():
            self._readings.append(self._source.read())
            due = max(due + self._period_s, time.monotonic())
            self._end.wait(due - time.monotonic())

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> tuple[Reading, ...]:
        """Take one last reading, so that the last window is enclosed, and end the thread."""
        self._end.set()
        self._thread.join()
        self._readings.append(self._source.read())
        return tuple(self._readings)


def _idle(
    readings: Sequence[Reading], edges: tuple[float, float], source: PowerSource, rate_hz: float
) -> tuple[float | None, str | None]:
    """Mean power in watts between the edges, or why there is none."""
    start_s, end_s = min(edges[0] + source.lag_s, edges[1]), edges[1]
    fault = window_fault(readings, start_s, end_s, kind=source.kind, period_s=1.0 / rate_hz)
    integral = energy_of(readings, start_s, end_s, source.kind, source.range_j)
    if fault is not None or integral.energy_j is None:
        return None, fault or integral.reason
    return integral.energy_j / (end_s - start_s), None


def _peak(
    readings: Sequence[Reading], window: tuple[float, float], means_w: list[float]
) -> tuple[float, str] | None:
    inside = [item.power_w for item in readings if window[0] <= item.time_s <= window[1]]
    powers = [value for value in inside if value is not None]
    if powers:
        return max(powers), "highest power reading"
    return (max(means_w), "highest 1 s mean") if means_w else None


def _judge(
    source: PowerSource,
    readings: tuple[Reading, ...],
    phases: Mapping[str, tuple[float, float]],
    tokens: int,
    rate_hz: float,
) -> EnergyResult:
    """Turn the readings of all phases into a result."""
    start_s, end_s = phases["run"]
    duration_s = end_s - start_s
    # A lagging average says nothing of the first moments: the mean of the rest stands for the whole.
    first_s = min(start_s + source.lag_s, end_s)
    integral = energy_of(readings, first_s, end_s, source.kind, source.range_j)
    base = EnergyResult(
        status="rejected",
        reason=None,
        source=source.to_dict(),
        method="counter" if source.kind == "counter" else "trapezoid",
        rate_hz=rate_hz,
        n_samples=integral.n_samples,
        duration_s=duration_s,
        tokens=tokens,
        phases=phases,
        samples=readings,
    )
    fault = (
        window_fault(readings, first_s, end_s, kind=source.kind, period_s=1.0 / rate_hz) or integral.reason
    )
    if tokens < 1:
        fault = f"the run gave {tokens} tokens"
    if fault is None and integral.energy_j is not None and integral.energy_j <= 0:
        fault = f"the {base.method} shows {integral.energy_j:g} J for the run: it does not move"
    if fault is not None or integral.energy_j is None:
        return dataclasses.replace(base, reason=fault)
    energy_j = integral.energy_j * duration_s / (end_s - first_s)
    mean_w = energy_j / duration_s
    means_w = one_second_means(readings, first_s, end_s, source.kind, source.range_j)
    peak = _peak(readings, phases["run"], means_w)
    measured = dataclasses.replace(
        base,
        status="measured",
        energy_j=energy_j,
        gross_j_per_token=energy_j / tokens,
        mean_w=mean_w,
        peak_w=None if peak is None else peak[0],
        peak_method=None if peak is None else peak[1],
        edge_error_j=None if source.update_s is None else source.update_s * mean_w,
    )
    return _with_idle(measured, source, energy_j, tokens, rate_hz)


def _with_idle(
    run: EnergyResult, source: PowerSource, energy_j: float, tokens: int, rate_hz: float
) -> EnergyResult:
    """Add what the idle phases say: baseline, noise, net energy, drift."""
    before, after = run.phases["idle_loaded"], run.phases["idle_after"]
    duration_s = run.phases["run"][1] - run.phases["run"][0]
    idle_w, idle_reason = _idle(run.samples, before, source, rate_hz)
    skip_s = TAIL_S if after[1] - after[0] > 2 * TAIL_S else 0.0
    after_w, after_reason = _idle(run.samples, (after[0] + skip_s, after[1]), source, rate_hz)
    run = dataclasses.replace(run, idle_w=idle_w, idle_reason=idle_reason, idle_after_w=after_w)
    if idle_w is None:
        text = f"no idle power before the run: {idle_reason}"
        return dataclasses.replace(run, net_reason=text, drift_reason=text)
    means_w = one_second_means(run.samples, before[0] + source.lag_s, before[1], source.kind, source.range_j)
    noise_w = statistics.stdev(means_w) if len(means_w) >= MIN_MEANS else None
    net_j = energy_j - idle_w * duration_s
    net_reason: str | None = None
    if noise_w is None:
        net_reason = f"the idle phase is shorter than {MIN_MEANS} s, so that its noise is not known"
    elif net_j <= 0 or net_j < NOISE_FACTOR * noise_w * duration_s:
        least_j = NOISE_FACTOR * noise_w * duration_s
        net_reason = f"below resolution: {net_j:.3g} J net, while the idle noise is worth {least_j:.3g} J"
    drift: bool | None = None
    if after_w is not None:
        change_w = abs(after_w - idle_w)
        drift = change_w > DRIFT_SHARE * abs(idle_w)
        drift = drift or (noise_w is not None and change_w > NOISE_FACTOR * noise_w)
    return dataclasses.replace(
        run,
        idle_noise_w=noise_w,
        net_energy_j=net_j,
        net_j_per_token=net_j / tokens if net_reason is None else None,
        net_reason=net_reason,
        drift=drift,
        drift_reason=None if drift is not None else f"no idle power after the run: {after_reason}",
    )


def measure_energy(
    source: PowerSource | Unavailable,
    run: Callable[[float], int],
    *,
    settle_s: float,
    idle_s: float,
    warmup_s: float,
    run_s: float,
    idle_after_s: float,
    rate_hz: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
    recorder: Callable[[PowerSource, float], Recorder] = Sampler,
) -> EnergyResult:
    """Measure the energy of a run by the protocol.

    Args:
        source: an opened source; for Unavailable nothing is run and its reason becomes the result.
        run: works for about the given seconds, with the model already loaded, and returns the exact number
            of tokens; it is called once for the warm-up and once for the run.
        settle_s: seconds before anything counts, after the power mode was set.
        idle_s: seconds of idling with the model loaded: the baseline of the net energy.
        warmup_s: seconds of running that do not count.
        run_s: seconds of the run that counts.
        idle_after_s: seconds of idling after it, for the drift.
        rate_hz: readings per second; None takes what suits the source.
        clock: the monotonic clock that the source stamps its readings with.
        sleep: waits.
        recorder: makes what collects the readings; tests pass one that needs no real time.

    Returns:
        The result. What `run` raises passes through, after the sampling has ended.
    """
    if isinstance(source, Unavailable):
        return EnergyResult("unavailable", source.reason, source.to_dict())
    rate_hz = source.rate_hz if rate_hz is None else rate_hz
    phases: dict[str, tuple[float, float]] = {}
    counted: list[int] = []
    recording = recorder(source, rate_hz)
    recording.start()
    try:
        steps: list[tuple[str, float, Callable[[float], object]]] = [
            ("settle", settle_s, sleep),
            ("idle_loaded", idle_s, sleep),
            ("warm_up", warmup_s, run),
            ("run", run_s, lambda seconds: counted.append(operator.index(run(seconds)))),
            ("idle_after", idle_after_s, sleep),
        ]
        for name, seconds, act in steps:
            start_s = clock()
            act(seconds)
            phases[name] = (start_s, clock())
    finally:
        readings = recording.stop()
    return _judge(source, readings, phases, counted[0], rate_hz)
