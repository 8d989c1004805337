"""Memory for scoring: keep what every batch needs again, and keep what lasts apart from it.

Scoring allocates and frees the same large activations for every batch. glibc gives each back to the system at once and
takes it again page by page, a quarter of the time of an evaluation; told to keep them, it places small lasting blocks
between them, and the heap grows by hundreds of MB of holes. So freed memory is kept, and what lasts (residual streams,
dequantised matrices) gets pages of its own.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["give_back_freed_memory", "keep_freed_memory", "lasting", "lasting_array"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LIMIT = 2**30


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks below 1 GiB in the process; elsewhere do nothing.

    Returns:
        Whether it was done.
    """
    mallopt = _from_glibc("mallopt")
    return bool(mallopt(_M_MMAP_THRESHOLD, _LIMIT) and mallopt(_M_TRIM_THRESHOLD, _LIMIT))


def give_back_freed_memory() -> bool:
    """Let glibc return what it kept, before work that needs memory of another shape; elsewhere do nothing.

    Returns:
        Whether anything was returned.
    """
    return bool(_from_glibc("malloc_trim")(0))


def _from_glibc(name: str) -> Callable[..., int]:
    """A function of the C library; one that does nothing and says 0 where the library is another."""
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
            return function
    return lambda *_: 0


def lasting(tensor: Tensor) -> Tensor:
    """A copy in pages outside the heap, given back when the copy is dropped; on a GPU the tensor itself."""
    return tensor if tensor.is_cuda else torch.from_numpy(lasting_array(tensor.numpy()))


def lasting_array(array: NDArray[Any]) -> NDArray[Any]:
    """A copy of an array in pages outside the heap."""
    if array.nbytes == 0:
        return array
    copy = np.frombuffer(mmap.mmap(-1, array.nbytes), array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
