"""The sensitivity table: one block at a time, on the first items, from the journal where it can."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qslm_edge.items import Items
from qslm_edge.metrics import paired, quality
from qslm_edge.quantize.accounting import block_bytes
from qslm_edge.quantize.levels import FLOAT32, parse_level
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.search.evaluator import Evaluator
from qslm_edge.search.journal import Journal
from qslm_edge.search.sensitivity import Sensitivity, measure_sensitivity
from qslm_edge.search.space import LevelMap
from qslm_edge.spikegpt import SpikeGPT

MakeStore = Callable[..., WeightStore]
MakeItems = Callable[..., Items]
LEVELS = tuple(parse_level(text) for text in ("16", "8g64", "4g32"))


@pytest.fixture
def evaluator(
    landscape: Callable[..., Evaluator], make_store: MakeStore, make_windows: MakeItems
) -> Evaluator:
    return landscape(make_store(2), make_windows(24, 6), noise=1e-4)


def measure(evaluator: Evaluator, journal: Journal | None = None, n_items: int = 16) -> list[Sensitivity]:
    reference = evaluator.evaluate(evaluator.float_setting())
    evaluator.cost.evaluations = 0
    space = LevelMap(evaluator.store.model.config)
    journal = journal or Journal(None, evaluator.kind, {})
    return measure_sensitivity(evaluator, reference, LEVELS, space, journal, n_items)


def test_one_cell_per_block_and_level_in_order(evaluator: Evaluator) -> None:
    table = measure(evaluator)
    names = ["input", "attention.0", "attention.1", "output"]
    assert [(c.block, c.level) for c in table] == [(n, str(level)) for n in names for level in LEVELS]
    assert evaluator.cost.evaluations == len(table)


def test_a_cell_is_one_block_alone_against_float(evaluator: Evaluator) -> None:
    table = measure(evaluator)
    reference = evaluator.evaluate(evaluator.float_setting())
    space = LevelMap(evaluator.store.model.config)
    for block in evaluator.hierarchy.blocks:
        for level in LEVELS:
            changes = {m.name: space.level(m, level) for m in block.modules}
            setting = evaluator.float_setting().with_levels(changes)
            assert all(
                setting[m.name] == FLOAT32 for m in evaluator.hierarchy.modules if m.name not in changes
            )
            scores = evaluator.evaluate(setting).select(np.arange(16))
            expected = paired(reference, scores, quality(reference).value)
            (cell,) = [c for c in table if (c.block, c.level) == (block.name, str(level))]
            assert cell.degradation == pytest.approx(expected.degradation)
            assert cell.delta_nll == pytest.approx(expected.delta_nll)
            assert cell.standard_error == pytest.approx(expected.standard_error)
            assert cell.weight_bytes == block_bytes(block, setting)
            assert (cell.n_items, cell.source) == (16, "measured")


def test_narrower_levels_are_more_sensitive(evaluator: Evaluator) -> None:
    table = measure(evaluator)
    for i in range(0, len(table), 3):
        deltas = [cell.delta_nll for cell in table[i : i + 3]]
        assert deltas == sorted(deltas)


def test_what_changes_nothing_is_exact_and_not_evaluated(
    golden_store: WeightStore, make_windows: MakeItems
) -> None:
    model = golden_store.model
    halved = {key: tensor.half().float() for key, tensor in model.tensors.items()}
    store = WeightStore(SpikeGPT(model.config, halved), golden_store.hierarchy)
    evaluator = Evaluator(store, make_windows(4, 4, 211), batch_items=2)
    table = measure(evaluator, n_items=2)
    exact = [cell for cell in table if cell.source == "exact"]
    assert {cell.level for cell in exact} == {"16"}
    assert len(exact) == 5
    assert all((c.degradation, c.standard_error, c.delta_nll) == (0.0, 0.0, 0.0) for c in exact)
    assert evaluator.cost.evaluations == 10
    assert {cell.n_items for cell in table} == {2}


def test_a_head_without_matrices_has_no_cell(
    landscape: Callable[..., Evaluator], make_store: MakeStore, make_sentences: MakeItems
) -> None:
    evaluator = landscape(make_store(1, head="classifier"), make_sentences(20))
    assert {cell.block for cell in measure(evaluator)} == {"input", "attention.0"}


def test_the_table_comes_from_the_journal_of_any_search(evaluator: Evaluator, tmp_path: Path) -> None:
    first = measure(evaluator, Journal(tmp_path / "j", "language_model", {}))
    again = measure(evaluator, Journal(tmp_path / "j", "language_model", {}))
    assert again == first
    assert evaluator.cost.evaluations == 0
    longer = measure(evaluator, Journal(tmp_path / "j", "language_model", {}), 24)
    assert evaluator.cost.evaluations == len(first)
    assert {cell.n_items for cell in longer} == {24}


def test_more_items_than_there_are_is_all_of_them(evaluator: Evaluator, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "language_model", {})
    assert {cell.n_items for cell in measure(evaluator, journal, 1000)} == {24}
    measure(evaluator, Journal(tmp_path / "j", "language_model", {}), 1000)
    assert evaluator.cost.evaluations == 0


def test_progress_adds_up_to_one(evaluator: Evaluator) -> None:
    shares: list[float] = []
    reference = evaluator.evaluate(evaluator.float_setting())
    space = LevelMap(evaluator.store.model.config)
    journal = Journal(None, evaluator.kind, {})
    measure_sensitivity(evaluator, reference, LEVELS, space, journal, 16, shares.append)
    assert sum(shares) == pytest.approx(1.0)


def test_cells_as_json(evaluator: Evaluator) -> None:
    cell = measure(evaluator)[0].to_dict()
    assert set(cell) == {
        "block",
        "level",
        "degradation",
        "standard_error",
        "delta_nll",
        "weight_bytes",
        "n_items",
        "source",
    }
    assert parse_level(cell["level"]) == LEVELS[0]
