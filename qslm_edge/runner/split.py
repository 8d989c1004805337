"""Every statistic of a split from the raw scores of its items, and those scores as JSON and back.

`verify` derives them when it scores, and `report --recompute` once more from what was stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from qslm_edge.metrics import Kind, Paired, Scores, paired, quality

__all__ = ["scores_dict", "split_statistics", "stored_scores"]


def scores_dict(scores: Scores) -> dict[str, Any]:
    """Raw per-item scores, JSON-able, so that every statistic can be computed again."""
    return {key: getattr(scores, key).tolist() for key in ("index", "loss", "count", "correct")}


def stored_scores(kind: Kind, stored: Mapping[str, Any]) -> Scores:
    """What `scores_dict` gave; a loss that was not finite, which JSON has no word for, is infinite."""
    loss = [math.inf if value is None else value for value in stored["loss"]]
    columns = (np.array(stored[key], np.int64) for key in ("index", "count", "correct"))
    index, count, correct = columns
    return Scores(kind, index, np.array(loss, np.float64), count, correct)


def split_statistics(
    scores: Scores,
    reference: Scores,
    expected: Scores | None,
    *,
    tolerance: float,
    text_size: tuple[int | None, int | None] | None,
) -> dict[str, Any]:
    """What the items of a split say.

    Args:
        scores: of the bundle.
        reference: of the float model, on the same items in the same order.
        expected: of the chosen setting as the search measured it; None on the items of the verdict.
        tolerance: allowed difference from it: relative perplexity, or points.
        text_size: words and bytes of the text, each None where unknown; None for a classifier.
    """
    result: dict[str, Any] = {
        "bundle": asdict(quality(scores)),
        "float": asdict(quality(reference)),
        "comparison": asdict(paired(reference, scores)),
    }
    if text_size is not None:
        result |= _per_text(scores, *text_size)
    if expected is not None:
        result["against_search"] = _against_search(expected, scores, tolerance)
    return result


def _per_text(scores: Scores, words: int | None, size: int | None) -> dict[str, Any]:
    """Word perplexity and bits per byte: comparable between tokenizers."""
    total = float(scores.loss.sum())
    return {
        "word_perplexity": None if words is None else math.exp(min(total / words, 700.0)),
        "bits_per_byte": None if size is None else total / math.log(2) / size,
        "n_words": words,
        "n_bytes": size,
    }


def _against_search(expected: Scores, scores: Scores, tolerance: float) -> dict[str, Any]:
    """The same items as the search measured them: relative difference of perplexity, or points of accuracy.

    A threshold model amplifies rounding, so single windows differ; the tolerance is what the manifest states
    plus three paired standard errors.
    """
    result: Paired = paired(expected, scores)
    if scores.kind == "language_model":
        value, error, unit = (
            math.expm1(min(result.delta_nll, 700.0)),
            result.delta_nll_se,
            "relative perplexity",
        )
    else:
        value, error, unit = result.degradation, result.standard_error, "points"
    # with a single item there is no error to add: the tolerance stands alone
    allowed = tolerance + (3 * error if math.isfinite(error) else 0.0)
    return {
        "value": value,
        "standard_error": error,
        "tolerance": tolerance,
        "allowed": allowed,
        "unit": unit,
        "search": asdict(quality(expected)),
        "ok": bool(abs(value) <= allowed),
    }
