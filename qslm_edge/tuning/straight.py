"""The straight-through estimator: a rounding whose gradient is that of the identity (Bengio, Léonard, Courville 2013)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["straight_through"]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight_through(x: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """`rounding(x)` to the last bit, with the gradient of x itself."""
    apply: Callable[..., Tensor] = _StraightThrough.apply
    return apply(x, rounding(x.detach()))
