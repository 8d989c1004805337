"""Memory bandwidth by reading: the bytes a second that numpy gets from a buffer beyond the caches.

The largest 64-bit integer of a buffer is searched, once per repeat, by one thread and by one thread per usable
core (numpy gives the interpreter's lock back); each pass reads every byte once and writes none. The best
repeat counts, since other load can only slow one. It is a lower bound of what the memory can do, and far
nearer to what a decoding step gets than the theoretical peak of a data sheet.
"""

from __future__ import annotations

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qslm_edge.runner.memory import available_bytes, cgroup_memory
from qslm_edge.runner.observe import list_paths, read_text

__all__ = ["Bandwidth", "buffer_bytes", "last_cache_bytes", "measure_bandwidth"]

MIB = 2**20
LEAST_BUFFER_BYTES, MOST_BUFFER_BYTES = 64 * MIB, 1024 * MIB
UNKNOWN_CACHE_BYTES = 64 * MIB
CACHE_TIMES = 4
AVAILABLE_SHARE = 4  # at most a quarter of what is free: a measurement must not push a board into swap
REPEATS = 5
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second read from memory.

    Attributes:
        one_thread_bytes_per_s, all_threads_bytes_per_s: None when they could not be measured.
        threads: of the second figure.
        buffer_bytes: size of the buffer.
        method: how, in one line.
        reason: why there is no figure, else None.
    """

    one_thread_bytes_per_s: float | None
    all_threads_bytes_per_s: float | None
    threads: int
    buffer_bytes: int | None
    method: str
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


def last_cache_bytes(root: Path = Path("/")) -> int | None:
    """Size of the largest cache of the first core, None where the system does not tell."""
    sizes = []
    for path in list_paths(root, "sys/devices/system/cpu/cpu0/cache/index*/size"):
        match = re.fullmatch(r"([0-9]{1,12})([KMG]?)", read_text(root, path).value or "")
        if match is not None:
            sizes.append(int(match.group(1)) * _UNITS[match.group(2)])
    return max(sizes, default=None)


def buffer_bytes(cache: int | None, free: int | None) -> int | None:
    """Size of a buffer beyond the caches; None when the free memory does not hold one.

    Args:
        cache: largest cache in bytes, None when it is not known.
        free: memory that may be taken, in bytes, None when it is not known.
    """
    needed = min(max(CACHE_TIMES * (cache or UNKNOWN_CACHE_BYTES), LEAST_BUFFER_BYTES), MOST_BUFFER_BYTES)
    if free is not None and needed * AVAILABLE_SHARE > free:
        needed = free // AVAILABLE_SHARE
        if needed < max(2 * (cache or 0), LEAST_BUFFER_BYTES // 2):
            return None
    return needed // MIB * MIB


def _free_bytes() -> int | None:
    group = cgroup_memory()
    limit, used = group.limit.value, group.current.value
    known = [available_bytes().value, None if limit is None or used is None else limit - used]
    return min((value for value in known if value is not None), default=None)


def measure_bandwidth(repeats: int = REPEATS) -> Bandwidth:
    """Measure on this host; of `repeats` passes the best counts."""
    affinity = getattr(os, "sched_getaffinity", None)
    threads = len(affinity(0)) if affinity is not None else (os.cpu_count() or 1)
    size = buffer_bytes(last_cache_bytes(), _free_bytes())
    if size is None:
        reason = "too little free memory for a buffer beyond the caches"
        return Bandwidth(None, None, threads, None, "none", reason)
    try:
        buffer = np.ones(size // 8, np.int64)  # written, so that every page is there
    except MemoryError:
        return Bandwidth(None, None, threads, size, "none", f"no memory for a buffer of {size // MIB} MiB")
    method = f"best of {repeats} passes of numpy's maximum over {size // MIB} MiB of int64"
    return Bandwidth(
        _rate(buffer, 1, repeats), _rate(buffer, threads, repeats), threads, buffer.nbytes, method
    )


def _rate(buffer: np.ndarray[Any, np.dtype[np.int64]], threads: int, repeats: int) -> float:
    parts = np.array_split(buffer, threads)
    shortest = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            begun = time.perf_counter()
            for _ in pool.map(np.maximum.reduce, parts):
                pass
            shortest = min(shortest, time.perf_counter() - begun)
    return buffer.nbytes / shortest
