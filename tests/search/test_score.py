"""Eq. 1 and the ranking of candidates, on trials made by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.metrics import Kind, Paired
from qslm_edge.quantize.levels import Setting, parse_level
from qslm_edge.search.score import eq1_score, most_complete, rank_candidates
from qslm_edge.search.trial import Trial

MUS = (0.0, 1.0, 2.5, 5.0)


def trial(name: str, weight_bytes: int, metric: float, **changes: Any) -> Trial:
    values: dict[str, Any] = {
        "setting": Setting(((name, parse_level("4g64")),)),
        "tier": "block",
        "step": name,
        "weight_bytes": weight_bytes,
        "peak_rss_bytes": 1,
        "comparison": Paired(0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 64),
        "metric": metric,
        "n_items": 64,
        "n_items_total": 64,
        "performance_ok": True,
        "memory_violation": None,
    }
    return Trial(**(values | changes))


def names(trials: list[Trial]) -> list[str]:
    return [t.step for t in trials]


@pytest.mark.parametrize("mu", MUS)
def test_eq1_of_generation_and_classification(mu: float) -> None:
    candidate = trial("a", 250, 22.5)
    assert eq1_score(candidate, 1000, mu, "language_model") == pytest.approx(22.5 + mu * 0.25)
    # classification maximises A - mu m: the sign is turned, so that smaller is better everywhere
    assert eq1_score(candidate, 1000, mu, "classification") == pytest.approx(-(22.5 - mu * 0.25))


SMALL, MIDDLE, LARGE = trial("small", 100, 23.0), trial("middle", 300, 22.4), trial("large", 800, 22.0)


@pytest.mark.parametrize(
    ("mu", "best"), [(None, "small"), (0.0, "large"), (1.0, "middle"), (2.5, "middle"), (5.0, "small")]
)
def test_memory_counts_more_with_mu(mu: float | None, best: str) -> None:
    ranked = rank_candidates([MIDDLE, LARGE, SMALL], 1000, mu, "language_model")
    assert ranked[0].step == best
    assert len(ranked) == 3


def test_accuracy_is_better_when_larger() -> None:
    good, bad = trial("good", 100, 85.0), trial("bad", 100, 80.0)
    for mu in (None, *MUS):
        assert names(rank_candidates([bad, good], 1000, mu, "classification")) == ["good", "bad"]
        assert names(rank_candidates([good, bad], 1000, mu, "language_model")) == ["bad", "good"]


def test_ties_of_bytes_go_by_metric_and_ties_of_score_by_bytes() -> None:
    a, b = trial("a", 100, 23.0), trial("b", 100, 22.0)
    assert names(rank_candidates([a, b], 1000, None, "language_model")) == ["b", "a"]
    c, d = trial("c", 200, 22.0), trial("d", 100, 22.0)
    assert names(rank_candidates([c, d], 1000, 0.0, "language_model")) == ["d", "c"]


def test_only_feasible_settings_are_candidates() -> None:
    slow = trial("slow", 1, 99.0, performance_ok=False)
    fat = trial("fat", 5000, 20.0, memory_violation="too large")
    assert names(rank_candidates([slow, fat, SMALL], 1000, None, "language_model")) == ["small"]
    assert rank_candidates([slow, fat], 1000, 1.0, "language_model") == []


def test_the_most_complete_evaluation_of_a_setting_speaks_for_it() -> None:
    early = trial("a", 100, 22.0, n_items=16)
    final = trial("a", 100, 23.5, performance_ok=False, tier="final")
    for order in ([early, final], [final, early]):
        assert most_complete(order) == [final]
        assert rank_candidates(order, 1000, None, "language_model") == []
    again = trial("a", 100, 23.5, tier="final")
    assert most_complete([trial("a", 100, 23.5), again]) == [again]
    assert most_complete([early, SMALL, final]) == [final, SMALL]


def test_an_early_stop_enters_with_its_best_case() -> None:
    complete = trial("complete", 100, 22.0)
    early = trial("early", 100, 23.0, n_items=16)
    kinds: tuple[tuple[Kind, int], ...] = (("language_model", 1), ("classification", -1))
    for kind, sign in kinds:
        first = trial("complete", 100, sign * 22.0)
        second = trial("early", 100, sign * 23.0, n_items=16)
        ranked = rank_candidates([first, second], 1000, 0.0, kind, sigmas=3.0)
        assert names(ranked) == ["early", "complete"]  # 23 - 3 * 1 * sqrt(3/4) < 22
    assert names(rank_candidates([complete, early], 1000, 0.0, "language_model")) == ["complete", "early"]
    assert names(rank_candidates([complete, early], 1000, 0.0, "language_model", 1.0)) == [
        "complete",
        "early",
    ]


candidates = st.lists(
    st.tuples(st.integers(1, 1000), st.floats(1, 100), st.booleans(), st.booleans()), max_size=12
)


@given(drawn=candidates, mu=st.sampled_from([None, *MUS]), larger=st.booleans())
def test_the_first_is_the_best_and_the_order_is_total(
    drawn: list[tuple[int, float, bool, bool]], mu: float | None, larger: bool
) -> None:
    kind: Kind = "classification" if larger else "language_model"
    trials = [
        trial(str(i), size, metric, performance_ok=ok, memory_violation=None if fits else "x")
        for i, (size, metric, ok, fits) in enumerate(drawn)
    ]
    ranked = rank_candidates(trials, 1000, mu, kind)
    assert {t.step for t in ranked} == {str(i) for i, (_, _, ok, fits) in enumerate(drawn) if ok and fits}

    def score(t: Trial) -> float:
        if mu is None:
            return float(t.weight_bytes)
        return (-1 if larger else 1) * t.metric + mu * t.weight_bytes / 1000

    scores = [score(t) for t in ranked]
    assert scores == pytest.approx(sorted(scores))
