"""What the tests of the command `search` share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import Result

__all__ = ["LEVELS", "Invoke", "found_in"]

Invoke = Callable[..., Result]
LEVELS = ("--levels", "16,8,4")


def found_in(place: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((place / "search.json").read_text("utf-8"))
    return data
