"""The cache of arrays: gives back what it was given, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qslm_edge.array_cache import cache_directory, keep_arrays, kept_arrays


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QSLM_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_arrays_come_back_by_their_name(cache: Path) -> None:
    assert kept_arrays("kind", "a") is None
    keep_arrays("kind", "a", {"x": np.arange(3), "y": np.ones((2, 2), np.float32)})
    found = kept_arrays("kind", "a")
    assert found is not None
    assert found.keys() == {"x", "y"}
    assert np.array_equal(found["x"], np.arange(3))
    assert found["y"].dtype == np.float32
    assert kept_arrays("kind", "b") is None
    assert kept_arrays("other", "a") is None
    assert [path.name[:5] for path in cache.iterdir()] == ["kind-"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\xff" * 100])
def test_what_is_damaged_is_not_there(cache: Path, content: bytes) -> None:
    keep_arrays("kind", "a", {"x": np.arange(3)})
    (file,) = cache.iterdir()
    file.write_bytes(content)
    assert kept_arrays("kind", "a") is None


def test_a_renamed_file_is_not_taken_for_another(cache: Path) -> None:
    keep_arrays("kind", "a", {"x": np.arange(3)})
    (file,) = cache.iterdir()
    keep_arrays("kind", "b", {"x": np.arange(4)})
    (other,) = set(cache.iterdir()) - {file}
    other.write_bytes(file.read_bytes())
    assert kept_arrays("kind", "b") is None


def test_a_place_that_cannot_be_written_stops_nothing(cache: Path) -> None:
    cache.write_text("a file where the directory should be")
    keep_arrays("kind", "a", {"x": np.arange(3)})
    assert kept_arrays("kind", "a") is None


def test_the_directory_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QSLM_EDGE_CACHE", raising=False)
    assert cache_directory().name == "qslm-edge"
