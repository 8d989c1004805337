"""Items: validation, digest, and the file."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qslm_edge import items as module
from qslm_edge.errors import BundleError, DataError, OutputError, UsageError
from qslm_edge.items import Items
from tests.helpers.items import lengths_lists, sentences, windows


def test_sizes_and_dtypes() -> None:
    items = windows([4, 4, 2])
    assert (items.n_items, items.n_tokens, items.lengths.tolist()) == (3, 10, [4, 4, 2])
    assert items.targets is not None
    assert [a.dtype.name for a in (items.tokens, items.targets, items.offsets)] == ["int32", "int32", "int64"]
    items.check(50)


def test_arrays_are_read_only_copies() -> None:
    tokens = np.array([1, 2], np.int32)
    items = Items("wikitext2", "search", tokens, np.array([0, 2]), targets=np.array([2, 3]))
    tokens[0] = 9
    assert items.tokens.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        items.tokens[0] = 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": np.zeros(0, np.int32), "offsets": np.zeros(1, np.int64)}, "no items"),
        ({"offsets": np.array([0, 4, 4, 10])}, "item 1 has no tokens"),
        ({"offsets": np.array([0, 6, 4, 10])}, "item 1 has no tokens"),
        ({"offsets": np.array([0, 4, 9])}, "offsets do not cover"),
        ({"offsets": np.array([1, 4, 10])}, "offsets do not cover"),
        ({"targets": np.zeros(9, np.int32)}, "targets and tokens differ"),
        ({"targets": None}, "either targets or labels"),
        ({"labels": np.zeros(3, np.int8)}, "either targets or labels"),
        ({"targets": None, "labels": np.zeros(2, np.int8)}, "labels and items differ"),
        (
            {"targets": None, "labels": np.array([0, 1, 2])},
            "labels out of range; found 0 to 2; allowed: 0 to 1",
        ),
        ({"tokens": np.full(10, 50)}, "token ids out of range; found 50 to 50; allowed: 0 to 49"),
        ({"tokens": np.full(10, -1)}, "token ids out of range"),
        ({"targets": np.full(10, 50)}, "target ids out of range"),
        ({"split": "holdout"}, "split unknown"),
        ({"n_words": 0}, "n_words must be a positive"),
    ],
)
def test_check_names_the_problem(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        windows([4, 4, 2], **changes).check(50)


@pytest.mark.parametrize(
    "tokens", [np.array([2**31]), np.array([0.5]), np.zeros((1, 1), np.int32)], ids=["large", "float", "2-d"]
)
def test_arrays_of_the_wrong_kind_are_refused(tokens: Any) -> None:
    with pytest.raises(DataError, match="tokens"):
        windows([1], tokens=tokens)


def test_digest_follows_the_content_only() -> None:
    first = windows([4, 4, 2])
    same = windows([4, 4, 2], source="elsewhere", tokens=first.tokens.astype(np.int64))
    assert first.digest == same.digest
    others = [
        windows([4, 2, 4]),
        windows([4, 4, 2], split="search"),
        windows([4, 4, 2], n_words=8),
        windows([4, 4, 2], tokens=first.tokens[::-1]),
        windows([4, 4, 2], targets=None, labels=np.zeros(3).astype(np.int8)),
    ]
    assert len({first.digest, *(other.digest for other in others)}) == 1 + len(others)


def test_digest_never_changes_between_versions() -> None:
    items = Items(
        "wikitext2", "search", np.array([1, 2, 3]), np.array([0, 2, 3]), targets=np.array([2, 3, 4])
    )
    assert items.digest == "2a8cd3ecdce7df21ad46e509592895749bc3f81a63a55266f86eaeb6b77f83c7"


def test_subset_takes_items_in_the_order_given() -> None:
    items = windows([4, 1, 2])
    assert items.targets is not None
    part = items.subset([2, 0])
    assert part.targets is not None
    assert part.tokens.tolist() == [*items.tokens[5:], *items.tokens[:4]]
    assert part.targets.tolist() == [*items.targets[5:], *items.targets[:4]]
    assert part.offsets.tolist() == [0, 2, 6]
    assert (part.n_words, part.n_bytes) == (None, None)
    assert part.source.endswith("2 of these 3 items")


def test_subset_of_everything_keeps_the_counts() -> None:
    assert windows([4, 1, 2]).subset([2, 0, 1]).n_words == 7
    assert windows([4, 1, 2]).subset([2, 2, 1]).n_words is None
    labels = sentences([3, 1, 2]).subset(np.array([1])).labels
    assert labels is not None
    assert labels.tolist() == [1]


@pytest.mark.parametrize("indices", [[], [3], [-1]])
def test_subset_out_of_range(indices: list[int]) -> None:
    with pytest.raises(UsageError, match="0 to 2"):
        windows([4, 1, 2]).subset(indices)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(lengths=lengths_lists, vocab=st.sampled_from([2, 65536, 70000]), kind=st.integers(0, 2))
def test_file_round_trip(tmp_path: Path, lengths: list[int], vocab: int, kind: int) -> None:
    items = (windows, sentences)[kind % 2](lengths, vocab=vocab)
    if kind == 2:  # targets that do not follow the tokens
        items = dataclasses.replace(items, targets=items.tokens[::-1])
    items.save(tmp_path / "a.npz")
    loaded = Items.load(tmp_path / "a.npz")
    assert loaded.digest == items.digest
    for field in dataclasses.fields(Items):
        np.testing.assert_array_equal(getattr(loaded, field.name), getattr(items, field.name))


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    items = windows([4, 4, 2])
    items.save(tmp_path / "a.npz")
    os.utime(tmp_path / "a.npz", (0, 0))
    Items.load(tmp_path / "a.npz").save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_numpy_reads_the_file(tmp_path: Path) -> None:
    items = windows([4, 4, 2])
    items.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert archive["tokens"].dtype == np.uint16
        assert archive["tokens"].tolist() == items.tokens.tolist()
        assert archive["last_targets"].shape == (3,)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_found_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    items = windows([4, 4, 2])
    path = tmp_path / "a.npz"
    items.save(path)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[at] ^= data.draw(st.integers(1, 255))
    else:
        del content[at:]
    path.write_bytes(content)
    try:
        loaded = Items.load(path)
    except BundleError as error:
        assert "damaged" in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert (loaded.digest, loaded.source) == (items.digest, items.source)


def test_edited_content_is_found_by_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Items, "digest", "0" * 64)
    windows([4, 4, 2]).save(tmp_path / "a.npz")
    monkeypatch.undo()
    with pytest.raises(BundleError, match="digest differs"):
        Items.load(tmp_path / "a.npz")


def test_newer_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "SCHEMA_VERSION", 2)
        windows([4]).save(tmp_path / "a.npz")
    with pytest.raises(BundleError, match=r"newer schema; found 2\. Update"):
        Items.load(tmp_path / "a.npz")


def test_missing_and_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="missing"):
        Items.load(tmp_path / "a.npz")
    windows([4]).save(tmp_path / "a.npz")
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 100)
    with pytest.raises(BundleError, match="too large; allowed: 100 bytes"):
        Items.load(tmp_path / "a.npz")


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    """Whatever is compressed could be a bomb; no writer of ours compresses."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tokens.npy", bytes(10_000))
    with pytest.raises(BundleError, match="unexpected entry"):
        Items.load(tmp_path / "a.npz")


def test_save_where_no_folder_is(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        windows([4]).save(tmp_path / "absent" / "a.npz")


def test_save_refuses_broken_items(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no items"):
        windows([4], tokens=np.zeros(0, np.int32), offsets=np.zeros(1, np.int64)).save(tmp_path / "a.npz")
