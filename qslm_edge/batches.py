"""Items side by side: cut into batches, padded at the end. Imports: numpy, items and errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qslm_edge.errors import UsageError
from qslm_edge.items import Items

__all__ = ["CHUNK_ITEMS", "Batch", "batches"]

CHUNK_ITEMS = 256  # classification: a batch never mixes items of two chunks


@dataclass(frozen=True, eq=False)
class Batch:
    """Some items side by side, time first, padded at the end.

    Attributes:
        index: int64 [b], item numbers.
        tokens: int64 [T, b], 0 where padded.
        mask: float32 [T, b], 1 on real tokens.
        targets: int64 [T, b], 0 where padded; None for classification.
    """

    index: NDArray[np.int64]
    tokens: NDArray[np.int64]
    mask: NDArray[np.float32]
    targets: NDArray[np.int64] | None


def batches(
    items: Items,
    max_items: int,
    order: Sequence[int] | NDArray[np.integer[Any]] | None = None,
    max_tokens: int | None = None,
) -> Iterator[Batch]:
    """Cut the items into batches; every item comes exactly once.

    Without `order` a language model's items come as they are. A classifier's come in chunks of 256, sorted by
    length inside a chunk to save padding: whoever stops early has seen the first items and no others.

    Args:
        items: what to cut.
        max_items: most items of a batch.
        order: every item number once; items are then batched in exactly this order.
        max_tokens: most tokens of a batch with padding, T * b; a longer item comes alone.

    Raises:
        UsageError: a limit below 1, or an order that is not a permutation.
    """
    if max_items < 1 or (max_tokens is not None and max_tokens < 1):
        raise UsageError("batch limits must be 1 or more", found=f"{max_items} items, {max_tokens} tokens")
    lengths = items.lengths
    if order is not None:
        chunks = [np.asarray(order, dtype=np.int64)]
        if not np.array_equal(np.sort(chunks[0]), np.arange(items.n_items)):
            raise UsageError("the order must name every item once", allowed=f"0 to {items.n_items - 1}")
    elif items.labels is None:
        chunks = [np.arange(items.n_items)]
    else:
        starts = range(0, items.n_items, CHUNK_ITEMS)
        chunks = [np.arange(at, min(at + CHUNK_ITEMS, items.n_items)) for at in starts]
        chunks = [chunk[np.argsort(lengths[chunk], kind="stable")] for chunk in chunks]
    return _cut(items, chunks, max_items, max_tokens)


def _cut(
    items: Items, chunks: list[NDArray[np.int64]], max_items: int, max_tokens: int | None
) -> Iterator[Batch]:
    for chunk in chunks:
        members: list[int] = []
        longest = 0
        for item in chunk.tolist():
            longer = max(longest, int(items.lengths[item]))
            too_wide = max_tokens is not None and longer * (len(members) + 1) > max_tokens
            if members and (len(members) == max_items or too_wide):
                yield _batch(items, members, longest)
                members, longer = [], int(items.lengths[item])
            members.append(item)
            longest = longer
        if members:
            yield _batch(items, members, longest)


def _batch(items: Items, members: list[int], longest: int) -> Batch:
    shape = (longest, len(members))
    tokens, mask = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    targets = None if items.targets is None else np.zeros(shape, np.int64)
    for column, item in enumerate(members):
        start, end = items.offsets[item], items.offsets[item + 1]
        tokens[: end - start, column] = items.tokens[start:end]
        mask[: end - start, column] = 1
        if targets is not None and items.targets is not None:
            targets[: end - start, column] = items.targets[start:end]
    return Batch(np.array(members, np.int64), tokens, mask, targets)
