"""Where the run lies in the log of a meter: by the wall clocks of both, or by a marker pulse that both saw.

Wall clock: verify stamps the edges of its phases on the monotonic and on the wall clock; the meter's stamps
are wall-clock time. Right within what the two clocks differ by, which nobody measures: it is assumed.
Marker: three bursts of load with unequal rests. The log is compared with that pattern at every shift; the
Pearson correlation of the best shift must be high, and that of any other clearly lower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qslm_edge.errors import InputError
from qslm_edge.runner.power.meter_log import MeterLog

__all__ = ["CLOCK_ERROR_S", "Alignment", "align_by_clock", "align_by_marker"]

CLOCK_ERROR_S = 0.8  # what the rules of MLPerf Power allow two NTP clocks to differ by
MAX_STEP_S = 0.1
GRID_S = 0.02
MIN_SCORE = 0.6
MIN_LEAD = 0.1
MARGIN_S = 1.0
NEIGHBOUR_S = 1.5

Edges = tuple[float, float]


@dataclass(frozen=True)
class Alignment:
    """Stamp of the log = monotonic time of the run + offset_s, with the error of that.

    Args:
        method: "wall clock" or "marker".
        offset_s: seconds to add.
        error_s: seconds by which it may be off.
        score: Pearson correlation with the marker; None by wall clock.
        note: what the error rests on.
    """

    method: str
    offset_s: float
    error_s: float
    score: float | None
    note: str


def align_by_clock(
    phases: Mapping[str, Edges],
    wall_phases: Mapping[str, Edges],
    log: MeterLog,
    log_start_s: float | None = None,
    error_s: float = CLOCK_ERROR_S,
) -> Alignment:
    """Align by wall clocks.

    Args:
        phases: edges on the monotonic clock.
        wall_phases: the same edges on the wall clock.
        log: of the meter.
        log_start_s: wall-clock time of stamp 0, for a log whose stamps count from its start.
        error_s: seconds by which the clocks of board and meter may differ.

    Raises:
        InputError: no wall-clock stamps on one of the two sides, or a wall clock that was set in between.
    """
    if not wall_phases:
        raise InputError("the result has no wall-clock stamps", hint="verify again with this version")
    if not log.is_epoch and log_start_s is None:
        raise InputError(
            "the stamps of the log count from its start, and the result has no marker",
            where=log.name,
            hint="verify with --power-marker, or give the time of stamp 0 by --log-start",
        )
    if log.is_epoch and log_start_s is not None:
        raise InputError("the log has wall-clock stamps of its own", where="--log-start", found=log.name)
    pairs = [
        (monotonic_s, wall_s)
        for name, edges in phases.items()
        for monotonic_s, wall_s in zip(edges, wall_phases.get(name, ()), strict=False)
    ]
    offsets = [wall_s - monotonic_s for monotonic_s, wall_s in pairs]
    if not offsets:
        raise InputError("the result has no wall-clock stamps", hint="verify again with this version")
    step_s = max(offsets) - min(offsets)
    if step_s > MAX_STEP_S:
        raise InputError(
            "the wall clock of the board was set during the run",
            found=f"a step of {step_s:.3g} s",
            hint="verify again with --power-marker",
        )
    offset_s = float(np.median(offsets)) - (log_start_s or 0.0)
    return Alignment(
        "wall clock", offset_s, error_s, None, f"the clocks are assumed to agree within {error_s:g} s (NTP)"
    )


def _resample(log: MeterLog, grid_s: float) -> tuple[float, NDArray[np.float64]]:
    """Mean power of equal intervals, and the stamp at which the first begins."""
    start_s = float(log.time_s[0])
    n = int((float(log.time_s[-1]) - start_s) / grid_s)
    steps = np.diff(log.time_s) * (log.power_w[1:] + log.power_w[:-1]) / 2
    total_j = np.concatenate([[0.0], np.cumsum(steps)])
    edges = start_s + grid_s * np.arange(n + 1)
    return start_s, np.diff(np.interp(edges, log.time_s, total_j)) / grid_s


def _correlate(power_w: NDArray[np.float64], pattern: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson correlation of the pattern with every stretch of its length; 0 where the power stands still."""
    m = len(pattern)
    zero_mean = pattern - pattern.mean()
    centred = power_w - power_w.mean()
    sums = np.concatenate([[0.0], np.cumsum(centred)])
    squares = np.concatenate([[0.0], np.cumsum(centred**2)])
    spread = (squares[m:] - squares[:-m]) - (sums[m:] - sums[:-m]) ** 2 / m
    noise_floor = 1e-12 * float(squares[-1]) + 1e-15
    scale = np.sqrt(np.where(spread > noise_floor, spread, np.inf)) * np.sqrt((zero_mean**2).sum())
    result: NDArray[np.float64] = np.correlate(centred, zero_mean, "valid") / scale
    return result


def align_by_marker(marker: Sequence[Edges], log: MeterLog) -> Alignment:
    """Align by the marker pulse.

    Args:
        marker: edges of its bursts on the monotonic clock.
        log: of the meter.

    Raises:
        InputError: the pattern is not in the log, or at more than one place.
    """
    grid_s = max(GRID_S, log.period_s)
    begin_s = marker[0][0] - MARGIN_S
    n = round((marker[-1][1] + MARGIN_S - begin_s) / grid_s)
    times = begin_s + grid_s * (np.arange(n) + 0.5)
    pattern = np.zeros(n)
    for start_s, end_s in marker:
        pattern[(times >= start_s) & (times < end_s)] = 1.0
    first_s, power_w = _resample(log, grid_s)
    if len(power_w) < n or not 0 < pattern.sum() < n:
        raise InputError(
            "the log is shorter than the marker, or its rate is too low to see it",
            where=log.name,
            found=f"{len(power_w)} intervals of {grid_s:.3g} s",
            hint="start the meter before verify, or align by --align clock",
        )
    scores = _correlate(power_w, pattern)
    best = int(np.argmax(scores))
    near = np.abs(np.arange(len(scores)) - best) * grid_s < NEIGHBOUR_S
    second = float(np.max(scores, where=~near, initial=-1.0))
    score = float(scores[best])
    if score < MIN_SCORE or score - second < MIN_LEAD:
        why = f"best correlation {score:.2f}" + (
            f", another place {second:.2f}" if score >= MIN_SCORE else ""
        )
        raise InputError(
            "the marker is not found in the log",
            where=log.name,
            found=why,
            allowed=f"{MIN_SCORE:g} and more, {MIN_LEAD:g} ahead of any other place",
            hint="log from before the start of verify, or align by --align clock",
        )
    return Alignment(
        "marker",
        first_s + best * grid_s - begin_s,
        grid_s,
        score,
        f"three bursts of load found in the log; right within one interval of {grid_s:.3g} s",
    )
