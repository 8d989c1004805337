"""Tasks: evaluation data → items that a model is judged on, and the metric that judges.

A new task is one file with a `Task` and one line in `TASKS`. The registry holds addresses, not classes, so
that importing this package loads nothing and a board's runner can carry single files of it.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, cast

from qslm_edge.errors import UsageError

if TYPE_CHECKING:
    from qslm_edge.tasks.base import Task

__all__ = ["TASKS", "get_task"]

TASKS = {
    "sst2": "qslm_edge.tasks.sst2:Sst2",
    "wikitext2": "qslm_edge.tasks.wikitext2:WikiText2",
}


def get_task(name: str) -> Task:
    """The task of this name.

    Raises:
        UsageError: unknown; the message proposes the nearest name.
    """
    if name not in TASKS:
        near = get_close_matches(name.lower(), TASKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else None
        raise UsageError("unknown task", found=repr(name), allowed=", ".join(sorted(TASKS)), hint=hint)
    module, _, attribute = TASKS[name].partition(":")
    return cast("Task", getattr(import_module(module), attribute)())
