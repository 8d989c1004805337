"""Words and bytes behind spans of tokens."""

from __future__ import annotations

import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.tasks.counting import count_spans, count_words
from qslm_edge.tasks.tokenizer import Tokenizer


def ends(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, np.int64)


def test_words_of_a_text() -> None:
    assert count_words(" \n = Robert <unk> = \n \n") == 7
    assert count_words("one") == 1


def test_a_word_belongs_to_the_token_that_starts_it() -> None:
    text = "ab cd\n"
    tokens = ends(1, 4, 6)  # "a", "b c", "d\n"
    assert [count_spans(text, tokens, [(i, i + 1)]) for i in range(3)] == [(1, 1), (1, 3), (1, 2)]


def test_characters_shared_by_tokens_count_once() -> None:
    text = "é€ x"
    tokens = ends(1, 1, 2, 2, 2, 4)  # "é" in two tokens, "€" in three
    counts = [count_spans(text, tokens, [(i, i + 1)]) for i in range(6)]
    assert counts == [(1, 2), (0, 0), (0, 3), (0, 0), (0, 0), (1, 2)]


def test_unusable_offsets_give_no_count() -> None:
    assert count_spans("abc", ends(2, 1, 3), [(0, 1)]) is None
    assert count_spans("abc", ends(1, 2), [(0, 1)]) is None
    assert count_spans("abc", ends(), []) is None
    assert count_spans("abc \n", ends(1, 3), [(0, 2)]) == (2, 5)  # trimmed white space is no fault


@given(
    text=st.text(st.characters(blacklist_categories=["Cs"]) | st.sampled_from(" \n\t\u3000"), min_size=1),
    cuts=st.lists(st.integers(0, 100)),
    split=st.integers(0, 100),
)
def test_counts_add_up(text: str, cuts: list[int], split: int) -> None:
    bounds = np.array([*sorted(min(cut, len(text)) for cut in cuts), len(text)], np.int64)
    middle = min(split, len(bounds))
    whole = count_spans(text, bounds, [(0, len(bounds))])
    parts = count_spans(text, bounds, [(middle, len(bounds)), (0, middle)])
    assert whole == parts == (count_words(text), len(text.encode()))


def test_no_white_space_lies_above_the_range_searched() -> None:
    assert not any(chr(code).isspace() for code in range(0x3001, sys.maxunicode + 1))


def test_spans_of_real_tokens(tokenizer: Tokenizer, tokenizer_20b: Tokenizer) -> None:
    text = " \n = Café 東京 = \n \n The <unk> robot 's   name … \n 🤖🤖 \n"
    for one in (tokenizer, tokenizer_20b):
        ids, stops = one.encode_with_ends(text)
        first = count_spans(text, stops, [(0, 1)])
        rest = count_spans(text, stops, [(1, len(ids))])
        assert first is not None
        assert rest is not None
        assert first.n_words + rest.n_words == count_words(text)
        assert first.n_bytes + rest.n_bytes == len(text.encode())
