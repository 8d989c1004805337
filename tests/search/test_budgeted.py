"""Budgeted search and fronts on drawn landscapes: limits, size against the tiers, resuming, and what fronts answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qslm_edge.errors import InfeasibleError
from qslm_edge.items import Items
from qslm_edge.metrics import paired, quality
from qslm_edge.quantize.accounting import matrix_bytes, predict_peak_rss_bytes, weight_bytes
from qslm_edge.quantize.levels import Level, parse_level
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.search.constraints import Constraints
from qslm_edge.search.evaluator import Evaluator
from qslm_edge.search.front import FrontPoint, choose
from qslm_edge.search.journal import Journal
from qslm_edge.search.prediction import Predict, Prediction, left_by_tuning
from qslm_edge.search.run import SearchOptions, SearchResult, run_search
from qslm_edge.search.score import eq1_score
from qslm_edge.search.space import LevelMap, check_levels

MakeStore = Callable[..., WeightStore]
MakeItems = Callable[..., Items]
MakeEvaluator = Callable[..., Evaluator]
SHARED = [HealthCheck.function_scoped_fixture]
LEVELS = "16 8g64 4g32 4g64 2g64"


def levels_of(text: str) -> tuple[Level, ...]:
    return check_levels(parse_level(word) for word in text.split())


Search = Callable[..., SearchResult]


@pytest.fixture(scope="module")
def search(true_costs: Predict) -> Search:
    def run(
        evaluator: Evaluator,
        limit: float,
        method: str = "budgeted",
        *,
        levels: str = LEVELS,
        path: Path | None = None,
        mu: float | None = None,
        weights: int | None = None,
        memory: int | None = None,
        predict: Predict = true_costs,
    ) -> SearchResult:
        return run_search(
            evaluator,
            f"{getattr(evaluator, 'seed', 'real')}",
            Constraints(limit, weights, memory),
            SearchOptions(levels_of(levels), mu, True, method),
            Journal(path, evaluator.kind, {"model": "m"}),
            predict=predict,
        )

    return run


def answer(result: SearchResult) -> dict[str, Any]:
    """What a resumed search must give again: everything but costs and times."""
    costs = {"cost", "seconds", "replayed", "replayed_tokens", "reference", "chosen_scores"}
    return {f.name: getattr(result, f.name) for f in fields(SearchResult) if f.name not in costs}


def uniform_bytes(store: WeightStore, text: str) -> int:
    space = LevelMap(store.model.config)
    return weight_bytes(store.hierarchy, space.setting(store.hierarchy, parse_level(text)))


def largest_step(store: WeightStore, levels: str) -> int:
    """Most bytes that one module loses from one level to the next below 8 bits."""
    space, steps = LevelMap(store.model.config), []
    for module in store.hierarchy.modules:
        sizes = [
            matrix_bytes(module, space.level(module, level)) for level in levels_of(levels) if level.bits <= 8
        ]
        steps += [a - b for a, b in pairwise(sizes)]
    return max(steps)


def check_limits(evaluator: Any, result: SearchResult, limit: float, budget: int | None) -> None:
    """From the landscape itself, and not from the search."""
    best = result.chosen
    base = quality(result.reference.scores).value
    truth = evaluator.whole(best.setting)
    assert best.complete
    assert paired(result.reference.scores, truth, base).upper <= limit
    assert best.weight_bytes == weight_bytes(evaluator.hierarchy, best.setting)
    assert budget is None or best.weight_bytes <= budget
    np.testing.assert_array_equal(result.chosen_scores.loss, truth.loss)


@settings(max_examples=15, suppress_health_check=SHARED)
@given(
    seed=st.integers(0, 10**6),
    limit=st.sampled_from([0.3, 1.0, 3.0]),
    share=st.sampled_from([None, 0.5, 0.8, 1.2]),
    mu=st.sampled_from([None, 0.0, 2.5, 50.0]),
    method=st.sampled_from(["budgeted", "pareto"]),
    classify=st.booleans(),
)
def test_no_limit_is_ever_violated(
    search: Search,
    landscape: MakeEvaluator,
    lm_store: WeightStore,
    class_store: WeightStore,
    windows: Items,
    sentences: Items,
    seed: int,
    limit: float,
    share: float | None,
    mu: float | None,
    method: str,
    classify: bool,
) -> None:
    store = class_store if classify else lm_store
    evaluator = landscape(store, sentences if classify else windows, seed=seed, noise=0.01)
    budget = None if share is None else int(share * uniform_bytes(store, "4g64"))
    limit = 4 * limit if classify else limit
    try:
        result = search(evaluator, limit, method, mu=mu, weights=budget)
    except InfeasibleError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
        return
    check_limits(evaluator, result, limit, budget)


@settings(max_examples=10, suppress_health_check=SHARED)
@given(
    seed=st.integers(0, 10**6),
    limit=st.sampled_from([0.2, 0.5, 1.0, 3.0]),
    scale=st.sampled_from([0.2, 0.5, 2.0]),
)
def test_never_worse_than_the_tiers_by_more_than_a_step_where_costs_add_up(
    search: Search,
    landscape: MakeEvaluator,
    lm_store: WeightStore,
    windows: Items,
    seed: int,
    limit: float,
    scale: float,
) -> None:
    tiered, budgeted = (
        search(landscape(lm_store, windows, seed=seed, noise=1e-5, scale=scale), limit, method)
        for method in ("tiered", "budgeted")
    )
    assert budgeted.chosen.weight_bytes <= tiered.chosen.weight_bytes + largest_step(lm_store, LEVELS)
    assert len(budgeted.trials) < len(tiered.trials)


def test_far_fewer_tokens_than_the_tiers_and_smaller_settings(
    search: Search, landscape: MakeEvaluator, lm_store: WeightStore, windows: Items
) -> None:
    tokens, sizes = {"tiered": 0, "budgeted": 0}, {"tiered": 0, "budgeted": 0}
    for seed in range(6):
        for method in tokens:
            result = search(landscape(lm_store, windows, seed=seed, noise=1e-3), 0.5, method)
            tokens[method] += sum(int(trial.n_items) for trial in result.trials)
            sizes[method] += result.chosen.weight_bytes
    assert tokens["budgeted"] < 0.4 * tokens["tiered"]
    assert sizes["budgeted"] < sizes["tiered"]


@pytest.mark.parametrize("factor", [0.02, 0.3, 5.0, 100.0])
def test_a_prediction_that_is_wrong_by_a_factor_costs_evaluations_only(
    search: Search,
    landscape: MakeEvaluator,
    lm_store: WeightStore,
    windows: Items,
    true_costs: Predict,
    factor: float,
) -> None:
    def wrong(evaluator: Any, cells: Any, on_done: Any) -> Any:
        found = true_costs(evaluator, cells, on_done)
        for scores in found:
            scores.loss[:] *= factor
        return found

    def chosen(predict: Predict) -> int:
        evaluator = landscape(lm_store, windows, seed=4, noise=1e-5)
        result = search(evaluator, 0.5, predict=predict)
        assert len(result.trials) <= 12
        return result.chosen.weight_bytes

    assert chosen(wrong) <= chosen(true_costs) * 1.01


def test_one_level_for_all_is_found_where_predictions_are_too_rough_for_it(
    search: Search, landscape: MakeEvaluator, lm_store: WeightStore, windows: Items, true_costs: Predict
) -> None:
    evaluator: Any = landscape(lm_store, windows, seed=1, noise=1e-5)
    reference = evaluator.whole(evaluator.float_setting())
    plain = LevelMap(lm_store.model.config).setting(lm_store.hierarchy, parse_level("4g64"))
    limit = 1.0001 * paired(reference, evaluator.whole(plain), quality(reference).value).upper
    size, seen = weight_bytes(lm_store.hierarchy, plain), 0
    for seed in range(8):
        rng = np.random.default_rng(seed)

        def rough(evaluator: Any, cells: Any, on_done: Any, rng: Any = rng) -> Any:
            found = true_costs(evaluator, cells, on_done)
            for scores in found:
                scores.loss[:] *= np.exp(rng.normal(0, 0.3))
            return found

        result = search(
            landscape(lm_store, windows, seed=1, noise=1e-5), limit, levels="8g64 4g64", predict=rough
        )
        check_limits(evaluator, result, limit, None)
        assert len(result.trials) <= 10
        assert result.chosen.weight_bytes <= size
        seen += any(trial.step.endswith("one level") for trial in result.trials)
    assert seen


@pytest.mark.parametrize("max_steps", [1, 2, 8])
def test_one_level_is_tried_within_the_evaluations_that_are_left_and_never_twice(
    landscape: MakeEvaluator,
    lm_store: WeightStore,
    windows: Items,
    true_costs: Predict,
    monkeypatch: pytest.MonkeyPatch,
    max_steps: int,
) -> None:
    monkeypatch.setattr("qslm_edge.search.budgeted.NEAR", 1.0)  # every smaller one is near
    for seed in range(6):
        evaluator = landscape(lm_store, windows, seed=seed, noise=1e-5)
        levels = levels_of("8g32 8g64 4g32 4g64")
        options = SearchOptions(levels, None, True, "budgeted", max_steps=max_steps, scale=1e-3)
        journal = Journal(None, evaluator.kind, {"model": "m"})
        result = run_search(evaluator, str(seed), Constraints(0.3), options, journal, predict=true_costs)
        tried = [trial.setting for trial in result.trials if trial.tier == "knapsack"]
        assert len(tried) <= max_steps + 1  # the largest of the line, where nothing else performed
        assert len(set(tried)) == len(tried)


def test_a_prediction_that_knows_nothing_still_ends_within_the_limit(
    search: Search, landscape: MakeEvaluator, lm_store: WeightStore, windows: Items, true_costs: Predict
) -> None:
    def flat(evaluator: Any, cells: Any, on_done: Any) -> Any:
        found = true_costs(evaluator, cells, on_done)
        for scores in found:
            scores.loss[:] = 0.0
        return found

    evaluator = landscape(lm_store, windows, seed=4, scale=1e-4)
    result = search(evaluator, 0.5, predict=flat)
    check_limits(evaluator, result, 0.5, None)
    with pytest.raises(InfeasibleError):
        search(landscape(lm_store, windows, seed=4, scale=30.0), 0.5, predict=flat)


def test_under_a_budget_mu_0_takes_the_best_that_fits(
    search: Search, landscape: MakeEvaluator, lm_store: WeightStore, windows: Items
) -> None:
    budget = (uniform_bytes(lm_store, "4g64") + uniform_bytes(lm_store, "2g64")) // 2
    evaluator = landscape(lm_store, windows, seed=2, noise=1e-5)
    best = search(evaluator, 50.0, mu=0.0, weights=budget)
    small = search(landscape(lm_store, windows, seed=2, noise=1e-5), 50.0, weights=budget)
    assert best.chosen.metric < small.chosen.metric
    assert small.chosen.weight_bytes < best.chosen.weight_bytes <= budget
    assert len(best.trials) <= 3
    float_bytes = lm_store.hierarchy.float32_bytes
    scores = [eq1_score(t, float_bytes, 0.0, "language_model") for t in best.candidates]
    assert eq1_score(best.chosen, float_bytes, 0.0, "language_model") == min(scores)


def test_a_binding_peak_takes_lean_settings(
    search: Search, landscape: MakeEvaluator, make_store: MakeStore, windows: Items
) -> None:
    store = make_store(6, 256)  # large enough that prepacked scales count
    space = LevelMap(store.model.config)
    narrow, lean = (space.setting(store.hierarchy, parse_level(text)) for text in ("2g32", "4g128f"))
    peaks = [predict_peak_rss_bytes(store.hierarchy, s) for s in (narrow, lean)]
    assert peaks[0] > peaks[1]
    for method in ("budgeted", "pareto"):
        result = search(landscape(store, windows), 1e6, method, levels="4g128f 2g32", memory=peaks[1])
        assert result.chosen.peak_rss_bytes <= peaks[1]


@pytest.mark.parametrize("method", ["budgeted", "pareto"])
def test_resumed_after_a_kill_at_every_record_the_answer_is_the_same(
    search: Search,
    landscape: MakeEvaluator,
    lm_store: WeightStore,
    windows: Items,
    tmp_path: Path,
    method: str,
) -> None:
    path = tmp_path / "journal.jsonl"
    whole = search(landscape(lm_store, windows, seed=3), 0.5, method, path=path)
    content = path.read_bytes()
    ends = [0, *(i + 1 for i, byte in enumerate(content) if byte == ord("\n"))]
    for end in (*ends[::17], *ends[-5:]):
        path.write_bytes(content[:end])
        resumed = search(landscape(lm_store, windows, seed=3), 0.5, method, path=path)
        assert answer(resumed) == answer(whole)
        assert path.read_bytes() == content
    assert resumed.replayed_tokens > 0
    assert resumed.cost.tokens == 0


def test_methods_share_the_evaluations_of_a_directory(
    search: Search, landscape: MakeEvaluator, lm_store: WeightStore, windows: Items, tmp_path: Path
) -> None:
    path = tmp_path / "journal.jsonl"
    for first, second in (("tiered", "budgeted"), ("pareto", "budgeted"), ("budgeted", "pareto")):
        path.unlink(missing_ok=True)
        search(landscape(lm_store, windows, seed=5), 0.5, first, path=path)
        helped, alone = (landscape(lm_store, windows, seed=5) for _ in range(2))
        result = search(helped, 0.5, second, path=path)
        assert answer(result) == answer(search(alone, 0.5, second))
        assert helped.cost.evaluations <= alone.cost.evaluations


# Fronts.


@settings(max_examples=8, suppress_health_check=SHARED)
@given(
    mu=st.sampled_from([None, 3.0]),
    seed=st.integers(0, 10**6),
    classify=st.booleans(),
    share=st.floats(0.4, 1.2),
    limit=st.floats(0.1, 8.0),
)
def test_a_front_is_monotone_and_answers_as_a_fresh_search(
    search: Search,
    landscape: MakeEvaluator,
    lm_store: WeightStore,
    class_store: WeightStore,
    windows: Items,
    sentences: Items,
    mu: float | None,
    seed: int,
    classify: bool,
    share: float,
    limit: float,
) -> None:
    store, items = (class_store, sentences) if classify else (lm_store, windows)
    kind, float_bytes = landscape(store, items).kind, store.hierarchy.float32_bytes
    front = [FrontPoint.of(t) for t in search(landscape(store, items, seed=seed), 1e6, "pareto").front]
    assert all(a.weight_bytes < b.weight_bytes for a, b in pairwise(front))
    assert all(a.upper > b.upper for a, b in pairwise(front))
    budget = int(share * uniform_bytes(store, "4g64"))
    question: dict[str, Any] = {"max_degradation": limit, "weights_budget_bytes": budget, "mu": mu}
    try:
        fresh = search(landscape(store, items, seed=seed), limit, "pareto", weights=budget, mu=mu)
    except InfeasibleError:
        with pytest.raises(InfeasibleError):
            choose(front, kind, float_bytes, **question)
        return
    assert choose(front, kind, float_bytes, **question) == FrontPoint.of(fresh.chosen)


def point(size: int, upper: float) -> FrontPoint:
    return FrontPoint({"emb": "4g64f"}, f"s{size}", size, 1, 20 + upper, upper - 0.1, 0.05, upper)


POINTS = (point(100, 3.0), point(200, 1.0), point(400, 0.2))


@pytest.mark.parametrize(
    ("limit", "budget", "mu", "size"),
    [
        (1.0, None, None, 200),
        (None, 399, None, 200),
        (None, 10**9, None, 400),
        (3.0, 400, None, 100),
        (3.0, None, 0.0, 400),
        (3.0, None, 1e6, 100),
    ],
)
def test_what_a_front_answers(limit: float | None, budget: int | None, mu: float | None, size: int) -> None:
    found = choose(POINTS, "language_model", 1000, max_degradation=limit, weights_budget_bytes=budget, mu=mu)
    assert found.weight_bytes == size


def test_what_a_front_cannot_answer_names_the_nearest() -> None:
    with pytest.raises(InfeasibleError, match=r"below the smallest setting .*Nearest: s100 at 0.00 MB"):
        choose(POINTS, "language_model", 1000, max_degradation=None, weights_budget_bytes=99)
    with pytest.raises(
        InfeasibleError, match=r"no setting of the front meets .*nearest: s200 .*\+1.000, limit 0.5"
    ):
        choose(POINTS, "language_model", 1000, max_degradation=0.5, weights_budget_bytes=399)


def test_tuning_leaves_a_share_of_each_part_of_the_model() -> None:
    names = ("emb", "blocks.0.att.key", "blocks.11.ffn.value", "head")
    table = [Prediction(name, "2g64", 2.0, 0.5, 10, 4, "predicted") for name in names]
    found = left_by_tuning(table, {"att": 1.5, "ffn": 0.25, "emb": 0.5})
    assert [cell.nats for cell in found] == [1.0, 3.0, 0.5, 2.0]
    assert [cell.standard_error for cell in found] == [0.25, 0.75, 0.125, 0.5]
    assert [cell.weight_bytes for cell in found] == [10] * 4
    assert left_by_tuning(table, {}) == table
