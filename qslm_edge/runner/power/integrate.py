"""Energy of a window from readings: counter differences or the trapezoid rule, and when to refuse.

Counter: E = C(t1) - C(t0) + wraps x range, with C interpolated linearly at the edges. The error is at most
one update of the counter at each edge.
Power: E = sum of (P(i) + P(i+1)) / 2 x (t(i+1) - t(i)), with P interpolated at the edges. Never value times
nominal period: the period is not constant.
A window is refused, without a number, when it holds fewer than 20 samples, when the samples cover less than
0.9 of it, when a gap exceeds 2.5 periods, or when the counter fell without a wrap. A counter keeps counting
through a gap, so for it the gap rule holds at the edges and at a wrap.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from qslm_edge.runner.power.base import Kind, Reading

__all__ = [
    "MAX_GAP_PERIODS",
    "MIN_COVERAGE",
    "MIN_SAMPLES",
    "Integral",
    "energy_by_counter",
    "energy_by_trapezoid",
    "energy_of",
    "one_second_means",
    "window_fault",
]

MIN_SAMPLES = 20
MIN_COVERAGE = 0.9
MAX_GAP_PERIODS = 2.5
MAX_POWER_W = 10_000.0  # no single source of a board or host measures more: a larger step is no energy
MIN_STEP_S = 1.0  # counters move in steps, so that short intervals may show many times the power

Point = tuple[float, float]


@dataclass(frozen=True)
class Integral:
    """Energy of one window.

    Args:
        energy_j: joules between the edges; None if it cannot be told.
        n_samples: valid readings inside the window, edges included.
        coverage: time from the first to the last of them over the length of the window.
        reason: why the energy is None.
    """

    energy_j: float | None
    n_samples: int
    coverage: float
    reason: str | None = None


def _points(readings: Sequence[Reading], kind: Kind) -> list[Point]:
    values = ((item.time_s, item.energy_j if kind == "counter" else item.power_w) for item in readings)
    return [(time_s, value) for time_s, value in values if value is not None and math.isfinite(value)]


def _inside(points: Sequence[Point], t0: float, t1: float) -> tuple[int, float]:
    times = [time_s for time_s, _ in points if t0 <= time_s <= t1]
    length = t1 - t0
    return len(times), (times[-1] - times[0]) / length if len(times) > 1 and length > 0 else 0.0


def _around(points: Sequence[Point], t0: float, t1: float) -> list[Point] | str:
    """Points from the last one at or before t0 to the first one at or after t1, or what is wrong."""
    if not t1 > t0:
        return "the window has no length"
    times = [time_s for time_s, _ in points]
    if any(later < earlier for earlier, later in pairwise(times)):
        return "the time stamps fall"
    first, last = bisect_right(times, t0) - 1, bisect_left(times, t1)
    if first < 0:
        return "no valid reading before the window"
    if last == len(times):
        return "no valid reading after the window"
    return list(points[first : last + 1])


def _at(points: Sequence[Point], time_s: float) -> float:
    for (ta, va), (tb, vb) in pairwise(points):
        if ta <= time_s <= tb and tb > ta:
            return va + (vb - va) * (time_s - ta) / (tb - ta)
    return points[0][1] if time_s <= points[0][0] else points[-1][1]


def _step(before: Point, after: Point, range_j: float | None) -> float | str:
    """Joules between two readings of a counter, or why they cannot be joined."""
    step = after[1] - before[1]
    limit = MAX_POWER_W * max(after[0] - before[0], MIN_STEP_S)
    if step < 0:
        step += range_j or 0.0
        # A restart also falls. After a wrap the step is what a board can use; after a restart it is not.
        if step < 0 or step > limit:
            return "the counter fell without a wrap"
    elif step > limit:
        return f"the counter jumped by {step:.0f} J within {after[0] - before[0]:.3g} s"
    return step


@dataclass(frozen=True)
class _Window:
    """What lies in and around a window.

    Attributes:
        around: points from the last one before it to the first one after it.
        n_samples, coverage: as those of `Integral`.
    """

    around: list[Point]
    n_samples: int
    coverage: float


def _window(readings: Sequence[Reading], kind: Kind, t0: float, t1: float) -> _Window | Integral:
    """The points of a window, or the integral without a value that says why there are none."""
    points = _points(readings, kind)
    n, coverage = _inside(points, t0, t1)
    around = _around(points, t0, t1)
    if isinstance(around, str):
        return Integral(None, n, coverage, around)
    fault = _faults_between(readings, around[0][0], around[-1][0])
    return _Window(around, n, coverage) if fault is None else Integral(None, n, coverage, fault)


def _faults_between(readings: Sequence[Reading], start_s: float, end_s: float) -> str | None:
    faults = (item.reason for item in readings if item.fault and start_s <= item.time_s <= end_s)
    return next((reason or "the source reported a fault" for reason in faults), None)


def energy_by_counter(
    readings: Sequence[Reading], t0: float, t1: float, range_j: float | None = None
) -> Integral:
    """Energy between t0 and t1 in joules from a running total.

    Args:
        readings: in order of time; those without `energy_j` are passed over.
        t0: start of the window, on the clock of the readings.
        t1: end of the window.
        range_j: value at which the counter wraps; None if it does not.

    Returns:
        The integral; no energy when the window is not enclosed by readings, when the counter fell or jumped
        in a way that is no wrap, or when a reading in between is marked as a fault.
    """
    window = _window(readings, "counter", t0, t1)
    if isinstance(window, Integral):
        return window
    total = 0.0
    totals = [(window.around[0][0], total)]
    for before, after in pairwise(window.around):
        step = _step(before, after, range_j)
        if isinstance(step, str):
            return Integral(None, window.n_samples, window.coverage, step)
        total += step
        totals.append((after[0], total))
    return Integral(_at(totals, t1) - _at(totals, t0), window.n_samples, window.coverage)


def energy_by_trapezoid(readings: Sequence[Reading], t0: float, t1: float) -> Integral:
    """Energy between t0 and t1 in joules from powers, by the trapezoid rule.

    Args:
        readings: in order of time; those without `power_w` are passed over.
        t0: start of the window, on the clock of the readings.
        t1: end of the window.

    Returns:
        The integral; no energy when the window is not enclosed by readings.
    """
    window = _window(readings, "power", t0, t1)
    if isinstance(window, Integral):
        return window
    cut = [point for point in window.around if t0 < point[0] < t1]
    cut = [(t0, _at(window.around, t0)), *cut, (t1, _at(window.around, t1))]
    energy_j = math.fsum((va + vb) / 2 * (tb - ta) for (ta, va), (tb, vb) in pairwise(cut))
    return Integral(energy_j, window.n_samples, window.coverage)


def energy_of(
    readings: Sequence[Reading], t0: float, t1: float, kind: Kind, range_j: float | None = None
) -> Integral:
    """Energy between t0 and t1 by the method that suits the kind of source."""
    if kind == "counter":
        return energy_by_counter(readings, t0, t1, range_j)
    return energy_by_trapezoid(readings, t0, t1)


def window_fault(
    readings: Sequence[Reading], t0: float, t1: float, *, kind: Kind, period_s: float
) -> str | None:
    """Why a window must be refused, or None if its readings are good enough.

    Args:
        readings: in order of time.
        t0: start of the window.
        t1: end of the window.
        kind: what the source gives: the gap rule is laxer for a counter.
        period_s: nominal sampling period in seconds.
    """
    points = _points(readings, kind)
    n, coverage = _inside(points, t0, t1)
    if n < MIN_SAMPLES:
        failures = sorted({item.reason for item in readings if item.reason and t0 <= item.time_s <= t1})
        return f"{n} samples in the window, {MIN_SAMPLES} are needed" + "".join(
            f" ({text})" for text in failures
        )
    if coverage < MIN_COVERAGE:
        return f"the samples cover {coverage:.2f} of the window, {MIN_COVERAGE} is needed"
    around = _around(points, t0, t1)
    if isinstance(around, str):
        return around
    most_s = MAX_GAP_PERIODS * period_s
    pairs = list(pairwise(around))
    for position, (before, after) in enumerate(pairs):
        gap_s = after[0] - before[0]
        at_edge = position in (0, len(pairs) - 1)
        if gap_s > most_s and (kind == "power" or at_edge or after[1] < before[1]):
            return f"a gap of {gap_s:.3g} s between samples, at most {most_s:.3g} s is allowed"
    return None


def one_second_means(
    readings: Sequence[Reading], t0: float, t1: float, kind: Kind, range_j: float | None = None
) -> list[float]:
    """Mean power in watts of each whole second from t0 on; seconds without a valid integral are left out."""
    means = []
    for second in range(int(t1 - t0 + 1e-9)):
        energy_j = energy_of(readings, t0 + second, t0 + second + 1, kind, range_j).energy_j
        if energy_j is not None:
            means.append(energy_j)
    return means
