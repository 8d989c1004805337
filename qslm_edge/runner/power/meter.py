"""Energy per token from the log of an external meter, over the windows that a verification recorded.

The result of `verify` holds the edges of every phase and the exact number of tokens; the log holds the power.
After aligning the two, the same rules as for any other source give the figures, with the same reasons to give
none. A log faster than 100 Hz is reduced to means over 10 ms first, which keeps the energy.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qslm_edge import __version__
from qslm_edge.errors import EXIT_INCONCLUSIVE, EXIT_PASS, InputError
from qslm_edge.runner.power.base import Reading
from qslm_edge.runner.power.external import ExternalMeter
from qslm_edge.runner.power.judge import judge_run
from qslm_edge.runner.power.meter_align import (
    CLOCK_ERROR_S,
    Alignment,
    Edges,
    align_by_clock,
    align_by_marker,
)
from qslm_edge.runner.power.meter_log import MeterLog, read_log
from qslm_edge.runner.power.result import EnergyResult, energy_dict

__all__ = ["SCHEMA", "MeterOptions", "import_log", "meter_lines"]

SCHEMA = "qslm-edge/meter/1"
MAX_RATE_HZ = 100.0
MIN_IDLE_S = 3.0  # below this its noise is not known
MAX_PHASE_S = 86_400.0
MAX_RESULT_BYTES = 512 * 2**20
PHASES = ("settle", "idle_loaded", "warm_up", "run", "idle_after")


@dataclass(frozen=True)
class MeterOptions:
    """How to read and align a log.

    Attributes:
        form: key of the formats, or "auto".
        supply_v: voltage of the supply, for a meter that measures current alone.
        align: "auto" (marker if there is one), "clock" or "marker".
        log_start_s: wall-clock time of stamp 0, in seconds since 1970.
        clock_error_s: seconds by which the clocks of board and meter may differ.
    """

    form: str = "auto"
    supply_v: float | None = None
    align: str = "auto"
    log_start_s: float | None = None
    clock_error_s: float = CLOCK_ERROR_S


@dataclass(frozen=True)
class _Run:
    """One recorded run of a verification."""

    tokens: int
    phases: dict[str, Edges]
    wall_phases: dict[str, Edges]
    marker: tuple[Edges, ...]


def _edges(value: object) -> Edges:
    start_s, end_s = value if isinstance(value, list) and len(value) == 2 else (None, None)
    if isinstance(start_s, (int, float)) and isinstance(end_s, (int, float)):
        edges = float(start_s), float(end_s)
        if math.isfinite(edges[0]) and 0 <= edges[1] - edges[0] <= MAX_PHASE_S:
            return edges
    raise ValueError("edges")


def _run(data: Mapping[str, Any]) -> _Run:
    """Check one run of the result; ValueError, TypeError or LookupError for anything else."""
    phases = {name: _edges(data["phases"][name]) for name in PHASES}
    wall = data.get("wall_phases") or {}
    tokens = data["tokens"]
    if not isinstance(tokens, int) or tokens < 1 or not isinstance(wall, dict):
        raise ValueError("tokens or stamps")
    return _Run(
        tokens,
        phases,
        {name: _edges(wall[name]) for name in PHASES if name in wall},
        tuple(_edges(item) for item in data.get("marker") or []),
    )


def _read_result(path: Path) -> tuple[list[_Run], str | None]:
    """Runs of a result of verify, or of a report that holds one, and the digest of the bundle."""
    try:
        if path.stat().st_size > MAX_RESULT_BYTES:
            raise InputError("the result is too large", where=path)
        data = json.loads(path.read_bytes())
        top = data.get("verification", data)
        decode = top["decode"]
        runs = decode["energy"]["runs"]
        digest = top.get("bundle", {}).get("digest")
    except OSError as error:
        raise InputError("the result cannot be read", where=path, found=error.strerror) from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise InputError(
            "not a result of verify with a decoded run",
            where=path,
            allowed="what `verify --output` wrote, or report.json of a deployment",
        ) from None
    try:
        if not any(run.get("phases") for run in runs):
            raise InputError(
                "the result has no power run",
                where=path,
                found=str(decode["energy"].get("reason"))[:120],
                hint="verify with --power-source csv: the phases pass for the external meter",
            )
        return [_run(run) for run in runs], digest if isinstance(digest, str) else None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
        raise InputError("the phases of the power run are damaged", where=path) from None


def _align(runs: list[_Run], log: MeterLog, options: MeterOptions) -> Alignment:
    """One offset for all runs, which share the clock."""
    marker = runs[0].marker
    if options.align == "marker" and not marker:
        raise InputError("the result has no marker", hint="verify with --power-marker")
    if marker and options.align != "clock":
        return align_by_marker(marker, log)
    first = runs[0]
    phases = {
        f"{number} {name}": edges for number, run in enumerate(runs) for name, edges in run.phases.items()
    }
    wall = {
        f"{number} {name}": edges
        for number, run in enumerate(runs)
        for name, edges in run.wall_phases.items()
    }
    return align_by_clock(
        phases if wall else first.phases, wall, log, options.log_start_s, options.clock_error_s
    )


def _readings(log: MeterLog, alignment: Alignment, run: _Run) -> tuple[tuple[Reading, ...], str]:
    """Readings around one run on its clock, and how they come from the log."""
    time_s = log.time_s - alignment.offset_s
    margin_s = 2 * max(log.period_s, alignment.error_s) + 1.0
    first = max(int(np.searchsorted(time_s, run.phases["settle"][0] - margin_s)) - 1, 0)
    last = int(np.searchsorted(time_s, run.phases["idle_after"][1] + margin_s)) + 1
    time_s, power_w = time_s[first:last], log.power_w[first:last]
    how = "every reading of the log"
    if log.period_s < 0.9 / MAX_RATE_HZ and len(time_s):
        bins = np.floor((time_s - time_s[0]) * MAX_RATE_HZ).astype(np.int64)
        starts = np.flatnonzero(np.diff(bins, prepend=-1))
        counts = np.diff(np.append(starts, len(bins)))
        time_s = np.add.reduceat(time_s, starts) / counts
        power_w = np.add.reduceat(power_w, starts) / counts
        how = f"means over {1000 / MAX_RATE_HZ:g} ms"
    return tuple(Reading(float(t), power_w=float(p)) for t, p in zip(time_s, power_w, strict=True)), how


def _trimmed(phases: Mapping[str, Edges], error_s: float) -> dict[str, Edges]:
    """The idle phases without what may belong to their neighbours, where enough of them is left."""
    trimmed = dict(phases)
    for name in ("idle_loaded", "idle_after"):
        start_s, end_s = phases[name]
        if end_s - start_s - 2 * error_s >= MIN_IDLE_S:
            trimmed[name] = (start_s + error_s, end_s - error_s)
    return trimmed


def _alignment_errors(
    judge: Callable[[Mapping[str, Edges]], EnergyResult],
    here: EnergyResult,
    phases: Mapping[str, Edges],
    error_s: float,
) -> tuple[float | None, float | None]:
    """Joules by which gross and net energy change when all edges move by the error, whichever way is more."""
    moved = [
        judge({name: (a + shift_s, b + shift_s) for name, (a, b) in phases.items()})
        for shift_s in (-error_s, error_s)
    ]
    errors: list[float | None] = []
    for field in ("energy_j", "net_energy_j"):
        value = getattr(here, field)
        others = [getattr(item, field) for item in moved]
        known = value is not None and None not in others
        errors.append(max(abs(other - value) for other in others) if known else None)
    return errors[0], errors[1]


def _measure(log: MeterLog, alignment: Alignment, run: _Run) -> EnergyResult:
    readings, how = _readings(log, alignment, run)
    rate_hz = min(1 / log.period_s, MAX_RATE_HZ) if log.period_s > 0 else MAX_RATE_HZ
    meter = ExternalMeter()
    meter.deferred, meter.rails, meter.update_s = None, (f"{log.form} log",), log.period_s
    meter.notes = (*log.notes, how, "calibration of the meter is not in the uncertainty")
    window = run.phases["run"]
    inside = [item.power_w for item in readings if window[0] <= item.time_s <= window[1]]
    if inside and np.median(np.array(inside, float)) < 0:
        text = "the power in the run window is negative: the leads of the meter are probably swapped"
        result = EnergyResult("rejected", text, meter.to_dict(), samples=readings)
    else:
        phases = _trimmed(run.phases, alignment.error_s)

        def judge(edges: Mapping[str, Edges]) -> EnergyResult:
            return judge_run(meter, readings, edges, run.tokens, rate_hz)

        errors = _alignment_errors(judge, judge(phases), phases, alignment.error_s)
        result = judge_run(meter, readings, phases, run.tokens, rate_hz, alignment_errors_j=errors)
    return dataclasses.replace(result, phases=run.phases, wall_phases=run.wall_phases, marker=run.marker)


def import_log(result: Path, log: Path, options: MeterOptions) -> dict[str, Any]:
    """Energy per token of a verification by the log of an external meter.

    Args:
        result: what `verify --output` wrote.
        log: file of the meter.
        options: how to read and align it.

    Returns:
        The result as documented in docs/report.md (`meter`), with "exit_code": 0 with figures, 3 without.

    Raises:
        InputError: one of the files cannot be used, or they cannot be aligned.
    """
    for name, value in (("--supply-v", options.supply_v), ("--clock-error-s", options.clock_error_s)):
        if value is not None and not (math.isfinite(value) and 0 < value <= 1000):
            raise InputError("out of range", where=name, found=value, allowed="above 0, to 1000")
    runs, digest = _read_result(result)
    read = read_log(log, options.form, options.supply_v)
    alignment = _align(runs, read, options)
    energy = energy_dict([_measure(read, alignment, run) for run in runs])
    return {
        "schema": SCHEMA,
        "tool_version": __version__,
        "exit_code": EXIT_PASS if energy["status"] == "measured" else EXIT_INCONCLUSIVE,
        "verify": {"file": result.name, "bundle_digest": digest},
        "log": {
            "file": read.name,
            "sha256": read.sha256,
            "format": read.form,
            "n_readings": len(read.time_s),
            "n_left_out": read.n_left_out,
            "first_s": float(read.time_s[0]),
            "last_s": float(read.time_s[-1]),
            "period_s": read.period_s,
            "supply_v": options.supply_v,
            "notes": list(read.notes),
        },
        "alignment": dataclasses.asdict(alignment),
        "energy": energy,
    }


def meter_lines(result: dict[str, Any]) -> list[str]:
    """The result in plain lines."""
    log, alignment, energy = result["log"], result["alignment"], result["energy"]
    score = "" if alignment["score"] is None else f", correlation {alignment['score']:.2f}"
    lines = [
        f"log: {log['file']} ({log['format']}), {log['n_readings']} readings, one in {log['period_s']:.3g} s",
        f"alignment: {alignment['method']}, within {alignment['error_s']:.3g} s{score} ({alignment['note']})",
    ]
    lines += [f"note: {note}" for note in log["notes"]]
    if energy["status"] != "measured":
        return [*lines, f"energy: {energy['status']}: {energy['reason']}"]
    gross = _milli(energy["gross_j_per_token"], energy["gross_uncertainty_j_per_token"])
    net = _milli(energy["net_j_per_token"], energy["net_uncertainty_j_per_token"])
    shift = energy["alignment_error_j"]
    window = f"{energy['energy_j']:.4g} J in {energy['duration_s']:.1f} s, {energy['tokens']} tokens"
    return [
        *lines,
        f"energy a token, gross: {gross} ({window})",
        f"energy a token, net of idle: {net or energy['net_reason']}",
        f"power: mean {energy['mean_w']:.4g} W, idle {_watts(energy['idle_w'], energy['idle_reason'])}",
        f"a shift of the clocks by {alignment['error_s']:.3g} s: "
        + ("not known, the log ends too soon" if shift is None else f"{shift:.3g} J"),
        f"scope: {energy['source']['scope']}",
    ]


def _milli(value: float | None, error: float | None) -> str | None:
    if value is None:
        return None
    return f"{1000 * value:.4g} mJ" + ("" if error is None else f" ± {1000 * error:.2g} mJ")


def _watts(value: float | None, reason: str | None) -> str:
    return f"not measured ({reason})" if value is None else f"{value:.4g} W"
