"""The straight-through estimator: a rounding whose gradient is that of the identity (Bengio et al. 2013)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["straight_through"]


def straight_through(x: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """`rounding(x)` to the last bit, with the gradient of x itself: what is added to it is zero."""
    return rounding(x.detach()) + (x - x.detach())
