"""Memory readings from captured and damaged files, and of this process."""

from __future__ import annotations

import mmap
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qslm_edge.runner import memory
from qslm_edge.runner.memory import available_bytes, cgroup_memory, read_memory, reset_peak

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "power"
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@pytest.fixture
def process(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "linux_process", tmp_path / "self"))


def test_captured_process() -> None:
    reading = read_memory(FIXTURES / "linux_process")
    assert reading.rss_bytes == reading.peak_rss_bytes == 16532 * 1024
    assert (reading.rss_anon_bytes, reading.rss_file_bytes) == (9792 * 1024, 6740 * 1024)
    assert reading.pss_bytes == 11176 * 1024
    assert reading.reason is None


def test_missing_rollup_leaves_the_rest(process: Path) -> None:
    (process / "smaps_rollup").unlink()
    reading = read_memory(process)
    assert reading.peak_rss_bytes == 16532 * 1024
    assert reading.pss_bytes is None
    assert "smaps_rollup: no such file" in str(reading.reason)


def test_process_name_that_is_not_utf8_does_no_harm(process: Path) -> None:
    content = (process / "status").read_bytes().replace(b"python3", b"\xff\xfe", 1)
    (process / "status").write_bytes(content)
    assert read_memory(process).rss_bytes == 16532 * 1024


@pytest.mark.parametrize(
    "line",
    ["VmHWM:\t -5 kB", "VmHWM:\t", "VmHWM:\t 5 MB", "VmHWM:\t 999999999999999 kB", "VmHWM:\t 0x10 kB", ""],
)
def test_damaged_peak_is_none_with_a_reason(process: Path, line: str) -> None:
    text = (process / "status").read_text().replace("VmHWM:\t   16532 kB", line)
    (process / "status").write_text(text)
    reading = read_memory(process)
    assert reading.peak_rss_bytes is None
    assert "no valid VmHWM" in str(reading.reason)
    assert reading.rss_bytes == 16532 * 1024


def test_no_process_folder(tmp_path: Path) -> None:
    reading = read_memory(tmp_path / "gone")
    assert reading.rss_bytes is None
    assert "status: no such file" in str(reading.reason)
    assert set(reading.to_dict()) >= {"rss_bytes", "peak_rss_bytes", "source", "reason"}


@pytest.mark.parametrize(("peak", "words"), [(None, "no peak,"), (7, "no anonymous")])
def test_psutil_stands_in_without_proc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peak: int | None, words: str
) -> None:
    info = SimpleNamespace(rss=5, **({} if peak is None else {"peak_wset": peak}))
    fake = SimpleNamespace(Process=lambda: SimpleNamespace(memory_info=lambda: info))
    monkeypatch.setitem(sys.modules, "psutil", fake)
    monkeypatch.setattr(memory, "PROC_SELF", tmp_path / "gone")
    reading = read_memory(tmp_path / "gone")
    assert (reading.rss_bytes, reading.peak_rss_bytes) == (5, peak)
    assert words in str(reading.reason)


def test_neither_proc_nor_psutil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr(memory, "PROC_SELF", tmp_path / "gone")
    assert "psutil is not installed" in str(read_memory(tmp_path / "gone").reason)
    assert available_bytes(tmp_path).reason == "no such file"


@ON_LINUX
def test_this_process() -> None:
    reading = read_memory()
    assert reading.rss_bytes is not None
    assert reading.rss_bytes > 2**20
    assert (available_bytes().value or 0) > 2**20


@ON_LINUX
def test_peak_falls_only_by_a_reset() -> None:
    # pages of its own: a heap may keep what it was given back
    with mmap.mmap(-1, 64 * 2**20) as block:
        for position in range(0, len(block), 4096):
            block[position] = 1
    peak = read_memory().peak_rss_bytes
    worked = reset_peak()
    after = read_memory().peak_rss_bytes
    if peak is None or after is None:
        pytest.skip("this kernel shows no VmHWM")
    assert worked == (after < peak - 32 * 2**20)


def test_reset_that_changes_nothing_is_not_believed(process: Path) -> None:
    assert reset_peak(process) is False  # no clear_refs
    (process / "clear_refs").write_text("")
    text = (process / "status").read_text().replace("VmHWM:\t   16532 kB", "VmHWM:\t   99532 kB")
    (process / "status").write_text(text)
    assert reset_peak(process) is False
    assert (process / "clear_refs").read_text() == "5"


@pytest.mark.parametrize(
    ("content", "value"),
    [("MemFree: 1 kB\nMemAvailable:    2048 kB\n", 2048 * 1024), ("MemAvailable: -1 kB\n", None), ("", None)],
)
def test_available_memory(tmp_path: Path, content: str, value: int | None) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(content)
    observed = available_bytes(tmp_path)
    assert observed.value == value
    assert (observed.reason is None) == (value is not None)


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def test_cgroup_v2_takes_the_lowest_limit_of_the_parents(tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(FIXTURES / "cgroup_v2", root)
    write(
        root,
        {
            "proc/self/cgroup": "0::/qslm.slice\n",
            "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            "sys/fs/cgroup/qslm.slice/memory.max": "max\n",
            "sys/fs/cgroup/memory.max": "400000000\n",
        },
    )
    group = cgroup_memory(root)
    assert group.version == 2
    assert group.limit.value == 400_000_000
    assert group.peak.value == 195035136
    assert (group.current.value, group.oom_kills.value) == (171966464, 0)


def test_cgroup_v2_before_linux_5_19_has_no_peak(tmp_path: Path) -> None:
    write(tmp_path, {"sys/fs/cgroup/memory.current": "5"})
    group = cgroup_memory(tmp_path)
    assert (group.version, group.current.value) == (2, 5)
    assert (group.peak.value, group.peak.reason) == (None, "no such file")
    assert group.limit.reason == "no limit is set"
    assert group.to_dict()["version"] == 2


def test_cgroup_v1_in_a_container_without_namespace(tmp_path: Path) -> None:
    """The path is the host's, while the mount shows the container's own group as its root."""
    mount = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    group = "sys/fs/cgroup/memory"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "9:cpu:/docker/abc\n4:memory:/docker/abc\n0::/\n",
            "proc/self/mountinfo": mount + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            f"{group}/memory.limit_in_bytes": "9223372036854771712\n",
            f"{group}/memory.max_usage_in_bytes": "1234\n",
            f"{group}/memory.usage_in_bytes": "-3\n",
            f"{group}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        },
    )
    found = cgroup_memory(tmp_path)
    assert (found.version, found.peak.value, found.oom_kills.value) == (1, 1234, 2)
    assert found.limit.value is None
    assert found.current.reason == "implausible value -3"


def test_no_cgroup(tmp_path: Path) -> None:
    group = cgroup_memory(tmp_path)
    assert group.version is None
    assert group.peak.reason == "no memory control group"
