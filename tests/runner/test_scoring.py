"""Scores of a bundle against an independent computation in torch, whatever the chunks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.batches import Batch
from qslm_edge.bundle.reader import Bundle
from qslm_edge.exporters import ExportJob
from qslm_edge.items import Items
from qslm_edge.metrics import paired, quality
from qslm_edge.quantize.levels import Setting
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.runner import scoring
from qslm_edge.runner.scoring import (
    LOGIT_BYTES,
    MAX_CHUNK,
    classify,
    plan_chunk,
    plan_logit_bytes,
    score_items,
)
from qslm_edge.runner.sessions.portable import PortableSession
from qslm_edge.spikegpt import SpikeGPT, build_hierarchy, load_checkpoint
from tests.helpers.bundles import make_bundle
from tests.helpers.tiny import quantised


@pytest.fixture(scope="module")
def exact_lm(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Float activations: torch and the runtime differ in the last bits only."""
    return make_bundle(tmp_path_factory.mktemp("exact"), level="4g64f", levels=("4g64f",))


@pytest.fixture(scope="module")
def exact_classifier(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("exact"), "sst2", "4g64f", levels=("4g64f",))


def torch_model(bundle: Bundle) -> SpikeGPT:
    """The quantised model of a bundle, from its checkpoint and setting."""
    model = load_checkpoint(bundle.path.parent / "model")
    hierarchy = build_hierarchy(model.config, bundle.manifest["model"]["head"])
    setting = Setting.from_dict(bundle.manifest["setting"])
    return quantised(ExportJob(WeightStore(model, hierarchy), setting))


def each(items: Items) -> Iterator[tuple[int, slice]]:
    for i in range(items.n_items):
        yield i, slice(int(items.offsets[i]), int(items.offsets[i + 1]))


@pytest.mark.parametrize("split", ["search", "report"])
def test_perplexity_is_that_of_torch_window_by_window(split: Any, exact_lm: Bundle) -> None:
    model, whole = torch_model(exact_lm), exact_lm.items(split)
    items = whole.subset(range(whole.n_items - 6, whole.n_items))  # the last of them may be a short window
    assert items.targets is not None
    scored = score_items(PortableSession(exact_lm), exact_lm, items)
    scores = scored.scores
    assert scores.kind == "language_model"
    assert scores.index.tolist() == list(range(items.n_items))
    total, answers = 0.0, []
    for i, part in each(items):
        logits = model(torch.from_numpy(items.tokens[part].astype(np.int64))[None])[0]
        goal = torch.from_numpy(items.targets[part].astype(np.int64))
        loss = float(F.cross_entropy(logits.double(), goal, reduction="sum"))
        assert scores.loss[i] == pytest.approx(loss, rel=1e-5)
        assert scores.count[i] == len(goal)
        assert abs(int(scores.correct[i]) - int((logits.argmax(-1) == goal).sum())) <= 1
        total += loss
        answers.append(logits.argmax(-1).numpy())
    assert quality(scores).value == pytest.approx(np.exp(total / items.n_tokens), rel=1e-5)
    assert scored.answers.shape == (items.n_tokens,)
    assert np.mean(scored.answers == np.concatenate(answers)) > 0.99


def test_accuracy_is_that_of_torch_sentence_by_sentence(exact_classifier: Bundle) -> None:
    items, model = exact_classifier.items("report").subset(range(8)), torch_model(exact_classifier)
    assert items.labels is not None
    scored = score_items(PortableSession(exact_classifier), exact_classifier, items)
    for i, part in each(items):  # each sentence alone, so without padding
        logits = model.classify(torch.from_numpy(items.tokens[part].astype(np.int64))[None])
        label = torch.tensor([int(items.labels[i])])
        assert scored.scores.loss[i] == pytest.approx(float(F.cross_entropy(logits, label)), rel=1e-4)
        assert scored.answers[i] == int(logits.argmax())
    assert scored.scores.count.tolist() == [1] * items.n_items
    right = scored.answers == items.labels
    assert scored.scores.correct.tolist() == right.astype(int).tolist()
    assert quality(scored.scores).value == pytest.approx(100 * right.mean())


@pytest.mark.parametrize("chunk", [1, 7, 24])
def test_chunks_do_not_change_the_scores(
    chunk: int, exact_lm: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = exact_lm.items("report")
    whole = score_items(PortableSession(exact_lm), exact_lm, items)
    seen: list[tuple[int, int]] = []
    run = PortableSession.logits

    def logits(self: PortableSession, tokens: Any, state: Any, last: int) -> Any:
        seen.append(tokens.shape)
        assert last == len(tokens)
        return run(self, tokens, state, last)

    monkeypatch.setattr(PortableSession, "logits", logits)
    vocabulary, width = exact_lm.manifest["model"]["vocab_size"], PortableSession.batch_items
    parts = score_items(
        PortableSession(exact_lm), exact_lm, items, logit_bytes=4 * vocabulary * width * chunk
    )
    assert seen[0] == (min(chunk, int(items.lengths[0])), width)
    assert max(length * batch for length, batch in seen) <= chunk * width
    np.testing.assert_allclose(parts.scores.loss, whole.scores.loss, rtol=1e-5)
    assert parts.scores.count.tolist() == whole.scores.count.tolist()
    assert np.mean(parts.answers == whole.answers) > 0.99


def test_a_long_sentence_runs_in_pieces(exact_classifier: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    items = exact_classifier.items("report")
    whole = score_items(PortableSession(exact_classifier), exact_classifier, items)
    monkeypatch.setattr(scoring, "MAX_CHUNK", 5)
    parts = score_items(PortableSession(exact_classifier), exact_classifier, items)
    np.testing.assert_allclose(parts.scores.loss, whole.scores.loss, rtol=1e-4)
    assert parts.answers.tolist() == whole.answers.tolist()


def test_padding_does_not_enter_the_mean(exact_classifier: Bundle) -> None:
    session, weight = PortableSession(exact_classifier), exact_classifier.classifier_weight()
    tokens = np.arange(12).reshape(6, 2)
    mask = np.ones((6, 2), np.float32)
    mask[4:, 1] = 0
    both = classify(session, tokens, mask, weight)
    alone = classify(session, np.ascontiguousarray(tokens[:4, 1:]), np.ones((4, 1), np.float32), weight)
    np.testing.assert_allclose(both[1], alone[0], atol=1e-5)
    assert both.dtype.name == "float32"


def test_padding_is_neither_scored_nor_answered(exact_lm: Bundle) -> None:
    """Windows of other lengths side by side: as if each came alone."""
    items = exact_lm.items("report")
    tokens, targets = items.tokens[:40], items.targets
    assert targets is not None
    lengths = [24, 3, 12, 1]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    uneven = Items("tiny", "report", tokens, offsets, targets=targets[:40])
    session = PortableSession(exact_lm)
    together = score_items(session, exact_lm, uneven)
    assert together.scores.count.tolist() == lengths
    assert len(together.answers) == 40
    for i in range(4):
        alone = score_items(session, exact_lm, uneven.subset([i]))
        assert together.scores.loss[i] == pytest.approx(float(alone.scores.loss[0]), rel=1e-5)
        assert together.scores.correct[i] == alone.scores.correct[0]
        assert together.answers[offsets[i] : offsets[i + 1]].tolist() == alone.answers.tolist()


def test_answers_stand_in_item_order_however_items_are_batched(
    exact_classifier: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, session = exact_classifier.items("search"), PortableSession(exact_classifier)
    whole = score_items(session, exact_classifier, items)
    monkeypatch.setattr(session, "batch_items", 3)
    shares: list[float] = []
    parts = score_items(session, exact_classifier, items, on_batch=shares.append)
    assert parts.scores.index.tolist() == list(range(items.n_items))
    np.testing.assert_allclose(parts.scores.loss, whole.scores.loss, rtol=1e-4)
    assert parts.answers.tolist() == whole.answers.tolist()
    assert sum(shares) == pytest.approx(1)
    assert len(shares) == -(-items.n_items // 3)


def test_comparison_with_the_float_model_is_paired_by_item(exact_lm: Bundle) -> None:
    items = exact_lm.items("report")
    scores = score_items(PortableSession(exact_lm), exact_lm, items).scores
    reference, _ = exact_lm.float_scores("report")
    result = paired(reference, scores)
    difference = (scores.loss - reference.loss).sum() / items.n_tokens
    assert result.delta_nll == pytest.approx(difference, rel=1e-12)
    assert result.degradation == pytest.approx(quality(scores).value - quality(reference).value, rel=1e-9)
    # the error is that of differences, window by window: far below that of either model
    assert result.standard_error < 0.9 * quality(scores).standard_error
    shuffled = paired(reference, scores.select(scores.index[::-1]))
    assert shuffled.standard_error == pytest.approx(result.standard_error, rel=1e-9)


class Loud:
    """A session that is sure of token 0, whatever it is fed."""

    kind = "language_model"

    def initial_state(self, batch: int) -> Any:
        return np.zeros((7, batch, 4), np.float32)

    def logits(self, tokens: Any, state: Any, _last: int) -> Any:
        out = np.zeros((len(tokens), tokens.shape[1], 5), np.float32)
        out[..., 0], out[..., 1] = 500, -500
        return out, state


def test_a_very_unlikely_target_stays_finite() -> None:
    """Logits that differ by hundreds must not overflow."""
    tokens = np.zeros((2, 1), np.int64)
    batch = Batch(np.array([0]), tokens, np.ones((2, 1), np.float32), np.array([[1], [0]]))
    scores, found = scoring._windows(Loud(), batch, 1)  # type: ignore[arg-type]
    assert scores.loss.tolist() == [pytest.approx(1000.0)]
    assert (scores.correct.tolist(), found[0].tolist()) == ([1], [0, 0])


def test_right_answers_on_padding_do_not_count() -> None:
    mask = np.array([[1, 1], [1, 0], [1, 0]], np.float32)
    zeros = np.zeros((3, 2), np.int64)  # padding has target 0, which this session always answers
    scores, found = scoring._windows(Loud(), Batch(np.array([4, 9]), zeros, mask, zeros), 2)  # type: ignore[arg-type]
    assert scores.index.tolist() == [4, 9]
    assert scores.correct.tolist() == scores.count.tolist() == [3, 1]
    assert {item: answers.tolist() for item, answers in found.items()} == {4: [0, 0, 0], 9: [0]}


@given(st.integers(1, 10**6), st.integers(1, 512), st.integers(1, 2**32))
def test_chunks_keep_logits_within_their_limit(vocabulary: int, batch: int, limit: int) -> None:
    chunk = plan_chunk(vocabulary, batch, limit)
    assert 1 <= chunk <= MAX_CHUNK
    each_token = 4 * vocabulary * batch
    assert chunk * each_token <= limit or chunk == 1
    assert chunk == MAX_CHUNK or (chunk + 1) * each_token > limit  # and no smaller than it need be


def test_chunks_of_the_large_model_stay_near_48_mib() -> None:
    assert plan_chunk(50277, 16) * 4 * 50277 * 16 <= 48 * 2**20
    assert plan_chunk(50277, 16) == 15
    assert plan_chunk(300, 4) == 64


def test_logits_shrink_with_the_budget_and_never_to_nothing() -> None:
    assert plan_logit_bytes(None, 10**8) == LOGIT_BYTES
    assert plan_logit_bytes(10**9, None) == LOGIT_BYTES
    assert plan_logit_bytes(10**8 + 4 * 3 * 2**20, 10**8) == 3 * 2**20
    assert plan_logit_bytes(10**12, 10**8) == LOGIT_BYTES
    assert plan_logit_bytes(10**8, 2 * 10**8) == 2**20
