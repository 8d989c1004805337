"""The multiple-choice knapsack for every budget at once: one option from each group, least cost for each size.

Groups are merged one by one, and of all partial choices only those stay that no other beats in size and cost (the
Pareto front). That is exact, since a choice that another beats stays beaten whatever is added to both, and the last
front answers any budget. Sizes of matrices come in few values, so fronts stay small: tens of thousands of points for a
hundred matrices. Above `max_points` the range of sizes is cut into as many buckets and the best of each stays: every
size is still true, a budget is still kept, and what is lost is below one bucket a merge.
Source of the recurrence: Nemhauser and Ullmann 1969; dominance in the multiple-choice knapsack: Kellerer, Pferschy and
Pisinger 2004, ch. 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Frontier", "Options", "solve"]

MAX_POINTS = 2**16


@dataclass(frozen=True, eq=False)
class Options:
    """The options of one group: sizes int64 [n] and costs float64 [n], of which one must be taken."""

    sizes: NDArray[np.int64]
    costs: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Frontier:
    """Choices that no other beats.

    Attributes:
        sizes: int64 [n], strictly rising.
        costs: float64 [n], strictly falling.
        picks: int16 [n, groups], the option taken from each group.
    """

    sizes: NDArray[np.int64]
    costs: NDArray[np.float64]
    picks: NDArray[np.int16]

    def best_within(self, size: int) -> int | None:
        """Index of the choice of least cost that is no larger; None when all are larger."""
        place = int(np.searchsorted(self.sizes, size, side="right")) - 1
        return place if place >= 0 else None


def solve(groups: Sequence[Options], max_points: int = MAX_POINTS) -> Frontier:
    """The front over all ways to take one option from each group.

    Args:
        groups: at least one option each.
        max_points: most points of a front that is carried on.

    Returns:
        The front; of choices of equal size and cost, the first in the order of the options.
    """
    sizes, costs = np.zeros(1, np.int64), np.zeros(1)
    picks = np.zeros((1, 0), np.int16)
    for group in groups:
        own = _undominated(
            group.sizes, group.costs
        )  # many of a group with many options never come into question
        n = len(own)
        all_sizes = (sizes[:, None] + group.sizes[own]).ravel()
        all_costs = (costs[:, None] + group.costs[own]).ravel()
        kept = _thin(_undominated(all_sizes, all_costs), all_sizes, max_points)
        sizes, costs = all_sizes[kept], all_costs[kept]
        picks = np.column_stack([picks[kept // n], own[kept % n].astype(np.int16)])
    return Frontier(sizes, costs, picks)


def _undominated(sizes: NDArray[np.int64], costs: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of what nothing beats in size and cost, by rising size; of equals the first."""
    order = np.lexsort((costs, sizes))
    best = np.minimum.accumulate(costs[order])
    better = np.concatenate([[True], best[1:] < best[:-1]])
    found: NDArray[np.int64] = order[better]
    return found


def _thin(front: NDArray[np.int64], sizes: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """The smallest choice, and the last of each bucket of sizes, which costs least there."""
    if len(front) <= most:
        return front
    low, high = sizes[front[0]], sizes[front[-1]]
    bucket = (sizes[front] - low) * (most - 1) // (high - low + 1)
    last = np.concatenate([bucket[1:] != bucket[:-1], [True]])
    last[0] = True
    kept: NDArray[np.int64] = front[last]
    return kept
