"""Operations against loops over single tokens, weights and neurons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qslm_edge.exporters import ExportJob
from qslm_edge.quantize.levels import Setting
from qslm_edge.quantize.packed import pack_matrix
from qslm_edge.quantize.weights import WeightStore, round_activations
from qslm_edge.search.operations import OperationCount, Operations, Synaptic, membrane_updates
from qslm_edge.search.spikes import Neurons
from qslm_edge.search.statistics import measure_statistics
from qslm_edge.spikegpt import SpikeGPT
from qslm_edge.spikegpt.config import Embedding
from tests.helpers import tiny

LENGTHS = (7, 4)


def operations(model: SpikeGPT, level: str) -> tuple[WeightStore, Setting, Operations]:
    store = WeightStore(model, tiny.hierarchy_of(model))
    setting = tiny.uniform_setting(model, level)
    items = tiny.make_items(lengths=LENGTHS)
    return store, setting, measure_statistics(store, setting, items).operations


def observed(store: WeightStore, setting: Setting) -> list[dict[str, Tensor]]:
    """What each item shows to an observer when it runs alone; `head.input` and `emb` too."""
    model = tiny.quantised(ExportJob(store, setting))
    items, found = tiny.make_items(lengths=LENGTHS), []
    for begin, end in zip(items.offsets, items.offsets[1:], strict=False):
        tokens = torch.from_numpy(items.tokens[begin:end].astype(np.int64)).unsqueeze(1)
        seen: dict[str, Tensor] = {"emb": model.weights.embedding(tokens)}
        seen["head.input"] = model.features(tokens, observe=tiny.keeping(seen))
        found.append(seen)
    return found


def by_hand(store: WeightStore, setting: Setting, name: str, x: Tensor) -> int:
    """Products of a weight and an input that are both not 0, one token at a time."""
    level = setting[name]
    if level.accuracy_level:
        x = round_activations(x, level.group_size or 1)
    weights = store.packed(name, level).dequantise() != 0
    return sum(int(weights[:, row != 0].sum()) for row in x.flatten(0, -2).numpy())


@pytest.mark.parametrize("level", ["32", "8g64", "2g32", "4g32f"])
@pytest.mark.parametrize("embedding", ["dense", "binary"])
def test_counts_are_those_of_a_loop(embedding: Embedding, level: str) -> None:
    store, setting, found = operations(tiny.make_model(embedding), level)
    runs, n = observed(store, setting), sum(LENGTHS)
    names = [module.name for module in store.hierarchy.modules if module.name != "emb"]
    macs = {
        name: sum(by_hand(store, setting, name, seen[f"{name}.input"]) for seen in runs) for name in names
    }
    assert found.as_built.effective_macs == pytest.approx(sum(macs.values()) / n)
    assert found.as_built.effective_acs == 0  # no matrix reads spikes
    dense = {name: store.modules[name].n_params for name in names}
    assert found.dense == sum(dense.values())

    used = {name: int(np.count_nonzero(store.packed(name, setting[name]).dequantise())) for name in names}
    assert found.connection_sparsity == pytest.approx(1 - sum(used.values()) / found.dense)

    def rate(name: str) -> float:
        return float(np.mean(np.concatenate([seen[name].flatten().numpy() for seen in runs])))

    acs = used["head"] * rate("blocks.2.ffn.spikes")
    for layer in range(3):
        before = f"blocks.{layer - 1}.ffn.spikes"
        source = before if layer else "emb" if embedding == "binary" else None
        if source is not None:
            acs += rate(source) * sum(used[f"blocks.{layer}.att.{m}"] for m in ("key", "value", "receptance"))
        for module in ("key", "receptance"):
            acs += rate(f"blocks.{layer}.att.spikes") * used[f"blocks.{layer}.ffn.{module}"]
    inner = [name for name in names if name.endswith(("att.output", "ffn.value"))]
    if embedding == "dense":
        inner += [f"blocks.0.att.{m}" for m in ("key", "value", "receptance")]
    assert found.spike_driven.effective_acs == pytest.approx(acs)
    assert found.spike_driven.effective_macs == pytest.approx(sum(macs[name] for name in inner) / n)

    by_layer = [
        [
            rate_of_zeros(runs, f"blocks.{layer}.{what}")
            for what in ("att.spikes", "ffn.value.input", "ffn.spikes")
        ]
        for layer in range(3)
    ]
    given = [[s.att_spikes, s.ffn_hidden, s.ffn_spikes] for s in found.activation_sparsity_by_layer]
    np.testing.assert_allclose(given, by_layer)
    # 64 neurons, 256 hidden channels, 64 neurons a layer
    assert found.activation_sparsity == pytest.approx(np.average(by_layer, axis=1, weights=[1, 4, 1]).mean())


def rate_of_zeros(runs: list[dict[str, Tensor]], name: str) -> float:
    return float(np.mean(np.concatenate([seen[name].flatten().numpy() == 0 for seen in runs])))


def test_relu_squared_saves_macs_of_ffn_value() -> None:
    store, _, found = operations(tiny.make_model(), "32")
    values = 3 * store.modules["blocks.0.ffn.value"].n_params
    hidden = np.mean([layer.ffn_hidden for layer in found.activation_sparsity_by_layer])
    assert 0.2 < hidden < 0.8
    assert found.dense - found.as_built.effective_macs == pytest.approx(hidden * values)


@pytest.mark.parametrize("level", ["32", "16", "8g64", "2g32"])
def test_footprint_is_what_is_stored(level: str) -> None:
    store, setting, found = operations(tiny.make_model("binary"), level)
    packed = sum(
        pack_matrix(m, store.model.tensors[m.key].numpy(), setting[m.name]).nbytes
        for m in store.hierarchy.modules
    )
    floats = sum(block.n_float_params for block in store.hierarchy.blocks)
    assert found.footprint_bytes == packed + 4 * floats


def count_input(rows: Any) -> Synaptic:
    """Operations as built of one matrix of layer 1 that reads these vectors of 64."""
    model = tiny.make_model()
    store = WeightStore(model, tiny.hierarchy_of(model))
    counted = OperationCount(store, tiny.uniform_setting(model, "32"))
    x = torch.zeros(len(rows), 1, 64)
    x[:, 0, :3] = torch.tensor(rows)
    mask = torch.ones(len(rows), 1, dtype=torch.bool)
    silent = Neurons(torch.zeros(len(rows), 1, 64), torch.zeros(len(rows), 1, 64))
    counted.add_embedding(torch.ones(len(rows), 1, 64), mask)
    for layer in (0, 1):
        counted.add_neurons(layer, "att", silent, mask)
        counted.add_neurons(layer, "ffn", silent, mask)
    counted.add_input("blocks.1.att.key", x, mask)
    return counted.result().as_built


def test_inputs_that_are_spikes_make_accumulates() -> None:
    assert count_input([[1, 0, 1], [0, 0, -1.0]]) == Synaptic(0, 64 * 3 / 2)
    # one value that is none makes the whole matrix multiply
    assert count_input([[1, 0, 1], [0, 0.5, -1.0]]) == Synaptic(64 * 4 / 2, 0)
    assert count_input([[0, 2.0, 0], [0, 0, 0]]) == Synaptic(64 / 2, 0)


def test_membrane_updates_against_a_loop() -> None:
    draw = torch.Generator().manual_seed(3)
    potentials = torch.rand(9, 2, 5, generator=draw) * 2
    potentials[4] = 0.3
    potentials[5] = 0.3  # neither fired: nothing changed
    spikes = (potentials >= 1).float()
    mask = torch.arange(9).unsqueeze(1) < torch.tensor([9, 6])
    updates = 0
    for b, length in enumerate((9, 6)):
        for c in range(5):
            held = None
            for t in range(length):
                after = 0.0 if spikes[t, b, c] else float(potentials[t, b, c])
                updates += held is None or after != held
                held = after
    assert membrane_updates(Neurons(potentials, spikes), mask) == updates < 5 * 15
