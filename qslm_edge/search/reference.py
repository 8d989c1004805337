"""Scores of the float model, kept by the digests of model and items.

Every run compares with the float model on the same items, and neither changes between runs, so its scores are
computed once per machine (array_cache.py); a file that does not fit is computed again, never trusted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qslm_edge import __version__
from qslm_edge.array_cache import keep_arrays, kept_arrays
from qslm_edge.metrics import Scores
from qslm_edge.search.evaluator import Evaluator, TopTokens
from qslm_edge.spikegpt.model import SpikeGPT

__all__ = ["FloatReference", "float_reference", "model_digest"]

KIND = "float"


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
    found = _read(evaluator, name)
    if found is not None:
        if on_batch is not None:
            on_batch(1.0)
        return found
    top = TopTokens() if evaluator.kind == "language_model" else None
    scores = evaluator.evaluate(evaluator.float_setting(), top=top, on_batch=on_batch)
    flat = None
    if top is not None:
        flat = np.concatenate([top.by_item[int(item)] for item in scores.index]).astype(np.int32)
    _write(scores, flat, name)
    return FloatReference(scores, flat, cached=False)


def _read(evaluator: Evaluator, name: str) -> FloatReference | None:
    items, file = evaluator.items, kept_arrays(KIND, name)
    language = evaluator.kind == "language_model"
    if (
        file is None
        or not {"index", "loss", "count", "correct", *(["top"] if language else [])} <= file.keys()
    ):
        return None
    scores = Scores(evaluator.kind, file["index"], file["loss"], file["count"], file["correct"])
    top = file["top"] if language else None
    shapes = {array.shape for array in (scores.loss, scores.count, scores.correct)}
    whole = np.array_equal(scores.index, np.arange(items.n_items)) and shapes == {(items.n_items,)}
    if not whole or not np.isfinite(scores.loss).all() or (top is not None and len(top) != items.n_tokens):
        return None
    return FloatReference(scores, top, cached=True)


def _write(scores: Scores, top: NDArray[np.int32] | None, name: str) -> None:
    arrays: dict[str, NDArray[np.generic]] = {
        "index": scores.index,
        "loss": scores.loss,
        "count": scores.count,
        "correct": scores.correct,
    }
    if top is not None:
        arrays["top"] = top
    keep_arrays(KIND, name, arrays)
