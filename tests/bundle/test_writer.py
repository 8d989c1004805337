"""Equal inputs give equal bundles, byte by byte; whatever goes wrong leaves nothing half-written."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import platform
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qslm_edge import __version__
from qslm_edge.bundle.reader import Bundle, open_bundle
from qslm_edge.bundle.writer import finish_bundle, save_arrays, save_scores, staging
from qslm_edge.errors import OutputError
from qslm_edge.metrics import Scores
from tests.helpers.bundles import make_bundle


def contents(folder: Path) -> dict[str, str]:
    """Everything in a folder with its digest, hidden files included."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("task", "level"), [("wikitext2", "4g32"), ("sst2", "2g64")])
def test_two_exports_are_equal_byte_by_byte(
    task: str, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name in ("one", "two"):  # other places, and float scores computed anew
        folder = tmp_path / name / "deeper"
        folder.mkdir(parents=True)
        monkeypatch.setenv("QSLM_EDGE_CACHE", str(tmp_path / name / "cache"))
        found.append(contents(make_bundle(folder, task, level, name=f"bundle-{name}").path))
        monkeypatch.setenv("USER", "somebody else")
    assert found[0] == found[1]
    assert len(found[0]) == (14 if task == "sst2" else 13)


def test_float_scores_from_the_cache_give_the_same_bundle(tmp_path: Path) -> None:
    first = contents(make_bundle(tmp_path).path)
    assert contents(make_bundle(tmp_path).path) == first
    assert names(tmp_path)[:1] == ["bundle"]  # nothing hidden is left beside it


def test_the_manifest_names_no_place_host_time_or_person(lm_bundle: Bundle) -> None:
    text = (lm_bundle.path / "manifest.json").read_text("utf-8")
    assert str(lm_bundle.path.parent) not in text
    assert "/tmp" not in text
    assert platform.node() not in text or len(platform.node()) < 3
    assert not {"created", "time", "host", "seconds", "date"} & json.loads(text).keys()
    assert lm_bundle.manifest["tool"] == {"name": "qslm-edge", "version": __version__}
    recipe = lm_bundle.manifest["recipe"]
    assert not {"model", "tokenizer", "search_data", "report_data", "profile"} & recipe.keys()
    assert recipe["max_degradation"] == 1e5


# ---- staging


def make_old(target: Path) -> None:
    target.mkdir()
    (target / "manifest.json").write_text("{}", "utf-8")
    (target / "old.txt").write_text("old", "utf-8")


def test_staging_replaces_a_bundle_whole(tmp_path: Path) -> None:
    make_old(tmp_path / "bundle")
    with staging(tmp_path / "bundle") as work:
        assert work.parent == tmp_path
        (work / "new.txt").write_text("new", "utf-8")
        assert names(tmp_path / "bundle") == ["manifest.json", "old.txt"]  # still there while we write
    assert names(tmp_path) == ["bundle"]
    assert names(tmp_path / "bundle") == ["new.txt"]


def test_staging_makes_the_folders_above(tmp_path: Path) -> None:
    with staging(tmp_path / "a" / "b") as work:
        (work / "x").touch()
    assert names(tmp_path / "a" / "b") == ["x"]


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("old", [True, False])
def test_a_failure_leaves_what_was_there(error: BaseException, old: bool, tmp_path: Path) -> None:
    if old:
        make_old(tmp_path / "bundle")
    before = contents(tmp_path)

    def fail(work: Path) -> None:
        (work / "half.bin").write_bytes(b"half")
        raise error

    with pytest.raises(type(error)), staging(tmp_path / "bundle") as work:
        fail(work)
    assert contents(tmp_path) == before
    assert names(tmp_path) == (["bundle"] if old else [])


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    make_old(tmp_path / "bundle")
    before = contents(tmp_path)
    with (
        pytest.raises(
            OutputError, match=r"model.bin: the bundle cannot be written; found No space left"
        ) as caught,
        staging(tmp_path / "bundle") as work,
    ):
        raise OSError(errno.ENOSPC, "No space left on device", str(work / "model.bin"))
    assert caught.value.exit_code == 4
    assert contents(tmp_path) == before
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("moment", [1, 2])
def test_a_rename_that_fails_puts_the_old_bundle_back(
    moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old(tmp_path / "bundle")
    before = contents(tmp_path)
    real, calls = os.replace, []

    def replace(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == moment:
            raise OSError(errno.EACCES, "Permission denied", str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OutputError, match="Permission denied"), staging(tmp_path / "bundle") as work:
        (work / "new.txt").touch()
    assert contents(tmp_path) == before
    assert names(tmp_path) == ["bundle"]


def test_an_interrupt_between_the_renames_puts_the_old_bundle_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old(tmp_path / "bundle")
    real, calls = os.replace, []

    def replace(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt), staging(tmp_path / "bundle"):
        pass
    assert names(tmp_path / "bundle") == ["manifest.json", "old.txt"]
    assert names(tmp_path) == ["bundle"]


def test_what_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("years of work", "utf-8")
    (tmp_path / "file").write_text("mine", "utf-8")
    (tmp_path / "empty").mkdir()
    before = contents(tmp_path)
    for name in ("folder", "file", "empty"):
        with (
            pytest.raises(
                OutputError, match=f"{name}: refusing to replace something that is not a bundle"
            ) as caught,
            staging(tmp_path / name),
        ):
            pytest.fail("must not begin")
        assert caught.value.exit_code == 4
    assert contents(tmp_path) == before


def test_a_file_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", "utf-8")
    with (
        pytest.raises(OutputError, match="the bundle cannot be written; found Not a directory"),
        staging(tmp_path / "file" / "bundle"),
    ):
        pytest.fail("must not begin")
    assert contents(tmp_path) == {"file": hashlib.sha256(b"mine").hexdigest()}


def test_a_link_to_a_bundle_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    make_old(tmp_path / "store")
    (tmp_path / "bundle").symlink_to("store")
    with staging(tmp_path / "bundle") as work:
        (work / "new.txt").touch()
    assert names(tmp_path) == ["bundle", "store"]
    assert not (tmp_path / "bundle").is_symlink()
    assert names(tmp_path / "store") == ["manifest.json", "old.txt"]


# ---- arrays and the list of files


@given(
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=20),
    st.lists(st.floats(width=32, allow_nan=False), max_size=20),
)
def test_arrays_come_back_and_their_bytes_depend_on_them_alone(ints: list[int], floats: list[float]) -> None:
    arrays: dict[str, NDArray[Any]] = {"a": np.array(ints, np.int32), "b": np.array(floats, np.float32)}
    files = []
    for _ in range(2):
        buffer = io.BytesIO()
        save_arrays(buffer, arrays)  # type: ignore[arg-type]
        files.append(buffer.getvalue())
    assert files[0] == files[1]
    with np.load(io.BytesIO(files[0]), allow_pickle=False) as found:
        assert found.files == ["a", "b"]
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
    with zipfile.ZipFile(io.BytesIO(files[0])) as archive:
        assert {(i.date_time, i.create_system, i.compress_type) for i in archive.infolist()} == {
            ((1980, 1, 1, 0, 0, 0), 3, zipfile.ZIP_STORED)
        }


@pytest.mark.parametrize(("largest", "bytes_each"), [(2**16 - 1, 2), (2**16, 4)])
def test_top_tokens_take_two_bytes_where_they_fit(largest: int, bytes_each: int, tmp_path: Path) -> None:
    scores = Scores(
        "language_model",
        np.array([0, 1]),
        np.array([1.5, 0.1 + 0.2]),
        np.array([3, 3]),
        np.array([1, 2]),
    )
    top = np.array([0, 5, largest], np.int32)
    save_scores(tmp_path / "scores.npz", scores, top)
    with np.load(tmp_path / "scores.npz") as found:
        assert found["top"].dtype.itemsize == bytes_each
        assert found["top"].tolist() == top.tolist()
        assert found["loss"].tolist() == [1.5, 0.1 + 0.2]  # float64, every bit
        assert found["correct"].tolist() == [1, 2]
    save_scores(tmp_path / "none.npz", scores, np.zeros(0, np.int32))
    save_scores(tmp_path / "without.npz", scores)
    with np.load(tmp_path / "without.npz") as found:
        assert "top" not in found.files


def test_the_list_of_files_is_complete_sorted_and_right(lm_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    (folder / "eval").mkdir(parents=True)
    for path in lm_bundle.path.rglob("*"):
        if path.is_file() and path.name not in ("manifest.json", "run.pyz"):
            (folder / path.relative_to(lm_bundle.path)).write_bytes(path.read_bytes())
    (folder / "extra.txt").write_text("äö", "utf-8")
    given = {k: v for k, v in lm_bundle.manifest.items() if k not in ("schema", "tool", "files")}
    bundle = finish_bundle(folder, given)
    entries = bundle.manifest["files"]
    assert [entry["path"] for entry in entries] == sorted(contents(folder).keys() - {"manifest.json"})
    assert {entry["path"]: entry["sha256"] for entry in entries}.items() <= contents(folder).items()
    assert bundle.file_bytes["extra.txt"] == 4
    assert bundle.file_bytes["run.pyz"] == lm_bundle.file_bytes["run.pyz"]
    assert open_bundle(folder).manifest == bundle.manifest
