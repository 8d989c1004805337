"""A SpikeGPT small enough for tests: 3 layers, 64 channels, vocabulary 211, weights that make it spike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qslm_edge.exporters import ExportJob
from qslm_edge.exporters.onnx_exporter import OnnxExporter
from qslm_edge.items import Items, Split
from qslm_edge.quantize.levels import Level, Setting, parse_level
from qslm_edge.quantize.weights import QuantisedWeights, WeightStore
from qslm_edge.search.space import LevelMap
from qslm_edge.spikegpt import Hierarchy, SpikeGPT, build_hierarchy
from qslm_edge.spikegpt.config import Embedding, SpikeGPTConfig
from qslm_edge.spikegpt.hierarchy import Head
from qslm_edge.spikegpt.model import Observe

N_LAYER, CHANNELS, HIDDEN, VOCABULARY = 3, 64, 256, 211
MIXED = {
    "emb": "2g32f",
    "blocks.0.att.key": "32",
    "blocks.0.att.value": "8g32",
    "blocks.0.ffn.key": "2g32",
    "blocks.0.ffn.value": "4g128",
    "blocks.1.att.output": "16",
    "blocks.1.ffn.value": "8g128f",
    "blocks.2.ffn.key": "4g64f",
    "blocks.2.ffn.receptance": "2g64",
    "blocks.2.ffn.value": "2g128m",
    "head": "8g64",
}
"""Levels that differ from matrix to matrix, of every kind."""


def make_model(
    embedding: Embedding = "dense", *, labels: int | None = 2, seed: int = 0, n_layer: int = N_LAYER
) -> SpikeGPT:
    """A model with an LM head and, unless `labels` is None, a classifier; equal for equal arguments."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=draw) * scale

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return torch.rand(*shape, generator=draw) * (high - low) + low

    c, f = CHANNELS, HIDDEN
    tensors = {"emb.weight": normal(VOCABULARY, c)}
    for layer in range(n_layer):
        base = f"blocks.{layer}"
        for norm in ("ln0", "ln1", "ln2") if layer == 0 else ("ln1", "ln2"):
            tensors[f"{base}.{norm}.weight"] = 1 + normal(c, scale=0.1)
            tensors[f"{base}.{norm}.bias"] = normal(c, scale=0.1)
        tensors[f"{base}.att.time_decay"] = uniform(c, low=-3, high=1)
        tensors[f"{base}.att.time_first"] = normal(c, scale=0.5)
        for part, kinds in (("att", "kvr"), ("ffn", "kr")):
            for kind in kinds:
                tensors[f"{base}.{part}.time_mix_{kind}"] = uniform(1, 1, c)
        for name, rows, columns, gain in (
            *(("att.key", c, c, 1.0), ("att.value", c, c, 2.0), ("att.receptance", c, c, 1.0)),
            *(("att.output", c, c, 4.0), ("ffn.key", f, c, 1.0), ("ffn.receptance", c, c, 1.0)),
            ("ffn.value", c, f, 4.0),
        ):
            tensors[f"{base}.{name}.weight"] = normal(rows, columns, scale=gain * columns**-0.5)
    tensors["ln_out.weight"], tensors["ln_out.bias"] = 1 + normal(c, scale=0.1), normal(c, scale=0.1)
    tensors["head.weight"] = normal(VOCABULARY, c, scale=2 * c**-0.5)
    if labels is not None:
        tensors["classifier.weight"] = normal(labels, c, scale=c**-0.5)
    config = SpikeGPTConfig(n_layer, c, f, VOCABULARY, embedding, ctx_len=32, num_labels=labels)
    return SpikeGPT(config, tensors)


def hierarchy_of(model: SpikeGPT, head: Head = "lm") -> Hierarchy:
    return build_hierarchy(model.config, head)


def uniform_setting(model: SpikeGPT, level: str, head: Head = "lm") -> Setting:
    """Every module at one level, as far as its matrix can take it."""
    return LevelMap(model.config).setting(hierarchy_of(model, head), parse_level(level))


def make_job(
    model: SpikeGPT, level: str = "8g64", head: Head = "lm", changes: Mapping[str, str] | None = None
) -> ExportJob:
    """A job with one level everywhere but for `changes`."""
    setting = uniform_setting(model, level, head).with_levels(
        {name: parse_level(text) for name, text in (changes or {}).items()}
    )
    return ExportJob(WeightStore(model, hierarchy_of(model, head)), setting)


def quantised(job: ExportJob) -> SpikeGPT:
    """The torch model with the weights of the job."""
    model = SpikeGPT(job.store.model.config, job.store.model.tensors)
    model.weights = QuantisedWeights(job.store, job.setting)
    return model


def keeping(values: dict[str, torch.Tensor]) -> Observe:
    """An observer that keeps what it is shown, by name."""

    def keep(name: str, tensor: torch.Tensor) -> None:
        values[name] = tensor

    return keep


def export_tapped(job: ExportJob, directory: Path) -> Path:
    """Export, and give the graph with taps."""
    exporter = OnnxExporter()
    exporter.export(job, directory)
    return exporter.export_tapped(job, directory)


def random_tokens(length: int, batch: int, seed: int = 1) -> NDArray[np.int64]:
    """Token ids [T, B]."""
    return np.random.default_rng(seed).integers(0, VOCABULARY, (length, batch), np.int64)


def make_items(
    split: Split = "search", *, lengths: tuple[int, ...] = (24, 24, 24, 9), labelled: bool = False
) -> Items:
    """Windows with targets, or sentences with labels, of these lengths."""
    draw = np.random.default_rng([len(lengths), split == "report"])
    n_tokens = sum(lengths)
    tokens = draw.integers(0, VOCABULARY, n_tokens, np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    extra: dict[str, Any] = {"n_words": n_tokens // 2, "n_bytes": 3 * n_tokens}
    if labelled:
        return Items("tiny", split, tokens, offsets, labels=draw.integers(0, 2, len(lengths)).astype(np.int8))
    targets = draw.integers(0, VOCABULARY, n_tokens, np.int32)
    return Items("tiny", split, tokens, offsets, targets=targets, source=f"random {split} ids", **extra)


def packed_levels(setting: Setting) -> list[Level]:
    return [level for _, level in setting.levels if level.is_packed]
