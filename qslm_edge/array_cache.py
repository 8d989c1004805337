"""Arrays that are worth keeping between runs, in the user's cache directory (QSLM_EDGE_CACHE overrides it).

A plain .npz by the digest of a name that says all that the arrays depend on. A cache must never be able to stop or
mislead a run: what is damaged, renamed or of another name is computed again, and what cannot be written costs
time, not correctness.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

__all__ = ["cache_directory", "keep_arrays", "kept_arrays"]

# What a damaged zip or npy raises.
_DAMAGE = (
    *(OSError, ValueError, LookupError, TypeError, EOFError, RuntimeError, OverflowError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, struct.error, MemoryError),
)


def cache_directory() -> Path:
    """Where arrays are kept."""
    override = os.environ.get("QSLM_EDGE_CACHE")
    return Path(override) if override else user_cache_path("qslm-edge")


def kept_arrays(kind: str, name: str) -> dict[str, NDArray[Any]] | None:
    """The arrays of a name, or None. The caller checks shapes and values.

    Args:
        kind: first word of the file's name, for people.
        name: all that the arrays depend on.
    """
    try:
        with _path(kind, name).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            if file["name"].tobytes() != name.encode():
                return None  # a file that was copied or renamed
            return {key: file[key] for key in file.files if key != "name"}
    except _DAMAGE:
        return None


def keep_arrays(kind: str, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Keep arrays for `kept_arrays`, all at once."""
    path = _path(kind, name)
    named: dict[str, Any] = {**arrays, "name": np.frombuffer(name.encode(), np.uint8)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **named)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()


def _path(kind: str, name: str) -> Path:
    return cache_directory() / f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:32]}.npz"
