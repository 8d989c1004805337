"""Memory bandwidth: the size of the buffer, the method that is told, and what is absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.runner import bandwidth as module
from qslm_edge.runner.bandwidth import buffer_bytes, last_cache_bytes, measure_bandwidth

MIB = 2**20


def write_cache(root: Path, *sizes: str) -> None:
    for index, size in enumerate(sizes):
        folder = root / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(f"{size}\n", "utf-8")


def test_the_largest_cache_counts(tmp_path: Path) -> None:
    assert last_cache_bytes(tmp_path) is None
    write_cache(tmp_path, "32K", "32K", "512K", "16M", "odd")
    assert last_cache_bytes(tmp_path) == 16 * MIB


@pytest.mark.parametrize(
    ("cache", "free", "expected"),
    [
        (2 * MIB, 8192 * MIB, 64 * MIB),
        (32 * MIB, 8192 * MIB, 128 * MIB),
        (None, 8192 * MIB, 256 * MIB),
        (768 * MIB, 8192 * MIB, 1024 * MIB),
        (1 * MIB, 200 * MIB, 50 * MIB),  # a small board: a quarter of what is free
        (1 * MIB, 100 * MIB, None),
        (32 * MIB, 200 * MIB, None),
        (2 * MIB, None, 64 * MIB),
    ],
)
def test_the_buffer_lies_beyond_the_caches_and_within_the_memory(
    cache: int | None, free: int | None, expected: int | None
) -> None:
    assert buffer_bytes(cache, free) == expected


@given(
    cache=st.none() | st.integers(1, 512 * MIB),
    free=st.integers(0, 2**40),
)
def test_a_buffer_never_takes_more_than_a_quarter_nor_fits_the_cache(cache: int | None, free: int) -> None:
    size = buffer_bytes(cache, free)
    if size is not None:
        assert size * 4 <= free
        assert size + MIB > 2 * (cache or 0) or size == 1024 * MIB


def test_a_measurement_names_its_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "buffer_bytes", lambda _cache, _free: 2 * MIB)
    found = measure_bandwidth(repeats=2)
    assert found.one_thread_bytes_per_s is not None
    assert found.one_thread_bytes_per_s > 0
    assert found.all_threads_bytes_per_s is not None
    assert found.buffer_bytes == 2 * MIB
    assert found.method == "best of 2 passes of numpy's maximum over 2 MiB of int64"
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()


def test_too_little_memory_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "buffer_bytes", lambda _cache, _free: None)
    found = measure_bandwidth()
    assert (found.one_thread_bytes_per_s, found.all_threads_bytes_per_s) == (None, None)
    assert found.reason == "too little free memory for a buffer beyond the caches"
