"""Batches cover every item once, padded at the end, and refuse wrong requests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm_edge.batches import Batch, batches
from qslm_edge.errors import UsageError
from qslm_edge.items import Items
from tests.helpers.items import lengths_lists, sentences, windows


def rebuilt(items: Items, cut: list[Batch]) -> dict[int, list[int]]:
    """Tokens of each item as the batches hold them."""
    found: dict[int, list[int]] = {}
    for batch in cut:
        for column, item in enumerate(batch.index.tolist()):
            assert item not in found
            real = batch.mask[:, column].astype(bool)
            length = int(real.sum())
            assert real[:length].all()  # padding stands at the end
            assert not batch.tokens[length:, column].any()
            if batch.targets is not None and items.targets is not None:
                start = items.offsets[item]
                wanted = items.targets[start : start + length]
                assert batch.targets[:length, column].tolist() == wanted.tolist()
                assert not batch.targets[length:, column].any()
            found[item] = batch.tokens[:length, column].tolist()
    return found


@settings(max_examples=60, deadline=None)
@given(
    lengths=lengths_lists,
    max_items=st.integers(1, 12),
    max_tokens=st.none() | st.integers(1, 30),
    seed=st.none() | st.integers(0, 5),
    classify=st.booleans(),
)
def test_batches_cover_each_item_once(
    lengths: list[int], max_items: int, max_tokens: int | None, seed: int | None, classify: bool
) -> None:
    items = (sentences if classify else windows)(lengths)
    order = None if seed is None else np.random.default_rng(seed).permutation(len(lengths))
    cut = list(batches(items, max_items, order, max_tokens))
    found = rebuilt(items, cut)
    assert found == {
        i: items.tokens[items.offsets[i] : items.offsets[i + 1]].tolist() for i in range(len(lengths))
    }
    for batch in cut:
        n_items = len(batch.index)
        assert n_items <= max_items
        assert len(batch.tokens) == items.lengths[batch.index].max()
        assert max_tokens is None or n_items == 1 or batch.tokens.size <= max_tokens
    if order is not None:
        assert np.concatenate([batch.index for batch in cut]).tolist() == order.tolist()
    elif not classify:
        assert list(found) == list(range(len(lengths)))


def test_sentences_are_sorted_inside_chunks_only() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 600).tolist()
    items = sentences(lengths)
    cut = list(batches(items, 50))
    seen = np.concatenate([batch.index for batch in cut])
    assert sorted(seen[:256].tolist()) == list(range(256))
    assert sorted(seen[256:512].tolist()) == list(range(256, 512))
    assert (np.diff(items.lengths[seen[:256]]) >= 0).all()
    assert [len(batch.index) for batch in cut] == [50] * 5 + [6] + [50] * 5 + [6] + [50, 38]
    in_order = batches(items, 50, order=range(600))
    assert sum(b.mask.size for b in cut) < 0.7 * sum(b.mask.size for b in in_order)


def test_batch_types() -> None:
    batch = next(batches(windows([3, 2]), 2))
    assert batch.targets is not None
    assert [a.dtype.name for a in (batch.tokens, batch.mask, batch.targets)] == ["int64", "float32", "int64"]
    assert batch.mask.tolist() == [[1, 1], [1, 1], [1, 0]]
    assert next(batches(sentences([3]), 2)).targets is None


@pytest.mark.parametrize(
    ("max_items", "order", "max_tokens"), [(0, None, None), (1, None, 0), (1, [0], None), (1, [0, 0], None)]
)
def test_batches_refuse_wrong_requests(
    max_items: int, order: list[int] | None, max_tokens: int | None
) -> None:
    with pytest.raises(UsageError):
        batches(windows([3, 2]), max_items, order, max_tokens)
