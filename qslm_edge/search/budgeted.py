"""The budgeted search: predicted costs, the knapsack, and a few evaluations that hold the prediction to account.

The knapsack leaves one line of settings, each the best predicted of its size, and what is left to find is how far down
that line the constraints hold. Adding up cells is an approximation, so the search walks the line by evaluations alone:
each accepted setting bounds the answer from one side, each rejected from the other, and what was measured rescales the
prediction that proposes the next (regula falsi on the bound of the degradation). It ends where both ends of the bracket
weigh the same (`TOLERANCE`): finer steps than the errors of evaluations would let luck choose. Then a setting of one
level for all is tried where one lies just below: the knapsack picks what was predicted too cheap by chance as well, and
such a setting does not. With Eq. 1 the search proposes the best rescaled score instead, until the proposal is one that
it knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qslm_edge.metrics import CONFIDENCE, t_quantile
from qslm_edge.quantize.levels import Setting
from qslm_edge.search.allocations import Allocations
from qslm_edge.search.trial import Judge, Trial

__all__ = ["BudgetedSearch"]

JudgeSetting = Callable[[Setting, str, str], Trial]
TOLERANCE = 0.002
"""Share of the float32 bytes below which two sizes count as one."""
MAX_STEPS = 8
UNDERRATED = 1.5
"""What a language model really loses against its prediction, until the first evaluation says better; on the reference
model 1.1 to 1.4 times as much at 4 bits and 1.6 times at 2, and the bound lies above that."""
POINTS_A_NAT = 30.0
"""Points of accuracy that a predicted nat costs, until the first evaluation says better."""
SAFER = 0.95
"""Share of the limit that is aimed at while nothing performs yet; its power grows with every failure."""
NEAR = 0.01
"""Share of the float32 bytes that a setting of one level may save for its prediction to be no objection."""
EDGE = 0.15
"""A proposal keeps this share of the bracket from either side, so that a bracket always shrinks."""


@dataclass
class BudgetedSearch:
    """One walk along the line of allocations.

    Args:
        allocations: settings that fit the memory, smallest first; at least one.
        judge: the constraints and float scores; it is asked for no evaluation here.
        judged: evaluates (setting, tier, step).
        mu: None looks for the smallest setting, a number for the best by Eq. 1.
        float_bytes: weight bytes of the float32 model.
        uniform: settings of one level, with their weight bytes.
        scale: what is really lost against its prediction, until the first evaluation says better; None takes what
            was seen on the reference model.
        max_steps: evaluations of the walk at the most.
        announce: told each step before it is judged.
    """

    allocations: Allocations
    judge: Judge
    judged: JudgeSetting
    mu: float | None
    float_bytes: int
    uniform: Sequence[tuple[Setting, int]] = ()
    scale: float | None = None
    max_steps: int = MAX_STEPS
    announce: Callable[[str], None] = lambda _: None

    def run(self) -> list[Trial]:
        """Walk, and return every trial in order."""
        self.trials: list[Trial] = []
        self._bounds: dict[int, float] = {}
        self._rejected, self._accepted = -1, len(self.allocations)
        language = self.judge.evaluator.kind == "language_model"
        limit = self.judge.constraints.max_degradation
        self._limit = math.log1p(limit / self.judge.base.value) if language else limit
        self._scale = self.scale or (UNDERRATED if language else POINTS_A_NAT)
        if self.mu is None:
            self._narrow()
            self._level_out()
        else:
            self._improve(self.mu)
        return self.trials

    def _try(self, index: int) -> bool:
        """Judge a point; whether it performs."""
        nats, size = float(self.allocations.nats[index]), int(self.allocations.bytes[index])
        step = f"{size / 1e6:.2f} MB, predicted {nats:.4f} nats"
        self.announce(f"knapsack: {step}")
        trial = self.judged(self.allocations.setting(index), "knapsack", step)
        self.trials.append(trial)
        self._bounds[index] = self._whole_bound(trial)
        if nats > 0:
            # better than float says only that the prediction was too high
            self._scale = max(self._bounds[index] / nats, self._scale / 4)
        if trial.performance_ok:
            self._accepted = min(self._accepted, index)
        else:
            self._rejected = max(self._rejected, index)
        return trial.performance_ok

    def _whole_bound(self, trial: Trial) -> float:
        """Upper bound of the degradation on all items, in nats or points, as the items done predict it."""
        found = trial.comparison
        language = self.judge.evaluator.kind == "language_model"
        mean, error = (
            (found.delta_nll, found.delta_nll_se) if language else (found.degradation, found.standard_error)
        )
        t = t_quantile(CONFIDENCE, max(trial.n_items_total - 1, 1))
        return mean + t * error * math.sqrt(trial.n_items / trial.n_items_total)

    # The smallest that performs.

    def _narrow(self) -> None:
        for _ in range(self.max_steps):
            proposal = self._proposal()
            if proposal is None:
                return
            self._try(proposal)
        if self._accepted == len(self.allocations) and self._rejected < len(self.allocations) - 1:
            self._try(len(self.allocations) - 1)

    def _level_out(self) -> None:
        """Try the settings of one level that are a little smaller than what performs, from the largest down."""
        if self._accepted == len(self.allocations):
            return
        most = int(self.allocations.bytes[self._accepted])
        known = [trial.setting for trial in self.trials]
        near = [
            (size, setting)
            for setting, size in self.uniform
            if 0 < most - size <= NEAR * self.float_bytes and setting not in known
        ]
        left = max(self.max_steps - len(self.trials), 0)
        for size, setting in sorted(near, key=lambda one: -one[0])[:left]:
            step = f"{size / 1e6:.2f} MB, one level"
            self.announce(f"knapsack: {step}")
            self.trials.append(self.judged(setting, "knapsack", step))
            if not self.trials[-1].performance_ok:
                return

    def _proposal(self) -> int | None:
        """The next point to judge; None where the bracket is narrow enough."""
        last = len(self.allocations) - 1
        low, high = self._rejected, self._accepted
        if low >= last or high <= 0:
            return None
        if low < 0:
            proposal = min(self.allocations.at_most(self._limit / self._scale), high - 1)
            return proposal if high > last or self._apart(proposal, high) else None
        if high > last:
            # nothing performs yet: each failure asks for more distance
            safer = SAFER ** (2 ** len(self._bounds) - 1)
            target = safer * min(self._limit / self._scale, float(self.allocations.nats[low]))
            return max(self.allocations.at_most(target), low + 1)
        if high - low <= 1 or not self._apart(low, high):
            return None
        return self._between(low, high)

    def _between(self, low: int, high: int) -> int:
        """Where a straight line through both bounds meets the limit, kept off the edges of the bracket."""
        nats, bounds = self.allocations.nats, self._bounds
        share = 0.5
        if bounds[low] > self._limit >= bounds[high]:
            share = (self._limit - bounds[high]) / (bounds[low] - bounds[high])
        share = min(max(share, EDGE), 1 - EDGE)
        index = self.allocations.at_most(float(nats[high] + share * (nats[low] - nats[high])))
        return min(max(index, low + 1), high - 1)

    def _apart(self, one: int, other: int) -> bool:
        """Whether two sizes differ by more than counts as equal."""
        size = abs(int(self.allocations.bytes[other]) - int(self.allocations.bytes[one]))
        return size > TOLERANCE * self.float_bytes

    # The best by Eq. 1.

    def _improve(self, mu: float) -> None:
        for _ in range(self.max_steps):
            index = self._best_score(mu)
            known = [at for at in self._bounds if at == index or not self._apart(at, index)]
            if any(at >= self._accepted for at in known):
                return
            if index in self._bounds:
                break
            self._try(index)
        if self._accepted == len(self.allocations):
            self._narrow()

    def _best_score(self, mu: float) -> int:
        """The point of best predicted score among those that may perform; the best predicted where none may."""
        base, nats = self.judge.base.value, self.allocations.nats * self._scale
        language = self.judge.evaluator.kind == "language_model"
        loss = base * np.expm1(np.minimum(nats, 700.0)) if language else nats
        score = loss + mu * self.allocations.bytes / self.float_bytes
        index = np.arange(len(self.allocations))
        may = (index > self._rejected) & ((nats <= self._limit) | (index >= self._accepted))
        return int(np.where(may, score, np.inf).argmin()) if may.any() else len(self.allocations) - 1
