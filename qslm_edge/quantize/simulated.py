"""The paper's quantiser: per tensor, asymmetric, min-max, simulated in float, any width up to 16 bits.

QSLM (Putra, Wickramasinghe, Shafique 2026) counts memory as parameters x bits and runs the result in float. It is here
for comparison only; nothing of it is exported.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["PAPER_LEVELS", "simulate_per_tensor"]

PAPER_LEVELS = (16, 14, 12, 10, 8, 6, 4)
"""Precision list of the paper as reconstructed (numerics: most plausible reading)."""


def simulate_per_tensor(weights: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Round all weights of a matrix to one affine grid of 2**bits levels between its minimum and maximum.

    Args:
        weights: [N, K], finite.
        bits: 2 to 16.

    Returns:
        Float values on the grid, same shape.
    """
    low, high = min(float(weights.min()), 0.0), max(float(weights.max()), 0.0)
    if low == high:
        return weights.copy()
    top = 2**bits - 1
    scale = (high - low) / top
    zero = np.rint(-low / scale)
    codes = np.clip(np.rint(weights.astype(np.float64) / scale) + zero, 0, top)
    values: NDArray[np.float32] = ((codes - zero) * scale).astype(np.float32)
    return values
