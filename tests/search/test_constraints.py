"""Budgets: what fits, to the byte, and what is said when it does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qslm_edge.quantize.accounting import predict_peak_rss_bytes, weight_bytes
from qslm_edge.quantize.levels import Setting, parse_level
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.search.constraints import Constraints


@pytest.fixture(scope="module")
def store(make_store: Callable[..., WeightStore]) -> WeightStore:
    return make_store()


def test_budgets_are_met_to_the_byte(store: WeightStore) -> None:
    hierarchy = store.hierarchy
    setting = Setting.uniform((m.name for m in hierarchy.modules), parse_level("8g64"))
    weights, peak = weight_bytes(hierarchy, setting), predict_peak_rss_bytes(hierarchy, setting)
    assert Constraints(1.0).memory_violation(hierarchy, setting) is None
    assert Constraints(1.0, weights, peak).memory_violation(hierarchy, setting) is None
    assert Constraints(1.0, weights, None).memory_violation(hierarchy, setting) is None
    assert Constraints(1.0, weights - 1, peak).memory_violation(hierarchy, setting) == (
        f"weights {weights / 1e6:.2f} MB > budget {(weights - 1) / 1e6:.2f} MB"
    )
    violation = Constraints(1.0, None, peak - 10**6).memory_violation(hierarchy, setting)
    assert violation is not None
    assert violation.startswith(f"predicted peak RSS {peak / 1e6:.0f} MB > budget")
