"""Latency statistics against values counted by hand, and their rules for short lists."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.errors import EnvironmentFault
from qslm_edge.runner.latency import median_interval, summarise_latency

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
    assert summary.reasons == {}


@pytest.mark.parametrize(
    ("n", "absent"),
    [
        (9, {"p90_s", "p95_s", "p99_s", "drift", "drifted"}),
        (19, {"p95_s", "p99_s", "drift", "drifted"}),
        (99, {"p99_s"}),
    ],
)
def test_short_lists_give_no_high_percentile(n: int, absent: set[str]) -> None:
    summary = summarise_latency([0.01] * n)
    assert {name for name, value in summary.to_dict().items() if value is None} == absent
    assert set(summary.reasons) == absent


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
    interval = median_interval([float(rank) for rank in range(1, n + 1)])
    assert interval is not None
    low, high = int(interval[0]), int(interval[1])
    assert low + high == n + 1
    assert coverage(n, low, high) >= 0.95
    assert coverage(n, low + 1, high - 1) < 0.95


def test_interval_needs_six_samples() -> None:
    assert median_interval([1.0] * 5) is None
    assert median_interval([]) is None


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
