"""Predicted costs: the Fisher information, and the table in the journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from qslm_edge.items import Items
from qslm_edge.metrics import Scores, quality
from qslm_edge.quantize.levels import Level, parse_level
from qslm_edge.quantize.weights import QuantisedWeights, WeightStore
from qslm_edge.search.evaluator import Evaluator
from qslm_edge.search.fisher import Cell, first_tokens, fisher_divergence
from qslm_edge.search.journal import Journal
from qslm_edge.search.prediction import block_sensitivity, predict_modules
from qslm_edge.search.space import LevelMap
from qslm_edge.spikegpt import SpikeGPT

MakeItems = Callable[..., Items]
LEVELS = tuple(parse_level(text) for text in ("16", "8g64", "4g64", "2g64"))


@pytest.fixture
def evaluator(golden_store: WeightStore, make_windows: MakeItems) -> Evaluator:
    return Evaluator(golden_store, make_windows(40, 16, 211), batch_items=8)


def cells_of(evaluator: Evaluator, levels: Sequence[Level]) -> list[Cell]:
    space = LevelMap(evaluator.store.model.config)
    return [(m, space.level(m, level)) for m in evaluator.hierarchy.modules for level in levels]


def test_the_head_is_predicted_to_second_order(evaluator: Evaluator) -> None:
    """No spike follows the head: there the prediction can be held against the divergence itself."""
    head = evaluator.hierarchy.modules[-1]
    level = parse_level("4g32f")
    (predicted,) = fisher_divergence(evaluator, [(head, level)])
    items = first_tokens(evaluator.items, 32, 128)
    model = evaluator.store.model
    tokens = torch.from_numpy(items.tokens.reshape(items.n_items, -1).astype(np.int64))
    features = model.features(tokens.t().contiguous())
    plain = model.weights.linear("head", features).log_softmax(-1)
    weights = QuantisedWeights(evaluator.store, evaluator.float_setting().with_levels({"head": level}))
    rounded = weights.linear("head", features).log_softmax(-1)
    true = float((plain.exp() * (plain - rounded)).sum(-1).mean())
    assert predicted.loss.sum() / predicted.count.sum() == pytest.approx(true, rel=0.25)


def test_narrower_levels_are_predicted_to_cost_more_and_again_the_same(evaluator: Evaluator) -> None:
    cells = cells_of(evaluator, LEVELS[1:])
    shares: list[float] = []
    first, again = fisher_divergence(evaluator, cells, shares.append), fisher_divergence(evaluator, cells)
    assert sum(shares) == pytest.approx(1.0)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.loss, other.loss)
    totals = np.array([scores.loss.sum() for scores in first]).reshape(-1, 3)
    assert (np.diff(totals) > 0).all()
    assert evaluator.cost.tokens == 2 * 32 * 16


def test_a_classifier_sums_a_sentence_before_it_squares(
    classifier_store: WeightStore, make_sentences: MakeItems
) -> None:
    evaluator = Evaluator(classifier_store, make_sentences(30, 211, 3), batch_items=8)
    cells = cells_of(evaluator, LEVELS[1:])
    found = fisher_divergence(evaluator, cells)
    assert all(scores.n_items == 30 and (scores.count == 1).all() for scores in found)
    totals = np.array([scores.loss.sum() for scores in found]).reshape(-1, 3)
    assert (totals > 0).all()
    assert (totals[:, 0] < totals[:, 2]).all()


def test_batches_do_not_matter_to_a_classifier(
    classifier_store: WeightStore, make_sentences: MakeItems, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = Evaluator(classifier_store, make_sentences(30, 211, 3))
    cells = cells_of(evaluator, LEVELS[2:3])
    whole = fisher_divergence(evaluator, cells)
    monkeypatch.setattr("qslm_edge.search.fisher.BATCH_FLOATS", 400_000)
    for one, other in zip(whole, fisher_divergence(evaluator, cells), strict=True):
        np.testing.assert_allclose(one.loss, other.loss, rtol=2e-3, atol=1e-9)


def test_first_tokens_cut_windows_and_spread_evenly(make_windows: MakeItems) -> None:
    items = make_windows(9, 6, 13, 3)
    part = first_tokens(items, 3, 4)
    assert part.n_items == 3
    assert part.lengths.tolist() == [4, 4, 3]
    assert part.tokens.tolist() == [*items.tokens[:4], *items.tokens[24:28], *items.tokens[48:51]]
    assert part.targets is not None
    assert items.targets is not None
    assert part.targets[:4].tolist() == items.targets[:4].tolist()


# The table.


def test_cells_come_from_the_journal_and_lossless_ones_from_nowhere(
    golden_store: WeightStore, make_windows: MakeItems, tmp_path: Path
) -> None:
    model = golden_store.model
    halved = {key: tensor.half().float() for key, tensor in model.tensors.items()}
    store = WeightStore(SpikeGPT(model.config, halved), golden_store.hierarchy)
    evaluator = Evaluator(store, make_windows(6, 8, 211))
    space = LevelMap(model.config)
    asked: list[int] = []

    def counted(evaluator: Evaluator, cells: Sequence[Cell], on_done: object) -> list[Scores]:
        asked.append(len(cells))
        return fisher_divergence(evaluator, cells)

    def table(levels: Sequence[Level]) -> list[float]:
        journal = Journal(tmp_path / "j", "language_model", {})
        return [cell.nats for cell in predict_modules(evaluator, levels, space, journal, counted)]

    n = len(store.modules)
    first = table(LEVELS[:3])
    assert asked == [2 * n]
    assert first[::3] == [0.0] * n
    assert table(LEVELS[:3]) == first
    assert asked == [2 * n]
    more = table(LEVELS)
    assert asked == [2 * n, n]
    assert [x for i, x in enumerate(more) if i % 4 != 3] == first


def test_a_block_is_the_sum_of_its_modules(evaluator: Evaluator) -> None:
    space = LevelMap(evaluator.store.model.config)
    journal = Journal(None, "language_model", {})
    cells = predict_modules(evaluator, LEVELS, space, journal)
    base = replace(quality(evaluator.evaluate(evaluator.float_setting())), value=10.0)
    rows = block_sensitivity(cells, evaluator, LEVELS, space, base)
    assert [row.block for row in rows[::4]] == [block.name for block in evaluator.hierarchy.blocks]
    names = {m.name for m in evaluator.hierarchy.blocks[1].modules}
    for row in (r for r in rows if r.block == "attention.0"):
        sums = [
            c.nats
            for c in cells
            if c.module in names and parse_level(c.level).bits == parse_level(row.level).bits
        ]
        assert row.delta_nll == pytest.approx(sum(sums))
        assert row.degradation == pytest.approx(10 * np.expm1(sum(sums)))
        assert row.source == "predicted"


def test_float_levels_of_the_model_are_untouched(evaluator: Evaluator) -> None:
    logits = F.embedding(torch.arange(5), evaluator.store.model.tensors["emb.weight"])
    fisher_divergence(evaluator, cells_of(evaluator, LEVELS[2:3]))
    assert not evaluator.store.model.tensors["emb.weight"].requires_grad
    assert torch.equal(F.embedding(torch.arange(5), evaluator.store.model.tensors["emb.weight"]), logits)
