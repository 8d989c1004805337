"""Training items in a seeded order, pass after pass, and a part that is never trained on.

The last items are held out: what the model loses on them beyond what it loses on trained ones is loss of generality.
The order of pass n depends on the seed and n alone, so that a run that goes on after a stop sees what it would have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qslm_edge.errors import DataError
from qslm_edge.items import Items

__all__ = ["Feed"]

HELD_OUT_SHARE = 0.02
MIN_HELD_OUT, MAX_HELD_OUT = 8, 256
MIN_ITEMS = 64


@dataclass(frozen=True)
class Feed:
    """Where tuning takes its batches from.

    Attributes:
        items: items of the train split.
        batch_items: items a step.
        seed: of the order.
    """

    items: Items
    batch_items: int
    seed: int

    def __post_init__(self) -> None:
        if self.items.n_items < MIN_ITEMS:
            raise DataError(
                "too little training data to tune on",
                where=self.items.source,
                found=f"{self.items.n_items} items",
                allowed=f"{MIN_ITEMS} or more",
                hint="give more with --calibration-data",
            )

    @property
    def n_held_out(self) -> int:
        return min(MAX_HELD_OUT, max(MIN_HELD_OUT, round(HELD_OUT_SHARE * self.items.n_items)))

    @property
    def n_trained(self) -> int:
        return self.items.n_items - self.n_held_out

    def held_out(self) -> Items:
        """Items that are never trained on: the last ones."""
        return self.items.subset(np.arange(self.n_trained, self.items.n_items))

    def trained_sample(self) -> Items:
        """As many items that are trained on, for comparison."""
        return self.items.subset(np.arange(self.n_held_out))

    def steps(self, tokens: int) -> int:
        """Steps until so many tokens were seen, at least one."""
        mean = float(self.items.lengths[: self.n_trained].mean())
        return max(1, round(tokens / (mean * self.batch_items)))

    def items_of(self, step: int) -> Items:
        """The items of a step: the next `batch_items` of the endless sequence of passes."""
        first = step * self.batch_items
        places = range(first, first + self.batch_items)
        orders = {number: self._order(number) for number in {place // self.n_trained for place in places}}
        return self.items.subset(
            [int(orders[place // self.n_trained][place % self.n_trained]) for place in places]
        )

    def _order(self, number: int) -> NDArray[np.int64]:
        return np.random.default_rng((self.seed, number)).permutation(self.n_trained)
