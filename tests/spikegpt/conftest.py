"""Small state dicts, written from the published list of keys and not from the code under test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers.checkpoints import Tensors

MakeTensors = Callable[..., Tensors]


@pytest.fixture(scope="session")
def golden(root: Path) -> Path:
    """Folder of the golden vectors."""
    return root / "tests" / "fixtures" / "golden"


@pytest.fixture(scope="session")
def make_tensors() -> MakeTensors:
    """A function that makes the state dict of a random SpikeGPT."""
    return _make_tensors


def _make_tensors(
    n_layer: int = 2, c: int = 32, f: int = 64, vocab: int = 11, labels: int | None = None, lm: bool = True
) -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {
        "emb.weight": (vocab, c),
        "blocks.0.ln0.weight": (c,),
        "blocks.0.ln0.bias": (c,),
        "ln_out.weight": (c,),
        "ln_out.bias": (c,),
    }
    for i in range(n_layer):
        block = f"blocks.{i}"
        shapes |= {f"{block}.{n}.{p}": (c,) for n in ("ln1", "ln2") for p in ("weight", "bias")}
        shapes |= {f"{block}.att.{n}": (c,) for n in ("time_decay", "time_first")}
        shapes |= {f"{block}.att.time_mix_{n}": (1, 1, c) for n in "kvr"}
        shapes |= {f"{block}.ffn.time_mix_{n}": (1, 1, c) for n in "kr"}
        shapes |= {f"{block}.att.{n}.weight": (c, c) for n in ("key", "value", "receptance", "output")}
        shapes |= {
            f"{block}.ffn.key.weight": (f, c),
            f"{block}.ffn.value.weight": (c, f),
            f"{block}.ffn.receptance.weight": (c, c),
        }
    if lm:
        shapes["head.weight"] = (vocab, c)
    if labels is not None:
        shapes["classifier.weight"] = (labels, c)
    generator = torch.Generator().manual_seed(n_layer)
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


@pytest.fixture
def tensors(make_tensors: Callable[..., Tensors]) -> Tensors:
    return make_tensors()
