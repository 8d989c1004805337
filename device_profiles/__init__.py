"""The shipped device profiles, one TOML file a board; import as ``qslm_edge.device_profiles``.

This module only lists them. Reading and checking is the business of ``qslm_edge.profiles``, so that a new
board is one new file in this folder and no line of code.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["names", "path"]

_SUFFIX = ".toml"


def names() -> list[str]:
    """Return the names of the shipped profiles, sorted."""
    found = (entry.name for entry in files(__name__).iterdir())
    return sorted(name[: -len(_SUFFIX)] for name in found if name.endswith(_SUFFIX))


def path(name: str) -> Path:
    """Return the file of a shipped profile.

    Raises:
        KeyError: no profile of that name is shipped.
    """
    if name not in names():
        raise KeyError(name)
    return Path(str(files(__name__) / f"{name}{_SUFFIX}"))
