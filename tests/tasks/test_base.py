"""Choosing items: even spread and the fixed order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.errors import UsageError
from qslm_edge.tasks.base import check_request, evenly_spread, fixed_order


@given(total=st.integers(1, 2000), count=st.integers(1, 2000))
def test_spread_is_distinct_ascending_and_even(total: int, count: int) -> None:
    chosen = evenly_spread(total, count)
    assert len(chosen) == min(total, count)
    assert 0 <= chosen[0] <= chosen[-1] < total
    steps = np.diff(chosen)
    assert not len(steps) or (steps.min() >= 1 and steps.max() - steps.min() <= 1)
    assert abs(chosen[0] - (total - 1 - chosen[-1])) <= 1  # as much room before as after


def test_spread_of_everything() -> None:
    assert evenly_spread(3, None) == [0, 1, 2]


def test_fixed_order_is_pinned() -> None:
    """A change here changes every search and the items of every bundle."""
    assert fixed_order(range(10)) == [7, 8, 5, 4, 9, 2, 1, 3, 0, 6]


@given(st.lists(st.integers(0, 10**6), unique=True), st.integers(0, 10))
def test_fixed_order_is_a_permutation_that_ignores_the_input_order(numbers: list[int], cut: int) -> None:
    ordered = fixed_order(numbers)
    assert sorted(ordered) == sorted(numbers)
    assert fixed_order(numbers[cut:] + numbers[:cut]) == ordered


def test_fixed_order_looks_random() -> None:
    ordered = np.array(fixed_order(range(600)))
    assert abs(np.corrcoef(np.arange(600), ordered)[0, 1]) < 0.1
    assert abs(np.corrcoef(ordered[:-1], ordered[1:])[0, 1]) < 0.1


@pytest.mark.parametrize(("window", "limit"), [(0, None), (512, 0), (512, -3)])
def test_requests_below_one(window: int, limit: int | None) -> None:
    with pytest.raises(UsageError, match="must be 1 or more"):
        check_request(window, limit)
