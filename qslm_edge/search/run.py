"""A whole search: float reference, sensitivity, tiers, selection, and the explanation when nothing fits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from qslm_edge.errors import InfeasibleError
from qslm_edge.metrics import Estimate, Scores, quality
from qslm_edge.quantize.accounting import predict_peak_rss_bytes, weight_bytes
from qslm_edge.quantize.levels import Level, Setting
from qslm_edge.search.constraints import Constraints
from qslm_edge.search.evaluator import Cost, Evaluator
from qslm_edge.search.journal import Journal
from qslm_edge.search.reference import FloatReference, float_reference
from qslm_edge.search.score import eq1_score, most_complete, rank_candidates
from qslm_edge.search.sensitivity import Sensitivity, measure_sensitivity
from qslm_edge.search.space import LevelMap
from qslm_edge.search.tiers import TieredSearch
from qslm_edge.search.trial import Judge, Trial

__all__ = ["SearchOptions", "SearchResult", "run_search"]

SIGMAS = 3.0
SENSITIVITY_ITEMS = {"language_model": 16, "classification": 256}
Announce = Callable[[str], None]


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        levels: precision levels N, largest first.
        mu: None selects the smallest feasible setting; a number selects by Eq. 1.
        early: stop evaluations whose decision is clear.
        method: "tiered" or "qslm" (simulated, for comparison).
    """

    levels: tuple[Level, ...]
    mu: float | None = None
    early: bool = True
    method: str = "tiered"


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        chosen: the selected setting, evaluated on every search item.
        chosen_scores: its scores on them.
        candidates: feasible settings, best first.
        trials: everything that was evaluated, in order.
        sensitivity: the network analysis.
        reference: float scores on the search items.
        base: float metric on the search items.
        cost: what evaluations cost in this process (a resumed search replays the rest from its journal).
        replayed: evaluations taken from the journal.
        seconds: time of this process.
    """

    chosen: Trial
    chosen_scores: Scores
    candidates: tuple[Trial, ...]
    trials: tuple[Trial, ...]
    sensitivity: tuple[Sensitivity, ...]
    reference: FloatReference
    base: Estimate
    cost: Cost
    replayed: int
    seconds: float

    def to_dict(self, float_bytes: int, options: SearchOptions, kind: Any) -> dict[str, Any]:
        """JSON-able form for the report."""
        score = None if options.mu is None else eq1_score(self.chosen, float_bytes, options.mu, kind)
        return {
            "method": options.method,
            "levels": [str(level) for level in options.levels],
            "selection": "smallest feasible"
            if options.mu is None
            else f"Eq. 1 (reconstruction), mu = {options.mu}",
            "eq1_score": score,
            "float": asdict(self.base),
            "chosen": trial_dict(self.chosen, float_bytes),
            "candidates": [trial_dict(trial, float_bytes) for trial in self.candidates],
            "trials": [trial_dict(trial, float_bytes) for trial in self.trials],
            "sensitivity": [cell.to_dict() for cell in self.sensitivity],
            "cost": {**asdict(self.cost), "replayed_from_journal": self.replayed, "seconds": self.seconds},
        }


def trial_dict(trial: Trial, float_bytes: int) -> dict[str, Any]:
    """JSON-able form of a trial."""
    return {
        "tier": trial.tier,
        "step": trial.step,
        "setting": trial.setting.to_dict(),
        "summary": trial.setting.describe(),
        "weight_bytes": trial.weight_bytes,
        "reduction": 1 - trial.weight_bytes / float_bytes,
        "predicted_peak_rss_bytes": trial.peak_rss_bytes,
        "metric": trial.metric,
        "comparison": asdict(trial.comparison),
        "n_items": trial.n_items,
        "n_items_total": trial.n_items_total,
        "performance_ok": trial.performance_ok,
        "memory_violation": trial.memory_violation,
        "feasible": trial.feasible,
    }


def run_search(
    evaluator: Evaluator,
    model_digest: str,
    constraints: Constraints,
    options: SearchOptions,
    journal: Journal,
    *,
    stage: Callable[[str, float], None] = lambda _title, _total: None,
    advance: Callable[[float], None] = lambda _: None,
    announce: Announce = lambda _: None,
) -> SearchResult:
    """Search a setting that meets the constraints.

    Args:
        evaluator: scores settings on the search items.
        model_digest: for the cache of float scores.
        constraints: the limits.
        options: levels, selection, early decisions.
        journal: continues a killed search.
        stage, advance, announce: progress: a stage with its expected number of evaluations, work done, a line.

    Raises:
        InfeasibleError: no setting meets every constraint; the message says what would.
    """
    begun = time.monotonic()
    hierarchy, space = evaluator.hierarchy, LevelMap(evaluator.store.model.config)
    levels = options.levels
    _refuse_hopeless(evaluator, constraints, levels, space)
    stage("float model on the search items", 1.0)
    reference = float_reference(evaluator, model_digest, advance)
    base = quality(reference.scores)
    stage("sensitivity of every block", 1.0)
    n_sensitivity = SENSITIVITY_ITEMS[evaluator.kind]
    table = measure_sensitivity(evaluator, reference.scores, levels, space, journal, n_sensitivity, advance)

    judge = Judge(evaluator, reference.scores, constraints, journal, early=options.early)
    n_modules = len(hierarchy.modules)
    totals = {"global": len(levels), "block": len(hierarchy.blocks) * 2, "module": n_modules}
    shown: list[str] = []

    def judged(setting: Setting, tier: str, step: str) -> Trial:
        if tier not in shown:
            shown.append(tier)
            stage(f"search, {tier} tier", totals[tier])
        trial = judge.judge(setting, tier, step)
        advance(1.0)
        return trial

    trials = TieredSearch(hierarchy, levels, space, judged, table, announce).run()
    stage("selection", 1.0)
    trials += _nearest_that_fits(judge, trials, levels, space)
    selected = _select(judge, trials, options)
    if selected is None:
        raise _infeasible(judge, trials, constraints)
    chosen, chosen_scores = selected
    candidates = rank_candidates(trials, hierarchy.float32_bytes, options.mu, evaluator.kind)
    return SearchResult(
        chosen,
        chosen_scores,
        tuple(candidates),
        tuple(trials),
        tuple(table),
        reference,
        base,
        evaluator.cost,
        journal.replayed,
        time.monotonic() - begun,
    )


def _refuse_hopeless(
    evaluator: Evaluator, constraints: Constraints, levels: Sequence[Level], space: LevelMap
) -> None:
    """Before any work: does even the smallest setting exceed a budget?

    Weights and process peak need not be smallest at one level, so each limit is held against its own smallest.
    """
    hierarchy = evaluator.hierarchy
    settings = [space.setting(hierarchy, level) for level in levels]
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


def _nearest_that_fits(
    judge: Judge, trials: Sequence[Trial], levels: Sequence[Level], space: LevelMap
) -> list[Trial]:
    """Where nothing that was tried fits the memory: the widest level that does, on every item."""
    if any(trial.memory_violation is None for trial in trials):
        return []
    hierarchy = judge.evaluator.hierarchy
    for level in levels:
        setting = space.setting(hierarchy, level)
        if judge.constraints.memory_violation(hierarchy, setting) is None:
            return [judge.judge(setting, "nearest", f"all blocks at {level}", full=True)]
    return []


def _select(judge: Judge, trials: list[Trial], options: SearchOptions) -> tuple[Trial, Scores] | None:
    """The best candidate on every item, with its scores; evaluations that this takes are added to the trials.

    A candidate that stopped early competes with the best score that its error allows, so that none is passed over.
    """
    float_bytes, kind = judge.evaluator.hierarchy.float32_bytes, judge.evaluator.kind
    finals: dict[Setting, Scores] = {}
    while candidates := rank_candidates(trials, float_bytes, options.mu, kind, SIGMAS):
        best = candidates[0]
        if best.setting in finals:
            return best, finals[best.setting]
        trials.append(judge.judge(best.setting, "final", f"{best.step}, all items", full=True))
        finals[best.setting] = judge.last
    return None


def _infeasible(judge: Judge, trials: Sequence[Trial], constraints: Constraints) -> InfeasibleError:
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
