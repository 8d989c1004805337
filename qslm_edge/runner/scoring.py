"""Scoring items with a session: perplexity or accuracy, in chunks that bound the memory.

Items run side by side and long ones in pieces with the state carried over, so that logits never exceed a byte
limit whatever the vocabulary. The negative log-likelihood is summed in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qslm_edge.batches import Batch, batches
from qslm_edge.bundle.reader import Bundle
from qslm_edge.items import Items
from qslm_edge.metrics import Scores
from qslm_edge.runner.sessions.base import Session

__all__ = ["Scored", "plan_chunk", "plan_logit_bytes", "score_items"]

LOGIT_BYTES = 48 * 2**20
MAX_CHUNK = 64


@dataclass(frozen=True)
class Scored:
    """Scores of a bundle on some items.

    Attributes:
        scores: per item, in item order.
        answers: most likely next token at each prediction, or the class of each sentence; int32.
    """

    scores: Scores
    answers: NDArray[np.int32]


def plan_logit_bytes(budget_bytes: int | None, rss_bytes: int | None) -> int:
    """Bytes of logits that a chunk may take, so that scoring stays within a memory budget.

    Logits, their exponentials and the activations of a chunk take about four times its logits. At least 1 MiB, since
    something must run; at most 48 MiB, where larger chunks gain nothing.
    """
    if budget_bytes is None or rss_bytes is None:
        return LOGIT_BYTES
    return max(2**20, min(LOGIT_BYTES, (budget_bytes - rss_bytes) // 4))


def plan_chunk(vocab_size: int, batch: int, logit_bytes: int = LOGIT_BYTES) -> int:
    """Tokens per call so that logits [T, B, V] stay within `logit_bytes`: 1 to 64, longer ones leave the caches."""
    return max(1, min(MAX_CHUNK, logit_bytes // (4 * vocab_size * batch)))


def score_items(
    session: Session,
    bundle: Bundle,
    items: Items,
    *,
    logit_bytes: int = LOGIT_BYTES,
    on_batch: Callable[[float], None] | None = None,
) -> Scored:
    """Score all items.

    Args:
        session: the loaded bundle.
        bundle: for the classifier's weight and the vocabulary.
        items: what to score.
        logit_bytes: limit for logits in memory.
        on_batch: told the share of the items done by each batch.
    """
    parts: list[Scores] = []
    answers: dict[int, NDArray[np.int32]] = {}
    weight = bundle.classifier_weight() if session.kind == "classification" else None
    vocab = int(bundle.manifest["model"]["vocab_size"])
    for batch in batches(items, session.batch_items):
        if weight is None:
            part, found = _windows(session, batch, plan_chunk(vocab, batch.tokens.shape[1], logit_bytes))
        else:
            part, found = _sentences(session, batch, items, weight)
        parts.append(part)
        answers.update(found)
        if on_batch is not None:
            on_batch(part.n_items / items.n_items)
    scores = Scores.join(parts).ordered()
    return Scored(scores, np.concatenate([answers[int(item)] for item in scores.index]))


def _windows(session: Session, batch: Batch, chunk: int) -> tuple[Scores, dict[int, NDArray[np.int32]]]:
    if batch.targets is None:
        raise ValueError("windows need targets")
    length, width = batch.tokens.shape
    state = session.initial_state(width)
    loss = np.zeros(width)
    chosen = np.zeros((length, width), np.int32)
    for begin in range(0, length, chunk):
        part = slice(begin, min(begin + chunk, length))
        logits, state = session.logits(batch.tokens[part], state, part.stop - begin)
        targets = batch.targets[part][..., None]
        top = logits.max(-1)
        picked = np.take_along_axis(logits, targets, -1)[..., 0]
        chosen[part] = logits.argmax(-1)
        logits -= top[..., None]
        np.exp(logits, out=logits)
        nll = top + np.log(logits.sum(-1, dtype=np.float32)) - picked
        loss += (nll.astype(np.float64) * batch.mask[part]).sum(0)
    right = ((chosen == batch.targets) & (batch.mask > 0)).sum(0)
    lengths = batch.mask.sum(0).astype(np.int64)
    found = {int(item): chosen[: lengths[i], i] for i, item in enumerate(batch.index)}
    return Scores("language_model", batch.index, loss, lengths, right.astype(np.int64)), found


def classify(
    session: Session, tokens: NDArray[np.int64], mask: NDArray[np.float32], weight: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Class scores [B, labels] of sentences [T, B]: masked mean of features, times the classifier matrix."""
    width = tokens.shape[1]
    state = session.initial_state(width)
    total = np.zeros((width, weight.shape[1]), np.float32)
    count = np.zeros(width, np.float32)
    for begin in range(0, len(tokens), MAX_CHUNK):
        part = slice(begin, begin + MAX_CHUNK)
        pooled, number, state = session.pooled(tokens[part], state, mask[part])
        total += pooled
        count += number
    mean = (total / count[:, None]).astype(np.float32, copy=False)
    scores: NDArray[np.float32] = mean @ weight.T
    return scores


def _sentences(
    session: Session, batch: Batch, items: Items, weight: NDArray[np.float32]
) -> tuple[Scores, dict[int, NDArray[np.int32]]]:
    if items.labels is None:
        raise ValueError("sentences need labels")
    scores: NDArray[np.float64] = classify(session, batch.tokens, batch.mask, weight).astype(np.float64)
    labels = items.labels[batch.index].astype(np.int64)
    top = scores.max(-1)
    nll = top + np.log(np.exp(scores - top[:, None]).sum(-1)) - scores[np.arange(len(labels)), labels]
    chosen = scores.argmax(-1).astype(np.int32)
    found = {int(item): chosen[i : i + 1] for i, item in enumerate(batch.index)}
    ones = np.ones(len(labels), np.int64)
    return Scores("classification", batch.index, nll, ones, (chosen == labels).astype(np.int64)), found
