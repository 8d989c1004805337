"""WikiText-2 perplexity, or that of any UTF-8 text: consecutive windows that do not overlap.

The whole file is encoded in one call without special tokens. Window i feeds tokens [w*i, w*(i+1)) and
predicts the next token of each; the remainder is a last, shorter window. Its last token needs a target as
well, so n tokens give n - 1 pairs.

Report: every window in file order. Search: full windows, spread evenly over the validation text, in a fixed
order that looks random. Train: likewise; but few windows of a long text are each encoded on their own, from the
beginning of a line, since what calibrates is compared with nothing and encoding megabytes takes seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from qslm_edge import reference
from qslm_edge.errors import DataError
from qslm_edge.items import Items, Split
from qslm_edge.tasks.base import Task, check_request, evenly_spread, fixed_order
from qslm_edge.tasks.counting import count_spans, count_words
from qslm_edge.tasks.reading import read_text
from qslm_edge.tasks.tokenizer import Tokenizer

__all__ = ["WikiText2"]

CHARACTERS = 12
"""Of text that surely hold a token of English; 3 to 5 are usual."""
_FILES = {"search": "wiki.valid.tokens.xz", "report": "wiki.test.tokens.xz", "train": "wiki.train.tokens.xz"}


class WikiText2(Task):
    """Perplexity per token; search on validation, report on test, train on whole articles of the training set."""

    name: ClassVar[str] = "wikitext2"
    title: ClassVar[str] = "WikiText-2"
    kind: ClassVar[Literal["language_model", "classification"]] = "language_model"
    head: ClassVar[Literal["lm", "classifier"]] = "lm"
    metric: ClassVar[Literal["perplexity", "accuracy"]] = "perplexity"
    unit: ClassVar[str] = ""
    larger_is_better: ClassVar[bool] = False
    default_limit: ClassVar[float] = 1.0

    def items(
        self,
        split: Split,
        tokenizer: Tokenizer,
        window: int,
        limit: int | None = None,
        data_path: Path | None = None,
    ) -> Items:
        """Windows of the text with the next token of each of their tokens; see `Task.items`.

        `n_words` of all windows is that of the whole file, as published word perplexities count; of a part it
        is counted in the text that the part predicts. `n_bytes` is always that of the predicted text: all but
        the first token's.
        """
        check_request(window, limit)
        path = data_path or reference.data_path(_FILES[split])
        text = read_text(path)
        source = f"{self.title if data_path is None else 'own text'} ({path.name.removesuffix('.xz')})"
        if split == "train" and (own := _excerpts(text, tokenizer, window, limit)) is not None:
            return Items(
                task=self.name,
                split=split,
                tokens=np.concatenate([ids[:-1] for ids in own]),
                offsets=np.arange(len(own) + 1, dtype=np.int64) * window,
                targets=np.concatenate([ids[1:] for ids in own]),
                source=f"{source}: {len(own)} windows of {window} tokens, from lines spread evenly, fixed order",
            )
        ids, ends = tokenizer.encode_with_ends(text)
        if len(ids) < 2:
            raise DataError("a language model needs two tokens or more", where=path, found=len(ids))
        n_pairs = len(ids) - 1
        n_windows = -(-n_pairs // window)
        chosen = _choose(split, n_windows, n_pairs // window, limit)
        spans = [(window * i, min(window * (i + 1), n_pairs)) for i in chosen]
        # The target of pair p is token p + 1, hence the text behind a span lies one token further on.
        counted = count_spans(text, ends, [(first + 1, last + 1) for first, last in spans])
        n_words = counted.n_words if counted else None
        if len(chosen) == n_windows:
            n_words = count_words(text)
        pick = np.concatenate([np.arange(first, last) for first, last in spans])
        lengths = [last - first for first, last in spans]
        order = "file order" if split == "report" else "spread evenly, fixed order"
        source += f": {len(spans)} of {n_windows} windows"
        source += f" of {window} tokens, {order}"
        if counted is None:
            source += "; text not counted, the tokenizer gives no usable offsets"
        return Items(
            task=self.name,
            split=split,
            tokens=ids[pick],
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            targets=ids[pick + 1],
            n_words=n_words or None,
            n_bytes=(counted.n_bytes or None) if counted else None,
            source=source,
        )


def _excerpts(
    text: str, tokenizer: Tokenizer, window: int, limit: int | None
) -> list[NDArray[np.int32]] | None:
    """Ids of `limit` windows with the token after each, from lines spread evenly; None if the text is too short."""
    longest = CHARACTERS * window
    if limit is None or limit * longest > len(text):
        return None
    found = []
    for part in fixed_order(range(limit)):
        start = text.find("\n", part * len(text) // limit) + 1
        ids = tokenizer.encode(text[start : start + longest])[: window + 1]
        if len(ids) <= window:
            return None
        found.append(ids)
    return found


def _choose(split: Split, n_windows: int, n_full: int, limit: int | None) -> list[int]:
    """Numbers of the windows to use, in the order to use them."""
    if split == "report":
        return list(range(n_windows if limit is None else min(limit, n_windows)))
    # A text shorter than one window has no full one: its only window serves.
    return fixed_order(evenly_spread(max(n_full, 1), limit))
