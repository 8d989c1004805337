"""Flips, drift and rates of hand-made neurons."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qslm_edge.search.spikes import Neurons, SpikeSum, count_nonzero


def neurons(potentials: Tensor) -> Neurons:
    return Neurons(potentials, (potentials >= 1).to(potentials.dtype))


def drawn(seed: int, steps: int = 5, batch: int = 3, channels: int = 4) -> Neurons:
    return neurons(torch.rand(steps, batch, channels, generator=torch.Generator().manual_seed(seed)) * 2)


@given(seed=st.integers(0, 2**20), lengths=st.lists(st.integers(1, 5), min_size=3, max_size=3))
def test_sums_over_single_decisions(seed: int, lengths: list[int]) -> None:
    one, two = drawn(seed), drawn(seed + 1)
    mask = torch.arange(5).unsqueeze(1) < torch.tensor(lengths)
    collected = SpikeSum()
    collected.add(2, "ffn", one, two, mask)
    (layer,) = collected.result().layers
    flips = drift = fired_float = fired = 0.0
    for b, length in enumerate(lengths):
        for t in range(length):
            for c in range(4):
                before, after = float(one.potentials[t, b, c]), float(two.potentials[t, b, c])
                flips += (before >= 1) != (after >= 1)
                drift += abs(after - before)
                fired_float += before >= 1
                fired += after >= 1
    n = 4 * sum(lengths)
    assert (layer.layer, layer.part) == (2, "ffn")
    assert layer.flip_rate == flips / n
    assert layer.membrane_drift == pytest.approx(drift / n, rel=1e-6)
    assert (layer.firing_rate_float, layer.firing_rate) == (fired_float / n, fired / n)


def test_layers_stand_apart_and_the_total_is_of_all_neurons() -> None:
    collected, mask = SpikeSum(), torch.ones(5, 3, dtype=torch.bool)
    quiet, loud = neurons(torch.zeros(5, 3, 4)), neurons(torch.full((5, 3, 4), 1.5))
    collected.add(0, "att", quiet, loud, mask)
    for _ in range(3):
        collected.add(0, "ffn", loud, loud, mask)  # three times the tokens
    found = collected.result()
    att, ffn = found.layers
    assert (att.flip_rate, att.membrane_drift, att.firing_rate_float, att.firing_rate) == (1, 1.5, 0, 1)
    assert (ffn.flip_rate, ffn.membrane_drift, ffn.firing_rate_float, ffn.firing_rate) == (0, 0, 1, 1)
    assert (found.flip_rate, found.membrane_drift) == (0.25, 0.375)
    assert found.to_dict()["layers"][0]["part"] == "att"


def test_a_neuron_at_the_threshold_fires() -> None:
    collected = SpikeSum()
    edge = torch.tensor([[[1.0, 1.0 - 1e-7]]])
    collected.add(0, "att", neurons(edge), neurons(edge.flip(-1)), torch.ones(1, 1, dtype=torch.bool))
    assert collected.result().flip_rate == 1


def test_count_nonzero_of_numbers_and_flags() -> None:
    values = torch.tensor([[0.0, -0.0, 2.0], [-1.0, 0.0, 1e-45]])
    assert count_nonzero(values) == count_nonzero(values != 0) == 3
