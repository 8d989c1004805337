"""The front of weight bytes against degradation: confirmed settings that no other beats; they answer any limit at once.

A ladder of predicted costs, evenly spaced in their logarithm, is taken from the line of the knapsack, and every rung is
evaluated on all search items. The ladder depends on model and memory, not on the limit of performance, so that the
front serves every limit and every budget above its smallest setting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qslm_edge.errors import InfeasibleError
from qslm_edge.metrics import Kind
from qslm_edge.quantize.levels import Setting
from qslm_edge.search.allocations import Allocations
from qslm_edge.search.trial import Trial

__all__ = ["FrontPoint", "choose", "climb", "undominated"]

RUNGS = 12
NEGLIGIBLE_NATS = 1e-3
"""Predicted cost below which more bytes are not worth a rung."""


@dataclass(frozen=True)
class FrontPoint:
    """One setting of a front, evaluated on every search item.

    Attributes:
        setting: level of every module, as text.
        summary: the same in few words.
        weight_bytes: exact bytes of the weights.
        predicted_peak_rss_bytes: of the process on the device.
        metric: perplexity, or accuracy in percent.
        degradation, standard_error, upper: paired difference to the float model, its error, its one-sided 95 % bound.
    """

    setting: dict[str, str]
    summary: str
    weight_bytes: int
    predicted_peak_rss_bytes: int
    metric: float
    degradation: float
    standard_error: float
    upper: float

    @classmethod
    def of(cls, trial: Trial) -> FrontPoint:
        found = trial.comparison
        return cls(
            trial.setting.to_dict(),
            trial.setting.describe(),
            trial.weight_bytes,
            trial.peak_rss_bytes,
            trial.metric,
            found.degradation,
            found.standard_error,
            found.upper,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def climb(
    allocations: Allocations,
    judged: Callable[[Setting, str, str], Trial],
    announce: Callable[[str], None] = lambda _: None,
) -> list[Trial]:
    """Evaluate the rungs of the ladder, smallest setting first.

    Args:
        allocations: the line of the knapsack, at least one point.
        judged: evaluates (setting, tier, step) on every item.
        announce: told each step.
    """
    floor = max(float(allocations.nats[-1]), NEGLIGIBLE_NATS)
    top = max(float(allocations.nats[0]), floor)
    rungs = {allocations.at_most(nats) for nats in np.geomspace(top, floor, RUNGS).tolist()}
    trials = []
    for index in sorted({0, *rungs}):
        step = f"{allocations.bytes[index] / 1e6:.2f} MB, predicted {allocations.nats[index]:.4f} nats"
        announce(f"front: {step}")
        trials.append(judged(allocations.setting(index), "front", step))
    return trials


def undominated(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that no other beats in bytes and in the bound of the degradation, smallest first."""
    kept: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.weight_bytes, t.comparison.upper)):
        if not kept or trial.comparison.upper < kept[-1].comparison.upper:
            kept.append(trial)
    return kept


def choose(
    points: Sequence[FrontPoint],
    kind: Kind,
    float_bytes: int,
    *,
    max_degradation: float | None,
    weights_budget_bytes: int | None,
    mu: float | None = None,
) -> FrontPoint:
    """The point that answers a question.

    With a limit of performance it is the smallest that holds it, under a budget alone the best that fits, and with
    `mu` the best by Eq. 1 of those that meet both.

    Args:
        points: a front, smallest first.
        kind: language model or classification.
        float_bytes: weight bytes of the float32 model.
        max_degradation: limit of the upper bound, None without one.
        weights_budget_bytes: limit of the weights, None without one.
        mu: priority of memory in Eq. 1.

    Raises:
        InfeasibleError: no point meets the limits; the message names the nearest.
    """
    fits = [p for p in points if weights_budget_bytes is None or p.weight_bytes <= weights_budget_bytes]
    if not fits:
        near = points[0]
        raise InfeasibleError(
            "the budget lies below the smallest setting of the front",
            found=f"{_megabytes(weights_budget_bytes or 0)}",
            allowed=f"{_megabytes(near.weight_bytes)} or more",
            hint=f"nearest: {near.summary} at {_megabytes(near.weight_bytes)}, degradation {near.degradation:+.3f}",
        )
    good = [p for p in fits if max_degradation is None or p.upper <= max_degradation]
    if not good:
        near = min(fits, key=lambda p: p.upper)
        raise InfeasibleError(
            "no setting of the front meets the limits",
            found=f"nearest: {near.summary} at {_megabytes(near.weight_bytes)}, upper bound of the degradation "
            f"{near.upper:+.3f}, limit {max_degradation:g}",
            hint="raise the limit or the budget, or search with them: `qslm-edge search` looks between the points",
        )
    if mu is not None:
        sign = 1.0 if kind == "language_model" else -1.0
        return min(good, key=lambda p: (sign * p.metric + mu * p.weight_bytes / float_bytes, p.weight_bytes))
    if max_degradation is None:
        return min(good, key=lambda p: (p.upper, p.weight_bytes))
    return min(good, key=lambda p: p.weight_bytes)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
