"""Refusing a bundle that the memory of this process cannot hold, before anything is loaded.

The exporting host predicted the peak of a process that decodes. Where a limit is known to be below it, loading ends
in a crash or in the kernel's killer; saying so first costs nothing. A limit that nobody tells is no reason to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qslm_edge.errors import EnvironmentFault
from qslm_edge.runner.memory import available_bytes, cgroup_memory, read_memory
from qslm_edge.runner.sessions.base import ONNXRUNTIME

__all__ = ["check_memory", "memory_limits"]


def memory_limits() -> list[tuple[str, int]]:
    """Every limit on what a measuring process may hold that this system tells: where, and bytes.

    Page cache counts against a control group but is dropped when it fills, so the whole limit is taken, not what is
    left of it.
    """
    limits = []
    group = cgroup_memory().limit
    if group.value is not None:
        limits.append((f"limit of the control group ({group.source})", group.value))
    address = _address_space()
    if address is not None:
        limits.append(("limit of the address space (ulimit -v)", address))
    free = available_bytes()
    if free.value is not None:
        own = read_memory().rss_bytes or 0  # a process of this size is in the prediction
        limits.append((f"memory that is free ({free.source})", free.value + own))
    return limits


def check_memory(weights: Mapping[str, Any], engine: str, where: object) -> None:
    """Refuse a bundle whose predicted peak is above a known limit.

    Args:
        engine: the prediction is that of onnxruntime; others need less, and nobody knows how much.
        weights: section of the manifest; without a prediction nothing is refused.
        where: named in the error.

    Raises:
        EnvironmentFault: the limit is too low.
    """
    needed = weights.get("predicted_peak_rss_bytes")
    if engine != ONNXRUNTIME or type(needed) is not int or needed <= 0:
        return
    for name, limit in memory_limits():
        if limit < needed:
            raise EnvironmentFault(
                "too little memory to load this bundle",
                where=where,
                found=f"{name}: {limit / 1e6:.0f} MB",
                allowed=f"{needed / 1e6:.0f} MB or more, as predicted for a process that decodes",
                hint="raise the limit, free memory, or export at fewer bits",
            )


def _address_space() -> int | None:
    """Soft limit of the address space; None where there is none or the system has no such thing."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft
