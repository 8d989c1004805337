"""Scoring a setting on the search items, reusing what an earlier evaluation already computed.

A change in block i leaves the residual stream before block i unchanged, so the stream at every block boundary is kept
under the levels of all blocks before it, per batch, within a byte limit (oldest use goes first). An evaluation starts
at the deepest boundary it finds. The caller may stop after any batch that completes a random prefix of the items.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qslm_edge.allocator import keep_freed_memory, lasting
from qslm_edge.batches import Batch, batches
from qslm_edge.items import Items
from qslm_edge.metrics import Kind, Scores
from qslm_edge.quantize.levels import FLOAT32, Setting
from qslm_edge.quantize.weights import QuantisedWeights, WeightStore
from qslm_edge.spikegpt.config import N_STATE
from qslm_edge.spikegpt.model import Weights, block_forward, embed_tokens, final_norm, initial_state

__all__ = ["Cost", "Evaluator", "Stop", "TopTokens"]

Stop = Callable[[Scores], bool]
LOGIT_BYTES = 16 * 2**20
ACTIVATION_BYTES = 48 * 2**20
"""Largest activation of a batch: a forward pass keeps about a dozen of that size, so large models take fewer items."""
LARGE_MODEL_BYTES = 2**28
"""From here on memory counts more than the time that keeping freed blocks saves."""
BATCH_ITEMS = {"language_model": 16, "classification": 64}


@dataclass
class Cost:
    """What evaluations cost so far.

    Attributes:
        evaluations: settings scored.
        tokens: tokens whose loss was computed.
        block_tokens: tokens times blocks really computed; without reuse it is tokens times all blocks.
    """

    evaluations: int = 0
    tokens: int = 0
    block_tokens: int = 0


@dataclass
class TopTokens:
    """Most likely next token of the model at each prediction, filled by an evaluation that is asked for it."""

    by_item: dict[int, np.ndarray[tuple[int], np.dtype[np.int64]]] = field(default_factory=dict)


class Evaluator:
    """Scores settings of one model on one set of items.

    Args:
        store: the model's matrices at any level.
        items: what to score on.
        reuse: keep residual streams at block boundaries.
        cache_bytes: limit for kept streams.
        batch_items: windows or sentences per batch.
    """

    def __init__(
        self,
        store: WeightStore,
        items: Items,
        *,
        reuse: bool = True,
        cache_bytes: int = 2**29,
        batch_items: int | None = None,
    ) -> None:
        if store.hierarchy.float32_bytes < LARGE_MODEL_BYTES:
            keep_freed_memory()
        self.store, self.items, self.reuse = store, items, reuse
        self.hierarchy = store.hierarchy
        self.kind: Kind = "language_model" if self.hierarchy.head == "lm" else "classification"
        size = batch_items or self._batch_items(items)
        self.batches: list[Batch] = list(batches(items, size))
        self.cost = Cost()
        self._streams: OrderedDict[tuple[int, tuple[str, ...]], Tensor] = OrderedDict()
        self._stream_bytes, self._cache_bytes = 0, cache_bytes

    def _batch_items(self, items: Items) -> int:
        longest = max(int(items.lengths.max()), 1)
        fitting = ACTIVATION_BYTES // (4 * self.store.model.config.ffn_dim * longest)
        return max(1, min(BATCH_ITEMS[self.kind], fitting))

    @property
    def n_blocks(self) -> int:
        return len(self.hierarchy.blocks)

    @cached_property
    def prefixes(self) -> tuple[int, ...]:
        """Numbers of items after which an evaluation may stop: where batches complete a random prefix."""
        done, highest, found = 0, -1, []
        for batch in self.batches:
            done, highest = done + len(batch.index), max(highest, int(batch.index.max()))
            if highest == done - 1:
                found.append(done)
        return tuple(found)

    def float_setting(self) -> Setting:
        """Every module in float32."""
        return Setting.uniform((module.name for module in self.hierarchy.modules), FLOAT32)

    @torch.inference_mode()
    def evaluate(
        self,
        setting: Setting,
        stop: Stop | None = None,
        top: TopTokens | None = None,
        on_batch: Callable[[float], None] | None = None,
    ) -> Scores:
        """Score a setting.

        Args:
            setting: a level for every module.
            stop: asked after each batch that completes a random prefix of the items; True ends the evaluation.
            top: collects the most likely next tokens when given.
            on_batch: told the share of the items done by each batch.

        Returns:
            Scores of the items done, sorted by item number.
        """
        weights = QuantisedWeights(self.store, setting)
        self.store.prepare(setting)
        keys = self._block_keys(setting)
        parts: list[Scores] = []
        done = 0
        self.cost.evaluations += 1
        for number, batch in enumerate(self.batches):
            features = self._features(number, batch, weights, keys)
            part = self._score(features, batch, weights, top)
            parts.append(part)
            self.cost.tokens += int(batch.mask.sum())
            done += part.n_items
            if on_batch is not None:
                on_batch(part.n_items / self.items.n_items)
            # batches are sorted by length inside a chunk: only whole prefixes of the random order may decide
            if (
                stop is not None
                and done in self.prefixes
                and done < self.items.n_items
                and stop(Scores.join(parts))
            ):
                break
        return Scores.join(parts).ordered()

    def _block_keys(self, setting: Setting) -> list[str]:
        """One key a block: the levels of its modules."""
        return [
            ",".join(str(setting[module.name]) for module in block.modules) for block in self.hierarchy.blocks
        ]

    def _features(self, number: int, batch: Batch, weights: Weights, keys: list[str]) -> Tensor:
        """Residual stream before the output block, [T, B, C]."""
        last = self.n_blocks - 1
        start, x = 0, None
        if self.reuse:
            for boundary in range(last, 0, -1):
                x = self._recall((number, tuple(keys[:boundary])))
                if x is not None:
                    start = boundary
                    break
        device = self.store.model.device
        tokens = int(batch.mask.sum())
        config = self.store.model.config
        for block in range(start, last):
            if block == 0 or x is None:
                x = embed_tokens(weights, torch.from_numpy(batch.tokens).to(device))
            else:
                state = initial_state(config, batch.tokens.shape[1], device)[:N_STATE]
                x = block_forward(weights, block - 1, x, state)
            self.cost.block_tokens += tokens
            if self.reuse:
                self._keep((number, tuple(keys[: block + 1])), x)
        self.cost.block_tokens += tokens
        if x is None:
            raise ValueError("a model has at least an input and an output block")
        return x

    def _recall(self, key: tuple[int, tuple[str, ...]]) -> Tensor | None:
        found = self._streams.get(key)
        if found is not None:
            self._streams.move_to_end(key)
        return found

    def _keep(self, key: tuple[int, tuple[str, ...]], x: Tensor) -> None:
        self._streams[key] = lasting(x)
        self._stream_bytes += 4 * x.numel()
        while self._stream_bytes > self._cache_bytes and len(self._streams) > 1:
            _, dropped = self._streams.popitem(last=False)
            self._stream_bytes -= 4 * dropped.numel()

    def _score(self, x: Tensor, batch: Batch, weights: Weights, top: TopTokens | None) -> Scores:
        if self.kind == "classification":
            return self._score_sentences(x, batch, weights)
        return self._score_windows(x, batch, weights, top)

    def _score_windows(self, x: Tensor, batch: Batch, weights: Weights, top: TopTokens | None) -> Scores:
        features = final_norm(weights, x)
        if batch.targets is None:
            raise ValueError("windows need targets")
        targets = torch.from_numpy(batch.targets).to(features.device)
        step = max(1, LOGIT_BYTES // (4 * self.store.model.config.vocab_size * targets.shape[1]))
        losses, best = [], []
        for begin in range(0, features.shape[0], step):
            logits = weights.linear("head", features[begin : begin + step])
            goal = targets[begin : begin + step]
            losses.append(
                F.cross_entropy(logits.flatten(0, 1), goal.flatten(), reduction="none").view_as(goal)
            )
            best.append(logits.argmax(-1))
        mask = torch.from_numpy(batch.mask).to(features.device)
        loss = (torch.cat(losses) * mask).double().sum(0)
        chosen = torch.cat(best)
        right = ((chosen == targets) & (mask > 0)).sum(0)
        if top is not None:
            for column, item in enumerate(batch.index):
                length = int(batch.mask[:, column].sum())
                top.by_item[int(item)] = chosen[:length, column].cpu().numpy()
        return Scores(
            "language_model",
            batch.index,
            loss.cpu().numpy(),
            batch.mask.sum(0).astype(np.int64),
            right.cpu().numpy(),
        )

    def _score_sentences(self, x: Tensor, batch: Batch, weights: Weights) -> Scores:
        features = final_norm(weights, x)
        mask = torch.from_numpy(batch.mask).to(features.device)
        pooled = (features * mask.unsqueeze(-1)).sum(0) / mask.sum(0).unsqueeze(-1)
        scores = F.linear(pooled, self.store.model.tensors["classifier.weight"])
        labels = torch.from_numpy(self._labels(batch.index)).to(scores.device)
        loss = F.cross_entropy(scores, labels, reduction="none").double()
        right = (scores.argmax(-1) == labels).long()
        ones = np.ones(len(batch.index), np.int64)
        return Scores("classification", batch.index, loss.cpu().numpy(), ones, right.cpu().numpy())

    def _labels(
        self, index: np.ndarray[tuple[int], np.dtype[np.int64]]
    ) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        if self.items.labels is None:
            raise ValueError("sentences need labels")
        return self.items.labels[index].astype(np.int64)
