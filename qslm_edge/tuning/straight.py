"""The straight-through estimator: a rounding whose gradient is that of the identity (Bengio et al. 2013)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["straight_through"]


def straight_through(x: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """`rounding(x)`, with the gradient of x itself.

    Args:
        x: what is rounded.
        rounding: gives a new tensor of the same shape.
    """
    apply: Callable[..., Tensor] = _StraightThrough.apply
    return apply(x, rounding)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        return rounding(x)

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
