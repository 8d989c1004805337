"""Memory of loading and decoding, in a process that does nothing else, since the peak of a process never falls.

VmHWM is read after the load, and after a prompt and some steps, when the process is in its steady state. GPU
memory is not in the resident set: NVML tells it on cards; where CPU and GPU share one pool, as on a Jetson, the
drop of MemAvailable stands beside VmHWM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qslm_edge.bundle.reader import Bundle
from qslm_edge.items import Items
from qslm_edge.runner.gpu_memory import GpuRecord, not_used, open_meter
from qslm_edge.runner.memory import CgroupMemory, available_bytes, cgroup_memory, read_memory
from qslm_edge.runner.observe import Observed
from qslm_edge.runner.sessions import load_library
from qslm_edge.runner.stream import PROMPT_TOKENS, DecodeOptions, Stream, load, stream_tokens

__all__ = ["drop_bytes", "measure_memory"]


def measure_memory(
    bundle: Bundle, items: Items, options: DecodeOptions, note: Callable[[str], None]
) -> dict[str, Any]:
    """Load the bundle, decode, and read memory at each stage.

    Args:
        bundle: what to load; its files were checked before.
        items: token ids to feed.
        options: how.
        note: told what is being done.

    Returns:
        JSON-able: session, memory.

    Raises:
        RuntimeFault: the runtime refuses or fails.
    """
    load_library(options.session)  # so that `bare` holds the runtime's own libraries
    tokens = stream_tokens(items)
    note("memory")
    gpu = GpuRecord(open_meter()) if options.session.uses_gpu else None  # its library is in `bare` too
    group_before, available_before = cgroup_memory(), available_bytes()
    bare = read_memory()
    session = load(bundle, options)
    loaded = read_memory()
    if gpu is not None:
        gpu.take("loaded")
    stream = Stream(session, tokens)
    stream.feed(PROMPT_TOKENS)
    stream.warm_up()
    steady = read_memory()
    available_after, group_after = available_bytes(), cgroup_memory()
    if gpu is not None:
        gpu.take("steady")
    return {
        "session": session.describe(),
        "memory": {
            "bare": bare.to_dict(),
            "loaded": loaded.to_dict(),
            "steady": steady.to_dict(),
            "load_peak_rss_bytes": loaded.peak_rss_bytes,
            "decode_peak_rss_bytes": steady.peak_rss_bytes,
            "available": _available(available_before, available_after),
            "cgroup": _cgroup(group_before, group_after),
            "gpu": not_used(options.session.place) if gpu is None else gpu.close(),
            "method": "fresh process; VmHWM after load, prompt and warm-up steps with last-token logits",
        },
    }


def drop_bytes(before: int | None, after: int | None) -> int | None:
    """By how much the memory that new processes can take fell; 0 where it rose."""
    return None if before is None or after is None else max(0, before - after)


def _available(before: Observed[int], after: Observed[int]) -> dict[str, Any]:
    drop = drop_bytes(before.value, after.value)
    return {
        "before_bytes": before.value,
        "after_bytes": after.value,
        "drop_bytes": drop,
        "source": before.source,
        "reason": None if drop is not None else before.reason or after.reason,
    }


def _cgroup(before: CgroupMemory, after: CgroupMemory) -> dict[str, Any]:
    """The control group at both ends: its peak is of this run only if it moved."""
    moved = None
    if before.peak.value is not None and after.peak.value is not None:
        moved = after.peak.value > before.peak.value
    return {"before": before.to_dict(), "after": after.to_dict(), "peak_moved": moved}
