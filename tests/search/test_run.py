"""Whole searches over drawn landscapes: what is chosen, what is infeasible, and what is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm_edge.errors import InfeasibleError
from qslm_edge.items import Items
from qslm_edge.metrics import paired, quality
from qslm_edge.quantize.accounting import predict_peak_rss_bytes, weight_bytes
from qslm_edge.quantize.levels import Setting, parse_level
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.search.constraints import Constraints
from qslm_edge.search.journal import Journal
from qslm_edge.search.run import SearchOptions, SearchResult, run_search
from qslm_edge.search.score import eq1_score, most_complete
from qslm_edge.search.space import LevelMap
from tests.helpers.searches import PARTS, SHARED, MakeEvaluator, levels_of, search

MakeStore = Callable[..., WeightStore]


def uniform_bytes(store: WeightStore, text: str) -> int:
    space = LevelMap(store.model.config)
    return weight_bytes(store.hierarchy, space.setting(store.hierarchy, parse_level(text)))


def check_result(evaluator: Any, result: SearchResult, limit: float, budget: int | None) -> None:
    """What any result must satisfy, from the landscape itself and not from the search."""
    best = result.chosen
    truth = evaluator.whole(best.setting)
    upper = paired(result.reference.scores, truth, quality(result.reference.scores).value).upper
    assert best.complete
    assert best.comparison.upper == pytest.approx(upper)
    assert upper <= limit
    assert budget is None or weight_bytes(evaluator.hierarchy, best.setting) <= budget
    np.testing.assert_array_equal(result.chosen_scores.loss, truth.loss)
    for trial in result.trials:
        assert trial.weight_bytes == weight_bytes(evaluator.hierarchy, trial.setting)
        assert (trial.memory_violation is None) == (budget is None or trial.weight_bytes <= budget)
    assert result.candidates[0].setting == best.setting
    assert {t.setting for t in result.candidates} == {
        t.setting for t in most_complete(result.trials) if t.feasible
    }


@settings(max_examples=25, suppress_health_check=SHARED)
@given(
    seed=st.integers(0, 10**6),
    limit=st.sampled_from([0.3, 1.0, 3.0]),
    share=st.sampled_from([None, 0.5, 0.8, 1.2]),
    early=st.booleans(),
    classify=st.booleans(),
)
def test_the_chosen_setting_is_the_smallest_candidate(
    landscape: MakeEvaluator,
    lm_store: WeightStore,
    class_store: WeightStore,
    windows: Items,
    sentences: Items,
    seed: int,
    limit: float,
    share: float | None,
    early: bool,
    classify: bool,
) -> None:
    store = class_store if classify else lm_store
    evaluator = landscape(store, sentences if classify else windows, seed=seed)
    budget = None if share is None else int(share * uniform_bytes(store, "4g64"))
    if classify:
        limit *= 4
    try:
        result = search(evaluator, limit, weights=budget, early=early)
    except InfeasibleError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
        return
    check_result(evaluator, result, limit, budget)
    feasible = [t for t in result.trials if t.complete and t.feasible]
    assert result.chosen.weight_bytes == min(t.weight_bytes for t in feasible)
    assert list(result.candidates) == sorted(result.candidates, key=lambda t: t.weight_bytes)


@pytest.mark.parametrize("mu", [0.0, 1.0, 2.5, 5.0])
@settings(max_examples=12, suppress_health_check=SHARED)
@given(seed=st.integers(0, 10**6), early=st.booleans())
def test_eq1_chooses_the_best_score_of_all_candidates(
    landscape: MakeEvaluator, lm_store: WeightStore, windows: Items, mu: float, seed: int, early: bool
) -> None:
    evaluator: Any = landscape(lm_store, windows, seed=seed)
    result = search(evaluator, 2.0, mu=mu, early=early)
    check_result(evaluator, result, 2.0, None)
    float_bytes, base = lm_store.hierarchy.float32_bytes, quality(result.reference.scores).value

    def score(setting: Setting) -> float:
        truth = paired(result.reference.scores, evaluator.whole(setting), base)
        if truth.upper > 2.0:
            return float("inf")
        return base + truth.degradation + mu * weight_bytes(lm_store.hierarchy, setting) / float_bytes

    chosen = score(result.chosen.setting)
    assert chosen == pytest.approx(eq1_score(result.chosen, float_bytes, mu, "language_model"))
    assert chosen <= min(score(t.setting) for t in result.trials if t.performance_ok) + 1e-9


def test_early_decisions_lead_to_the_same_setting_on_landscapes(
    landscape: MakeEvaluator, lm_store: WeightStore, windows: Items
) -> None:
    saved = []
    for seed in range(12):
        for mu in (None, 2.5):
            results = {}
            for early in (True, False):
                evaluator = landscape(lm_store, windows, seed=seed)
                results[early] = search(evaluator, 0.5, mu=mu, early=early)
            assert results[True].chosen == results[False].chosen
            saved.append(
                sum(t.n_items for t in results[True].trials) / sum(t.n_items for t in results[False].trials)
            )
    assert np.mean(saved) < 0.8


def test_a_zero_budget_of_performance_keeps_the_float_levels(
    landscape: MakeEvaluator, lm_store: WeightStore, windows: Items
) -> None:
    result = search(landscape(lm_store, windows), 0.0, "32 8g64")
    assert result.chosen.setting.describe() == "32"
    assert result.chosen.comparison.degradation == 0


def test_a_budget_below_the_smallest_setting_is_refused_before_any_evaluation(
    landscape: MakeEvaluator, lm_store: WeightStore, windows: Items
) -> None:
    smallest = uniform_bytes(lm_store, "2g64")
    evaluator: Any = landscape(lm_store, windows)
    with pytest.raises(InfeasibleError, match="smallest setting.*no setting can fit.*weights .* > budget"):
        search(evaluator, 100.0, weights=smallest - 1)
    assert evaluator.seen == []
    assert search(evaluator, 1e6, weights=smallest).chosen.weight_bytes == smallest


def test_a_peak_below_the_smallest_is_refused_too(
    landscape: MakeEvaluator, lm_store: WeightStore, windows: Items
) -> None:
    evaluator: Any = landscape(lm_store, windows)
    with pytest.raises(InfeasibleError, match="predicted peak RSS"):
        search(evaluator, 100.0, memory=10**6)
    assert evaluator.seen == []


def test_the_smallest_in_bytes_need_not_be_the_smallest_in_memory(
    landscape: MakeEvaluator, make_store: MakeStore, windows: Items
) -> None:
    store = make_store(6, 256)  # large enough that prepacked scales count
    space = LevelMap(store.model.config)
    narrow, lean = (space.setting(store.hierarchy, parse_level(text)) for text in ("2g32", "4g128f"))
    assert weight_bytes(store.hierarchy, narrow) < weight_bytes(store.hierarchy, lean)
    peaks = [predict_peak_rss_bytes(store.hierarchy, s) for s in (narrow, lean)]
    assert peaks[0] > peaks[1]
    result = search(landscape(store, windows), 1e6, "4g128f 2g32", memory=peaks[1])
    assert result.chosen.peak_rss_bytes <= peaks[1]


def test_infeasible_names_the_nearest_on_both_sides_and_a_way_out(
    landscape: MakeEvaluator, lm_store: WeightStore, windows: Items
) -> None:
    budget = (uniform_bytes(lm_store, "2g64") + uniform_bytes(lm_store, "4g64")) // 2
    with pytest.raises(InfeasibleError) as caught:
        search(landscape(lm_store, windows, scale=3.0), 0.5, weights=budget)
    line = str(caught.value)
    assert caught.value.exit_code == 1
    assert "nearest that performs: " in line
    assert f"> budget {budget / 1e6:.2f} MB" in line
    assert "nearest that fits: 2g64 with degradation" in line
    assert "limit 0.5" in line
    assert "raise the memory budget" in line.lower()
    assert "allow at least" in line


def test_the_way_out_leads_out(landscape: MakeEvaluator, lm_store: WeightStore, windows: Items) -> None:
    budget = (uniform_bytes(lm_store, "2g64") + uniform_bytes(lm_store, "4g64")) // 2
    with pytest.raises(InfeasibleError) as caught:
        search(landscape(lm_store, windows, scale=3.0), 0.5, weights=budget)
    needed = float(str(caught.value).split("allow at least ")[1].split()[0])
    result = search(landscape(lm_store, windows, scale=3.0), needed + 0.01, weights=budget)
    assert result.chosen.feasible


def test_infeasible_when_even_the_widest_level_degrades(
    landscape: MakeEvaluator, lm_store: WeightStore, windows: Items
) -> None:
    with pytest.raises(InfeasibleError) as caught:
        search(landscape(lm_store, windows, scale=60.0), 0.001)
    line = str(caught.value)
    assert "nothing that was tried performs" in line
    assert "nearest that fits: 8g64 with degradation" in line
    assert "None" not in line
    with pytest.raises(InfeasibleError) as both:
        search(landscape(lm_store, windows, scale=60.0), 0.001, weights=uniform_bytes(lm_store, "4g64"))
    assert "nearest that fits" in str(both.value)  # judged for the message: no tier came so far


def test_a_fitting_level_found_last_is_chosen_when_it_performs(
    landscape: Any, lm_store: WeightStore, windows: Items
) -> None:
    """Losses need not rise with fewer bits: the level that the tiers never reached may meet both limits."""

    class Odd(landscape):  # type: ignore[misc]
        def increase(self, setting: Setting) -> float:
            bits = {level.bits for _, level in setting.levels}
            return 0.001 if bits <= {32, 2} else 9.0 if 4 in bits else 0.01

    budget = uniform_bytes(lm_store, "2g64")
    result = search(Odd(lm_store, windows, noise=1e-6), 1.0, weights=budget)
    assert result.chosen.weight_bytes == budget


def test_a_final_evaluation_may_overrule_an_early_one(
    landscape: Any, lm_store: WeightStore, windows: Items
) -> None:
    """The first items may lie: the smallest candidate then fails on all items and the next is taken."""

    class Lying(landscape):  # type: ignore[misc]
        def whole(self, setting: Setting) -> Any:
            scores = super().whole(setting)
            if all(level.bits == 2 for _, level in setting.levels):
                scores.loss[40:] += 60
            return scores

    evaluator = Lying(lm_store, windows, scale=0.001, noise=1e-5)
    result = search(evaluator, 1.0)
    assert {level.bits for _, level in result.chosen.setting.levels} == {4}
    assert result.chosen.feasible
    finals = [t for t in result.trials if t.tier == "final"]
    assert [t.feasible for t in finals] == [False, True]


def test_progress_has_stages_whose_work_is_told(
    landscape: MakeEvaluator, lm_store: WeightStore, windows: Items
) -> None:
    events: list[tuple[str, float]] = []
    texts: list[str] = []
    result = run_search(
        landscape(lm_store, windows),
        "m",
        Constraints(0.5),
        SearchOptions(levels_of("8g64 4g64 2g64")),
        Journal(None, "language_model", PARTS),
        stage=lambda title, total: events.append((title, total)),
        advance=lambda share: events.append(("", share)),
        announce=texts.append,
    )
    titles = [title for title, _ in events if title]
    assert titles == [
        "float model on the search items",
        "sensitivity of every block",
        "search, global tier",
        "search, block tier",
        "search, module tier",
        "selection",
    ]
    tiers = [trial for trial in result.trials if trial.tier != "final"]
    assert texts == [f"{trial.tier}: {trial.step}" for trial in tiers]
    start = events.index(("sensitivity of every block", 1.0))
    stop = events.index(("search, global tier", 3))
    assert sum(share for title, share in events[start + 1 : stop]) == pytest.approx(1.0)


def test_the_result_as_json(landscape: MakeEvaluator, lm_store: WeightStore, windows: Items) -> None:
    float_bytes = lm_store.hierarchy.float32_bytes
    for mu in (None, 2.5):
        result = search(landscape(lm_store, windows), 0.5, mu=mu)
        options = SearchOptions(levels_of("8g64 4g64 2g64"), mu)
        data = json.loads(json.dumps(result.to_dict(float_bytes, options, "language_model"), allow_nan=False))
        chosen = data["chosen"]
        assert Setting.from_dict(chosen["setting"]) == result.chosen.setting
        assert chosen["reduction"] == pytest.approx(1 - chosen["weight_bytes"] / float_bytes)
        assert chosen["feasible"] is True
        assert len(data["trials"]) == len(result.trials)
        assert (data["eq1_score"] is None) == (mu is None)
        assert data["cost"]["replayed_from_journal"] == 0
        assert ("reconstruction" in data["selection"]) == (mu is not None)
