"""A whole search: float reference, sensitivity or prediction, the walk of the method, selection."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from qslm_edge.metrics import Estimate, Scores, quality
from qslm_edge.quantize.accounting import weight_bytes
from qslm_edge.quantize.levels import Level, Setting
from qslm_edge.search.allocations import allocate
from qslm_edge.search.budgeted import MAX_STEPS, BudgetedSearch
from qslm_edge.search.constraints import Constraints
from qslm_edge.search.evaluator import Cost, Evaluator
from qslm_edge.search.fisher import fisher_divergence
from qslm_edge.search.front import RUNGS, FrontPoint, climb, undominated
from qslm_edge.search.journal import Journal
from qslm_edge.search.prediction import (
    Predict,
    Prediction,
    block_sensitivity,
    left_by_tuning,
    predict_modules,
)
from qslm_edge.search.reference import FloatReference, float_reference
from qslm_edge.search.score import eq1_score, rank_candidates
from qslm_edge.search.selection import explain_infeasible, nearest_that_fits, refuse_hopeless, select_best
from qslm_edge.search.sensitivity import Sensitivity, measure_sensitivity
from qslm_edge.search.space import LevelMap
from qslm_edge.search.tiers import TieredSearch
from qslm_edge.search.trial import Judge, Trial

__all__ = ["SearchOptions", "SearchResult", "run_search"]

SENSITIVITY_ITEMS = {"language_model": 16, "classification": 256}
Announce = Callable[[str], None]
MakeJudge = Callable[..., Judge]


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        levels: precision levels N, largest first.
        mu: None selects the smallest feasible setting; a number selects by Eq. 1.
        early: stop evaluations whose decision is clear.
        method: "budgeted" or "pareto" (knapsack over predicted costs), "tiered", or "qslm" (tiers over simulated
            levels, for comparison).
        scale: of the knapsack's predictions, see `BudgetedSearch`.
        max_steps: evaluations of the knapsack's walk at the most.
        cuts: hidden units that the knapsack may cut an SRFFN to, falling; empty: none is cut.
        remains: share of a predicted cost that is left where weights are tuned, by part of the model (emb, att, ffn,
            head); empty leaves predictions as they are.
    """

    levels: tuple[Level, ...]
    mu: float | None = None
    early: bool = True
    method: str = "tiered"
    scale: float | None = None
    max_steps: int = MAX_STEPS
    cuts: tuple[int, ...] = ()
    remains: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        chosen: the selected setting, evaluated on every search item.
        chosen_scores: its scores on them.
        candidates: feasible settings, best first.
        trials: everything that was evaluated, in order.
        sensitivity: the network analysis: measured for tiers, sums of predictions for the knapsack.
        predictions: predicted cost of every module at every level; empty for tiers.
        front: confirmed settings that no other beats, smallest first; empty but for "pareto".
        reference: float scores on the search items.
        base: float metric on the search items.
        cost: what evaluations cost in this process (a resumed search replays the rest from its journal).
        replayed, replayed_tokens: evaluations taken from the journal, and the tokens that they once cost.
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
    replayed_tokens: int = 0
    predictions: tuple[Prediction, ...] = ()
    front: tuple[Trial, ...] = ()

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
            "front": [FrontPoint.of(trial).to_dict() for trial in self.front],
            "sensitivity": [cell.to_dict() for cell in self.sensitivity],
            "cost": {
                **asdict(self.cost),
                "replayed_from_journal": self.replayed,
                "replayed_tokens": self.replayed_tokens,
                "seconds": self.seconds,
            },
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


@dataclass
class _Search:
    """One search on its way: what its parts need, and what they found.

    Attributes:
        shown: tiers whose stage was told.
    """

    evaluator: Evaluator
    judge: Judge
    constraints: Constraints
    options: SearchOptions
    journal: Journal
    base: Estimate
    stage: Callable[[str, float], None]
    advance: Callable[[float], None]
    announce: Announce
    predict: Predict
    shown: list[str] = field(default_factory=list)
    sensitivity: list[Sensitivity] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    front: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.space = LevelMap(self.evaluator.store.model.config, self.options.cuts)

    def run(self) -> list[Trial]:
        """Every trial of the method, in order."""
        if self.options.method in ("budgeted", "pareto"):
            return self._line()
        return self._tiers()

    def _tiers(self) -> list[Trial]:
        levels, hierarchy = self.options.levels, self.evaluator.hierarchy
        self.stage("sensitivity of every block", 1.0)
        n_items = SENSITIVITY_ITEMS[self.evaluator.kind]
        self.sensitivity = measure_sensitivity(
            self.evaluator, self.judge.reference, levels, self.space, self.journal, n_items, self.advance
        )
        totals = {"global": len(levels), "block": len(hierarchy.blocks) * 2, "module": len(hierarchy.modules)}

        def judged(setting: Setting, tier: str, step: str) -> Trial:
            if tier not in self.shown:
                self.shown.append(tier)
                self.stage(f"search, {tier} tier", totals[tier])
            trial = self.judge.judge(setting, tier, step)
            self.advance(1.0)
            return trial

        return TieredSearch(hierarchy, levels, self.space, judged, self.sensitivity, self.announce).run()

    def _line(self) -> list[Trial]:
        """Budgeted and Pareto search: both walk the line of settings that the knapsack leaves."""
        evaluator, levels = self.evaluator, self.options.levels
        self.stage("predicted cost of every matrix", 1.0)
        self.predictions = predict_modules(
            evaluator, levels, self.space, self.journal, self.predict, self.advance
        )
        self.sensitivity = block_sensitivity(self.predictions, evaluator, levels, self.space, self.base)
        whole = self.options.method == "pareto"
        # a front is to serve every budget of weights
        limits = replace(self.constraints, weights_budget_bytes=None) if whole else self.constraints
        line = allocate(evaluator.hierarchy, left_by_tuning(self.predictions, self.options.remains), limits)
        if not len(line):
            return []

        def judged(setting: Setting, tier: str, step: str) -> Trial:
            trial = self.judge.judge(setting, tier, step, full=whole)
            self.advance(1.0)
            return trial

        if whole:
            self.stage("search, front", RUNGS)
            trials = climb(line, judged, self.announce)
            self.front = undominated(trials)
            return trials
        self.stage("search, knapsack", self.options.max_steps)
        walk = BudgetedSearch(
            line,
            self.judge,
            judged,
            self.options.mu,
            evaluator.hierarchy.float32_bytes,
            [(setting, weight_bytes(evaluator.hierarchy, setting)) for setting in self._uniform()],
            self.options.scale,
            self.options.max_steps,
            self.announce,
        )
        return walk.run()

    def _uniform(self) -> list[Setting]:
        """Every level for all modules, as each of them takes it."""
        return [self.space.setting(self.evaluator.hierarchy, level) for level in self.options.levels]


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
    predict: Predict = fisher_divergence,
    make_judge: MakeJudge = Judge,
) -> SearchResult:
    """Search a setting that meets the constraints.

    Args:
        evaluator: scores settings on the search items.
        model_digest: for the cache of float scores.
        constraints: the limits.
        options: levels, selection, early decisions.
        journal: continues a killed search.
        stage, advance, announce: progress: a stage with its expected number of evaluations, work done, a line.
        predict: gives the predicted costs of matrices to methods that need them.
        make_judge: what evaluates settings; another one may change the model first.

    Raises:
        InfeasibleError: no setting meets every constraint; the message says what would.
    """
    begun = time.monotonic()
    refuse_hopeless(
        evaluator, constraints, options.levels, LevelMap(evaluator.store.model.config, options.cuts)
    )
    stage("float model on the search items", 1.0)
    reference = float_reference(evaluator, model_digest, advance)
    base = quality(reference.scores)
    judge = make_judge(evaluator, reference.scores, constraints, journal, early=options.early)
    search = _Search(evaluator, judge, constraints, options, journal, base, stage, advance, announce, predict)
    trials = search.run()
    stage("selection", 1.0)
    trials += nearest_that_fits(judge, trials, options.levels, search.space)
    # a front answers with its own points, so that asking it later gives the same
    pool = list(search.front) if search.front else trials
    selected = select_best(judge, pool, options.mu)
    if selected is None:
        raise explain_infeasible(judge, trials, constraints)
    chosen, chosen_scores = selected
    candidates = rank_candidates(pool, evaluator.hierarchy.float32_bytes, options.mu, evaluator.kind)
    return SearchResult(
        chosen=chosen,
        chosen_scores=chosen_scores,
        candidates=tuple(candidates),
        trials=tuple(trials),
        sensitivity=tuple(search.sensitivity),
        reference=reference,
        base=base,
        cost=evaluator.cost,
        replayed=journal.replayed,
        seconds=time.monotonic() - begun,
        replayed_tokens=journal.replayed_tokens,
        predictions=tuple(search.predictions),
        front=tuple(search.front),
    )
