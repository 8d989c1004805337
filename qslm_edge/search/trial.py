"""Judging one setting: bytes, performance on the search items, and whether both constraints hold.

The judge is the only place where the search meets evaluation: it looks into the journal first, lets an evaluation stop
as soon as the decision on the whole set is clear, and completes it when a full answer is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qslm_edge.metrics import Estimate, Paired, Scores, paired, predict_full, quality
from qslm_edge.quantize.accounting import predict_peak_rss_bytes, weight_bytes
from qslm_edge.quantize.levels import Setting
from qslm_edge.search.constraints import Constraints
from qslm_edge.search.evaluator import Evaluator, Stop
from qslm_edge.search.journal import Journal, fingerprint

__all__ = ["Judge", "Trial", "metric_estimate"]


@dataclass(frozen=True)
class Trial:
    """One evaluated setting.

    Attributes:
        setting: the levels.
        tier: global, block or module; nearest (tried since nothing before fitted the memory); final.
        step: what was tried, in words.
        weight_bytes: exact bytes of the weights.
        peak_rss_bytes: predicted peak of the process on the device.
        comparison: paired degradation against the float model on the items done.
        metric: estimated metric on the whole search set: float value plus the paired difference.
        n_items, n_items_total: items done, and in the search set.
        performance_ok: the upper bound of the degradation over the whole set lies within the limit (predicted when
            the evaluation stopped early).
        memory_violation: why it does not fit, None when it does.
    """

    setting: Setting
    tier: str
    step: str
    weight_bytes: int
    peak_rss_bytes: int
    comparison: Paired
    metric: float
    n_items: int
    n_items_total: int
    performance_ok: bool
    memory_violation: str | None

    @property
    def feasible(self) -> bool:
        return self.performance_ok and self.memory_violation is None

    @property
    def complete(self) -> bool:
        return self.n_items == self.n_items_total


def metric_estimate(base: Estimate, comparison: Paired, kind: str) -> float:
    """Metric of a quantised model from the float value and the paired difference."""
    sign = 1.0 if kind == "language_model" else -1.0
    return base.value + sign * comparison.degradation


class Judge:
    """Evaluates settings against constraints.

    Args:
        evaluator: scores settings.
        reference: scores of the float model on all search items.
        constraints: the limits.
        journal: where evaluations are kept.
        early: stop evaluations whose decision is clear.
        on_work: told the share of an evaluation that each batch is, for progress.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        reference: Scores,
        constraints: Constraints,
        journal: Journal,
        *,
        early: bool = True,
        on_work: Callable[[float], None] | None = None,
    ) -> None:
        self.evaluator, self.reference, self.constraints = evaluator, reference, constraints
        self.journal, self.early, self.on_work = journal, early, on_work
        self.base = quality(reference)
        self.n_items = evaluator.items.n_items
        self.last: Scores = reference
        """Scores of the setting judged last."""

    purpose = "search"
    """Under what the journal keeps the evaluations."""

    def _key(self, setting: Setting) -> str:
        """Names an evaluation in the journal."""
        return fingerprint(setting.to_dict())

    def _evaluate(self, setting: Setting, stop: Stop | None) -> Scores:
        """Score a setting."""
        return self.evaluator.evaluate(setting, stop, on_batch=self.on_work)

    def decision(self, scores: Scores) -> bool | None:
        """Whether the whole set will meet the performance limit; None while it is not clear."""
        return predict_full(
            self.reference, scores, self.n_items, self.constraints.max_degradation, self.base.value
        )

    def _stop(self, scores: Scores) -> bool:
        return self.decision(scores) is not None

    def _as_evaluated(self, scores: Scores, whole: bool) -> Scores | None:
        """The part of journaled scores that an evaluation now would have; None when they do not reach so far.

        A journal may hold more than a step asks for: a later full evaluation, or one under another limit.
        Deciding on the part alone is what makes a resumed search give the same answer.
        """
        if not whole:
            for n_items in self.evaluator.prefixes:
                if n_items > scores.n_items:
                    return None
                part = scores.select(np.arange(n_items))
                if n_items < self.n_items and self._stop(part):
                    return part
        return scores if scores.n_items == self.n_items else None

    def judge(self, setting: Setting, tier: str, step: str, full: bool = False) -> Trial:
        """Evaluate a setting, or take it from the journal.

        Args:
            setting: the levels.
            tier, step: for the record.
            full: score every item even if the decision is clear before.
        """
        key, whole = self._key(setting), full or not self.early
        scores = self.journal.get(self.purpose, key)
        if scores is not None:
            scores = self._as_evaluated(scores, whole)
        if scores is None:
            stop = None if whole else self._stop
            scores = self._evaluate(setting, stop)
            self.journal.put(self.purpose, key, setting.to_dict(), scores)
        self.last = scores
        comparison = paired(self.reference, scores, self.base.value)
        hierarchy = self.evaluator.hierarchy
        return Trial(
            setting=setting,
            tier=tier,
            step=step,
            weight_bytes=weight_bytes(hierarchy, setting),
            peak_rss_bytes=predict_peak_rss_bytes(hierarchy, setting),
            comparison=comparison,
            metric=metric_estimate(self.base, comparison, self.evaluator.kind),
            n_items=scores.n_items,
            n_items_total=self.n_items,
            performance_ok=self.decision(scores) is True,
            memory_violation=self.constraints.memory_violation(hierarchy, setting),
        )
