"""A quantised model against its float model: distributions, spikes and operations, on the same tokens in one pass.

Both models run side by side, layer by layer and batch by batch: what a layer did is compared and dropped before the
next begins, so memory does not grow with the items. The definitions stand in divergence.py, spikes.py, operations.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qslm_edge.batches import Batch, batches
from qslm_edge.items import Items
from qslm_edge.metrics import Kind
from qslm_edge.quantize.levels import FLOAT32, Setting
from qslm_edge.quantize.weights import QuantisedWeights, WeightStore
from qslm_edge.search.divergence import Compared, Divergence, DivergenceSum, compare_logits
from qslm_edge.search.operations import CLASSIFIER, OperationCount, Operations
from qslm_edge.search.spikes import PARTS, Neurons, Part, Spikes, SpikeSum
from qslm_edge.spikegpt.config import N_STATE
from qslm_edge.spikegpt.model import block_forward, embed_tokens, final_norm, initial_state

__all__ = ["STATISTICS_ITEMS", "Statistics", "measure_statistics"]

STATISTICS_ITEMS = {"language_model": 8, "classification": 128}
"""The first search items that are used."""
BATCH_ITEMS = {"language_model": 16, "classification": 64}
ACTIVATION_BYTES, LOGIT_BYTES = 32 * 2**20, 16 * 2**20
"""Limits of the widest activation of a batch, and of the float64 distributions of one model at a time."""


@dataclass(frozen=True)
class Statistics:
    """What quantisation changed.

    Attributes:
        n_items, n_tokens: what both models ran on.
        divergence: of the output distributions.
        spikes: flips, drift and rates.
        float_operations, operations: of the float and the quantised model.
    """

    n_items: int
    n_tokens: int
    divergence: Divergence
    spikes: Spikes
    float_operations: Operations
    operations: Operations

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form for the report."""
        return {
            "n_items": self.n_items,
            "n_tokens": self.n_tokens,
            "divergence": self.divergence.to_dict(),
            "spikes": self.spikes.to_dict(),
            "operations": {"float": self.float_operations.to_dict(), "quantised": self.operations.to_dict()},
        }


@torch.inference_mode()
def measure_statistics(
    store: WeightStore,
    setting: Setting,
    items: Items,
    on_batch: Callable[[float], None] = lambda _: None,
    tuned: WeightStore | None = None,
) -> Statistics:
    """Compare a setting with the float model.

    Args:
        store: the model's matrices at any level.
        setting: a level for every module.
        items: windows with targets or sentences with labels, as the model's head wants them.
        on_batch: told the share of the items done by each batch.
        tuned: store of the tuned model that takes the place of the quantised one.
    """
    kind: Kind = "language_model" if store.hierarchy.head == "lm" else "classification"
    float_setting = Setting.uniform((module.name for module in store.hierarchy.modules), FLOAT32)
    quantised = tuned or store
    quantised.prepare(setting)
    reference, other = _Side(store, float_setting), _Side(quantised, setting)
    divergence, spikes = DivergenceSum(kind), SpikeSum()
    max_tokens = max(1, ACTIVATION_BYTES // (4 * store.model.config.ffn_dim))
    for batch in batches(items, BATCH_ITEMS[kind], max_tokens=max_tokens):
        mask = torch.from_numpy(batch.mask).to(store.model.device) > 0
        reference.begin(batch, mask)
        other.begin(batch, mask)
        for layer in range(store.model.config.n_layer):
            one, two = reference.step(layer), other.step(layer)
            for part in PARTS:
                spikes.add(layer, part, one[part], two[part], mask)
        if kind == "language_model":
            divergence.add(batch.index, mask, _compare_windows(reference, other, batch))
        else:
            compared = _compare_sentences(reference, other, batch, items)
            divergence.add(batch.index, torch.ones_like(compared.same_top), compared)
        on_batch(len(batch.index) / items.n_items)
    return Statistics(
        items.n_items,
        items.n_tokens,
        divergence.result(),
        spikes.result(),
        reference.count.result(),
        other.count.result(),
    )


class _Side:
    """One of the two models on its way through a batch."""

    def __init__(self, store: WeightStore, setting: Setting) -> None:
        self.store, self.weights = store, QuantisedWeights(store, setting)
        self.count = OperationCount(store, setting)

    def begin(self, batch: Batch, mask: Tensor) -> None:
        """Input block."""
        tokens = torch.from_numpy(batch.tokens).to(mask.device)
        self.mask = mask
        self.count.add_embedding(self.weights.embedding(tokens), mask)
        self.x = embed_tokens(self.weights, tokens)

    def step(self, layer: int) -> dict[Part, Neurons]:
        """One attention block; what its neurons did."""
        kept: dict[str, Tensor] = {}

        def observe(name: str, tensor: Tensor) -> None:
            module, _, what = name.rpartition(".")
            if what == "input":
                self.count.add_input(module, tensor, self.mask)
            elif what in ("potential", "spikes"):
                kept[name] = tensor

        state = initial_state(self.store.model.config, self.mask.shape[1], self.mask.device)[:N_STATE]
        self.x = block_forward(self.weights, layer, self.x, state, observe)
        found: dict[Part, Neurons] = {}
        for part in PARTS:
            base = f"blocks.{layer}.{part}"
            found[part] = Neurons(kept[f"{base}.potential"], kept[f"{base}.spikes"])
            self.count.add_neurons(layer, part, found[part], self.mask)
        return found

    def features(self) -> Tensor:
        """Final norm of the residual stream, [T, B, C]."""
        return final_norm(self.weights, self.x)


def _compare_windows(reference: _Side, other: _Side, batch: Batch) -> Compared:
    """Both models' next-token distributions, a few tokens of every window at a time."""
    if batch.targets is None:
        raise ValueError("windows need targets")
    targets = torch.from_numpy(batch.targets).to(reference.mask.device)
    sides = [(side, side.features()) for side in (reference, other)]
    for side, features in sides:
        side.count.add_input("head", features, side.mask)
    step = max(1, LOGIT_BYTES // (8 * reference.store.model.config.vocab_size * targets.shape[1]))
    parts = []
    for begin in range(0, len(targets), step):
        rows = slice(begin, begin + step)
        logits, other_logits = (side.weights.linear("head", features[rows]) for side, features in sides)
        parts.append(compare_logits(logits, other_logits, targets[rows]))
    return Compared.join(parts)


def _compare_sentences(reference: _Side, other: _Side, batch: Batch, items: Items) -> Compared:
    """Both models' class distributions, [1, B]."""
    if items.labels is None:
        raise ValueError("sentences need labels")
    labels = torch.from_numpy(items.labels[batch.index]).to(reference.mask.device, torch.int64)

    def scores(side: _Side) -> Tensor:
        real = side.mask.unsqueeze(-1)
        pooled = (side.features() * real).sum(0, keepdim=True) / real.sum(0, keepdim=True)
        side.count.add_input(CLASSIFIER, pooled, torch.ones_like(real[:1, :, 0]))
        return F.linear(pooled, side.store.model.tensors[f"{CLASSIFIER}.weight"])

    return compare_logits(scores(reference), scores(other), labels.unsqueeze(0))
