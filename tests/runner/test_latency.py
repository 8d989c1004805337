"""Latency statistics against values counted by hand, and their rules for short lists."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.errors import EnvironmentFault
from qslm_edge.runner.intervals import mean_interval, quantile_interval, samples_for_interval
from qslm_edge.runner.latency import summarise_latency

SPREAD = ("mad_s", "outlier_limit_s", "n_outliers", "outlier_share", "disturbed")
MEAN = ("mean_ci95_low_s", "mean_ci95_high_s", "tokens_per_s_ci95_low", "tokens_per_s_ci95_high")
BOUNDS = tuple(f"p{percent}_ci95_{side}_s" for percent in (90, 95, 99) for side in ("low", "high"))
TIMES = st.lists(st.floats(min_value=1e-6, max_value=1e3), max_size=300)


def test_a_hundred_steps() -> None:
    summary = summarise_latency([step / 1000 for step in range(100, 0, -1)], tokens_per_sample=2)
    assert summary.n == 100
    assert (summary.p50_s, summary.p90_s, summary.p95_s) == (0.0505, 0.090, 0.095)
    assert (summary.p99_s, summary.min_s, summary.max_s) == (0.099, 0.001, 0.1)
    assert summary.mean_s == pytest.approx(0.0505)
    assert summary.tokens_per_s_median == pytest.approx(2 / 0.0505)
    assert summary.tokens_per_s_total == pytest.approx(200 / 5.05)
    assert (summary.ci95_low_s, summary.ci95_high_s) == (0.040, 0.061)  # ranks 40 and 61 of 100
    assert summary.drift == pytest.approx(0.0255 / 0.0755 - 1)
    assert summary.drifted is True
    assert (summary.p90_ci95_low_s, summary.p90_ci95_high_s) == (0.084, 0.096)
    assert (summary.p95_ci95_low_s, summary.p95_ci95_high_s) == (0.090, 0.100)
    assert (summary.mad_s, summary.n_outliers) == (0.025, 0)
    assert set(summary.reasons) == {"p99_ci95_high_s"}
    assert summary.flags == ("latency: the second half is -66.2 % against the first",)


@pytest.mark.parametrize(
    ("n", "absent"),
    [
        (9, {"p90_s", "p95_s", "p99_s", "drift", "drifted", *SPREAD, *MEAN, *BOUNDS}),
        (19, {"p95_s", "p99_s", "drift", "drifted", *SPREAD, *MEAN, *BOUNDS}),
        (49, {"p99_s", *MEAN, "p95_ci95_high_s", "p99_ci95_low_s", "p99_ci95_high_s"}),
        (99, {"p99_s", "p99_ci95_high_s"}),
        (368, set()),
    ],
)
def test_short_lists_give_no_high_percentile(n: int, absent: set[str]) -> None:
    """What is there for n samples; the lower bounds of high percentiles come early."""
    summary = summarise_latency([0.01 + 1e-6 * step for step in range(n)])
    found = {name for name, value in summary.to_dict().items() if value is None}
    early = {name for name in absent if name.endswith("_ci95_low_s") and name[0] == "p"}
    assert absent - early <= found <= absent
    assert set(summary.reasons) == found


def test_reason_names_the_number_of_samples() -> None:
    assert summarise_latency([0.01] * 37).reasons["p99_s"] == "needs 100 samples, there are 37"


def test_no_samples() -> None:
    summary = summarise_latency([])
    assert (summary.n, summary.total_s) == (0, 0)
    assert summary.p50_s is None
    assert summary.tokens_per_s_total is None
    assert set(summary.reasons) == {name for name, value in summary.to_dict().items() if value is None}


def test_a_clock_too_coarse_gives_no_speed() -> None:
    summary = summarise_latency([0.0] * 30)
    assert summary.tokens_per_s_median is None
    assert "too coarse" in summary.reasons["tokens_per_s_median"]
    assert "too coarse" in summary.reasons["drift"]


@pytest.mark.parametrize("bad", [-1e-9, math.nan, math.inf, 1e300])
def test_impossible_durations_are_refused(bad: float) -> None:
    with pytest.raises(EnvironmentFault, match="latency sample 1: a duration is out of range"):
        summarise_latency([0.1, bad])


def test_a_sample_of_no_token_is_refused() -> None:
    with pytest.raises(EnvironmentFault, match="at least one token"):
        summarise_latency([0.1], tokens_per_sample=0)


@pytest.mark.parametrize(("second", "drifted"), [(0.0104, False), (0.0106, True), (0.0094, True)])
def test_drift_compares_the_halves(second: float, drifted: bool) -> None:
    summary = summarise_latency([0.01] * 50 + [second] * 50)
    assert summary.drift == pytest.approx(second / 0.01 - 1)
    assert summary.drifted is drifted


def coverage(n: int, low: int, high: int) -> float:
    """P(x(low) <= median <= x(high)) for n samples, ranks from 1, in exact integers."""
    return float(Fraction(sum(math.comb(n, k) for k in range(low, high)), 2**n))


@pytest.mark.parametrize("n", [6, 7, 8, 20, 37, 100, 501, 1000])
def test_interval_of_the_median_covers_95_percent_and_no_more_than_needed(n: int) -> None:
    interval = quantile_interval([float(rank) for rank in range(1, n + 1)], 0.5)
    assert interval[0] is not None
    assert interval[1] is not None
    low, high = int(interval[0]), int(interval[1])
    assert low + high == n + 1
    assert coverage(n, low, high) >= 0.95
    assert coverage(n, low + 1, high - 1) < 0.95


def test_interval_needs_six_samples() -> None:
    assert quantile_interval([1.0] * 5, 0.5) == (None, None)
    assert quantile_interval([], 0.5) == (None, None)


def exact_coverage(n: int, low: int, high: int, p: Fraction) -> float:
    """P(x(low) <= quantile <= x(high)), ranks from 1, in exact fractions; high = n + 1 is no bound."""
    return float(sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(low, high)))


@pytest.mark.parametrize("percent", [90, 95, 99])
@pytest.mark.parametrize("n", [20, 37, 72, 100, 368, 500])
def test_interval_of_a_high_percentile_covers_95_percent(n: int, percent: int) -> None:
    p = Fraction(percent, 100)
    low, high = quantile_interval([float(rank) for rank in range(1, n + 1)], float(p))
    assert (high is None) == (n < samples_for_interval(float(p)))
    ranks = int(low or 0), int(high or n + 1)
    assert exact_coverage(n, *ranks, p) >= 0.95
    assert exact_coverage(n, ranks[0] + 1, n + 1, p) < 0.975  # neither bound could be closer
    if high is not None:
        assert exact_coverage(n, 0, ranks[1] - 1, p) < 0.975


def test_samples_that_an_interval_needs() -> None:
    assert [samples_for_interval(p) for p in (0.5, 0.9, 0.95, 0.99)] == [6, 36, 72, 368]


def test_interval_of_the_mean_counts_slow_waves_as_one() -> None:
    """Samples that depend on their neighbours: the interval by batches is as wide as the waves make it."""
    waves = [1.0 + 0.1 * (step // 40 % 2) for step in range(400)]
    low, high = mean_interval(waves) or (math.nan, math.nan)
    assert low < 1.05 < high
    naive = 2 * 1.96 * 0.05 / math.sqrt(400)
    assert high - low > 3 * naive
    assert mean_interval([1.0] * 49) is None
    assert mean_interval([1.0] * 50) == (1.0, 1.0)


@pytest.mark.parametrize(("outliers", "disturbed"), [(0, False), (5, False), (6, True)])
def test_outliers_are_counted_and_flagged_from_5_percent_on(outliers: int, disturbed: bool) -> None:
    quiet = [0.010 + 0.0001 * (step % 3) for step in range(100 - outliers)]
    samples = quiet[: len(quiet) // 2] + [0.05] * outliers + quiet[len(quiet) // 2 :]
    summary = summarise_latency(samples)
    assert (summary.n_outliers, summary.disturbed) == (outliers, disturbed)
    assert any("median absolute deviations" in flag for flag in summary.flags) == disturbed


def test_equal_samples_have_no_outliers_that_could_be_told() -> None:
    summary = summarise_latency([0.01] * 60 + [0.5] * 20)
    assert (summary.mad_s, summary.outlier_share, summary.disturbed) == (0.0, None, None)
    assert "too coarse" in summary.reasons["outlier_share"]


@given(TIMES)
def test_statistics_are_in_order_and_json(samples: list[float]) -> None:
    summary = summarise_latency(samples)
    values = [summary.min_s, summary.p50_s, summary.p90_s, summary.p95_s, summary.p99_s, summary.max_s]
    known = [value for value in values if value is not None]
    assert known == sorted(known)
    if summary.ci95_low_s is not None and summary.p50_s is not None and summary.ci95_high_s is not None:
        assert summary.ci95_low_s <= summary.p50_s <= summary.ci95_high_s
    assert json.loads(json.dumps(summary.to_dict()))["n"] == len(samples)


@given(TIMES.filter(lambda samples: len(samples) > 0), st.integers(min_value=1, max_value=9))
def test_scale_of_time_is_scale_of_statistics(samples: list[float], factor: int) -> None:
    one, other = summarise_latency(samples), summarise_latency([factor * sample for sample in samples])
    assert other.p50_s == pytest.approx(factor * (one.p50_s or 0))
    assert other.tokens_per_s_total == pytest.approx((one.tokens_per_s_total or 0) / factor)
