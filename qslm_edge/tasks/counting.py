"""Words and bytes of the text that a choice of windows predicts.

Perplexities of different vocabularies compare only per word or per byte, so the text behind the tokens has
to be counted. A token stands for the characters from where the tokens before it end to where it ends; so
every character belongs to exactly one token, the first that touches it, and counts of windows add up. A word
counts where it starts, an end of line counts as one word more, as in the published figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["TextCount", "count_spans", "count_words"]


class TextCount(NamedTuple):
    """Words, ends of line included, and UTF-8 bytes of a text."""

    n_words: int
    n_bytes: int


def count_words(text: str) -> int:
    """Words of a text, parted by white space, plus one for every end of line."""
    return len(text.split()) + text.count("\n")


def count_spans(text: str, ends: NDArray[np.int64], spans: Sequence[tuple[int, int]]) -> TextCount | None:
    """Words and bytes of the text behind some spans of tokens.

    Args:
        text: what was encoded.
        ends: int64 [n_tokens], the character at which each token ends in the text.
        spans: first token and the one after the last, of each span.

    Returns:
        The counts, or None if the ends go backwards or stop before the text does: then the tokenizer does not
        say which text a token stands for.
    """
    if not len(ends) or np.any(np.diff(ends) < 0) or ends[0] < 0 or ends[-1] < len(text.rstrip()):
        return None
    bounds = np.concatenate([np.zeros(1, np.int64), ends])
    bounds[-1] = len(text)
    code = np.frombuffer(text.encode("utf-32-le"), "<u4")
    first, last = np.array(spans, np.int64).reshape(-1, 2).T

    def total(per_character: NDArray[np.int8]) -> int:
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(per_character, dtype=np.int64)])
        return int((before[bounds[last]] - before[bounds[first]]).sum())

    n_bytes = total((1 + (code > 0x7F) + (code > 0x7FF) + (code > 0xFFFF)).astype(np.int8))
    return TextCount(total(_words_at(code)), n_bytes)


def _words_at(code: NDArray[np.uint32]) -> NDArray[np.int8]:
    """1 at each first letter of a word and at each end of line."""
    kinds = np.array([c for c in range(0x3001) if chr(c).isspace()], np.uint32)  # none lies above U+3000
    blank = np.isin(code, kinds)
    starts = np.logical_not(blank)
    starts[1:] &= blank[:-1]
    counts: NDArray[np.int8] = np.logical_or(starts, code == ord("\n")).astype(np.int8)
    return counts
