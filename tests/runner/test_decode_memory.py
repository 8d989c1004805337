"""The memory process: its stages in order, nothing that raises the peak before they are read, known loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qslm_edge.bundle.reader import Bundle
from qslm_edge.runner import decode_memory
from qslm_edge.runner.decode_memory import drop_bytes, measure_memory
from qslm_edge.runner.memory import CgroupMemory, cgroup_memory, read_memory
from qslm_edge.runner.observe import Observed
from qslm_edge.runner.power.base import Unavailable
from qslm_edge.runner.sessions.base import SessionOptions
from qslm_edge.runner.stream import DecodeOptions, Stream

Result = dict[str, Any]
MIB = 2**20


def measure(bundle: Bundle, **options: Any) -> Result:
    return measure_memory(bundle, bundle.items("search"), DecodeOptions(**options), lambda _title: None)


@pytest.mark.parametrize("kind", ["lm", "classifier"])
def test_every_stage_is_there(kind: str, lm_bundle: Bundle, classifier_bundle: Bundle) -> None:
    result = measure(lm_bundle if kind == "lm" else classifier_bundle)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    memory = result["memory"]
    assert memory["load_peak_rss_bytes"] == memory["loaded"]["peak_rss_bytes"]
    assert memory["decode_peak_rss_bytes"] == memory["steady"]["peak_rss_bytes"]
    peaks = [memory[stage]["peak_rss_bytes"] for stage in ("bare", "loaded", "steady")]
    assert peaks == sorted(peaks)
    assert memory["gpu"]["status"] == "not used"
    assert memory["gpu"]["reason"] == "the bundle ran with CPUExecutionProvider"
    assert memory["available"]["drop_bytes"] >= 0
    assert (result["session"]["threads"], result["session"]["spinning"]) == (1, False)


def test_memory_is_read_before_anything_else_can_raise_the_peak(
    lm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    feed = Stream.feed

    def remember() -> Any:
        order.append("memory")
        return read_memory()

    def fed(self: Stream, count: int) -> None:
        order.append("decode")
        feed(self, count)

    def grouped() -> CgroupMemory:
        order.append("cgroup")
        return cgroup_memory()

    monkeypatch.setattr(decode_memory, "read_memory", remember)
    monkeypatch.setattr(decode_memory, "cgroup_memory", grouped)
    monkeypatch.setattr(Stream, "feed", fed)
    measure(lm_bundle)
    assert order == ["cgroup", "memory", "memory", *["decode"] * 9, "memory", "cgroup"]


def test_a_gpu_is_read_at_every_stage(lm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    class Record:
        def __init__(self, meter: Any) -> None:
            assert meter == Unavailable("nvml", "no driver")

        def take(self, name: str) -> None:
            taken.append(name)

        def close(self) -> Result:
            return {"status": "unavailable", "reason": "no driver"}

    monkeypatch.setattr(SessionOptions, "uses_gpu", True)
    monkeypatch.setattr(decode_memory, "open_meter", lambda: Unavailable("nvml", "no driver"))
    monkeypatch.setattr(decode_memory, "GpuRecord", Record)
    assert measure(lm_bundle)["memory"]["gpu"]["reason"] == "no driver"
    assert taken == ["loaded", "steady"]


@pytest.mark.parametrize(
    ("before", "after", "drop"), [(100, 40, 60), (40, 100, 0), (None, 40, None), (100, None, None)]
)
def test_the_drop_of_the_shared_pool(before: int | None, after: int | None, drop: int | None) -> None:
    assert drop_bytes(before, after) == drop
    readings = [
        Observed(value, "/proc/meminfo", None if value is not None else "permission denied")
        for value in (before, after)
    ]
    found = decode_memory._available(readings[0], readings[1])
    assert found["drop_bytes"] == drop
    assert (found["reason"] == "permission denied") == (drop is None)


@pytest.mark.parametrize(
    ("before", "after", "moved"), [(5, 9, True), (9, 9, False), (None, 9, None), (9, None, None)]
)
def test_the_peak_of_the_group_is_of_this_run_only_if_it_moved(
    before: int | None, after: int | None, moved: bool | None
) -> None:
    groups = []
    for peak in (before, after):
        other: Observed[int] = Observed(None, "x", "no limit is set")
        groups.append(CgroupMemory(2, other, Observed(peak, "x"), other, other))
    assert decode_memory._cgroup(groups[0], groups[1])["peak_moved"] is moved


LOAD = """
import json, mmap, sys
from qslm_edge.runner.memory import read_memory
from qslm_edge.runner.sessions.base import SessionOptions
size = int(sys.argv[1])
bare = read_memory()
block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for position in range(0, size, 4096):
    block[position] = 1
full = read_memory()
print(json.dumps([full.peak_rss_bytes - bare.rss_bytes, full.rss_anon_bytes - bare.rss_anon_bytes]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_load_of_known_size_is_measured_within_2_percent(root: Path) -> None:
    """64 MiB of touched pages in a fresh process, so that nothing of this one counts."""
    command = [sys.executable, "-c", LOAD, str(64 * MIB)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [pytest.approx(64 * MIB, rel=0.02)] * 2
