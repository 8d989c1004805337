"""A tiny model, its store, and training items."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from qslm_edge.items import Items
from qslm_edge.quantize.calibrate import measure_statistics
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.spikegpt import SpikeGPT, build_hierarchy, load_checkpoint

VOCABULARY = 211


@pytest.fixture(scope="session")
def model(root: Path) -> SpikeGPT:
    """Three layers, 64 channels, vocabulary 211; every layer spikes."""
    return load_checkpoint(root / "tests" / "fixtures" / "golden" / "small_plain.pth", "dense")


@pytest.fixture
def store(model: SpikeGPT) -> WeightStore:
    return WeightStore(model, build_hierarchy(model.config, "lm"))


@pytest.fixture
def cut_store(model: SpikeGPT, windows: Items) -> WeightStore:
    """The same with statistics, so that hidden units can be cut."""
    hierarchy = build_hierarchy(model.config, "lm")
    return WeightStore(model, hierarchy, statistics=lambda: measure_statistics(model, hierarchy, windows))


@pytest.fixture
def binary_store(root: Path) -> WeightStore:
    found = load_checkpoint(root / "tests" / "fixtures" / "golden" / "small_binary.pth", "binary")
    return WeightStore(found, build_hierarchy(found.config, "lm"))


@pytest.fixture
def classifier_store(model: SpikeGPT) -> WeightStore:
    weight = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    config = replace(model.config, num_labels=2)
    found = SpikeGPT(config, {**model.tensors, "classifier.weight": weight})
    return WeightStore(found, build_hierarchy(config, "classifier"))


@pytest.fixture(scope="session")
def windows() -> Items:
    """80 windows of 12 random tokens."""
    n, length = 80, 12
    stream = np.random.default_rng(3).integers(0, VOCABULARY, n * length + 1).astype(np.int32)
    return Items("wikitext2", "search", stream[:-1], np.arange(n + 1) * length, stream[1:])


@pytest.fixture(scope="session")
def sentences() -> Items:
    """90 sentences of 1 to 9 tokens with labels."""
    rng = np.random.default_rng(4)
    lengths = rng.integers(1, 10, 90)
    return Items(
        "sst2",
        "search",
        rng.integers(0, VOCABULARY, lengths.sum()).astype(np.int32),
        np.concatenate([[0], np.cumsum(lengths)]),
        labels=rng.integers(0, 2, 90).astype(np.int8),
    )
