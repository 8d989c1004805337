"""What native code writes to stderr: only there does onnxruntime say why the library of a provider does not load."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

__all__ = ["library_fault", "native_stderr"]

MAX_TOLD_BYTES = 2**16


@contextmanager
def native_stderr(told: list[str]) -> Iterator[None]:
    """Append what native code writes to stderr meanwhile; it is kept from the terminal."""
    sys.stderr.flush()
    own = os.dup(2)
    with _file() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(own, 2)
            os.close(own)
            file.seek(0)
            told.append(file.read(MAX_TOLD_BYTES).decode("utf-8", "replace"))


def _file() -> IO[bytes]:
    """A file without a name: in memory where the system has such, so that a kill leaves nothing behind."""
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("stderr"), "w+b")
    return tempfile.TemporaryFile()


def library_fault(told: Sequence[str]) -> str | None:
    """What the loader said of a library that does not load; None if it said nothing."""
    found = re.search(r"with error: (.{1,200})", "".join(told))
    return None if found is None else found.group(1).strip()
