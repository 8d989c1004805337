"""The end of any search: the best candidate on every item, and what to say where nothing meets the constraints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qslm_edge.errors import InfeasibleError
from qslm_edge.metrics import Scores
from qslm_edge.quantize.accounting import predict_peak_rss_bytes, weight_bytes
from qslm_edge.quantize.levels import Level, Setting
from qslm_edge.search.constraints import Constraints
from qslm_edge.search.evaluator import Evaluator
from qslm_edge.search.score import most_complete, rank_candidates
from qslm_edge.search.space import LevelMap
from qslm_edge.search.trial import Judge, Trial

__all__ = ["explain_infeasible", "nearest_that_fits", "refuse_hopeless", "select_best"]

SIGMAS = 3.0


def refuse_hopeless(
    evaluator: Evaluator, constraints: Constraints, levels: Sequence[Level], space: LevelMap
) -> None:
    """Before any work: does even the smallest setting exceed a budget?

    Weights and process peak need not be smallest at one level, so each limit is held against its own smallest.
    """
    hierarchy = evaluator.hierarchy
    settings = [space.setting(hierarchy, level) for level in space.wanted(levels)]
    limits = (
        (replace(constraints, memory_budget_bytes=None), weight_bytes),
        (replace(constraints, weights_budget_bytes=None), predict_peak_rss_bytes),
    )
    for limit, measure in limits:
        smallest = min(settings, key=lambda setting: measure(hierarchy, setting))
        violation = limit.memory_violation(hierarchy, smallest)
        if violation is not None:
            raise InfeasibleError(
                "no setting can fit the memory constraint",
                where=f"smallest setting ({smallest.describe()})",
                found=violation,
                hint="raise the budget, or allow narrower widths with --levels on a profile whose runtime runs them",
            )


def nearest_that_fits(
    judge: Judge, trials: Sequence[Trial], levels: Sequence[Level], space: LevelMap
) -> list[Trial]:
    """Where nothing that was tried fits the memory: the widest level that does, on every item."""
    if any(trial.memory_violation is None for trial in trials):
        return []
    hierarchy = judge.evaluator.hierarchy
    for level in space.wanted(levels):
        setting = space.setting(hierarchy, level)
        if judge.constraints.memory_violation(hierarchy, setting) is None:
            return [judge.judge(setting, "nearest", f"all blocks at {level}", full=True)]
    return []


def select_best(judge: Judge, trials: list[Trial], mu: float | None) -> tuple[Trial, Scores] | None:
    """The best candidate on every item, with its scores; evaluations that this takes are added to the trials.

    A candidate that stopped early competes with the best score that its error allows, so that none is passed over.
    """
    float_bytes, kind = judge.evaluator.hierarchy.float32_bytes, judge.evaluator.kind
    finals: dict[Setting, Scores] = {}
    while candidates := rank_candidates(trials, float_bytes, mu, kind, SIGMAS):
        best = candidates[0]
        if best.setting in finals:
            return best, finals[best.setting]
        trials.append(judge.judge(best.setting, "final", f"{best.step}, all items", full=True))
        finals[best.setting] = judge.last
    return None


def explain_infeasible(judge: Judge, trials: Sequence[Trial], constraints: Constraints) -> InfeasibleError:
    """The nearest settings on each side, and what would make one feasible."""
    known = most_complete(trials)
    good = [trial for trial in known if trial.performance_ok]
    fitting = [trial for trial in known if trial.memory_violation is None]
    unit = "perplexity" if judge.evaluator.kind == "language_model" else "points"
    parts, hints = ["nothing that was tried performs"], []
    if good:
        near = min(good, key=lambda trial: trial.weight_bytes)
        size = f"{near.weight_bytes / 1e6:.2f} MB"
        parts = [f"nearest that performs: {near.setting.describe()} at {size} ({near.memory_violation})"]
        hints.append("raise the memory budget to at least what that setting needs")
    if fitting:
        near = min(fitting, key=lambda trial: trial.comparison.upper)
        result = near.comparison
        parts.append(
            f"nearest that fits: {near.setting.describe()} with degradation {result.degradation:+.3f} {unit} "
            f"(upper bound {result.upper:+.3f}, limit {constraints.max_degradation:g})"
        )
        hints.append(f"allow at least {max(result.upper, 0):.2f} {unit}")
    else:
        parts.append("no level fits with all blocks at it")
    return InfeasibleError(
        "no setting meets every constraint", found="; ".join(parts), hint=" or ".join(hints) or None
    )
