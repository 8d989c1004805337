"""Targets: where a bundle is verified."""

from __future__ import annotations

from qslm_edge.errors import UsageError
from qslm_edge.targets.base import Target
from qslm_edge.targets.local import LocalTarget

__all__ = ["TARGETS", "Target", "get_target"]

TARGETS: dict[str, type[Target]] = {"local": LocalTarget}


def get_target(name: str) -> Target:
    """Target by name.

    Raises:
        UsageError: unknown target.
    """
    if name not in TARGETS:
        raise UsageError(
            "unknown target",
            where="--target",
            found=name,
            allowed=", ".join(TARGETS),
            hint="for a board, copy the bundle there and run `python3 run.pyz verify`",
        )
    return TARGETS[name]()
