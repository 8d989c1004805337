"""Judging one setting: what a trial says, when an evaluation stops, and what the journal answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qslm_edge.items import Items
from qslm_edge.metrics import Scores, paired, quality
from qslm_edge.quantize.accounting import predict_peak_rss_bytes, weight_bytes
from qslm_edge.quantize.levels import Setting, parse_level
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.search.constraints import Constraints
from qslm_edge.search.evaluator import Evaluator
from qslm_edge.search.journal import Journal
from qslm_edge.search.trial import Judge, Trial

MakeStore = Callable[..., WeightStore]
MakeItems = Callable[..., Items]


def setting_of(evaluator: Evaluator, text: str) -> Setting:
    return Setting.uniform((m.name for m in evaluator.hierarchy.modules), parse_level(text))


def make_judge(evaluator: Evaluator, limit: float, journal: Journal | None = None, **options: Any) -> Judge:
    reference = evaluator.evaluate(evaluator.float_setting())
    evaluator.cost.evaluations = 0
    constraints = options.pop("constraints", Constraints(limit))
    journal = journal or Journal(None, evaluator.kind, {})
    return Judge(evaluator, reference, constraints, journal, **options)


@pytest.fixture
def windows(landscape: Callable[..., Evaluator], make_store: MakeStore, make_windows: MakeItems) -> Evaluator:
    return landscape(make_store(), make_windows(64, 6))


@pytest.fixture
def sentences(
    landscape: Callable[..., Evaluator], make_store: MakeStore, make_sentences: MakeItems
) -> Evaluator:
    return landscape(make_store(head="classifier"), make_sentences(300), scale=0.2)


def test_a_full_trial_says_what_the_metrics_say(windows: Evaluator) -> None:
    judge, setting = make_judge(windows, 1.0, early=False), setting_of(windows, "4g32")
    trial = judge.judge(setting, "global", "all")
    scores = windows.evaluate(setting)
    base = quality(judge.reference)
    expected = paired(judge.reference, scores, base.value)
    assert trial.comparison == expected
    assert trial.metric == pytest.approx(base.value + expected.degradation)
    assert trial.performance_ok == (expected.upper <= 1.0)
    assert trial.weight_bytes == weight_bytes(windows.hierarchy, setting)
    assert trial.peak_rss_bytes == predict_peak_rss_bytes(windows.hierarchy, setting)
    assert (trial.tier, trial.step, trial.setting) == ("global", "all", setting)
    assert trial.complete
    np.testing.assert_array_equal(judge.last.loss, scores.loss)


def test_accuracy_falls_where_perplexity_rises(sentences: Evaluator) -> None:
    judge = make_judge(sentences, 2.0, early=False)
    trial = judge.judge(setting_of(sentences, "2g32"), "global", "all")
    assert trial.comparison.degradation > 0
    assert trial.metric == pytest.approx(judge.base.value - trial.comparison.degradation)


def test_performance_is_the_upper_bound_and_not_the_mean(windows: Evaluator) -> None:
    setting = setting_of(windows, "4g32")
    trial = make_judge(windows, 1.0, early=False).judge(setting, "g", "s")
    mean, upper = trial.comparison.degradation, trial.comparison.upper
    assert mean < upper
    for limit, ok in ((upper + 1e-6, True), ((mean + upper) / 2, False)):
        assert make_judge(windows, limit, early=False).judge(setting, "g", "s").performance_ok is ok


def test_feasible_needs_both(windows: Evaluator) -> None:
    setting = setting_of(windows, "4g32")
    small = weight_bytes(windows.hierarchy, setting) - 1
    for limit, budget, feasible in (
        (9.0, None, True),
        (9.0, small, False),
        (0.0, None, False),
        (0.0, small, False),
    ):
        trial = make_judge(windows, limit, constraints=Constraints(limit, budget)).judge(setting, "g", "s")
        assert trial.feasible is feasible
        assert (trial.memory_violation is None) is (budget is None)


@pytest.mark.parametrize("limit", [0.05, 20.0])
def test_an_evaluation_stops_once_its_decision_is_clear(windows: Evaluator, limit: float) -> None:
    judge = make_judge(windows, limit)
    early = judge.judge(setting_of(windows, "4g32"), "global", "all")
    assert 16 <= early.n_items < 64
    assert not early.complete
    full = judge.judge(setting_of(windows, "4g32"), "final", "all", full=True)
    assert full.complete
    assert full.performance_ok is early.performance_ok
    assert windows.cost.evaluations == 2
    assert early.comparison.standard_error > full.comparison.standard_error * 0.8


def test_near_the_limit_every_item_is_scored(windows: Evaluator) -> None:
    setting = setting_of(windows, "4g32")
    upper = make_judge(windows, 1.0, early=False).judge(setting, "g", "s").comparison.upper
    assert make_judge(windows, upper).judge(setting, "g", "s").complete


def test_what_was_judged_is_not_evaluated_again(windows: Evaluator) -> None:
    judge = make_judge(windows, 20.0)
    setting = setting_of(windows, "4g32")
    first = judge.judge(setting, "a", "b")
    again = judge.judge(setting, "a", "b")
    assert windows.cost.evaluations == 1
    assert again == first
    judge.judge(setting, "a", "b", full=True)
    judge.judge(setting, "a", "b", full=True)
    assert windows.cost.evaluations == 2
    # a full evaluation answers the early question with the same part as before
    assert judge.judge(setting, "a", "b") == first
    assert judge.last.n_items == first.n_items
    assert windows.cost.evaluations == 2


@pytest.mark.parametrize("first_limit", [0.01, 20.0])
@pytest.mark.parametrize("kind", ["windows", "sentences"])
def test_evidence_of_another_limit_answers_as_an_evaluation_would(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, first_limit: float
) -> None:
    evaluator: Evaluator = request.getfixturevalue(kind)
    setting = setting_of(evaluator, "4g32")
    upper = make_judge(evaluator, 1.0, early=False).judge(setting, "g", "s").comparison.upper
    for factor in (0.5, 0.9, 1.0, 1.1, 2.0, 5.0):
        path = tmp_path / f"{kind}{first_limit}{factor}"
        before = make_judge(evaluator, first_limit, Journal(path, evaluator.kind, {}))
        before.judge(setting, "g", "s")
        resumed = make_judge(evaluator, upper * factor, Journal(path, evaluator.kind, {}))
        fresh = make_judge(evaluator, upper * factor)
        assert resumed.judge(setting, "g", "s") == fresh.judge(setting, "g", "s")


def test_work_is_told(windows: Evaluator) -> None:
    shares: list[float] = []
    make_judge(windows, 1.0, early=False, on_work=shares.append).judge(setting_of(windows, "8g64"), "g", "s")
    assert math.fsum(shares) == pytest.approx(1.0)


def test_a_trial_is_feasible_only_when_nothing_is_violated() -> None:
    n = np.arange(3)
    scores = Scores("language_model", n, np.arange(3.0), n + 1, n)
    comparison, names = paired(scores, scores), Setting(())

    def trial(ok: bool, violation: str | None) -> Trial:
        return Trial(names, "t", "s", 1, 1, comparison, 1.0, 1, 2, ok, violation)

    assert [trial(ok, v).feasible for ok in (True, False) for v in (None, "x")] == [True, False, False, False]
    assert not trial(True, None).complete
