"""A recorded tree of /proc and /sys that plays the board, for tests; and the label that its results carry.

Identity, conditions and power are read from the tree, while the model runs on this host. So nothing of it is a
figure of a board: every result says so, and what would be a pass is called "simulated" and ends with the exit
code of "inconclusive".
"""

from __future__ import annotations

from typing import Any

from qslm_edge.errors import EXIT_INCONCLUSIVE
from qslm_edge.runner.power import PowerSource

__all__ = ["LABEL", "VERDICT", "mark_result", "mark_source"]

LABEL = "simulated from a recorded tree of files"
VERDICT = "simulated"


def mark_source(source: PowerSource) -> PowerSource:
    """A power source that reads from a tree, with the label in its scope."""
    source.scope = f"{LABEL}: {source.scope}"
    return source


def mark_result(result: dict[str, Any]) -> dict[str, Any]:
    """The result of a verification with the label, and without a pass.

    Args:
        result: as `verify_bundle` builds it on a host.
    """
    host, conditions = result["host"], result["conditions"]
    return {
        **result,
        "verdict": VERDICT if result["verdict"] == "pass" else result["verdict"],
        "exit_code": result["exit_code"] or EXIT_INCONCLUSIVE,
        "rehearsal": True,
        "host": {**host, "is_board": False, "simulated": True, "why": f"{LABEL}: {host['why']}"},
        "conditions": {**conditions, "scope": f"{LABEL}; {conditions['scope']}"},
    }
