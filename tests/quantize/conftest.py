"""A tiny model and matrices for the quantisers."""

from __future__ import annotations

from pathlib import Path

import pytest

from qslm_edge.spikegpt import Hierarchy, SpikeGPT, build_hierarchy, load_checkpoint


@pytest.fixture(scope="session")
def golden_model(root: Path) -> SpikeGPT:
    """Three layers, 64 channels, vocabulary 211, dense embedding."""
    return load_checkpoint(root / "tests" / "fixtures" / "golden" / "small_plain.pth", "dense")


@pytest.fixture(scope="session")
def golden_hierarchy(golden_model: SpikeGPT) -> Hierarchy:
    return build_hierarchy(golden_model.config, "lm")
