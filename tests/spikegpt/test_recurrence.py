"""WKV and LIF against slow references in float64, written from the formulas and not from the code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from qslm_edge.spikegpt.recurrence import P_INIT, lif, wkv

Double = NDArray[np.float64]


def fresh(batch: int, c: int) -> Tensor:
    state = torch.zeros(3, batch, c)
    state[2] = P_INIT
    return state


def closed_form(k: Double, v: Double, decay: float, first: float) -> Double:
    """One channel as a plain weighted average over the past: no recursion, no running maximum."""
    w, y = -math.exp(decay), []
    for t in range(len(k)):
        exponents = [(t - 1 - i) * w + k[i] for i in range(t)] + [first + k[t]]
        top = max(exponents)
        weights = [math.exp(e - top) for e in exponents]
        y.append(math.fsum(a * b for a, b in zip(weights, v[: t + 1], strict=True)) / math.fsum(weights))
    return np.array(y)


def draw(seed: int, steps: int, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    k = torch.randn(steps, 2, 3, generator=generator) * scale
    v = torch.randn(steps, 2, 3, generator=generator)
    return k, v, torch.randn(3, generator=generator) * 2, torch.randn(3, generator=generator)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), steps=st.integers(1, 14), scale=st.sampled_from([0.1, 1.0, 8.0, 30.0]))
def test_wkv_is_the_weighted_average_of_the_past(seed: int, steps: int, scale: float) -> None:
    k, v, decay, first = draw(seed, steps, scale)
    y = wkv(k, v, decay, first, fresh(2, 3))
    for b in range(2):
        for c in range(3):
            expected = closed_form(
                k[:, b, c].double().numpy(), v[:, b, c].double().numpy(), float(decay[c]), float(first[c])
            )
            np.testing.assert_allclose(y[:, b, c].numpy(), expected, rtol=2e-5, atol=2e-5)


def test_wkv_state_holds_the_sums_of_the_past() -> None:
    k, v, decay, first = draw(3, 9, 2.0)
    state = fresh(2, 3)
    wkv(k, v, decay, first, state)
    w = -torch.exp(decay.double())
    age = torch.arange(8, -1, -1, dtype=torch.float64).view(-1, 1, 1)
    weights = torch.exp(age * w + k.double())
    scale = torch.exp(state[2].double())
    torch.testing.assert_close(state[0].double() * scale, (weights * v.double()).sum(0), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(state[1].double() * scale, weights.sum(0), rtol=1e-5, atol=1e-9)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), cut=st.integers(1, 8))
def test_wkv_in_two_runs_equals_one_bit_for_bit(seed: int, cut: int) -> None:
    k, v, decay, first = draw(seed, 9, 3.0)
    whole_state, state = fresh(2, 3), fresh(2, 3)
    whole = wkv(k, v, decay, first, whole_state)
    parts = [wkv(k[:cut], v[:cut], decay, first, state), wkv(k[cut:], v[cut:], decay, first, state)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(state, whole_state)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e30])
def test_wkv_never_overflows(size: float) -> None:
    k = torch.tensor([-size, size, 0.0, -size, size]).view(-1, 1, 1)
    v = torch.arange(5.0).view(-1, 1, 1)
    y = wkv(k, v, torch.zeros(1), torch.zeros(1), fresh(1, 1))
    assert torch.isfinite(y).all()
    assert y.flatten().tolist()[:3] == [0.0, 1.0, 1.0]  # the largest key takes all


def test_wkv_leaves_its_inputs_alone() -> None:
    k, v, decay, first = draw(1, 4, 1.0)
    copies = [x.clone() for x in (k, v, decay, first)]
    wkv(k, v, decay, first, fresh(2, 3))
    assert all(torch.equal(a, b) for a, b in zip((k, v, decay, first), copies, strict=True))


def lif_by_hand(x: list[float], v: float) -> tuple[list[float], float]:
    spikes = []
    for current in x:
        h = v + (current - v) / 2
        fires = h >= 1
        v = 0.0 if fires else h
        spikes.append(float(fires))
    return spikes, v


# Multiples of 1/4 stay exact in float32 for ten halvings, so that equality at the threshold is real.
currents = st.lists(st.integers(-12, 24).map(lambda n: n / 4), min_size=1, max_size=10)


@settings(max_examples=100)
@given(x=currents, start=st.integers(-4, 3).map(lambda n: n / 4))
def test_lif_fires_resets_and_leaks_exactly(x: list[float], start: float) -> None:
    v = torch.full((1, 1), start)
    spikes = lif(torch.tensor(x).view(-1, 1, 1), v)
    expected, final = lif_by_hand(x, start)
    assert spikes.flatten().tolist() == expected
    assert v.item() == final


def test_lif_threshold_is_inclusive_and_reset_is_hard() -> None:
    v = torch.zeros(1, 3)
    x = torch.tensor([[2.0, 1.9999, 100.0], [2.0, 0.0, 1.9]]).unsqueeze(1)
    assert lif(x, v).squeeze(1).tolist() == [[1, 0, 1], [1, 0, 0]]
    assert v[0, 2].item() == pytest.approx(0.95)  # nothing of the 100 is left


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), cut=st.integers(1, 8))
def test_lif_in_two_runs_equals_one_bit_for_bit(seed: int, cut: int) -> None:
    x = torch.randn(9, 2, 5, generator=torch.Generator().manual_seed(seed)) * 2
    before = x.clone()
    whole_v, v = torch.zeros(2, 5), torch.zeros(2, 5)
    whole = lif(x, whole_v)
    assert torch.equal(torch.cat([lif(x[:cut], v), lif(x[cut:], v)]), whole)
    assert torch.equal(v, whole_v)
    assert torch.equal(x, before)


def test_lif_shows_the_potential_that_decides_and_is_not_changed_by_it() -> None:
    x = torch.randn(12, 2, 3, generator=torch.Generator().manual_seed(5)) * 3
    state, shown_state, shown = torch.zeros(2, 3), torch.zeros(2, 3), torch.empty_like(x)
    spikes = lif(x, state)
    assert torch.equal(lif(x, shown_state, shown), spikes)
    assert torch.equal(shown_state, state)
    held = np.zeros((2, 3))
    for t in range(12):
        potential = held + (x[t].double().numpy() - held) / 2
        np.testing.assert_allclose(shown[t].numpy(), potential, rtol=1e-5, atol=1e-6)
        held = np.where(shown[t].numpy() >= 1, 0, potential)
    assert torch.equal((shown >= 1).float(), spikes)
