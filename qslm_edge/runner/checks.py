"""What the scoring process does: golden vectors first, then the search items, then the report items.

Golden vectors are the health check: a runtime that computes something else is found before minutes are spent.
The search items prove that search and bundle agree; the report items give the verdict against the float
model, whose per-item scores the bundle carries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qslm_edge.bundle.reader import Bundle
from qslm_edge.items import Items, Split
from qslm_edge.metrics import Paired, Scores, paired, quality
from qslm_edge.runner.memory import read_memory
from qslm_edge.runner.scoring import Scored, classify, plan_logit_bytes, score_items
from qslm_edge.runner.session import Session

__all__ = ["check_golden", "score_bundle", "scores_dict"]

Note = Callable[[str, float], None]


def check_golden(session: Session, bundle: Bundle) -> dict[str, Any]:
    """Run the golden vectors.

    Returns:
        For a language model the mean Kullback-Leibler divergence from the expected next-token distribution
        (nats) and the share of equal top tokens; for a classifier the largest difference of a class
        probability. With the tolerance of the manifest and whether it holds.
    """
    golden = bundle.golden()
    tokens, expected = golden["tokens"].astype(np.int64), golden["expected"].astype(np.float64)
    tolerance = float(bundle.manifest["golden"]["tolerance"])
    result: dict[str, Any] = {"n_tokens": int(tokens.size), "tolerance": tolerance}
    if session.kind == "language_model":
        logits, _ = session.logits(tokens, session.initial_state(tokens.shape[1]), len(tokens))
        got = logits.astype(np.float64)
        p, q = _log_softmax(expected), _log_softmax(got)
        difference = float((np.exp(p) * (p - q)).sum(-1).mean())
        result |= {
            "measure": "mean KL divergence, nats",
            "value": difference,
            "max_abs_logit_difference": float(np.abs(got - expected).max()),
            "top1_agreement": float((got.argmax(-1) == expected.argmax(-1)).mean()),
        }
    else:
        scores = classify(session, tokens, golden["mask"].astype(np.float32), bundle.classifier_weight())
        difference = float(
            np.abs(np.exp(_log_softmax(scores.astype(np.float64))) - np.exp(_log_softmax(expected))).max()
        )
        result |= {"measure": "largest difference of a class probability", "value": difference}
    result["ok"] = bool(math.isfinite(difference) and difference <= tolerance)
    return result


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = x - x.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def scores_dict(scores: Scores) -> dict[str, Any]:
    """Raw per-item scores, JSON-able, so that every statistic can be computed again."""
    return {key: getattr(scores, key).tolist() for key in ("index", "loss", "count", "correct")}


def _split(session: Session, bundle: Bundle, split: Split, logit_bytes: int, note: Note) -> dict[str, Any]:
    items = bundle.items(split)

    def advance(share: float) -> None:
        note(f"{split} items", share)

    scored = score_items(session, bundle, items, logit_bytes=logit_bytes, on_batch=advance)
    reference, top = bundle.float_scores(split)
    comparison = paired(reference, scored.scores)
    result: dict[str, Any] = {
        "source": items.source,
        "digest": items.digest,
        "n_items": items.n_items,
        "n_tokens": items.n_tokens,
        "bundle": asdict(quality(scored.scores)),
        "float": asdict(quality(reference)),
        "comparison": asdict(comparison),
        "top1_agreement": _agreement(scored, reference, top, items),
        "scores": scores_dict(scored.scores),
    }
    if session.kind == "language_model":
        result |= _per_text(scored.scores, items)
    if split == "search":
        result["against_search"] = _against_search(bundle, scored.scores)
    return result


def _agreement(scored: Scored, reference: Scores, top: Any, items: Items) -> dict[str, Any]:
    """Share of predictions on which float and quantised model give the same answer."""
    if top is not None:
        share = float((scored.answers == top).mean())
        return {"value": share, "n": len(top), "of": "top-1 tokens"}
    labels = items.labels if items.labels is not None else np.zeros(0, np.int8)
    if len(set(labels.tolist())) > 2:
        return {"value": None, "reason": "float answers are only known for two classes"}
    same = scored.scores.correct == reference.select(scored.scores.index).correct
    return {"value": float(same.mean()), "n": len(same), "of": "sentences"}


def _per_text(scores: Scores, items: Items) -> dict[str, Any]:
    """Word perplexity and bits per byte: comparable between tokenizers."""
    total = float(scores.loss.sum())
    words, size = items.n_words, items.n_bytes
    return {
        "word_perplexity": None if words is None else math.exp(min(total / words, 700.0)),
        "bits_per_byte": None if size is None else total / math.log(2) / size,
        "n_words": words,
        "n_bytes": size,
    }


def _against_search(bundle: Bundle, scores: Scores) -> dict[str, Any]:
    """The same items as the search measured them: relative difference of perplexity, or points of accuracy.

    A threshold model amplifies rounding, so single windows differ; the tolerance is what the manifest states
    plus three paired standard errors.
    """
    expected = bundle.expected_scores()
    result: Paired = paired(expected, scores)
    tolerance = float(bundle.manifest["expected"]["tolerance"])
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


def score_bundle(
    bundle: Bundle,
    *,
    provider: str,
    threads: int,
    splits: list[Split],
    memory_budget_bytes: int | None = None,
    note: Note,
) -> dict[str, Any]:
    """Golden vectors and the given splits, in this process.

    Args:
        bundle: what to score.
        provider, threads: of the session.
        splits: which items.
        memory_budget_bytes: limit of a process on the device; chunks are chosen so that scoring keeps to it too.
        note: told (title, share) of each step.

    Returns:
        JSON-able results with the peak RSS of this process; when the golden vectors fail nothing else is run.
    """
    session = Session(bundle, provider=provider, threads=threads)
    result: dict[str, Any] = {
        "session": session.describe(),
        "golden": check_golden(session, bundle),
        "splits": {},
    }
    logit_bytes = plan_logit_bytes(memory_budget_bytes, read_memory().rss_bytes)
    result["logit_bytes"] = logit_bytes
    if result["golden"]["ok"]:
        for split in splits:
            result["splits"][split] = _split(session, bundle, split, logit_bytes, note)
    result["memory"] = read_memory().to_dict()
    return result
