"""SST-2 accuracy, or that of any sentences labelled 0 and 1.

A sentence is encoded exactly as the file holds it: no special tokens, no leading space. Report: the GLUE
development set in file order, which the literature reports. Search: the sentences of the GLUE test set with
the labels of the original treebank, in a fixed order that looks random. Train: the phrases of the GLUE training
set, in such an order too.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from qslm_edge import reference
from qslm_edge.errors import DataError
from qslm_edge.items import Items, Split
from qslm_edge.tasks.base import Task, check_request, fixed_order
from qslm_edge.tasks.reading import read_labelled
from qslm_edge.tasks.tokenizer import Tokenizer

__all__ = ["Sst2"]

_FILES = {"search": "sst2.search.tsv.xz", "report": "sst2.dev.tsv.xz", "train": "sst2.train.tsv.xz"}


class Sst2(Task):
    """Accuracy in percent; search on the treebank's test sentences, report on GLUE dev, train on GLUE train."""

    name: ClassVar[str] = "sst2"
    title: ClassVar[str] = "SST-2"
    kind: ClassVar[Literal["language_model", "classification"]] = "classification"
    head: ClassVar[Literal["lm", "classifier"]] = "classifier"
    metric: ClassVar[Literal["perplexity", "accuracy"]] = "accuracy"
    unit: ClassVar[str] = "points"
    larger_is_better: ClassVar[bool] = True
    default_limit: ClassVar[float] = 2.0

    def items(
        self,
        split: Split,
        tokenizer: Tokenizer,
        window: int,
        limit: int | None = None,
        data_path: Path | None = None,
    ) -> Items:
        """One item per sentence with its label; see `Task.items`. A sentence is never cut at the window."""
        check_request(window, limit)
        path = data_path or reference.data_path(_FILES[split])
        sentences, labels = read_labelled(path)
        order = list(range(len(sentences)))
        if split != "report":
            order = fixed_order(order)
        order = order[:limit]
        encoded = [tokenizer.encode(sentences[i]) for i in order]
        for i, ids in zip(order, encoded, strict=True):
            if not len(ids):  # line 1 is the header
                raise DataError("the tokenizer gives no token for this sentence", where=f"{path}:{i + 2}")
        name = path.name.removesuffix(".xz")
        source = f"{self.title if data_path is None else 'own sentences'} ({name}): "
        source += f"{len(order)} of {len(sentences)} sentences, "
        source += "file order" if split == "report" else "fixed order"
        return Items(
            task=self.name,
            split=split,
            tokens=np.concatenate(encoded),
            offsets=np.concatenate([[0], np.cumsum([len(ids) for ids in encoded])]).astype(np.int64),
            labels=np.array([labels[i] for i in order], np.int8),
            source=source,
        )
