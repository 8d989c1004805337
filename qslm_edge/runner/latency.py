"""Latency statistics from raw samples in seconds.

Percentiles are the nearest rank, x[ceil(p n)] of the sorted samples, so that each is a time that occurred;
p50 is the usual median. A percentile needs n >= 1 / (1 - p) samples, else it would only be the maximum; its
interval (`intervals.py`) needs more. Intervals of percentiles take samples as independent: a drift of the
clock makes them too narrow, which is why the drift is reported beside them.
Outliers are samples beyond median + 5 MAD, MAD being the median absolute deviation. Where they are more than
5 % of all, the p95 is a figure of what disturbed the run, and that is flagged.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qslm_edge.errors import EnvironmentFault
from qslm_edge.runner.intervals import (
    MIN_MEAN_SAMPLES,
    mean_interval,
    quantile_interval,
    samples_for_interval,
)

__all__ = ["DRIFT_LIMIT", "OUTLIER_LIMIT", "LatencySummary", "summarise_latency"]

DRIFT_LIMIT = 0.05
MIN_SPREAD_SAMPLES = 20
OUTLIER_MADS = 5.0
OUTLIER_LIMIT = 0.05
MAX_SAMPLE_S = 1e9


@dataclass(frozen=True)
class LatencySummary:
    """What a list of latencies says; a statistic that the list is too short for is None.

    Args:
        n: number of samples.
        mean_s, min_s, p50_s, p90_s, p95_s, p99_s, max_s: seconds per sample.
        ci95_low_s, ci95_high_s: 95 % confidence interval of the median.
        p90_ci95_low_s, ..., p99_ci95_high_s: the same of the other percentiles.
        mean_ci95_low_s, mean_ci95_high_s: the same of the mean.
        total_s: sum of the samples.
        tokens_per_sample: tokens that one sample stands for.
        tokens_per_s_median: tokens_per_sample / p50_s, the typical speed.
        tokens_per_s_total: all tokens over total_s, the speed that a user sees over the whole run.
        tokens_per_s_ci95_low, tokens_per_s_ci95_high: interval of tokens_per_s_total, from that of the mean.
        drift: median of the second half over that of the first, less 1; positive means it became slower.
        drifted: True if the drift is larger than DRIFT_LIMIT either way.
        mad_s: median absolute deviation from the median.
        outlier_limit_s: p50_s + 5 mad_s.
        n_outliers, outlier_share: samples beyond it, and their share.
        disturbed: True if the share is larger than OUTLIER_LIMIT.
        flags: what makes the figures doubtful, in words.
        reasons: name of each field that is None, and why.
    """

    n: int
    mean_s: float | None
    min_s: float | None
    p50_s: float | None
    p90_s: float | None
    p95_s: float | None
    p99_s: float | None
    max_s: float | None
    ci95_low_s: float | None
    ci95_high_s: float | None
    p90_ci95_low_s: float | None
    p90_ci95_high_s: float | None
    p95_ci95_low_s: float | None
    p95_ci95_high_s: float | None
    p99_ci95_low_s: float | None
    p99_ci95_high_s: float | None
    mean_ci95_low_s: float | None
    mean_ci95_high_s: float | None
    total_s: float
    tokens_per_sample: int
    tokens_per_s_median: float | None
    tokens_per_s_total: float | None
    tokens_per_s_ci95_low: float | None
    tokens_per_s_ci95_high: float | None
    drift: float | None
    drifted: bool | None
    mad_s: float | None
    outlier_limit_s: float | None
    n_outliers: int | None
    outlier_share: float | None
    disturbed: bool | None
    flags: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """All fields, ready for JSON."""
        return dataclasses.asdict(self) | {"flags": list(self.flags)}


class _Reasons(dict[str, str]):
    """Why fields are None, filled while they are computed."""

    def needs(self, names: Sequence[str], n: int, count: int) -> bool:
        """Whether n samples are `count` or more; if not, that is the reason of the fields."""
        if n < count:
            self.update(dict.fromkeys(names, f"needs {count} samples, there are {n}"))
        return n >= count


def summarise_latency(samples_s: Sequence[float], *, tokens_per_sample: int = 1) -> LatencySummary:
    """Derive every statistic from raw samples; keep the samples beside it.

    Args:
        samples_s: one duration per step in seconds, in the order measured (the drift needs the order).
        tokens_per_sample: tokens worked off in one step.

    Returns:
        The summary; with no samples all statistics are None.

    Raises:
        EnvironmentFault: a sample is negative, not finite or beyond 1e9 s, so the clock cannot be trusted.
    """
    _check(samples_s, tokens_per_sample)
    ordered, n, reasons = sorted(samples_s), len(samples_s), _Reasons()
    reasons.needs(("mean_s", "min_s", "p50_s", "max_s"), n, 1)
    p50_s = statistics.median(ordered) if n else None
    total_s = math.fsum(ordered)
    mean = mean_interval(samples_s)
    reasons.needs(("mean_ci95_low_s", "mean_ci95_high_s"), n, MIN_MEAN_SAMPLES)

    def speed(name: str, tokens: int, seconds: float | None) -> float | None:
        if seconds is None:
            reasons[name] = reasons.get("mean_ci95_low_s", "no samples") if n else "no samples"
        elif seconds <= 0:
            reasons[name] = "the clock is too coarse: the duration is 0"
        return tokens / seconds if seconds and seconds > 0 else None

    percentiles: dict[str, Any] = {}
    for percent in (90, 95, 99):
        name = f"p{percent}_s"
        enough = reasons.needs((name,), n, 100 // (100 - percent))
        percentiles[name] = ordered[-(-percent * n // 100) - 1] if enough else None
        percentiles |= _interval(f"p{percent}_ci95", ordered, percent / 100, reasons)
    drift = _drift(samples_s, reasons)
    spread = _spread(ordered, p50_s, reasons)
    drifted = None if drift is None else abs(drift) > DRIFT_LIMIT
    flags = []
    if drifted:
        flags.append(f"latency: the second half is {100 * (drift or 0):+.1f} % against the first")
    if spread["disturbed"]:
        flags.append(
            f"latency: {100 * (spread['outlier_share'] or 0):.1f} % of the steps lie beyond the median plus "
            f"{OUTLIER_MADS:g} median absolute deviations"
        )
    return LatencySummary(
        n=n,
        mean_s=total_s / n if n else None,
        min_s=ordered[0] if n else None,
        p50_s=p50_s,
        max_s=ordered[-1] if n else None,
        **_interval("ci95", ordered, 0.5, reasons),
        **percentiles,
        mean_ci95_low_s=None if mean is None else mean[0],
        mean_ci95_high_s=None if mean is None else mean[1],
        total_s=total_s,
        tokens_per_sample=tokens_per_sample,
        tokens_per_s_median=speed("tokens_per_s_median", tokens_per_sample, p50_s),
        tokens_per_s_total=speed("tokens_per_s_total", tokens_per_sample * n, total_s if n else None),
        tokens_per_s_ci95_low=speed("tokens_per_s_ci95_low", tokens_per_sample, mean[1] if mean else None),
        tokens_per_s_ci95_high=speed("tokens_per_s_ci95_high", tokens_per_sample, mean[0] if mean else None),
        drift=drift,
        drifted=drifted,
        **spread,
        flags=tuple(flags),
        reasons=dict(reasons),
    )


def _check(samples_s: Sequence[float], tokens_per_sample: int) -> None:
    if tokens_per_sample < 1:
        raise EnvironmentFault("a latency sample must stand for at least one token", found=tokens_per_sample)
    for position, sample in enumerate(samples_s):
        if not 0 <= sample <= MAX_SAMPLE_S:  # NaN fails this too
            raise EnvironmentFault(
                "a duration is out of range",
                where=f"latency sample {position}",
                found=f"{sample} s",
                allowed=f"0 to {MAX_SAMPLE_S:g} s",
                hint="the clock of this machine cannot be used for timing",
            )


def _interval(name: str, ordered: Sequence[float], probability: float, reasons: _Reasons) -> dict[str, Any]:
    """Both bounds of a percentile under their names."""
    low, high = quantile_interval(ordered, probability)
    bounds = {f"{name}_low_s": low, f"{name}_high_s": high}
    absent = [key for key, value in bounds.items() if value is None]
    reasons.needs(absent, len(ordered), samples_for_interval(probability))
    return bounds


def _drift(samples_s: Sequence[float], reasons: _Reasons) -> float | None:
    n = len(samples_s)
    if not reasons.needs(("drift", "drifted"), n, MIN_SPREAD_SAMPLES):
        return None
    first = statistics.median(samples_s[: n // 2])
    second = statistics.median(samples_s[n - n // 2 :])
    if first > 0:
        return second / first - 1
    text = "the clock is too coarse: the first half has a median of 0"
    reasons.update(drift=text, drifted=text)
    return None


_SPREAD = ("mad_s", "outlier_limit_s", "n_outliers", "outlier_share", "disturbed")


def _spread(ordered: Sequence[float], p50_s: float | None, reasons: _Reasons) -> dict[str, Any]:
    """The fields of the outliers."""
    n = len(ordered)
    absent: dict[str, Any] = dict.fromkeys(_SPREAD)
    if not reasons.needs(_SPREAD, n, MIN_SPREAD_SAMPLES) or p50_s is None:
        return absent
    mad_s = statistics.median([abs(sample - p50_s) for sample in ordered])
    if mad_s == 0:  # every other sample would count as one
        why = "more than half of the samples are equal: the clock is too coarse to tell outliers"
        reasons.update(dict.fromkeys(_SPREAD[1:], why))
        return absent | {"mad_s": 0.0}
    limit_s = p50_s + OUTLIER_MADS * mad_s
    count = sum(sample > limit_s for sample in ordered)
    share = count / n
    return dict(zip(_SPREAD, (mad_s, limit_s, count, share, share > OUTLIER_LIMIT), strict=True))
