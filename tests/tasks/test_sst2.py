"""SST-2 sentences follow the protocol."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest

from qslm_edge import reference
from qslm_edge.errors import DataError, UsageError
from qslm_edge.items import Items
from qslm_edge.tasks import get_task
from qslm_edge.tasks.base import fixed_order
from qslm_edge.tasks.tokenizer import Tokenizer

TASK = get_task("sst2")


@pytest.fixture(scope="module")
def dev(tokenizer: Tokenizer) -> Items:
    return TASK.items("report", tokenizer, 512)


@pytest.fixture(scope="module")
def search(tokenizer: Tokenizer) -> Items:
    return TASK.items("search", tokenizer, 512)


def lines(name: str) -> list[str]:
    return lzma.decompress(reference.data_path(name).read_bytes()).decode().split("\n")[1:-1]


def text(items: Items, item: int, tokenizer: Tokenizer) -> str:
    assert items.labels is not None
    sentence = tokenizer.decode(items.tokens[items.offsets[item] : items.offsets[item + 1]])
    return f"{sentence}\t{items.labels[item]}"


def test_dev_is_the_file_in_order(dev: Items, tokenizer: Tokenizer) -> None:
    dev.check(4096)
    assert dev.n_items == 872
    assert [text(dev, i, tokenizer) for i in range(872)] == lines("sst2.dev.tsv.xz")
    assert dev.source == "SST-2 (sst2.dev.tsv): 872 of 872 sentences, file order"


def test_search_is_the_other_file_in_a_fixed_order(search: Items, tokenizer: Tokenizer) -> None:
    search.check(4096)
    assert search.labels is not None
    assert search.n_items == 1821
    assert np.bincount(search.labels).tolist() == [912, 909]
    rows = lines("sst2.search.tsv.xz")
    assert [text(search, i, tokenizer) for i in range(1821)] == [rows[i] for i in fixed_order(range(1821))]
    assert abs(search.labels[:400].mean() - 0.5) < 0.06
    assert search.digest == "beee6ea99d04b0138c332dc09357897e564f09cfb67f5b235417ce4f1f7b7094"


@pytest.mark.parametrize("split", ["search", "report"])
def test_limit_takes_the_first(split: str, dev: Items, search: Items, tokenizer: Tokenizer) -> None:
    whole = dev if split == "report" else search
    part = TASK.items("report" if split == "report" else "search", tokenizer, 512, 20)
    assert part.digest == whole.subset(range(20)).digest


def test_own_sentences(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "own.tsv"
    path.write_text("sentence\tlabel\na good film\t1\n" + "very " * 50 + "bad\t0\n")
    items = TASK.items("report", tokenizer, 8, data_path=path)
    assert items.lengths[1] > 8  # never cut at the window
    assert text(items, 0, tokenizer) == "a good film\t1"
    assert items.source == "own sentences (own.tsv): 2 of 2 sentences, file order"


def test_own_sentences_with_a_fault(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "own.tsv"
    path.write_text("sentence\tlabel\na good film\t1\na bad film\t-1\n")
    with pytest.raises(DataError, match=r"own.tsv:3: unknown label; found '-1'"):
        TASK.items("search", tokenizer, 512, data_path=path)


def test_wrong_limit(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="limit"):
        TASK.items("report", tokenizer, 512, 0)


def test_training_phrases_are_those_of_glue_in_a_fixed_order(tokenizer: Tokenizer) -> None:
    items = TASK.items("train", tokenizer, 512, 50)
    rows = lines("sst2.train.tsv.xz")
    assert len(rows) == 67_349
    assert [text(items, i, tokenizer) for i in range(50)] == [
        rows[i] for i in fixed_order(range(67_349))[:50]
    ]
