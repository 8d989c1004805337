"""Latency statistics from raw samples in seconds.

Percentiles are the nearest rank, x[ceil(p n)] of the sorted samples, so that each is a time that occurred;
p50 is the usual median. A percentile needs n >= 1 / (1 - p) samples, else it would only be the maximum.
The interval of the median is by order statistics: [x(k), x(n+1-k)] with the largest k for which
P(Binomial(n, 1/2) <= k - 1) <= 0.025. It assumes nothing of the distribution, but that samples are
independent: a drift of the clock makes it too narrow, which is why the drift is reported beside it.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qslm_edge.errors import EnvironmentFault

__all__ = ["DRIFT_LIMIT", "LatencySummary", "median_interval", "summarise_latency"]

DRIFT_LIMIT = 0.05
DRIFT_MIN_SAMPLES = 20
MAX_SAMPLE_S = 1e9
TAIL = 0.025


@dataclass(frozen=True)
class LatencySummary:
    """What a list of latencies says; a statistic that the list is too short for is None.

    Args:
        n: number of samples.
        mean_s, min_s, p50_s, p90_s, p95_s, p99_s, max_s: seconds per sample.
        ci95_low_s, ci95_high_s: 95 % confidence interval of the median.
        total_s: sum of the samples.
        tokens_per_sample: tokens that one sample stands for.
        tokens_per_s_median: tokens_per_sample / p50_s, the typical speed.
        tokens_per_s_total: all tokens over total_s, the speed that a user sees over the whole run.
        drift: median of the second half over that of the first, less 1; positive means it became slower.
        drifted: True if the drift is larger than DRIFT_LIMIT either way.
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
    total_s: float
    tokens_per_sample: int
    tokens_per_s_median: float | None
    tokens_per_s_total: float | None
    drift: float | None
    drifted: bool | None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """All fields, ready for JSON."""
        return dataclasses.asdict(self)


def median_interval(ordered: Sequence[float]) -> tuple[float, float] | None:
    """Interval that holds the median with 95 % confidence or more; None below 6 samples.

    Args:
        ordered: samples in rising order.
    """
    n = len(ordered)
    below, k = 0.0, 0
    while k < n // 2:
        # log of the binomial coefficient: exact sums would need integers of n bits
        log_term = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
        below += math.exp(log_term)
        if below > TAIL:
            break
        k += 1
    return None if k == 0 else (ordered[k - 1], ordered[n - k])


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
    ordered = sorted(samples_s)
    n = len(ordered)
    reasons: dict[str, str] = {}

    def needs(name: str, count: int) -> bool:
        if n < count:
            reasons[name] = f"needs {count} samples, there are {n}"
        return n >= count

    def percentile(name: str, percent: int) -> float | None:
        if not needs(name, 100 // (100 - percent)):
            return None
        return ordered[-(-percent * n // 100) - 1]

    def speed(name: str, tokens: int, seconds: float | None) -> float | None:
        if not seconds:
            reasons[name] = "no samples" if seconds is None else "the clock is too coarse: the duration is 0"
            return None
        return tokens / seconds

    total_s = math.fsum(ordered)
    some = n > 0
    if not some:
        reasons.update(dict.fromkeys(("mean_s", "min_s", "p50_s", "max_s"), "no samples"))
    p50_s = statistics.median(ordered) if some else None
    interval = median_interval(ordered)
    if interval is None:
        reasons["ci95_low_s"] = reasons["ci95_high_s"] = f"needs 6 samples, there are {n}"
    drift: float | None = None
    if needs("drift", DRIFT_MIN_SAMPLES):
        first = statistics.median(samples_s[: n // 2])
        second = statistics.median(samples_s[n - n // 2 :])
        if first > 0:
            drift = second / first - 1
        else:
            reasons["drift"] = "the clock is too coarse: the first half has a median of 0"
    if drift is None:
        reasons["drifted"] = reasons["drift"]
    return LatencySummary(
        n=n,
        mean_s=total_s / n if some else None,
        min_s=ordered[0] if some else None,
        p50_s=p50_s,
        p90_s=percentile("p90_s", 90),
        p95_s=percentile("p95_s", 95),
        p99_s=percentile("p99_s", 99),
        max_s=ordered[-1] if some else None,
        ci95_low_s=None if interval is None else interval[0],
        ci95_high_s=None if interval is None else interval[1],
        total_s=total_s,
        tokens_per_sample=tokens_per_sample,
        tokens_per_s_median=speed("tokens_per_s_median", tokens_per_sample, p50_s),
        tokens_per_s_total=speed("tokens_per_s_total", tokens_per_sample * n, total_s if some else None),
        drift=drift,
        drifted=None if drift is None else abs(drift) > DRIFT_LIMIT,
        reasons=reasons,
    )
