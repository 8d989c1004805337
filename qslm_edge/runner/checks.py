"""What the scoring process does: golden vectors first, then the search items, then the report items.

Golden vectors are the health check: a runtime that computes something else is found before minutes are spent.
The search items prove that search and bundle agree; the report items give the verdict against the float
model, whose per-item scores the bundle carries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qslm_edge.bundle.reader import Bundle
from qslm_edge.items import Items, Split
from qslm_edge.metrics import Scores
from qslm_edge.runner.memory import read_memory
from qslm_edge.runner.scoring import Scored, classify, plan_logit_bytes, score_items
from qslm_edge.runner.sessions import open_session
from qslm_edge.runner.sessions.base import Session, SessionOptions
from qslm_edge.runner.split import scores_dict, split_statistics

__all__ = ["check_golden", "score_bundle"]

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


def _split(session: Session, bundle: Bundle, split: Split, logit_bytes: int, note: Note) -> dict[str, Any]:
    items = bundle.items(split)

    def advance(share: float) -> None:
        note(f"{split} items", share)

    scored = score_items(session, bundle, items, logit_bytes=logit_bytes, on_batch=advance)
    reference, top = bundle.float_scores(split)
    expected = bundle.expected_scores() if split == "search" else None
    language_model = session.kind == "language_model"
    return {
        "source": items.source,
        "digest": items.digest,
        "n_items": items.n_items,
        "n_tokens": items.n_tokens,
        **split_statistics(
            scored.scores,
            reference.select(scored.scores.index),
            None if expected is None else expected.select(scored.scores.index),
            tolerance=float(bundle.manifest["expected"]["tolerance"]),
            text_size=(items.n_words, items.n_bytes) if language_model else None,
        ),
        "top1_agreement": _agreement(scored, reference, top, items),
        "scores": scores_dict(scored.scores),
        "float_scores": scores_dict(reference.select(scored.scores.index)),
        "expected_scores": None if expected is None else scores_dict(expected.select(scored.scores.index)),
    }


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


def score_bundle(
    bundle: Bundle,
    *,
    options: SessionOptions,
    splits: list[Split],
    memory_budget_bytes: int | None = None,
    note: Note,
) -> dict[str, Any]:
    """Golden vectors and the given splits, in this process.

    Args:
        bundle: what to score.
        options: how it is loaded.
        splits: which items.
        memory_budget_bytes: limit of a process on the device; chunks are chosen so that scoring keeps to it too.
        note: told (title, share) of each step.

    Returns:
        JSON-able results with the peak RSS of this process; when the golden vectors fail nothing else is run.
    """
    session = open_session(bundle, options)
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
