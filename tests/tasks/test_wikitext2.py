"""WikiText-2 windows follow the protocol."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest

from qslm_edge import reference
from qslm_edge.errors import DataError, UsageError
from qslm_edge.items import Items
from qslm_edge.tasks import get_task
from qslm_edge.tasks.tokenizer import Tokenizer

TASK = get_task("wikitext2")
TEXT = "".join(f" the film number {i} was a café of <unk> things . \n" for i in range(60))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.txt"
    path.write_bytes(TEXT.encode())
    return path


@pytest.fixture(scope="module")
def test_set(tokenizer: Tokenizer) -> Items:
    return TASK.items("report", tokenizer, 512)


def test_the_published_test_set(test_set: Items) -> None:
    """350,106 tokens give 350,105 pairs: 683 windows of 512 and one of 409."""
    test_set.check(4096)
    assert test_set.n_tokens == 350_105
    assert test_set.lengths.tolist() == [512] * 683 + [409]
    assert test_set.n_words == 245_569
    text = lzma.decompress(reference.data_path("wiki.test.tokens.xz").read_bytes())
    assert test_set.n_bytes == len(text) - 2  # the first token is " \n"
    assert test_set.source == "WikiText-2 (wiki.test.tokens): 684 of 684 windows of 512 tokens, file order"


def test_the_test_set_decodes_to_its_file(test_set: Items, tokenizer: Tokenizer) -> None:
    assert test_set.targets is not None
    text = lzma.decompress(reference.data_path("wiki.test.tokens.xz").read_bytes()).decode()
    assert tokenizer.decode(test_set.tokens[:1]) + tokenizer.decode(test_set.targets) == text


def test_windows_feed_and_predict_the_stream(own: Path, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    items = TASK.items("report", tokenizer, 100, data_path=own)
    assert items.targets is not None
    assert items.tokens.tolist() == ids[:-1].tolist()
    assert items.targets.tolist() == ids[1:].tolist()
    assert set(items.lengths[:-1]) == {100}
    assert items.lengths[-1] == (len(ids) - 1) % 100
    assert items.n_words == len(TEXT.split()) + 60


def test_no_short_window_without_remainder(own: Path, tokenizer: Tokenizer) -> None:
    n_pairs = len(tokenizer.encode(TEXT)) - 1
    assert TASK.items("report", tokenizer, n_pairs, data_path=own).lengths.tolist() == [n_pairs]


def test_report_limit_takes_the_first_windows(own: Path, tokenizer: Tokenizer) -> None:
    whole = TASK.items("report", tokenizer, 100, data_path=own)
    part = TASK.items("report", tokenizer, 100, 3, data_path=own)
    assert part.tokens.tolist() == whole.tokens[:300].tolist()
    predicted = tokenizer.decode(whole.tokens[1:301])
    assert part.n_bytes == len(predicted.encode())
    assert part.n_words is not None
    assert abs(part.n_words - len(predicted.split()) - predicted.count("\n")) <= 1  # a word cut at the start


def test_counts_of_parts_add_up(own: Path, tokenizer: Tokenizer, tokenizer_20b: Tokenizer) -> None:
    for one in (tokenizer, tokenizer_20b):
        counts = [TASK.items("report", one, 100, n, data_path=own) for n in (1, 2, 3)]
        n_bytes = [items.n_bytes or 0 for items in counts]
        ids = one.encode(TEXT)
        pieces = [one.decode(ids[1 + 100 * i : 101 + 100 * i]) for i in range(3)]
        assert np.diff([0, *n_bytes]).tolist() == [len(piece.encode()) for piece in pieces]


def test_search_spreads_full_windows_in_a_fixed_order(own: Path, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT).tolist()
    items = TASK.items("search", tokenizer, 20, 10, data_path=own)
    assert items.lengths.tolist() == [20] * 10
    numbers = [_window_number(ids, items, i) for i in range(10)]
    total = (len(ids) - 1) // 20
    assert sorted(numbers) == [(2 * j + 1) * total // 20 for j in range(10)]
    assert numbers != sorted(numbers)
    assert items.digest == TASK.items("search", tokenizer, 20, 10, data_path=own).digest


def _window_number(ids: list[int], items: Items, item: int) -> int:
    """The window of 20 tokens whose inputs and targets this item holds; film numbers make it unique."""
    assert items.targets is not None
    cut = slice(items.offsets[item], items.offsets[item + 1])
    want = [*items.tokens[cut].tolist(), int(items.targets[cut][-1])]
    found = [i for i in range(len(ids) // 20) if ids[20 * i : 20 * i + 21] == want]
    assert len(found) == 1
    return found[0]


def test_search_of_everything_leaves_the_remainder_out(own: Path, tokenizer: Tokenizer) -> None:
    items = TASK.items("search", tokenizer, 100, data_path=own)
    assert set(items.lengths) == {100}
    assert items.n_items == (len(tokenizer.encode(TEXT)) - 1) // 100


def test_search_of_the_validation_text(tokenizer: Tokenizer) -> None:
    items = TASK.items("search", tokenizer, 512, 48)
    items.check(4096)
    assert (items.n_items, items.n_tokens) == (48, 48 * 512)
    assert items.source.startswith("WikiText-2 (wiki.valid.tokens): 48 of 606 windows")
    assert items.digest == "852fb75c1e86e2d825de9153a03cf1af215253fb4b475e07130fdddb6437d422"


def test_text_shorter_than_a_window(own: Path, tokenizer: Tokenizer) -> None:
    items = TASK.items("search", tokenizer, 10**6, data_path=own)
    assert items.n_items == 1
    assert items.n_words == len(TEXT.split()) + 60


def test_own_xz_gives_the_same_and_hides_the_folder(own: Path, tokenizer: Tokenizer) -> None:
    packed = own.with_name("own.txt.xz")
    packed.write_bytes(lzma.compress(own.read_bytes()))
    first = TASK.items("report", tokenizer, 100, data_path=own)
    second = TASK.items("report", tokenizer, 100, data_path=packed)
    assert (first.digest, first.source) == (second.digest, second.source)
    assert first.source.startswith("own text (own.txt): ")
    assert str(own.parent) not in first.source


@pytest.mark.parametrize("content", [b"a", b" "])
def test_too_little_text(tmp_path: Path, tokenizer: Tokenizer, content: bytes) -> None:
    path = tmp_path / "own.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"two tokens or more; found 1|is empty"):
        TASK.items("report", tokenizer, 512, data_path=path)


def test_wrong_window(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="window"):
        TASK.items("report", tokenizer, 0)


def test_training_windows_are_spread_over_whole_articles(tokenizer: Tokenizer) -> None:
    items = TASK.items("train", tokenizer, 128, 32)
    items.check(4096)
    assert items.split == "train"
    assert items.targets is not None
    assert items.lengths.tolist() == [128] * 32
    assert items.source == (
        "WikiText-2 (wiki.train.tokens): 32 windows of 128 tokens, from lines spread evenly, fixed order"
    )
    text = lzma.decompress(reference.data_path("wiki.train.tokens.xz").read_bytes()).decode()
    assert text.startswith(" \n = ")
    assert text.endswith(" \n")
    places = []
    for first, last in zip(items.offsets[:-1], items.offsets[1:], strict=True):
        window = tokenizer.decode([*items.tokens[first:last], items.targets[last - 1]])
        places.append(text.find("\n" + window))
        assert places[-1] >= 0
    assert max(np.diff(sorted(places))) < len(text) / 20
    assert places != sorted(places)


def test_few_training_data_are_cut_as_for_a_search(own: Path, tokenizer: Tokenizer) -> None:
    train = TASK.items("train", tokenizer, 100, 3, own)
    search = TASK.items("search", tokenizer, 100, 3, own)
    np.testing.assert_array_equal(train.tokens, search.tokens)
    assert train.digest != search.digest
    assert TASK.items("train", tokenizer, 100, None, own).n_items > 3
