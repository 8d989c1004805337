"""The front of the multiple-choice knapsack against trying every choice."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.search.knapsack import Options, solve

option = st.tuples(st.integers(0, 12), st.sampled_from([0.0, 0.5, 1.0, 1.5, 4.0]))
problems = st.lists(st.lists(option, min_size=1, max_size=4), min_size=1, max_size=5)
Problem = list[list[tuple[int, float]]]


def options(problem: Problem) -> list[Options]:
    return [
        Options(np.array([size for size, _ in group], np.int64), np.array([cost for _, cost in group]))
        for group in problem
    ]


def every_choice(problem: Problem) -> list[tuple[int, float]]:
    return [(sum(s for s, _ in taken), sum(c for _, c in taken)) for taken in product(*problem)]


@given(problem=problems)
def test_every_budget_is_answered_as_by_brute_force(problem: Problem) -> None:
    front, choices = solve(options(problem)), every_choice(problem)
    for budget in range(-1, 62):
        costs = [cost for size, cost in choices if size <= budget]
        index = front.best_within(budget)
        assert (index is None) == (not costs)
        if index is not None:
            assert front.costs[index] == min(costs)
            assert front.sizes[index] <= budget


@given(problem=problems)
def test_picks_are_what_sizes_and_costs_say(problem: Problem) -> None:
    front = solve(options(problem))
    for size, cost, picks in zip(front.sizes, front.costs, front.picks, strict=True):
        taken = [group[pick] for group, pick in zip(problem, picks, strict=True)]
        assert (sum(s for s, _ in taken), sum(c for _, c in taken)) == (size, cost)
    assert (np.diff(front.sizes) > 0).all()
    assert (np.diff(front.costs) < 0).all()


@pytest.mark.parametrize("most", [8, 64])
def test_a_thinned_front_keeps_budgets_and_loses_little(most: int) -> None:
    rng = np.random.default_rng(0)
    groups = []
    for _ in range(12):
        sizes = np.sort(rng.integers(1000, 9000, 4))
        groups.append(Options(sizes, np.sort(rng.exponential(1, 4))[::-1].copy()))
    whole, thin = solve(groups), solve(groups, most)
    assert len(thin.sizes) <= 4 * most
    assert thin.sizes[0] == whole.sizes[0]
    span = int(whole.sizes[-1] - whole.sizes[0])
    for budget in np.linspace(whole.sizes[0], whole.sizes[-1], 50).astype(int).tolist():
        index = thin.best_within(budget)
        assert index is not None
        assert thin.sizes[index] <= budget
        # at worst every merge gave away one bucket
        looser = whole.best_within(budget - len(groups) * (span // (most - 1) + 1))
        assert looser is None or thin.costs[index] <= whole.costs[looser]
