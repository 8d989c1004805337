"""Items of random tokens, of given lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from qslm_edge.items import Items

__all__ = ["lengths_lists", "sentences", "windows"]


def windows(lengths: list[int], vocab: int = 50, **changes: Any) -> Items:
    """Language-model items whose targets follow their tokens."""
    stream = np.random.default_rng(1).integers(0, vocab, sum(lengths) + 1)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    fields: dict[str, Any] = {
        "task": "wikitext2",
        "split": "report",
        "tokens": stream[:-1],
        "offsets": offsets,
        "targets": stream[1:],
        "n_words": 7,
        "n_bytes": 30,
        "source": "a test × café",
    }
    return Items(**(fields | changes))


def sentences(lengths: list[int], **changes: Any) -> Items:
    """Classification items."""
    changes = {"task": "sst2", "targets": None, "n_words": None, "n_bytes": None, **changes}
    return windows(lengths, labels=np.arange(len(lengths)) % 2, **changes)


lengths_lists = st.lists(st.integers(1, 9), min_size=1, max_size=40)
