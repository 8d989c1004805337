"""Where a tuning run stands, on disk, so that a killed run goes on and ends with the same weights.

A safetensors file: the tuned tensors, the moments of the optimiser, and in its metadata the step and the fingerprint
of all that the run depends on. A file of another run is refused, never mixed in.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qslm_edge.errors import OutputError, RunError

__all__ = ["load_state", "save_state"]

SCHEMA = "qslm-edge/tuning/1"


def save_state(path: Path, tensors: Mapping[str, Tensor], step: int, fingerprint: str) -> None:
    """Write tensors and step all at once.

    Raises:
        OutputError: the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    metadata = {"schema": SCHEMA, "step": str(step), "fingerprint": fingerprint}
    try:
        save_file({key: t.detach().cpu().contiguous() for key, t in tensors.items()}, temporary, metadata)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink()
        found = getattr(error, "strerror", None) or error
        raise OutputError("the state of tuning cannot be written", where=path, found=found) from None


def load_state(path: Path, tensors: Mapping[str, Tensor], fingerprint: str) -> int | None:
    """Read what `save_state` wrote into the given tensors.

    Args:
        path: file; None is the answer when there is none.
        tensors: filled in place; names and shapes must be those of the file.
        fingerprint: of the run that asks.

    Returns:
        The step that the state belongs to.

    Raises:
        RunError: the file is damaged, or of another run.
    """
    if not path.exists():
        return None
    again = "delete it to tune afresh, or use another --out"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("schema") != SCHEMA or metadata.get("fingerprint") != fingerprint:
                raise RunError("the state belongs to another tuning run", where=path, hint=again)
            step = int(metadata["step"])
            with torch.no_grad():
                for key, tensor in tensors.items():
                    tensor.copy_(file.get_tensor(key))
    except (SafetensorError, OSError, ValueError, LookupError, RuntimeError) as error:
        raise RunError("damaged state of tuning", where=path, found=error, hint=again) from None
    return step
