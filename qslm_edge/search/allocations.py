"""The best predicted setting for every size: levels of matrices by the knapsack, as settings that fit the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qslm_edge.quantize.accounting import predict_peak_rss_bytes
from qslm_edge.quantize.levels import Level, Setting, parse_level
from qslm_edge.search.constraints import Constraints
from qslm_edge.search.knapsack import Frontier, Options, solve
from qslm_edge.search.prediction import Prediction
from qslm_edge.spikegpt.hierarchy import Hierarchy

__all__ = ["Allocations", "allocate"]

CHECKED = 2**11
"""Points whose process peak is predicted one by one where the budget of the peak can bind."""


@dataclass(frozen=True, eq=False)
class Allocations:
    """Settings from the smallest to the best.

    Attributes:
        bytes: weight bytes, int64 [n], strictly rising.
        nats: predicted divergence from the float model, float64 [n], strictly falling.
        options: name and levels of each module, in hierarchy order.
        picks: int8 [n, modules], which of its levels each takes.
    """

    bytes: NDArray[np.int64]
    nats: NDArray[np.float64]
    options: tuple[tuple[str, tuple[Level, ...]], ...]
    picks: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.bytes)

    def setting(self, index: int) -> Setting:
        """The setting of a point."""
        row = self.picks[index]
        return Setting(
            tuple((name, levels[at]) for (name, levels), at in zip(self.options, row, strict=True))
        )

    def at_most(self, nats: float) -> int:
        """Index of the smallest setting predicted to cost no more; the last where every one costs more."""
        return min(int(np.searchsorted(-self.nats, -nats)), len(self) - 1)

    def take(self, index: NDArray[np.int64]) -> Allocations:
        """Some of the points, in order."""
        return Allocations(self.bytes[index], self.nats[index], self.options, self.picks[index])


def allocate(hierarchy: Hierarchy, table: Sequence[Prediction], constraints: Constraints) -> Allocations:
    """Solve the knapsack and keep what fits the memory.

    Args:
        hierarchy: blocks and modules.
        table: predicted cost of every module at every level.
        constraints: the budgets; the limit of performance is not looked at.

    Returns:
        The front of weight bytes against predicted cost; empty where nothing fits.
    """
    cells = {module.name: [c for c in table if c.module == module.name] for module in hierarchy.modules}
    options = tuple((name, tuple(parse_level(c.level) for c in row)) for name, row in cells.items())
    costs = [np.array([c.nats for c in row]) for row in cells.values()]
    sizes = [np.array([c.weight_bytes for c in row], np.int64) for row in cells.values()]
    fixed = 4 * sum(block.n_float_params for block in hierarchy.blocks)
    front = _solved(sizes, costs)
    found = Allocations(front.sizes + fixed, front.costs, options, front.picks)
    if constraints.weights_budget_bytes is not None:
        found = found.take(np.flatnonzero(found.bytes <= constraints.weights_budget_bytes))
    peaks = _peaks(hierarchy, options)
    worst = Setting(
        tuple((name, levels[int(p.argmax())]) for (name, levels), p in zip(options, peaks, strict=True))
    )
    budget = constraints.memory_budget_bytes
    if budget is None or predict_peak_rss_bytes(hierarchy, worst) <= budget:
        return found
    # what is small in the file need not be small in the process: the front of peaks joins in
    lean = _solved(peaks, costs)
    lean_bytes = fixed + sum(size[lean.picks[:, at]] for at, size in enumerate(sizes))
    both = Allocations(
        np.concatenate([found.bytes, lean_bytes]),
        np.concatenate([found.nats, lean.costs]),
        options,
        np.concatenate([found.picks, lean.picks]),
    )
    checked = np.unique(np.linspace(0, len(both) - 1, CHECKED).astype(np.int64))
    fits = [i for i in checked if constraints.memory_violation(hierarchy, both.setting(int(i))) is None]
    return _undominated(both.take(np.array(fits, np.int64)))


def _solved(sizes: Sequence[NDArray[np.int64]], costs: Sequence[NDArray[np.float64]]) -> Frontier:
    return solve([Options(size, cost) for size, cost in zip(sizes, costs, strict=True)])


def _peaks(hierarchy: Hierarchy, options: Sequence[tuple[str, tuple[Level, ...]]]) -> list[NDArray[np.int64]]:
    """What each level of each module adds to the predicted process peak, the others being at their smallest."""
    smallest = Setting(tuple((name, levels[-1]) for name, levels in options))
    floor = predict_peak_rss_bytes(hierarchy, smallest)
    return [
        np.array(
            [
                predict_peak_rss_bytes(hierarchy, smallest.with_levels({name: level})) - floor
                for level in levels
            ],
            np.int64,
        )
        for name, levels in options
    ]


def _undominated(points: Allocations) -> Allocations:
    if not len(points):
        return points
    order = np.lexsort((points.nats, points.bytes))
    best = np.minimum.accumulate(points.nats[order])
    better = np.concatenate([[True], best[1:] < best[:-1]])
    return points.take(order[better])
