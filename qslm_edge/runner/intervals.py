"""Confidence intervals of percentiles and of a mean, from samples in the order in which they were taken.

Percentiles by order statistics, without an assumption on the distribution: with B samples below the true
quantile q of probability p, B is Binomial(n, p), so [x(l), x(u)] misses q with at most 5 % when l is the
largest rank with P(B <= l - 1) <= 0.025 and u the smallest with P(B >= u) <= 0.025. A side whose rank does
not exist is None: the upper one of p95 needs 72 samples, that of p99 368.
The mean by ten consecutive batches (Law, Simulation Modeling and Analysis, ch. 9): neighbouring samples depend
on each other, means of long batches hardly do.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from qslm_edge.metrics import t_quantile

__all__ = ["MIN_MEAN_SAMPLES", "mean_interval", "quantile_interval", "samples_for_interval"]

TAIL = 0.025
BATCHES = 10
MIN_MEAN_SAMPLES = 50


def _ranks(n: int, probability: float) -> tuple[int, int]:
    """Ranks l and u, counted from 1; l = 0 and u = n + 1 where there is none."""
    low, high = 0, n + 1
    below = 0.0
    for k in range(n + 1):
        # log of the binomial term: exact sums would need integers of n bits
        log_term = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        below += math.exp(log_term + k * math.log(probability) + (n - k) * math.log1p(-probability))
        if below <= TAIL:
            low = k + 1  # P(B <= k) is small enough: rank k + 1 is a lower bound
        if 1 - below <= TAIL:
            high = k + 1  # P(B >= k + 1) is small enough
            break
    return low, high


def quantile_interval(ordered: Sequence[float], probability: float) -> tuple[float | None, float | None]:
    """Interval that holds a quantile with 95 % confidence or more.

    Args:
        ordered: samples in rising order.
        probability: of the quantile, between 0 and 1.

    Returns:
        Lower and upper bound; None for a side that the samples are too few for.
    """
    n = len(ordered)
    low, high = _ranks(n, probability)
    return (ordered[low - 1] if low else None), (ordered[high - 1] if high <= n else None)


def samples_for_interval(probability: float) -> int:
    """Samples from which on both sides of the interval of a quantile exist."""
    rarer = max(probability, 1 - probability)
    return math.ceil(math.log(TAIL) / math.log(rarer))


def mean_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean by batch means; None below 50 samples.

    Args:
        samples: in the order measured.
    """
    n = len(samples)
    if n < MIN_MEAN_SAMPLES:
        return None
    edges = [n * batch // BATCHES for batch in range(BATCHES + 1)]
    means = [statistics.fmean(samples[edges[i] : edges[i + 1]]) for i in range(BATCHES)]
    half = t_quantile(1 - TAIL, BATCHES - 1) * statistics.stdev(means) / math.sqrt(BATCHES)
    mean = statistics.fmean(samples)
    return mean - half, mean + half
