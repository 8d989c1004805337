"""The recurrences with gradients: the values of the plain ones, and the gradients of an independent formulation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qslm_edge.spikegpt.recurrence import P_INIT, lif, wkv

B, C = 2, 3


class _ArctanSpike(torch.autograd.Function):
    """[h >= 1] with the slope of arctan(pi (h - 1)) / pi + 1/2."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return (h >= 1).to(h.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (h,) = ctx.saved_tensors
        slope: Tensor = grads[0] / (1 + (math.pi * (h - 1)) ** 2)
        return slope


def average_of_the_past(k: Tensor, v: Tensor, decay: Tensor, first: Tensor) -> Tensor:
    """WKV as one softmax over the past for each step: no recursion."""
    w, out = -torch.exp(decay), []
    for t in range(len(k)):
        ages = torch.arange(t - 1, -1, -1, dtype=k.dtype).view(-1, 1, 1)
        exponents = torch.cat([ages * w + k[:t], (first + k[t]).unsqueeze(0)])
        out.append((torch.softmax(exponents, 0) * v[: t + 1]).sum(0))
    return torch.stack(out)


def plain_lif(x: Tensor, v: Tensor) -> Tensor:
    """LIF written out, for autograd to differentiate."""
    out = []
    for current in x:
        h = v + (current - v) / 2
        s: Tensor = _ArctanSpike.apply(h)  # type: ignore[no-untyped-call]
        v = h * (1 - s)
        out.append(s)
    return torch.stack(out)


def draw(seed: int, steps: int, scale: float) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    k, v, weight = (torch.randn(steps, B, C, generator=generator).double() for _ in range(3))
    decay, first = (torch.randn(C, generator=generator).double() for _ in range(2))
    return k * scale, v, decay, first, weight


def empty() -> Tensor:
    state = torch.zeros(3, B, C).double()
    state[2] = P_INIT
    return state


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), steps=st.integers(1, 12), scale=st.sampled_from([0.1, 1.0, 6.0]))
def test_wkv_gradients_are_those_of_the_plain_average(seed: int, steps: int, scale: float) -> None:
    *inputs, weight = draw(seed, steps, scale)
    inputs = [tensor.requires_grad_() for tensor in inputs]
    wanted = torch.autograd.grad((average_of_the_past(*inputs) * weight).sum(), inputs, allow_unused=True)
    k, v, decay, first = inputs
    got = torch.autograd.grad((wkv(k, v, decay, first, empty()) * weight).sum(), inputs)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, torch.zeros_like(mine) if theirs is None else theirs)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), steps=st.integers(1, 12), scale=st.sampled_from([0.5, 3.0]))
def test_lif_gradients_are_those_of_the_written_out_neuron(seed: int, steps: int, scale: float) -> None:
    x, _, _, _, weight = draw(seed, steps, 2 * scale)
    x = x.requires_grad_()
    zero = torch.zeros(B, C).double()
    (wanted,) = torch.autograd.grad((plain_lif(x, zero) * weight).sum(), x)
    (got,) = torch.autograd.grad((lif(x, zero.clone()) * weight).sum(), x)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("steps", [1, 9])
def test_values_and_states_are_those_without_gradients(steps: int) -> None:
    k, v, decay, first, _ = (tensor.float() for tensor in draw(5, steps, 2.0))
    plain_state, state = empty().float(), empty().float()
    plain_membrane, membrane = torch.zeros(B, C), torch.zeros(B, C)
    with torch.no_grad():
        plain = wkv(k, v, decay, first, plain_state), lif(3 * v, plain_membrane)
    k.requires_grad_()
    v.requires_grad_()
    with_gradients = wkv(k, v, decay, first, state), lif(3 * v, membrane)
    for mine, theirs in zip(with_gradients, plain, strict=True):
        assert mine.requires_grad
        assert torch.equal(mine, theirs)
    assert torch.equal(state, plain_state)
    assert torch.equal(membrane, plain_membrane)


def test_a_carried_state_takes_part_in_the_values() -> None:
    k, v, decay, first, _ = draw(8, 10, 1.0)
    k.requires_grad_()
    state = empty()
    whole = wkv(k, v, decay, first, empty())
    parts = [wkv(k[:4], v[:4], decay, first, state), wkv(k[4:], v[4:], decay, first, state)]
    torch.testing.assert_close(torch.cat(parts), whole)
