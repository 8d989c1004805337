"""The journal: what was written is read back bit for bit, whatever a kill left of the last line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qslm_edge.errors import OutputError, RunError
from qslm_edge.metrics import Scores
from qslm_edge.search.journal import Journal, fingerprint

PARTS = {"model": "m1", "items": "i1", "head": "lm", "quantiser": "rtn/1"}
SHARED = [HealthCheck.function_scoped_fixture]
losses = st.lists(st.floats(allow_nan=False), max_size=5)


def scores(loss: list[float]) -> Scores:
    n = len(loss)
    values = np.array(loss, np.float64)
    return Scores("language_model", np.arange(n), values, np.arange(n) + 7, np.arange(n) * 2)


def same(a: Scores | None, b: Scores) -> bool:
    names = ("index", "loss", "count", "correct")
    return a is not None and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names)


def open_journal(path: Path | None, **changes: Any) -> Journal:
    return Journal(path, "language_model", {**PARTS, **changes})


def filled(path: Path, n: int = 4) -> list[int]:
    """A journal of n evaluations; returns where each of its lines ends."""
    path.unlink(missing_ok=True)
    journal = open_journal(path)
    for i in range(n):
        journal.put("search", f"key{i}", {"emb": "8g64"}, scores([i + 0.1, 1 / 3]))
    content = path.read_bytes()
    return [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]


def known(journal: Journal, n: int = 4) -> list[int]:
    return [i for i in range(n) if same(journal.get("search", f"key{i}"), scores([i + 0.1, 1 / 3]))]


@settings(max_examples=50, suppress_health_check=SHARED)
@given(loss=losses, purpose=st.sampled_from(["search", "sensitivity"]))
def test_scores_survive_the_file_bit_for_bit(tmp_path: Path, loss: list[float], purpose: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.unlink(missing_ok=True)
    open_journal(path).put(purpose, "k", {"emb": "8g64"}, scores(loss))
    found = open_journal(path).get(purpose, "k")
    assert same(found, scores(loss))
    assert found is not None
    assert [a.dtype.name for a in (found.index, found.loss, found.count)] == ["int64", "float64", "int64"]


def test_purposes_and_keys_are_kept_apart(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j")
    journal.put("search", "a", {}, scores([1.0]))
    journal.put("sensitivity", "a", {}, scores([2.0]))
    for again in (journal, open_journal(tmp_path / "j")):
        assert same(again.get("search", "a"), scores([1.0]))
        assert same(again.get("sensitivity", "a"), scores([2.0]))
        assert again.get("search", "b") is None


def test_a_later_evaluation_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j")
    journal.put("search", "a", {}, scores([1.0]))
    journal.put("search", "a", {}, scores([1.0, 2.0]))
    assert same(open_journal(tmp_path / "j").get("search", "a"), scores([1.0, 2.0]))


def test_each_evaluation_is_a_readable_line(tmp_path: Path) -> None:
    ends = filled(tmp_path / "j", 2)
    lines = [json.loads(line) for line in (tmp_path / "j").read_text("utf-8").splitlines()]
    assert len(lines) == len(ends) == 3
    assert lines[0] == {"schema": "qslm-edge/journal/1", "fingerprint": fingerprint(PARTS), "parts": PARTS}
    assert lines[1]["setting"] == {"emb": "8g64"}
    assert lines[1]["scores"]["loss"] == [0.1, 1 / 3]


def test_an_evaluation_is_on_the_disk_when_put_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", lambda _: synced.append((tmp_path / "j").stat().st_size))
    journal = open_journal(tmp_path / "j")
    journal.put("search", "a", {}, scores([1.0]))
    assert len(synced) == 2
    assert synced[-1] == (tmp_path / "j").stat().st_size


def test_without_a_path_everything_stays_in_memory() -> None:
    journal = open_journal(None)
    journal.put("search", "a", {}, scores([1.0]))
    assert same(journal.get("search", "a"), scores([1.0]))
    assert journal.replayed == 0


def test_only_what_an_earlier_process_left_counts_as_replayed(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    journal = open_journal(tmp_path / "j")
    assert journal.replayed == 0
    for _ in range(3):
        journal.get("search", "key1")
        journal.get("search", "key2")
        journal.get("search", "none")
    assert journal.replayed == 2
    journal.put("search", "new", {}, scores([1.0]))
    journal.get("search", "new")
    journal.put("search", "key3", {}, scores([5.0]))  # evaluated anew: not replayed
    journal.get("search", "key3")
    assert journal.replayed == 2


@settings(max_examples=80, suppress_health_check=SHARED)
@given(data=st.data())
def test_a_journal_cut_anywhere_keeps_its_whole_lines_and_goes_on(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "journal.jsonl"
    ends = filled(path)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)) | st.sampled_from([0, *ends]))
    path.write_bytes(whole[:cut])
    n_whole = sum(end <= cut for end in ends[1:])
    journal = open_journal(path)
    assert known(journal) == list(range(n_whole))
    for i in range(n_whole, 4):
        journal.put("search", f"key{i}", {"emb": "8g64"}, scores([i + 0.1, 1 / 3]))
    assert path.read_bytes() == whole
    assert known(open_journal(path)) == [0, 1, 2, 3]


@settings(max_examples=40, suppress_health_check=SHARED)
@given(tail=st.binary(min_size=1, max_size=30).filter(lambda b: b"\n" not in b))
def test_a_torn_tail_of_any_bytes_is_dropped(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    filled(path, 2)
    good = path.read_bytes()
    path.write_bytes(good + tail)
    assert known(open_journal(path)) == [0, 1]
    assert path.read_bytes() == good


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "m2"}, "different model;"),
        ({"items": "i2", "quantiser": "rtn/2"}, "different items, quantiser;"),
        ({"version": "9"}, "different version;"),
    ],
)
def test_a_foreign_journal_is_refused_with_what_differs(
    tmp_path: Path, changes: dict[str, str], named: str
) -> None:
    filled(tmp_path / "j")
    before = (tmp_path / "j").read_bytes()
    with pytest.raises(RunError, match="belongs to another search") as caught:
        open_journal(tmp_path / "j", **changes)
    assert named.rstrip(";") in str(caught.value)
    assert "--out" in str(caught.value)
    assert (tmp_path / "j").read_bytes() == before


def line(index: str = "[0]", loss: str = "[1.0]", purpose: str = '"search"') -> str:
    scores = f'{{"index": {index}, "loss": {loss}, "count": [1], "correct": [0]}}'
    return f'{{"purpose": {purpose}, "key": "k", "scores": {scores}}}'


DAMAGED = [
    *("", "{", "3", "[]", "null", '"x"', "{}", "[" * 100_000, "\udcff"),
    *('{"purpose": "search", "key": "k"}', '{"purpose": "search", "key": "k", "scores": 3}'),
    line().replace(', "correct": [0]', ""),
    line(loss="[]"),
    line(loss="[1.0, 2.0]"),
    line(loss='["a"]'),
    line(index="[1e999]"),
    line(index=f"[1{'0' * 30}]"),
    line(purpose="[]"),
]


@pytest.mark.parametrize("damage", DAMAGED, ids=range(len(DAMAGED)))
@pytest.mark.parametrize("place", [0, 2])
def test_damage_before_the_last_line_is_said_with_its_line(tmp_path: Path, damage: str, place: int) -> None:
    path = tmp_path / "journal.jsonl"
    filled(path)
    lines = path.read_bytes().splitlines()
    lines[place] = damage.encode("utf-8", "surrogateescape")
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(RunError) as caught:
        open_journal(path)
    message = str(caught.value)
    assert f"line {place + 1}" in message or "not a journal of this version" in message
    assert "\n" not in message
    assert len(message) < 500


def test_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j").write_text('{"schema": "qslm-edge/journal/9", "fingerprint": "x"}\n')
    with pytest.raises(RunError, match="not a journal of this version; found qslm-edge/journal/9"):
        open_journal(tmp_path / "j")


def test_places_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="cannot be read"):
        open_journal(tmp_path / "folder")
    with pytest.raises(OutputError, match="cannot be written"):
        open_journal(tmp_path / "none" / "j")


def test_fingerprints_follow_the_content_and_not_the_order() -> None:
    assert fingerprint({"a": 1, "b": {"c": 2}}) == fingerprint({"b": {"c": 2}, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint({"a": "8g64", "b": "4g64"}) != fingerprint({"a": "4g64", "b": "8g64"})
    assert len(fingerprint({})) == 64


def test_tokens_that_records_share_are_not_counted_for_each(tmp_path: Path) -> None:
    one = Scores("language_model", np.arange(2), np.ones(2), np.full(2, 5), np.zeros(2, np.int64))
    first = Journal(tmp_path / "j", "language_model", {})
    for key in "ab":
        first.put("search", key, {}, one)
    again = Journal(tmp_path / "j", "language_model", {})
    again.get("search", "a")
    again.get("search", "a")
    again.get("search", "b", shared=True)
    assert (again.replayed, again.replayed_tokens) == (2, 10)
