"""Scores of the float model, kept by the digests of model and items.

Every run compares with the float model on the same items, and neither changes between runs, so its scores are
computed once per machine. The file is a plain .npz in the user's cache directory (QSLM_EDGE_CACHE overrides it); one
that does not fit is computed again, never trusted.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from qslm_edge import __version__
from qslm_edge.metrics import Scores
from qslm_edge.search.evaluator import Evaluator, TopTokens
from qslm_edge.spikegpt.model import SpikeGPT

__all__ = ["DAMAGE", "FloatReference", "cache_directory", "float_reference", "model_digest"]

# What a damaged zip or npy raises.
DAMAGE = (
    *(OSError, ValueError, LookupError, TypeError, EOFError, RuntimeError, OverflowError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, struct.error, MemoryError),
)


@dataclass(frozen=True)
class FloatReference:
    """What the float model did.

    Attributes:
        scores: per item, in item order.
        top: most likely next token at each prediction, int32 [n_tokens], in item order; None for classification.
        cached: whether it came from the cache.
    """

    scores: Scores
    top: NDArray[np.int32] | None
    cached: bool


def cache_directory() -> Path:
    """Where float scores are kept."""
    override = os.environ.get("QSLM_EDGE_CACHE")
    return Path(override) if override else user_cache_path("qslm-edge")


def model_digest(model: SpikeGPT) -> str:
    """sha256 over configuration and float32 tensors, sorted by key."""
    digest = hashlib.sha256(repr(model.config).encode())
    for key in sorted(model.tensors):
        tensor = model.tensors[key].detach().cpu()
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def float_reference(
    evaluator: Evaluator, digest: str, on_batch: Callable[[float], None] | None = None
) -> FloatReference:
    """Scores of the float model on the evaluator's items, from the cache or computed now.

    Args:
        evaluator: holds model and items.
        digest: of the model.
        on_batch: told the share of the items done by each batch.
    """
    items = evaluator.items
    device = evaluator.store.model.device.type
    name = f"{digest}/{items.digest}/{evaluator.hierarchy.head}/{device}/{__version__}"
    path = cache_directory() / f"float-{hashlib.sha256(name.encode()).hexdigest()[:32]}.npz"
    found = _read(path, evaluator, name)
    if found is not None:
        if on_batch is not None:
            on_batch(1.0)
        return found
    top = TopTokens() if evaluator.kind == "language_model" else None
    scores = evaluator.evaluate(evaluator.float_setting(), top=top, on_batch=on_batch)
    flat = None
    if top is not None:
        flat = np.concatenate([top.by_item[int(item)] for item in scores.index]).astype(np.int32)
    _write(path, scores, flat, name)
    return FloatReference(scores, flat, cached=False)


def _read(path: Path, evaluator: Evaluator, name: str) -> FloatReference | None:
    items = evaluator.items
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            if file["name"].tobytes() != name.encode():
                return None  # a file that was copied or renamed
            scores = Scores(evaluator.kind, file["index"], file["loss"], file["count"], file["correct"])
            top = file["top"] if evaluator.kind == "language_model" else None
    except DAMAGE:
        return None
    shapes = {array.shape for array in (scores.loss, scores.count, scores.correct)}
    whole = np.array_equal(scores.index, np.arange(items.n_items)) and shapes == {(items.n_items,)}
    if not whole or not np.isfinite(scores.loss).all() or (top is not None and len(top) != items.n_tokens):
        return None
    return FloatReference(scores, top, cached=True)


def _write(path: Path, scores: Scores, top: NDArray[np.int32] | None, name: str) -> None:
    arrays: dict[str, NDArray[np.generic]] = {
        "name": np.frombuffer(name.encode(), np.uint8),
        "index": scores.index,
        "loss": scores.loss,
        "count": scores.count,
        "correct": scores.correct,
    }
    if top is not None:
        arrays["top"] = top
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(temporary, path)
    except OSError:
        # a cache that cannot be written costs time, not correctness
        with suppress(OSError):
            temporary.unlink()
