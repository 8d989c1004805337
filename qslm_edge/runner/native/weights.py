"""The bytes of model.bin in memory: mapped from the file, or copied into huge pages where that is asked for.

Most files lie in pages of 4 KiB, which the processor looks up one by one; a copy in huge pages is read faster, in as
much resident memory. But it is the process's own: nothing shares it, and it cannot be dropped when memory runs short.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from qslm_edge.errors import RuntimeFault, UsageError

__all__ = ["WAYS", "WEIGHTS_VARIABLE", "WeightMemory", "copies_weights"]

WEIGHTS_VARIABLE = "QSLM_EDGE_NATIVE_WEIGHTS"
WAYS = ("mapped", "copied")
HUGE_BYTES = 2 << 20
_POPULATE_READ = 22  # madvise(2): bring pages in at once; Linux 5.14


def copies_weights() -> bool:
    """Whether $QSLM_EDGE_NATIVE_WEIGHTS asks for a copy.

    Raises:
        UsageError: it is neither of WAYS.
    """
    way = os.environ.get(WEIGHTS_VARIABLE) or WAYS[0]
    if way not in WAYS:
        raise UsageError(
            "unknown place of the weights", where=WEIGHTS_VARIABLE, found=way, allowed=", ".join(WAYS)
        )
    return way == "copied"


class WeightMemory:
    """A file of weights. Nothing of it is in memory until `bring_in`, or until it is touched.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.size = len(self._map)
        self._mapped = _address(self._map)
        self._copy: mmap.mmap | None = None
        self._copied, self._begin = 0, self.size

    def address(self, offset: int) -> int:
        """Where a byte of the file lies."""
        return self._copied + offset - self._begin if offset >= self._begin else self._mapped + offset

    def bring_in(self, begin: int, copied: bool) -> None:
        """Have all from `begin` on in memory at once: page by page costs more than reading.

        Raises:
            RuntimeFault: there is no memory for a copy, or the file ends early.
        """
        begin -= begin % mmap.PAGESIZE
        if copied:
            self._bring_copy(begin)
            return
        # what is not cached yet, some file systems then read in huge pages
        with suppress(OSError, AttributeError):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        with suppress(OSError):  # else pages come in one by one
            self._map.madvise(_POPULATE_READ, begin, self.size - begin)

    def _bring_copy(self, begin: int) -> None:
        size = self.size - begin
        try:
            room = mmap.mmap(-1, size + HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise RuntimeFault(
                "no memory for a copy of the weights",
                where=f"{WEIGHTS_VARIABLE}=copied",
                found=error.strerror,
                hint="leave them mapped",
            ) from None
        with suppress(OSError, AttributeError):  # a system without huge pages: plain ones
            room.madvise(mmap.MADV_HUGEPAGE)
        skipped = -_address(room) % HUGE_BYTES  # huge pages begin at whole ones
        with self._path.open("rb", buffering=0) as file, memoryview(room) as view:
            file.seek(begin)
            done = 0
            while done < size:
                read = file.readinto(view[skipped + done : skipped + size])
                if not read:
                    raise RuntimeFault(
                        "the weights end early", where=self._path, found=begin + done, allowed=self.size
                    )
                done += read
        self._copy, self._copied, self._begin = room, _address(room) + skipped, begin


def _address(memory: mmap.mmap) -> int:
    return int(np.frombuffer(memory, np.uint8).ctypes.data)
