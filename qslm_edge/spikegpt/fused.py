"""The two recurrences as one GPU kernel each (Triton): a step a loop turn, not a dozen launches.

A lane owns one channel of one stream and walks through time, so nothing is shared and sums have one order. Operations
and their roundings are those of recurrence.py and gradients.py: libdevice's exponential, division rounded to nearest,
a multiply-add fused where torch fuses it (addcmul) and nowhere else. Values are therefore the loops' to the last bit;
gradients differ by rounding, since the factors of a step are recomputed on the way back from the state before it.
Tensors are time-major [T, B, C], float32, on one CUDA device. torch's CUDA wheels bring Triton; without it, or without
the C compiler that it needs, recurrence.py steps through time instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton.language.extra import libdevice

__all__ = ["lif", "wkv"]

BLOCK = 64
"""Lanes a program: few, since a batch of tuning has thousands of lanes for a hundred multiprocessors."""
LAUNCH = {"num_warps": 2, "enable_fp_fusion": False}
PI = tl.constexpr(math.pi)


def wkv(k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor, with_gradient: bool) -> Tensor:
    """SRWKV's weighted average.

    Args:
        k, v: [T, B, C].
        w, u: decay -exp(time_decay) and bonus, [C].
        state: [3, B, C] (a, b, p), contiguous, updated in place.
        with_gradient: keep what the way back needs.

    Returns:
        y [T, B, C].
    """
    apply: Callable[..., Tensor] = _Wkv.apply if with_gradient else _wkv
    return apply(k.contiguous(), v.contiguous(), w.contiguous(), u.contiguous(), state)


def lif(x: Tensor, v: Tensor, potentials: Tensor | None, with_gradient: bool) -> Tensor:
    """Spikes of the LIF neuron.

    Args:
        x: input current [T, B, C].
        v: membrane potential [B, C], contiguous, updated in place.
        potentials: [T, B, C], contiguous, receives the potential before the reset; None keeps none.
        with_gradient: keep what the way back needs.

    Returns:
        Spikes 0/1 [T, B, C].
    """
    if with_gradient:
        apply: Callable[..., Tensor] = _Lif.apply
        return apply(x.contiguous(), v)
    return _lif(x.contiguous(), v, potentials)


def _grid(lanes: int) -> tuple[int]:
    return (triton.cdiv(lanes, BLOCK),)


def _wkv(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor, kept: tuple[Tensor, ...] | None = None
) -> Tensor:
    y, lanes = torch.empty_like(v), state[0].numel()
    a, b, p = kept if kept is not None else (y, y, y)  # places that are not written
    _wkv_forward[_grid(lanes)](
        *(k, v, w, u, state, y, a, b, p, k.shape[0], lanes, k.shape[2]),
        KEEP=kept is not None,
        BLOCK=BLOCK,
        **LAUNCH,
    )
    return y


class _Wkv(torch.autograd.Function):
    """y of SRWKV; the state before every step is kept for the way back."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor) -> Tensor:
        kept = torch.empty_like(k), torch.empty_like(k), torch.empty_like(k)
        y = _wkv(k, v, w, u, state, kept)
        ctx.save_for_backward(k, v, w, u, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        k, v, w, u, a, b, p = ctx.saved_tensors
        steps, batch, channels = k.shape
        lanes = batch * channels
        of_k, of_v = torch.empty_like(k), torch.empty_like(v)
        of_w, of_u = torch.empty_like(k[0]), torch.empty_like(k[0])
        _wkv_backward[_grid(lanes)](
            *(k, v, w, u, a, b, p, grad.contiguous(), of_k, of_v, of_w, of_u, steps, lanes, channels),
            *(lanes * (steps - 1),),
            BLOCK=BLOCK,
            **LAUNCH,
        )
        return of_k, of_v, of_w.sum(0), of_u.sum(0), None


def _lif(x: Tensor, v: Tensor, potentials: Tensor | None) -> Tensor:
    spikes = torch.empty_like(x)
    kept = spikes if potentials is None else potentials
    _lif_forward[_grid(v.numel())](
        *(x, v, spikes, kept, x.shape[0], v.numel()),
        KEEP=potentials is not None,
        BLOCK=BLOCK,
        **LAUNCH,
    )
    return spikes


class _Lif(torch.autograd.Function):
    """Spikes; the potentials before the reset are kept for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor) -> Tensor:
        potentials = torch.empty_like(x)
        spikes = _lif(x, v, potentials)
        ctx.save_for_backward(potentials)
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (potentials,) = ctx.saved_tensors
        steps, lanes = len(potentials), potentials[0].numel()
        of_x = torch.empty_like(potentials)
        _lif_backward[_grid(lanes)](
            *(potentials, grad.contiguous(), of_x, steps, lanes, lanes * (steps - 1)),
            BLOCK=BLOCK,
            **LAUNCH,
        )
        return of_x, None


# Kernels. Pointers move by one step of all lanes a turn, so that no offset outgrows 32 bits but the first of a way
# back, which is given.


@triton.jit
def _wkv_forward(
    k,
    v,
    w,
    u,
    state,
    y,
    kept_a,
    kept_b,
    kept_p,
    steps,
    lanes,
    channels,
    KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mine = at < lanes
    decay = tl.load(w + at % channels, mask=mine, other=0.0)
    bonus = tl.load(u + at % channels, mask=mine, other=0.0)
    state_a, state_b, state_p = state + at, state + lanes + at, state + 2 * lanes + at
    a = tl.load(state_a, mask=mine, other=0.0)
    b = tl.load(state_b, mask=mine, other=0.0)
    p = tl.load(state_p, mask=mine, other=0.0)
    k, v, y = k + at, v + at, y + at
    kept_a, kept_b, kept_p = kept_a + at, kept_b + at, kept_p + at
    for _ in range(steps):
        key, value = tl.load(k, mask=mine, other=0.0), tl.load(v, mask=mine, other=0.0)
        if KEEP:
            tl.store(kept_a, a, mask=mine)
            tl.store(kept_b, b, mask=mine)
            tl.store(kept_p, p, mask=mine)
        now = key + bonus
        q = tl.maximum(p, now)
        e1, e2 = libdevice.exp(p - q), libdevice.exp(now - q)
        numerator = tl.fma(e2, value, e1 * a)
        tl.store(y, tl.div_rn(numerator, e1 * b + e2), mask=mine)
        before = p + decay
        p = tl.maximum(before, key)
        f1, f2 = libdevice.exp(before - p), libdevice.exp(key - p)
        a = tl.fma(f2, value, a * f1)
        b = b * f1 + f2
        k, v, y = k + lanes, v + lanes, y + lanes
        kept_a, kept_b, kept_p = kept_a + lanes, kept_b + lanes, kept_p + lanes
    tl.store(state_a, a, mask=mine)
    tl.store(state_b, b, mask=mine)
    tl.store(state_p, p, mask=mine)


@triton.jit
def _wkv_backward(
    k,
    v,
    w,
    u,
    kept_a,
    kept_b,
    kept_p,
    grad,
    of_k,
    of_v,
    of_w,
    of_u,
    steps,
    lanes,
    channels,
    last,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mine = at < lanes
    decay = tl.load(w + at % channels, mask=mine, other=0.0)
    bonus = tl.load(u + at % channels, mask=mine, other=0.0)
    k, v, grad, of_k, of_v = (
        k + last + at,
        v + last + at,
        grad + last + at,
        of_k + last + at,
        of_v + last + at,
    )
    kept_a, kept_b, kept_p = kept_a + last + at, kept_b + last + at, kept_p + last + at
    to_a = tl.zeros((BLOCK,), tl.float32)  # what later steps ask of the state that a step leaves behind
    to_b, sum_w, sum_u = to_a, to_a, to_a
    for _ in range(steps):
        key, value = tl.load(k, mask=mine, other=0.0), tl.load(v, mask=mine, other=0.0)
        a, b = tl.load(kept_a, mask=mine, other=0.0), tl.load(kept_b, mask=mine, other=0.0)
        p, g = tl.load(kept_p, mask=mine, other=0.0), tl.load(grad, mask=mine, other=0.0)
        now = key + bonus
        q = tl.maximum(p, now)
        e1, e2 = libdevice.exp(p - q), libdevice.exp(now - q)
        denominator = e1 * b + e2
        of_numerator = g / denominator
        of_denominator = -of_numerator * (tl.fma(e2, value, e1 * a) / denominator)
        before = p + decay
        after = tl.maximum(before, key)
        f1, f2 = libdevice.exp(before - after), libdevice.exp(key - after)
        of_bonus = e2 * (of_numerator * value + of_denominator)
        tl.store(of_v, e2 * of_numerator + f2 * to_a, mask=mine)
        tl.store(of_k, of_bonus + f2 * (to_a * value + to_b), mask=mine)
        sum_w += f1 * (to_a * a + to_b * b)
        sum_u += of_bonus
        to_a = e1 * of_numerator + f1 * to_a
        to_b = e1 * of_denominator + f1 * to_b
        k, v, grad, of_k, of_v = k - lanes, v - lanes, grad - lanes, of_k - lanes, of_v - lanes
        kept_a, kept_b, kept_p = kept_a - lanes, kept_b - lanes, kept_p - lanes
    tl.store(of_w + at, sum_w, mask=mine)
    tl.store(of_u + at, sum_u, mask=mine)


@triton.jit
def _lif_forward(
    x,
    v,
    spikes,
    potentials,
    steps,
    lanes,
    KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mine = at < lanes
    membrane = tl.load(v + at, mask=mine, other=0.0)
    x, spikes, potentials = x + at, spikes + at, potentials + at
    for _ in range(steps):
        h = (tl.load(x, mask=mine, other=0.0) - membrane) * 0.5 + membrane
        if KEEP:
            tl.store(potentials, h, mask=mine)
        tl.store(spikes, tl.where(h >= 1.0, 1.0, 0.0), mask=mine)
        membrane = tl.where(h >= 1.0, 0.0, h)
        x, spikes, potentials = x + lanes, spikes + lanes, potentials + lanes
    tl.store(v + at, membrane, mask=mine)


@triton.jit
def _lif_backward(potentials, grad, of_x, steps, lanes, last, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mine = at < lanes
    potentials, grad, of_x = potentials + last + at, grad + last + at, of_x + last + at
    to_h = tl.zeros((BLOCK,), tl.float32)  # the gradient of the potential one step later
    for _ in range(steps):
        h, g = tl.load(potentials, mask=mine, other=0.0), tl.load(grad, mask=mine, other=0.0)
        far = PI * (h - 1.0)
        slope = 1.0 / (1.0 + far * far)
        through = tl.where(h >= 1.0, 0.0, 1.0) - h * slope
        to_h = g * slope + 0.5 * (to_h * through)
        tl.store(of_x, 0.5 * to_h, mask=mine)
        potentials, grad, of_x = potentials - lanes, grad - lanes, of_x - lanes
