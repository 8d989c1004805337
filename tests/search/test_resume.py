"""Searches that go on from a journal: the same answer wherever they were stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm_edge.errors import RunError
from qslm_edge.items import Items
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.search.run import SearchResult
from tests.helpers.searches import SHARED, MakeEvaluator, answer, search


def test_resume_after_a_kill_at_every_record_gives_the_identical_result(
    landscape: MakeEvaluator, lm_store: WeightStore, windows: Items, tmp_path: Path
) -> None:
    path = tmp_path / "journal.jsonl"
    whole = search(landscape(lm_store, windows, seed=3), 0.5, path=path)
    assert whole.replayed == 0
    content = path.read_bytes()
    assert "final" in {trial.tier for trial in whole.trials}
    assert any(not trial.complete for trial in whole.trials)
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for end in (0, *ends):
        path.write_bytes(content[:end])
        evaluator = landscape(lm_store, windows, seed=3)
        resumed = search(evaluator, 0.5, path=path)
        assert answer(resumed) == answer(whole)
        assert path.read_bytes() == content
        n_kept = max(sum(other <= end for other in ends) - 1, 0)
        assert evaluator.cost.evaluations == len(ends) - 1 - n_kept
    assert resumed.replayed > 20


@pytest.fixture(scope="module")
def finished(
    landscape: MakeEvaluator,
    lm_store: WeightStore,
    class_store: WeightStore,
    windows: Items,
    sentences: Items,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[tuple[Callable[[Path], SearchResult], dict[str, Any], bytes]]:
    """Searches that can be run again, with the answers and the journals of their first run."""
    folder = tmp_path_factory.mktemp("finished")
    found: list[tuple[Callable[[Path], SearchResult], dict[str, Any], bytes]] = []
    for number, (store, items, limit, mu) in enumerate(
        [(lm_store, windows, 0.5, None), (lm_store, windows, 1.0, 2.5), (class_store, sentences, 3.0, 1.0)]
    ):

        def again(
            path: Path, store: Any = store, items: Any = items, limit: Any = limit, mu: Any = mu
        ) -> SearchResult:
            return search(landscape(store, items, seed=8), limit, path=path, mu=mu)

        path = folder / str(number)
        found.append((again, answer(again(path)), path.read_bytes()))
    return found


@settings(max_examples=18, suppress_health_check=SHARED)
@given(number=st.integers(0, 2), cuts=st.lists(st.floats(0, 1), min_size=1, max_size=2))
def test_resume_after_a_kill_anywhere_gives_the_identical_result(
    finished: list[tuple[Callable[[Path], SearchResult], dict[str, Any], bytes]],
    tmp_path: Path,
    number: int,
    cuts: list[float],
) -> None:
    again, whole, content = finished[number]
    path = tmp_path / "journal.jsonl"
    path.write_bytes(content)
    for cut in cuts:  # killed more than once
        path.write_bytes(content[: int(cut * len(content))])
        assert answer(again(path)) == whole
        assert path.read_bytes() == content


@settings(max_examples=15, suppress_health_check=SHARED)
@given(first=st.sampled_from([0.1, 0.5, 2.0]), second=st.sampled_from([0.1, 0.5, 2.0]), early=st.booleans())
def test_the_journal_of_another_limit_helps_and_changes_nothing(
    landscape: MakeEvaluator,
    lm_store: WeightStore,
    windows: Items,
    tmp_path: Path,
    first: float,
    second: float,
    early: bool,
) -> None:
    path = tmp_path / "journal.jsonl"
    path.unlink(missing_ok=True)
    search(landscape(lm_store, windows, seed=5), first, path=path, early=early)
    helped, alone = (landscape(lm_store, windows, seed=5) for _ in range(2))
    assert answer(search(helped, second, path=path)) == answer(search(alone, second))
    assert helped.cost.evaluations < alone.cost.evaluations


def test_a_foreign_journal_is_refused_before_any_work(
    landscape: MakeEvaluator, lm_store: WeightStore, windows: Items, tmp_path: Path
) -> None:
    search(landscape(lm_store, windows), 1.0, path=tmp_path / "j")
    evaluator = landscape(lm_store, windows)
    with pytest.raises(RunError, match="different items, model"):
        search(evaluator, 1.0, path=tmp_path / "j", parts={"model": "other", "items": "others"})
    assert evaluator.cost.evaluations == 0
