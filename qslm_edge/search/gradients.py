"""A SpikeGPT that gradients flow through: the recurrences of recurrence.py, written for autograd.

Values are the same; only a spike, whose derivative is zero or infinite, gets the slope of an arctangent in its place
(alpha 2, as SpikeGPT was trained; Fang et al. 2021), and the reset of the membrane is held constant.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["differentiable_lif", "differentiable_wkv"]

ALPHA = 2.0


class _Spike(torch.autograd.Function):
    """[h >= 1], with the slope alpha/2 / (1 + (pi/2 alpha (h - 1))^2)."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return (h >= 1).to(h.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (h,) = ctx.saved_tensors
        slope: Tensor = grads[0] * (ALPHA / 2) / (1 + (math.pi / 2 * ALPHA * (h - 1)).square())
        return slope


def differentiable_lif(x: Tensor, v: Tensor) -> Tensor:
    """Spikes [T, B, C] of the currents x from the membrane v [B, C], which is not changed."""
    v, spikes = v.detach().clone(), []
    for current in x:
        h = v + (current - v) * 0.5
        fired: Tensor = _Spike.apply(h)  # type: ignore[no-untyped-call]
        v = h * (1 - fired.detach())
        spikes.append(fired)
    return torch.stack(spikes)


def differentiable_wkv(k: Tensor, v: Tensor, time_decay: Tensor, time_first: Tensor, state: Tensor) -> Tensor:
    """The average of `recurrence.wkv` [T, B, C]; the state [3, B, C] is not changed."""
    w = -torch.exp(time_decay)
    a, b, p = state.detach().clone()
    out = []
    for kt, vt in zip(k, v, strict=True):
        # the running maximum cancels out of the quotient: it needs no gradient
        q = torch.maximum(p, time_first + kt).detach()
        e1, e2 = torch.exp(p - q), torch.exp(time_first + kt - q)
        out.append((e1 * a + e2 * vt) / (e1 * b + e2))
        q = torch.maximum(p + w, kt).detach()
        e1, e2 = torch.exp(p + w - q), torch.exp(kt - q)
        a, b, p = e1 * a + e2 * vt, e1 * b + e2, q
    return torch.stack(out)
