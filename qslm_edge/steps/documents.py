"""Reading back what a run directory holds: JSON documents that name their schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qslm_edge.errors import RunError

__all__ = ["read_document"]


def read_document(path: Path, what: str, *schemas: str, hint: str | None = None) -> dict[str, Any]:
    """A document of one of some schemas.

    Args:
        path: the file.
        what: it is, for the message.
        schemas: any of them will do.
        hint: next step where it will not.

    Raises:
        RunError: it cannot be read, or is of another schema.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"the {what} cannot be read", where=path, found=error, hint=hint) from None
    found = data.get("schema") if isinstance(data, dict) else type(data).__name__
    if not isinstance(data, dict) or found not in schemas:
        allowed = ", ".join(schemas)
        raise RunError(f"not a {what} of this version", where=path, found=found, allowed=allowed, hint=hint)
    return data
