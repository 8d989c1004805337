"""The best predicted setting for every size: levels of matrices by the knapsack, as settings that fit the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qslm_edge.quantize.accounting import predict_peak_rss_bytes
from qslm_edge.quantize.levels import Level, Setting, parse_level
from qslm_edge.search.constraints import Constraints
from qslm_edge.search.knapsack import Options, solve
from qslm_edge.search.prediction import Prediction
from qslm_edge.spikegpt.hierarchy import Hierarchy

__all__ = ["Allocations", "Slot", "allocate"]

CHECKED = 2**11
"""Points whose process peak is predicted one by one where the budget of the peak can bind."""


@dataclass(frozen=True, eq=False)
class Slot:
    """Modules that choose together: one alone, or key and value of an SRFFN, which keep the same hidden units.

    Attributes:
        names: of the modules.
        options: one level for each of them.
        sizes: weight bytes of every option, int64.
        costs: its predicted nats, float64.
    """

    names: tuple[str, ...]
    options: tuple[tuple[Level, ...], ...]
    sizes: NDArray[np.int64]
    costs: NDArray[np.float64]

    def levels(self, option: int) -> dict[str, Level]:
        """What an option means, by module."""
        return dict(zip(self.names, self.options[option], strict=True))


@dataclass(frozen=True, eq=False)
class Allocations:
    """Settings from the smallest to the best.

    Attributes:
        bytes: weight bytes, int64 [n], strictly rising.
        nats: predicted divergence from the float model, float64 [n], strictly falling.
        names: of all modules, in hierarchy order.
        slots: what is chosen together.
        picks: int16 [n, slots], which of its options each takes.
    """

    bytes: NDArray[np.int64]
    nats: NDArray[np.float64]
    names: tuple[str, ...]
    slots: tuple[Slot, ...]
    picks: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.bytes)

    def setting(self, index: int) -> Setting:
        """The setting of a point."""
        return _setting(self.names, self.slots, [int(at) for at in self.picks[index]])

    def at_most(self, nats: float) -> int:
        """Index of the smallest setting predicted to cost no more; the last where every one costs more."""
        return min(int(np.searchsorted(-self.nats, -nats)), len(self) - 1)

    def take(self, index: NDArray[np.int64]) -> Allocations:
        """Some of the points, in order."""
        return replace(self, bytes=self.bytes[index], nats=self.nats[index], picks=self.picks[index])


def allocate(hierarchy: Hierarchy, table: Sequence[Prediction], constraints: Constraints) -> Allocations:
    """Solve the knapsack and keep what fits the memory.

    Args:
        hierarchy: blocks and modules.
        table: predicted cost of every module at every level.
        constraints: the budgets; the limit of performance is not looked at.

    Returns:
        The front of weight bytes against predicted cost; empty where nothing fits.
    """
    slots = _slots(hierarchy, table)
    names = tuple(module.name for module in hierarchy.modules)
    fixed = 4 * sum(block.n_float_params for block in hierarchy.blocks)
    front = solve([Options(slot.sizes, slot.costs) for slot in slots])
    found = Allocations(front.sizes + fixed, front.costs, names, slots, front.picks)
    if constraints.weights_budget_bytes is not None:
        found = found.take(np.flatnonzero(found.bytes <= constraints.weights_budget_bytes))
    peaks = _peaks(hierarchy, names, slots)
    worst = _setting(names, slots, [int(peak.argmax()) for peak in peaks])
    budget = constraints.memory_budget_bytes
    if budget is None or predict_peak_rss_bytes(hierarchy, worst) <= budget:
        return found
    # what is small in the file need not be small in the process: the front of peaks joins in
    lean = solve([Options(peak, slot.costs) for peak, slot in zip(peaks, slots, strict=True)])
    lean_bytes = fixed + sum(slot.sizes[lean.picks[:, at]] for at, slot in enumerate(slots))
    both = replace(
        found,
        bytes=np.concatenate([found.bytes, lean_bytes]),
        nats=np.concatenate([found.nats, lean.costs]),
        picks=np.concatenate([found.picks, lean.picks]),
    )
    checked = np.unique(np.linspace(0, len(both) - 1, CHECKED).astype(np.int64))
    fits = [i for i in checked if constraints.memory_violation(hierarchy, both.setting(int(i))) is None]
    return _undominated(both.take(np.array(fits, np.int64)))


def _slots(hierarchy: Hierarchy, table: Sequence[Prediction]) -> tuple[Slot, ...]:
    """Every module alone, but key and value of an SRFFN together where one of them can be cut."""
    rows: dict[str, list[tuple[Level, Prediction]]] = {module.name: [] for module in hierarchy.modules}
    for cell in table:
        rows[cell.module].append((parse_level(cell.level), cell))
    slots = []
    for module in hierarchy.modules:
        row = rows.pop(module.name, None)
        if row is None:
            continue  # chosen with its key
        names: tuple[str, ...] = (module.name,)
        choices: list[tuple[tuple[Level, Prediction], ...]] = [(one,) for one in row]
        if module.hidden is not None and any(level.units for level, _ in row):
            names = (module.name, f"{module.name.rpartition('.')[0]}.value")
            choices = [(one, two) for one in row for two in rows[names[1]] if one[0].units == two[0].units]
            del rows[names[1]]
        slots.append(
            Slot(
                names,
                tuple(tuple(level for level, _ in choice) for choice in choices),
                np.array([sum(cell.weight_bytes for _, cell in choice) for choice in choices], np.int64),
                np.array([sum(cell.nats for _, cell in choice) for choice in choices]),
            )
        )
    return tuple(slots)


def _setting(names: Sequence[str], slots: Sequence[Slot], picks: Sequence[int]) -> Setting:
    levels: dict[str, Level] = {}
    for slot, pick in zip(slots, picks, strict=True):
        levels |= slot.levels(pick)
    return Setting(tuple((name, levels[name]) for name in names))


def _peaks(hierarchy: Hierarchy, names: Sequence[str], slots: Sequence[Slot]) -> list[NDArray[np.int64]]:
    """What each option of each slot adds to the predicted process peak, the others being at their smallest."""
    smallest = _setting(names, slots, [int(slot.sizes.argmin()) for slot in slots])
    floor = predict_peak_rss_bytes(hierarchy, smallest)
    return [
        np.array(
            [
                predict_peak_rss_bytes(hierarchy, smallest.with_levels(slot.levels(option))) - floor
                for option in range(len(slot.options))
            ],
            np.int64,
        )
        for slot in slots
    ]


def _undominated(points: Allocations) -> Allocations:
    if not len(points):
        return points
    order = np.lexsort((points.nats, points.bytes))
    best = np.minimum.accumulate(points.nats[order])
    better = np.concatenate([[True], best[1:] < best[:-1]])
    return points.take(order[better])
