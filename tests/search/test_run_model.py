"""Whole searches of a real model, early and full, resumed, and in the paper's scheme."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qslm_edge.items import Items
from qslm_edge.metrics import paired
from qslm_edge.quantize.levels import parse_level
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.search.evaluator import Evaluator
from qslm_edge.search.space import LevelMap
from qslm_edge.spikegpt import SpikeGPT
from tests.helpers.searches import MakeEvaluator, answer, search

MakeItems = Callable[..., Items]


@pytest.fixture
def real(golden_model: SpikeGPT, golden_store: WeightStore, make_windows: MakeItems) -> MakeEvaluator:
    items = make_windows(24, 6, 211)
    tokens = torch.from_numpy(items.tokens.reshape(24, 6).astype(np.int64))
    # predict what the float model predicts: then every change of the weights costs
    items = replace(items, targets=golden_model(tokens).argmax(-1).numpy().reshape(-1))

    def make(**options: Any) -> Evaluator:
        return Evaluator(golden_store, items, batch_items=8, **options)

    return make


REAL = "8g64 4g64 2g64"


@pytest.fixture
def real_limit(real: MakeEvaluator) -> float:
    """A limit between what 8 and what 2 bits cost."""
    evaluator = real()
    reference = evaluator.evaluate(evaluator.float_setting())
    space = LevelMap(evaluator.store.model.config)
    uppers = [
        paired(reference, evaluator.evaluate(space.setting(evaluator.hierarchy, parse_level(text)))).upper
        for text in ("8g64", "2g64")
    ]
    assert uppers[0] < uppers[1]
    return (uppers[0] + uppers[1]) / 2


def test_a_tiny_model_early_full_with_and_without_reuse(real: MakeEvaluator, real_limit: float) -> None:
    results = [
        search(real(reuse=reuse), real_limit, REAL, early=early)
        for reuse, early in ((True, True), (False, True), (True, False))
    ]
    assert answer(results[1]) == answer(results[0])
    assert results[0].cost.block_tokens < 0.8 * results[1].cost.block_tokens
    assert not results[0].reference.cached
    assert results[0].cost.tokens == results[1].cost.tokens + 24 * 6  # the second found the float scores
    assert results[2].chosen.setting == results[0].chosen.setting
    assert results[2].chosen.comparison == results[0].chosen.comparison
    assert results[2].cost.tokens >= results[0].cost.tokens
    assert {t.tier for t in results[0].trials} == {"global", "block", "module", "final"}


def test_a_tiny_model_resumed(real: MakeEvaluator, real_limit: float, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    whole = search(real(), real_limit, REAL, path=path)
    content = path.read_bytes()
    for share in (0.0, 0.45, 0.97):
        path.write_bytes(content[: int(share * len(content))])
        resumed = search(real(), real_limit, REAL, path=path)
        assert answer(resumed) == answer(whole)
        assert path.read_bytes() == content


def test_a_tiny_model_in_the_papers_scheme(real: MakeEvaluator, real_limit: float) -> None:
    evaluator = real()
    result = search(evaluator, real_limit, "q8 q6 q4", mu=1.0)
    matrices = sum(m.n_params for m in evaluator.hierarchy.modules)
    first = result.trials[0]
    assert str(first.setting["head"]) == "q8"
    assert first.weight_bytes == matrices + 4 * (evaluator.hierarchy.n_params - matrices)
    assert result.chosen.feasible


def test_trials_of_one_path_lose_bytes_step_by_step(real: MakeEvaluator, real_limit: float) -> None:
    result = search(real(), real_limit, REAL)
    accepted = [t for t in result.trials if t.performance_ok and t.tier != "final"]
    assert all(a.weight_bytes > b.weight_bytes for a, b in pairwise(accepted))
    assert replace(result.chosen, tier="x").setting == accepted[-1].setting
