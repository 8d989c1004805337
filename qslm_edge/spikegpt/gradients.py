"""The two recurrences with gradients, for tuning and prediction: the values of recurrence.py, and what flows back.

SRWKV: with the running maximum p taken as a constant (its value cancels out of y), the step is linear in its state,
a' = f1 a + f2 v and b' = f1 b + f2, so every factor is computed for all steps at once and only two multiply-adds a step
run through time, forward and backward. LIF: the spike's derivative is replaced by that of an arctangent,
ds/dh = 1 / (1 + (pi (h - 1))^2) (Fang et al. 2021, alpha = 2), and the reset passes its gradient on.
Tensors are time-major [T, B, C].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["lif_with_gradient", "wkv_with_gradient"]


def wkv_with_gradient(k: Tensor, v: Tensor, time_decay: Tensor, time_first: Tensor, state: Tensor) -> Tensor:
    """`recurrence.wkv` with gradients of k, v, time_decay and time_first; the state carries none."""
    apply: Callable[..., Tensor] = _Wkv.apply
    return apply(k, v, -torch.exp(time_decay), time_first, state)


def lif_with_gradient(x: Tensor, v: Tensor) -> Tensor:
    """`recurrence.lif` with the surrogate gradient of x; the membrane potential carried in gives none."""
    apply: Callable[..., Tensor] = _Lif.apply
    return apply(x, v)


class _Wkv(torch.autograd.Function):
    """y of SRWKV from k, v, w = -exp(time_decay), u = time_first and the state [3, B, C], which is updated."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor) -> Tensor:
        p = torch.empty((k.shape[0] + 1, *k.shape[1:]), dtype=k.dtype, device=k.device)
        p[0] = state[2]
        for t in range(k.shape[0]):
            torch.maximum(p[t] + w, k[t], out=p[t + 1])
        before, after, uk = p[:-1], p[1:], k + u
        q = torch.maximum(before, uk)
        e1, e2 = torch.exp(before - q), torch.exp(uk - q)
        f1, f2 = torch.exp(before + w - after), torch.exp(k - after)
        a, b = _sums(f1, f2, v, state)
        denominator = (e1 * b).add_(e2)
        y = (e1 * a).addcmul_(e2, v).div_(denominator)
        state[2] = p[-1]
        ctx.save_for_backward(v, a, b, e1, e2, f1, f2, denominator, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        v, a, b, e1, e2, f1, f2, denominator, y = ctx.saved_tensors
        of_numerator = grad / denominator
        of_denominator = -of_numerator * y
        # what later steps ask of the state that each step leaves behind
        to_a, to_b = _back(f1, e1 * of_numerator), _back(f1, e1 * of_denominator)
        bonus = e2 * (of_numerator * v + of_denominator)
        grad_v = e2 * of_numerator + f2 * to_a
        grad_k = bonus + f2 * (to_a * v + to_b)
        grad_w = (f1 * (to_a * a + to_b * b)).sum((0, 1))
        return grad_k, grad_v, grad_w, bonus.sum((0, 1)), None


def _sums(f1: Tensor, f2: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """State a and b before every step; the last ones are left in `state`."""
    a, b = torch.empty_like(v), torch.empty_like(v)
    for t in range(v.shape[0]):
        a[t], b[t] = state[0], state[1]
        state[0].mul_(f1[t]).addcmul_(f2[t], v[t])
        state[1].mul_(f1[t]).add_(f2[t])
    return a, b


def _back(decay: Tensor, asked: Tensor) -> Tensor:
    """For every step the gradient of the state behind it: g[t] = asked[t + 1] + decay[t + 1] g[t + 1]."""
    out = torch.empty_like(asked)
    out[-1] = 0
    for t in range(asked.shape[0] - 1, 0, -1):
        torch.addcmul(asked[t], decay[t], out[t], out=out[t - 1])
    return out


class _Lif(torch.autograd.Function):
    """Spikes of the input current x [T, B, C] and the membrane potential v [B, C], which is updated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor) -> Tensor:
        h = torch.empty_like(x)
        spikes = torch.empty_like(x)
        for t in range(x.shape[0]):
            torch.sub(x[t], v, out=h[t]).mul_(0.5).add_(v)
            torch.ge(h[t], 1.0, out=spikes[t])
            torch.addcmul(h[t], h[t], spikes[t], value=-1.0, out=v)
        ctx.save_for_backward(h, spikes)
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, spikes = ctx.saved_tensors
        slope = 1.0 / (1.0 + (math.pi * (h - 1.0)).square_())
        # v = h (1 - s), and s depends on h by the slope
        through = 1.0 - spikes - h * slope
        of_h = grad * slope
        for t in range(h.shape[0] - 2, -1, -1):
            # h(t + 1) = (x(t + 1) + v(t)) / 2
            of_h[t].addcmul_(of_h[t + 1], through[t], value=0.5)
        return of_h.mul_(0.5), None
