"""Memory of this process, of its control group and of the machine, in bytes.

The peak is `VmHWM` of /proc/self/status. `ru_maxrss` is not used: it survives exec, so that a small runner
started by a large parent would report the parent. ONNX Runtime maps external weights, so RssFile and
RssAnon are kept apart: the page cache can be dropped, anonymous memory cannot. Pss comes from smaps_rollup.
Without /proc, psutil gives what the system knows; what it does not know stays None with a reason.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qslm_edge.runner.observe import Observed, is_live, read_int, read_text

__all__ = ["CgroupMemory", "MemoryReading", "available_bytes", "cgroup_memory", "read_memory", "reset_peak"]

PROC_SELF = Path("/proc/self")
NO_LIMIT_BYTES = 2**60  # cgroup v1 writes "no limit" as the largest page-aligned 63-bit number
RESET_SLACK_BYTES = 4 * 2**20  # the kernel counts pages per CPU in batches: VmHWM and VmRSS differ by some
MAX_PLAUSIBLE_BYTES = 2**50  # no process maps a pebibyte: such a number is a damaged file
# Limit, peak, present use and events, by version of the control groups.
CGROUP_FILES = {
    2: ("memory.max", "memory.peak", "memory.current", "memory.events"),
    1: ("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.usage_in_bytes", "memory.oom_control"),
}


@dataclass(frozen=True)
class MemoryReading:
    """Memory of one process at one moment; a value that the system does not give is None.

    Args:
        rss_bytes: resident set (VmRSS).
        peak_rss_bytes: highest resident set since the start or the last reset (VmHWM).
        rss_anon_bytes: anonymous part of the resident set.
        rss_file_bytes: file-backed part of the resident set, weights mapped from disk included.
        pss_bytes: resident set with shared pages divided by the number of their users.
        source: files or functions read.
        reason: what is missing and why; None when nothing is.
    """

    rss_bytes: int | None
    peak_rss_bytes: int | None
    rss_anon_bytes: int | None
    rss_file_bytes: int | None
    pss_bytes: int | None
    source: str
    reason: str | None = None

    def to_dict(self) -> dict[str, object]:
        """All fields, ready for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class CgroupMemory:
    """What the control group of this process may use and has used, page cache included.

    Args:
        version: 2 or 1; None when there is no memory controller.
        limit: lowest limit of the group and its parents.
        peak: highest use of the group since it was made.
        current: use of the group now.
        oom_kills: processes of the group that the kernel ended for want of memory.
    """

    version: int | None
    limit: Observed[int]
    peak: Observed[int]
    current: Observed[int]
    oom_kills: Observed[int]

    def to_dict(self) -> dict[str, object]:
        """All fields, ready for JSON."""
        return {
            "version": self.version,
            "limit": self.limit.to_dict(),
            "peak": self.peak.to_dict(),
            "current": self.current.to_dict(),
            "oom_kills": self.oom_kills.to_dict(),
        }


def _psutil() -> Any | None:
    try:
        return importlib.import_module("psutil")
    except ImportError:
        return None


def _kib_field(text: str, name: str) -> int | None:
    """Value in bytes of a line `Name:   123 kB`; None if it is absent, malformed or not plausible."""
    match = re.search(rf"^{re.escape(name)}:[ \t]*([0-9]{{1,15}}) kB[ \t]*$", text, re.MULTILINE)
    number = int(match.group(1)) * 1024 if match else None
    return number if number is not None and number < MAX_PLAUSIBLE_BYTES else None


def _from_psutil(why: str) -> MemoryReading:
    psutil = _psutil()
    if psutil is None:
        return MemoryReading(None, None, None, None, None, "none", f"{why}; psutil is not installed")
    info = psutil.Process().memory_info()
    # Only Windows keeps a peak working set; macOS has none that is safe from the parent process.
    peak = getattr(info, "peak_wset", None)
    return MemoryReading(
        rss_bytes=int(info.rss),
        peak_rss_bytes=None if peak is None else int(peak),
        rss_anon_bytes=None,
        rss_file_bytes=None,
        pss_bytes=None,
        source="psutil.Process().memory_info()",
        reason=f"{why}; psutil gives no {'' if peak is not None else 'peak, '}anonymous, file or Pss sizes",
    )


def read_memory(proc: Path = PROC_SELF) -> MemoryReading:
    """Read the memory of a process.

    Args:
        proc: folder of the process below /proc, or a copy of it.

    Returns:
        The reading. If `status` cannot be read and `proc` is this process, psutil is asked instead.
    """
    status = read_text(proc, "status", strict=False)  # the process name on its first line may be any bytes
    if status.value is None:
        why = f"{proc}/status: {status.reason}"
        if proc == PROC_SELF:
            return _from_psutil(why)
        return MemoryReading(None, None, None, None, None, f"{proc}/status", why)
    rollup = read_text(proc, "smaps_rollup", strict=False)
    names = {
        "rss_bytes": "VmRSS",
        "peak_rss_bytes": "VmHWM",
        "rss_anon_bytes": "RssAnon",
        "rss_file_bytes": "RssFile",
    }
    values = {field: _kib_field(status.value, name) for field, name in names.items()}
    pss = None if rollup.value is None else _kib_field(rollup.value, "Pss")
    missing = [f"{proc}/status has no valid {name}" for field, name in names.items() if values[field] is None]
    if rollup.value is None:
        missing.append(f"{proc}/smaps_rollup: {rollup.reason}")
    elif pss is None:
        missing.append(f"{proc}/smaps_rollup has no valid Pss")
    source = f"{proc}/status, {proc}/smaps_rollup"
    return MemoryReading(**values, pss_bytes=pss, source=source, reason="; ".join(missing) or None)


def reset_peak(proc: Path = PROC_SELF) -> bool:
    """Set VmHWM back to the present resident set, by writing 5 to clear_refs.

    Returns:
        True if the write went through and VmHWM then stood at the resident set. Some sandboxes accept the
        write and do nothing; for those the answer is False and the peak is the one since the start.
    """
    before = read_memory(proc).rss_bytes
    try:
        handle = os.open(proc / "clear_refs", os.O_WRONLY)
    except OSError:
        return False
    try:
        os.write(handle, b"5")
    except OSError:
        return False
    finally:
        os.close(handle)
    after = read_memory(proc)
    if before is None or after.rss_bytes is None or after.peak_rss_bytes is None:
        return False
    return after.peak_rss_bytes <= max(before, after.rss_bytes) + RESET_SLACK_BYTES


def available_bytes(root: Path = Path("/")) -> Observed[int]:
    """Memory that a new process can take without swapping (MemAvailable); psutil where there is no /proc."""
    text = read_text(root, "proc/meminfo")
    if text.value is None:
        psutil = _psutil() if is_live(root) else None
        if psutil is None:
            return Observed(None, text.source, text.reason)
        return Observed(int(psutil.virtual_memory().available), "psutil.virtual_memory().available")
    value = _kib_field(text.value, "MemAvailable")
    return Observed(value, text.source, None if value is not None else "no valid MemAvailable line")


def _find_cgroup(root: Path) -> tuple[int, str, str] | None:
    """Version, mount point and folder of this process's memory group, relative to `root`."""
    membership = read_text(root, "proc/self/cgroup", strict=False).value or ""
    paths: dict[int, str] = {}
    for line in membership.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            paths[1] = path
        elif number == "0" and not controllers:
            paths[2] = path
    mounts: list[tuple[int, str, str]] = []
    for line in (read_text(root, "proc/self/mountinfo", strict=False).value or "").splitlines():
        head, _, tail = line.partition(" - ")
        left, right = head.split(), tail.split()
        if len(left) >= 5 and right:
            if right[0] == "cgroup2":
                mounts.append((2, left[3], left[4]))
            elif right[0] == "cgroup" and "memory" in right[-1].split(","):
                mounts.append((1, left[3], left[4]))
    if not mounts:  # no mount table: the places where every distribution mounts them
        mounts = [(2, "/", "/sys/fs/cgroup"), (1, "/", "/sys/fs/cgroup/memory")]
    # A v1 memory controller excludes a v2 one, so version 1 is looked at first in a mixed setup.
    for version, inside, mount in sorted(mounts):
        point = mount.strip("/")
        path = paths.get(version, "/")
        below = path[len(inside.rstrip("/")) :] if path.startswith(inside) else ""
        # In a container without a cgroup namespace the path is the host's: then the mount itself is ours.
        for folder in dict.fromkeys([f"{point}/{below.strip('/')}".rstrip("/"), point]):
            if (root / folder / CGROUP_FILES[version][2]).exists():
                return version, point, folder
    return None


def _limit(root: Path, folder: str, top: str, name: str) -> Observed[int]:
    lowest: Observed[int] | None = None
    while True:
        text = read_text(root, f"{folder}/{name}")
        if text.value is not None and text.value.isdecimal() and int(text.value) < NO_LIMIT_BYTES:
            value = int(text.value)
            if lowest is None or lowest.value is None or value < lowest.value:
                lowest = Observed(value, text.source)
        if folder == top or "/" not in folder:
            break
        folder = folder.rsplit("/", 1)[0]
    return lowest or Observed(None, f"/{top}/**/{name}", "no limit is set")


def cgroup_memory(root: Path = Path("/")) -> CgroupMemory:
    """Limit and peak of the control group that this process runs in (version 2 or 1).

    Args:
        root: "/" on a host, a folder with the same tree in a test.

    Returns:
        The values; without a memory controller every one of them is None with a reason.
    """
    found = _find_cgroup(root)
    if found is None:
        absent: Observed[int] = Observed(None, "/sys/fs/cgroup", "no memory control group")
        return CgroupMemory(None, absent, absent, absent, absent)
    version, top, folder = found
    limit_name, peak_name, current_name, events_name = CGROUP_FILES[version]

    def kills(text: str) -> int:
        match = re.search(r"^oom_kill ([0-9]{1,18})$", text, re.MULTILINE)
        if match is None:
            raise ValueError("no oom_kill line")
        return int(match.group(1))

    return CgroupMemory(
        version,
        limit=_limit(root, folder, top, limit_name),
        peak=read_int(root, f"{folder}/{peak_name}", low=0),
        current=read_int(root, f"{folder}/{current_name}", low=0),
        oom_kills=read_text(root, f"{folder}/{events_name}").map(kills),
    )
