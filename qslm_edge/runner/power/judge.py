"""From the readings of all phases to figures with their uncertainty, or to the reason why there are none.

gross = E_run / tokens, and net = (E_run - P_idle_loaded x T) / tokens, over the run window of length T.
With s the standard deviation of the idle power in means of 1 s and r the step of the interface, a net energy
below 3 s T or below r T is below resolution and not a number. If the idle power after the run differs from
the one before by more than 3 s or 5 %, the baseline has drifted. A window that breaks a rule of the
integrator is rejected.
The uncertainty adds in squares: the error at the edges, half a step times T (twice for net, which is a
difference of two powers), for net two standard errors of the idle power times T, and for an external meter
what a shift of the clocks would change. Calibration of the instrument is not in it.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

from qslm_edge.runner.power.base import PowerSource, Reading
from qslm_edge.runner.power.integrate import energy_of, one_second_means, window_fault
from qslm_edge.runner.power.result import EnergyResult

__all__ = ["judge_run", "longest_standstill_s"]

DRIFT_SHARE = 0.05
NOISE_FACTOR = 3.0
MIN_MEANS = 3
TAIL_S = 1.0  # left out after the run: one update of a counter at run power would pass for idle power


def longest_standstill_s(readings: Sequence[Reading], start_s: float, end_s: float) -> float | None:
    """Longest time between two changes of the value within a window; None if it changed less than twice."""
    changes: list[float] = []
    last: float | None = None
    for item in readings:
        value = item.power_w if item.energy_j is None else item.energy_j
        if value is None or not start_s <= item.time_s <= end_s:
            continue
        if last is not None and value != last:
            changes.append(item.time_s)
        last = value
    return max((b - a for a, b in pairwise(changes)), default=None)


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


def judge_run(
    source: PowerSource,
    readings: tuple[Reading, ...],
    phases: Mapping[str, tuple[float, float]],
    tokens: int,
    rate_hz: float,
    alignment_errors_j: tuple[float | None, float | None] | None = None,
) -> EnergyResult:
    """Turn the readings of all phases into a result.

    Args:
        source: where the readings are from.
        readings: in order of time.
        phases: edges of each phase, on the clock of the readings.
        tokens: exact number of tokens of the run.
        rate_hz: nominal sampling rate.
        alignment_errors_j: for an external meter, by how much a shift of the clocks would change gross and net
            energy; None where no clocks had to be aligned.
    """
    if source.deferred is not None:
        return EnergyResult(
            "unavailable",
            source.deferred,
            source.to_dict(),
            duration_s=phases["run"][1] - phases["run"][0],
            tokens=tokens,
            phases=phases,
        )
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
    update_s = source.update_s
    if update_s is None:
        update_s = longest_standstill_s(readings, first_s, end_s)
    resolution_w = 0.0 if source.kind == "counter" else source.resolution_w
    measured = dataclasses.replace(
        base,
        status="measured",
        energy_j=energy_j,
        gross_j_per_token=energy_j / tokens,
        mean_w=mean_w,
        peak_w=None if peak is None else peak[0],
        peak_method=None if peak is None else peak[1],
        edge_error_j=None if update_s is None else update_s * mean_w,
        resolution_error_j=None if resolution_w is None else resolution_w / 2 * duration_s,
        alignment_error_j=None if alignment_errors_j is None else alignment_errors_j[0],
        board_j_per_token=None
        if source.estimate is None
        else source.estimate.board_w(mean_w) * duration_s / tokens,
    )
    measured = _with_idle(measured, source, energy_j, tokens, rate_hz)
    return _with_uncertainty(measured, tokens, alignment_errors_j or (0.0, 0.0))


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
    step_w = source.resolution_w or 0.0
    net_j = energy_j - idle_w * duration_s
    net_reason: str | None = None
    if noise_w is None:
        net_reason = f"the idle phase is shorter than {MIN_MEANS} s, so that its noise is not known"
    else:
        least_w = max(NOISE_FACTOR * noise_w, step_w)
        if net_j <= 0 or net_j < least_w * duration_s:
            cause = "the idle noise" if NOISE_FACTOR * noise_w >= step_w else "one step of the interface"
            net_reason = (
                f"below resolution: {net_j:.3g} J net, while {cause} is worth {least_w * duration_s:.3g} J"
            )
    drift: bool | None = None
    if after_w is not None:
        change_w = abs(after_w - idle_w)
        drift = change_w > DRIFT_SHARE * abs(idle_w)
        drift = drift or (noise_w is not None and change_w > NOISE_FACTOR * noise_w)
    return dataclasses.replace(
        run,
        idle_noise_w=noise_w,
        idle_error_j=None if noise_w is None else 2 * noise_w / math.sqrt(len(means_w)) * duration_s,
        net_energy_j=net_j,
        net_j_per_token=net_j / tokens if net_reason is None else None,
        net_reason=net_reason,
        drift=drift,
        drift_reason=None if drift is not None else f"no idle power after the run: {after_reason}",
    )


def _with_uncertainty(
    run: EnergyResult, tokens: int, alignment_errors_j: tuple[float | None, float | None]
) -> EnergyResult:
    """Add what the known errors come to, and say which are not known."""
    parts = {
        "update of the interface": run.edge_error_j,
        "resolution of the interface": run.resolution_error_j,
        "alignment of the clocks": alignment_errors_j[0],
    }
    missing = [name for name, error_j in parts.items() if error_j is None]
    edge_j, step_j = run.edge_error_j or 0.0, run.resolution_error_j or 0.0
    gross_j = math.hypot(edge_j, step_j, alignment_errors_j[0] or 0.0)
    net_j: float | None = None
    if run.net_j_per_token is not None and run.idle_error_j is not None:
        net_j = math.hypot(edge_j, step_j, step_j, alignment_errors_j[1] or 0.0, run.idle_error_j)
    return dataclasses.replace(
        run,
        gross_uncertainty_j_per_token=gross_j / tokens if gross_j > 0 else None,
        net_uncertainty_j_per_token=None if net_j is None else net_j / tokens,
        uncertainty_reason=f"not known and left out: {', '.join(missing)}" if missing else None,
    )
