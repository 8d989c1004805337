"""Scoring settings: what is reused changes no bit, costs are counted, and nothing stops in the middle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm_edge.batches import batches
from qslm_edge.items import Items
from qslm_edge.metrics import Scores
from qslm_edge.quantize.levels import FLOAT32, Setting, parse_level
from qslm_edge.quantize.weights import QuantisedWeights, WeightStore
from qslm_edge.search.evaluator import Evaluator, TopTokens
from qslm_edge.spikegpt import SpikeGPT

MakeItems = Callable[..., Items]
TEXTS = ("32", "8g64", "4g32", "2g32")


@pytest.fixture(scope="module")
def windows(make_windows: MakeItems) -> Items:
    return make_windows(7, 5, 211, last=3)


@pytest.fixture(scope="module")
def sentences(make_sentences: MakeItems) -> Items:
    return make_sentences(9, 211, 3)


def uniform(store: WeightStore, text: str) -> Setting:
    return Setting.uniform((m.name for m in store.hierarchy.modules), parse_level(text))


def equal(a: Scores, b: Scores) -> bool:
    names = ("index", "loss", "count", "correct")
    return a.kind == b.kind and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names)


def block_settings(store: WeightStore) -> st.SearchStrategy[Setting]:
    """A level for every block: settings that share a beginning are frequent."""

    def build(texts: list[str]) -> Setting:
        return Setting(tuple((m.name, parse_level(texts[m.block])) for m in store.hierarchy.modules))

    n = len(store.hierarchy.blocks)
    return st.lists(st.sampled_from(TEXTS[:3]), min_size=n, max_size=n).map(build)


def test_scores_are_those_of_the_model(golden_store: WeightStore, windows: Items) -> None:
    setting = uniform(golden_store, "4g32")
    scores = Evaluator(golden_store, windows, batch_items=3).evaluate(setting)
    assert scores.index.tolist() == list(range(7))
    assert scores.count.tolist() == [5] * 6 + [3]
    model = SpikeGPT(golden_store.model.config, golden_store.model.tensors)
    model.weights = QuantisedWeights(golden_store, setting)
    assert windows.targets is not None
    for i in range(7):
        here = slice(windows.offsets[i], windows.offsets[i + 1])
        tokens = torch.from_numpy(windows.tokens[here].astype(np.int64))
        targets = torch.from_numpy(windows.targets[here].astype(np.int64))
        logits = model(tokens[None])[0]
        assert scores.loss[i] == pytest.approx(float(F.cross_entropy(logits, targets, reduction="sum")), 1e-4)
        assert scores.correct[i] == int((logits.argmax(-1) == targets).sum())


def test_sentences_are_classified_without_their_padding(
    classifier_store: WeightStore, sentences: Items
) -> None:
    setting = uniform(classifier_store, "8g64")
    scores = Evaluator(classifier_store, sentences, batch_items=4).evaluate(setting)
    assert (scores.index.tolist(), scores.count.tolist()) == (list(range(9)), [1] * 9)
    model = SpikeGPT(classifier_store.model.config, classifier_store.model.tensors)
    model.weights = QuantisedWeights(classifier_store, setting)
    assert sentences.labels is not None
    for i in range(9):
        tokens = sentences.tokens[sentences.offsets[i] : sentences.offsets[i + 1]].astype(np.int64)
        answer = model.classify(torch.from_numpy(tokens)[None])
        label = int(sentences.labels[i])
        loss = float(F.cross_entropy(answer, torch.tensor([label])))
        assert scores.loss[i] == pytest.approx(loss, rel=1e-3, abs=1e-4)
        assert scores.correct[i] == int(int(answer.argmax()) == label)


@settings(max_examples=12)
@given(data=st.data())
def test_reuse_changes_no_bit(golden_store: WeightStore, windows: Items, data: st.DataObject) -> None:
    sequence = data.draw(st.lists(block_settings(golden_store), min_size=2, max_size=4))
    limit = data.draw(st.sampled_from([1, 9000, 2**29]))
    kept = Evaluator(golden_store, windows, reuse=True, cache_bytes=limit, batch_items=4)
    anew = Evaluator(golden_store, windows, reuse=False, batch_items=4)
    for setting in sequence:
        assert equal(kept.evaluate(setting), anew.evaluate(setting))
    assert kept.cost.block_tokens <= anew.cost.block_tokens
    assert anew.cost.block_tokens == len(sequence) * windows.n_tokens * 5


def test_reuse_changes_no_bit_for_sentences(classifier_store: WeightStore, sentences: Items) -> None:
    kept, anew = (Evaluator(classifier_store, sentences, reuse=r, batch_items=4) for r in (True, False))
    for text in ("32", "8g64", "2g32", "8g64"):
        setting = uniform(classifier_store, "32").with_levels({"blocks.1.att.key": parse_level(text)})
        assert equal(kept.evaluate(setting), anew.evaluate(setting))
    assert kept.cost.block_tokens < anew.cost.block_tokens


def test_costs_count_evaluations_tokens_and_blocks_computed(
    golden_store: WeightStore, windows: Items
) -> None:
    evaluator = Evaluator(golden_store, windows, batch_items=4)
    n, base = windows.n_tokens, uniform(golden_store, "32")
    changed = base.with_levels({"blocks.1.ffn.key": parse_level("4g32")})  # the third of five blocks
    head = base.with_levels({"head": parse_level("4g32")})
    both = head.with_levels({"blocks.1.ffn.key": parse_level("4g32")})
    costs = []
    for setting in (base, base, changed, head, both, uniform(golden_store, "2g32")):
        before = evaluator.cost.block_tokens
        evaluator.evaluate(setting)
        costs.append((evaluator.cost.block_tokens - before) / n)
    assert costs == [5, 1, 3, 1, 1, 5]
    assert (evaluator.cost.evaluations, evaluator.cost.tokens) == (6, 6 * n)


def stream_bytes(evaluator: Evaluator) -> int:
    return sum(stream.numel() * 4 for stream in evaluator._streams.values())


@pytest.mark.parametrize("streams", [1, 3, 7])
def test_kept_streams_stay_within_their_limit(
    golden_store: WeightStore, make_windows: MakeItems, streams: int
) -> None:
    items = make_windows(8, 5, 211)
    one = 4 * 5 * 4 * 64  # tokens x windows x channels of one batch
    evaluator = Evaluator(golden_store, items, cache_bytes=streams * one + 1, batch_items=4)
    for text in TEXTS:
        evaluator.evaluate(uniform(golden_store, "8g64").with_levels({"blocks.0.att.key": parse_level(text)}))
        assert stream_bytes(evaluator) == evaluator._stream_bytes <= streams * one
    assert len(evaluator._streams) == streams


def test_the_stream_used_longest_ago_goes_first(golden_store: WeightStore, make_windows: MakeItems) -> None:
    items = make_windows(4, 5, 211)
    one = 4 * 5 * 4 * 64
    evaluator = Evaluator(golden_store, items, cache_bytes=6 * one, batch_items=4)
    base = uniform(golden_store, "32")
    late = base.with_levels({"blocks.2.att.key": parse_level("8g64")})
    evaluator.evaluate(base)  # four streams
    for text in TEXTS[1:]:  # each takes the fourth place anew and uses the third
        evaluator.evaluate(late.with_levels({"blocks.2.att.key": parse_level(text)}))
    before = evaluator.cost.block_tokens
    evaluator.evaluate(late.with_levels({"blocks.2.att.value": parse_level("4g32")}))
    assert evaluator.cost.block_tokens - before == 2 * items.n_tokens  # the third was still there


def test_nothing_is_kept_without_reuse(golden_store: WeightStore, windows: Items) -> None:
    evaluator = Evaluator(golden_store, windows, reuse=False)
    evaluator.evaluate(uniform(golden_store, "32"))
    assert not evaluator._streams


def test_an_evaluation_may_stop_after_each_batch_of_windows(
    golden_store: WeightStore, windows: Items
) -> None:
    evaluator = Evaluator(golden_store, windows, batch_items=2)
    asked: list[int] = []

    def stop(scores: Scores) -> bool:
        asked.append(scores.n_items)
        return scores.n_items >= 4

    part = evaluator.evaluate(uniform(golden_store, "8g64"), stop)
    assert asked == [2, 4]
    assert part.index.tolist() == [0, 1, 2, 3]
    whole = evaluator.evaluate(uniform(golden_store, "8g64"), lambda _: False)
    assert equal(whole.select(np.arange(4)), part)
    assert whole.n_items == 7


def test_a_finished_evaluation_is_not_asked_whether_to_stop(
    golden_store: WeightStore, windows: Items
) -> None:
    asked: list[int] = []

    def stop(scores: Scores) -> bool:
        asked.append(scores.n_items)
        return False

    Evaluator(golden_store, windows, batch_items=4).evaluate(uniform(golden_store, "32"), stop)
    assert asked == [4]


def test_sentences_stop_only_where_the_seen_ones_are_a_random_part(
    classifier_store: WeightStore, make_sentences: MakeItems
) -> None:
    items = make_sentences(300, 211, 3)
    evaluator = Evaluator(classifier_store, items, batch_items=64)
    # inside a chunk of 256 batches are sorted by length: the short ones are no random part
    assert evaluator.prefixes == (256, 300)
    asked: list[list[int]] = []

    def stop(scores: Scores) -> bool:
        asked.append(sorted(scores.index.tolist()))
        return True

    part = evaluator.evaluate(uniform(classifier_store, "32"), stop)
    assert asked == [list(range(256))]
    assert part.index.tolist() == list(range(256))


def test_prefixes_are_the_ends_of_batches(golden_store: WeightStore, windows: Items) -> None:
    assert Evaluator(golden_store, windows, batch_items=3).prefixes == (3, 6, 7)


def test_most_likely_tokens_of_every_prediction(golden_store: WeightStore, windows: Items) -> None:
    evaluator, top = Evaluator(golden_store, windows, batch_items=3), TopTokens()
    scores = evaluator.evaluate(evaluator.float_setting(), top=top)
    assert sorted(top.by_item) == list(range(7))
    assert [len(top.by_item[i]) for i in range(7)] == windows.lengths.tolist()
    assert windows.targets is not None
    for i in range(7):
        targets = windows.targets[windows.offsets[i] : windows.offsets[i + 1]]
        assert scores.correct[i] == int((top.by_item[i] == targets).sum())


def test_logits_in_pieces_give_the_same_losses(
    golden_store: WeightStore, windows: Items, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Evaluator(golden_store, windows).evaluate(uniform(golden_store, "8g64"))
    monkeypatch.setattr("qslm_edge.search.evaluator.LOGIT_BYTES", 4 * 211 * 7 * 2)  # two tokens at a time
    pieces = Evaluator(golden_store, windows).evaluate(uniform(golden_store, "8g64"))
    np.testing.assert_allclose(pieces.loss, whole.loss, rtol=1e-5)
    np.testing.assert_array_equal(pieces.correct, whole.correct)


def test_batches_change_nothing_but_rounding(golden_store: WeightStore, windows: Items) -> None:
    setting = uniform(golden_store, "8g64")
    found = [Evaluator(golden_store, windows, batch_items=n).evaluate(setting) for n in (1, 3, 7)]
    for scores in found[1:]:
        np.testing.assert_allclose(scores.loss, found[0].loss, rtol=1e-3)


def test_progress_adds_up_to_one(golden_store: WeightStore, windows: Items) -> None:
    shares: list[float] = []
    Evaluator(golden_store, windows, batch_items=3).evaluate(
        uniform(golden_store, "32"), on_batch=shares.append
    )
    assert shares == pytest.approx([3 / 7, 3 / 7, 1 / 7])


def test_float_setting_and_batch_sizes(
    golden_store: WeightStore, classifier_store: WeightStore, windows: Items, sentences: Items
) -> None:
    evaluator = Evaluator(golden_store, windows)
    assert {level for _, level in evaluator.float_setting().levels} == {FLOAT32}
    assert evaluator.kind == "language_model"
    assert len(evaluator.batches) == len(list(batches(windows, 16)))
    assert Evaluator(classifier_store, sentences).kind == "classification"


def test_items_of_the_wrong_kind(
    golden_store: WeightStore, classifier_store: WeightStore, windows: Items, sentences: Items
) -> None:
    with pytest.raises(ValueError, match="windows need targets"):
        Evaluator(golden_store, sentences).evaluate(uniform(golden_store, "32"))
    with pytest.raises(ValueError, match="sentences need labels"):
        Evaluator(classifier_store, windows).evaluate(uniform(classifier_store, "32"))
