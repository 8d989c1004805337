"""A tiny model, its items, and an evaluator whose losses are drawn instead of computed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from qslm_edge.items import Items
from qslm_edge.metrics import Scores
from qslm_edge.quantize.levels import Level, Setting
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.search.evaluator import Evaluator, Stop, TopTokens
from qslm_edge.search.fisher import Cell
from qslm_edge.spikegpt import SpikeGPT, SpikeGPTConfig, build_hierarchy, load_checkpoint
from qslm_edge.spikegpt.hierarchy import Head


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Float scores are kept in a folder of the test's own, and nothing waits for a disk."""
    monkeypatch.setattr("os.fsync", lambda _: None)  # test_journal.py has its own
    folder = tmp_path / "cache"
    monkeypatch.setenv("QSLM_EDGE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def golden_model(root: Path) -> SpikeGPT:
    """Three layers, 64 channels, vocabulary 211; every layer spikes."""
    return load_checkpoint(root / "tests" / "fixtures" / "golden" / "small_plain.pth", "dense")


@pytest.fixture(scope="session")
def golden_store(golden_model: SpikeGPT) -> WeightStore:
    return WeightStore(golden_model, build_hierarchy(golden_model.config, "lm"))


@pytest.fixture(scope="session")
def classifier_store(golden_model: SpikeGPT) -> WeightStore:
    """The same body with three classes."""
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    config = replace(golden_model.config, num_labels=3)
    model = SpikeGPT(config, {**golden_model.tensors, "classifier.weight": weight})
    return WeightStore(model, build_hierarchy(config, "classifier"))


@pytest.fixture(scope="session")
def make_store() -> Callable[..., WeightStore]:
    """A function that makes a random model of one layer behind its store."""
    return _make_store


def _make_store(n_layer: int = 1, c: int = 64, vocab: int = 13, head: Head = "lm") -> WeightStore:
    config = SpikeGPTConfig(n_layer, c, 2 * c, vocab, "dense", 16, 2 if head == "classifier" else None)
    hierarchy = build_hierarchy(config, head)
    generator = torch.Generator().manual_seed(7)
    shapes = {m.key: (m.rows, m.columns) for m in hierarchy.modules}
    shapes |= {key: shape for block in hierarchy.blocks for key, shape in block.float_tensors}  # type: ignore[misc]
    tensors = {key: torch.randn(shape, generator=generator) * 0.5 for key, shape in shapes.items()}
    return WeightStore(SpikeGPT(config, tensors), hierarchy)


@pytest.fixture(scope="session")
def make_windows() -> Callable[..., Items]:
    """A function that makes language-model items of random tokens."""
    return _make_windows


def _make_windows(n: int = 20, length: int = 6, vocab: int = 13, last: int | None = None) -> Items:
    lengths = [length] * (n - 1) + [last or length]
    stream = np.random.default_rng(n).integers(0, vocab, sum(lengths) + 1)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Items("wikitext2", "search", stream[:-1].astype(np.int32), offsets, stream[1:].astype(np.int32))


@pytest.fixture(scope="session")
def make_sentences() -> Callable[..., Items]:
    """A function that makes sentences of several lengths with labels."""
    return _make_sentences


def _make_sentences(n: int = 20, vocab: int = 13, classes: int = 2) -> Items:
    rng = np.random.default_rng(n)
    lengths = rng.integers(1, 9, n)
    tokens = rng.integers(0, vocab, lengths.sum()).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Items("sst2", "search", tokens, offsets, labels=rng.integers(0, classes, n).astype(np.int8))


@pytest.fixture(scope="module")
def lm_store() -> WeightStore:
    return _make_store(2)


@pytest.fixture(scope="module")
def class_store() -> WeightStore:
    return _make_store(1, head="classifier")


@pytest.fixture(scope="module")
def windows() -> Items:
    return _make_windows(48, 6)


@pytest.fixture(scope="module")
def sentences() -> Items:
    return _make_sentences(400)


class Landscape(Evaluator):
    """An evaluator that draws losses: each module costs what its level costs, plus noise of the setting.

    Args:
        store, items: as of any evaluator.
        seed: of the costs of modules and of the noise.
        noise: standard deviation of an item's noise, in nats a token.
        scale: nats a token of the whole model at no bits.
    """

    def __init__(
        self,
        store: WeightStore,
        items: Items,
        *,
        seed: int = 0,
        noise: float = 0.003,
        scale: float = 0.5,
        batch_items: int = 4,
    ) -> None:
        super().__init__(store, items, batch_items=batch_items)
        self.seed, self.noise = seed, noise
        rng = np.random.default_rng(seed)
        share = rng.exponential(1, len(self.hierarchy.modules))
        self.costs = dict(
            zip((m.name for m in self.hierarchy.modules), scale * share / share.sum(), strict=True)
        )
        self.base = rng.normal(3.0, 0.3, items.n_items)
        self.seen: list[Setting] = []

    def increase(self, setting: Setting) -> float:
        """True degradation of a setting in nats a token."""
        return float(sum(self.costs[name] * level_cost(level) for name, level in setting.levels))

    def whole(self, setting: Setting) -> Scores:
        """Scores of a setting on every item."""
        name = f"{self.seed} {setting.to_dict()}".encode()
        rng = np.random.default_rng(list(hashlib.sha256(name).digest()))
        count = self.items.lengths
        noise = self.noise * rng.normal(0, 1, len(count)) if self.increase(setting) else 0.0
        index = np.arange(len(count))
        if self.kind == "language_model":
            loss = np.asarray(count * (self.base + self.increase(setting) + noise), np.float64)
            return Scores(self.kind, index, loss, count.copy(), np.zeros(len(count), np.int64))
        wrong = rng.random(len(count)) < self.increase(setting)
        right = np.where(self.base > 2.7, ~wrong, wrong & (rng.random(len(count)) < 0.3)).astype(np.int64)
        return Scores(self.kind, index, np.where(right, 0.1, 1.0), np.ones(len(count), np.int64), right)

    def evaluate(
        self,
        setting: Setting,
        stop: Stop | None = None,
        top: TopTokens | None = None,
        on_batch: Callable[[float], None] | None = None,
    ) -> Scores:
        self.seen.append(setting)
        self.cost.evaluations += 1
        whole, parts = self.whole(setting), []
        done = 0
        for batch in self.batches:
            parts.append(whole.select(batch.index))
            done += len(batch.index)
            if on_batch is not None:
                on_batch(len(batch.index) / self.items.n_items)
            if top is not None:
                top.by_item |= {int(i): np.zeros(self.items.lengths[i], np.int64) for i in batch.index}
            joined = Scores.join(parts)
            if (
                stop is not None
                and done < self.items.n_items
                and int(joined.index.max()) == done - 1
                and stop(joined)
            ):
                break
        return Scores.join(parts).ordered()


def level_cost(level: Level) -> float:
    """Nothing at 16 bits, half as much with every bit from there, a little more with larger groups."""
    return 0.0 if level.is_float else 2.0**-level.bits * (1 + 0.001 * (level.group_size or 0))


@pytest.fixture(scope="session")
def landscape() -> type[Landscape]:
    """The class of evaluators with drawn losses."""
    return Landscape


def drawn_costs(evaluator: Evaluator, cells: Sequence[Cell], on_done: object = None) -> list[Scores]:
    """What a landscape really charges for each matrix, in the place of a prediction."""
    assert isinstance(evaluator, Landscape)
    n = 4
    ones, none = np.ones(n, np.int64), np.zeros(n, np.int64)
    return [
        Scores(
            evaluator.kind, np.arange(n), np.full(n, evaluator.costs[m.name] * level_cost(level)), ones, none
        )
        for m, level in cells
    ]


@pytest.fixture(scope="session")
def true_costs() -> Callable[[Evaluator, Sequence[Cell], object], list[Scores]]:
    """A prediction that is right, for landscapes."""
    return drawn_costs
