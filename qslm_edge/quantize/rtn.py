"""Group-wise affine round-to-nearest with the clipping range of least squared error.

w ~ (q - z) s with q, z integers of `bits` bits, one (s, z) per group of columns. For each group the range
[min, max] is shrunk step by step and the range with the least squared error is kept (Banner et al. 2019, ACIQ;
Nagel et al. 2021, white paper, section 3.1, range setting by mean squared error). Scales are rounded to bfloat16
before codes are chosen: some ARM kernels truncate them to bfloat16, which then changes nothing. Data-free,
deterministic, pure functions on arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from qslm_edge.quantize.base import Codes, Float, InputStatistics, Quantised, Quantiser

__all__ = [
    "Rtn",
    "check_groups",
    "dequantise_groups",
    "normalised_groups",
    "quantise_groups",
    "round_to_bfloat16",
]

SHRINKS = {
    8: (1.0, 0.97, 0.94),
    4: tuple(1.0 - 0.03 * i for i in range(14)),
    2: tuple(1.0 - 0.03 * i for i in range(24)),
}
"""Ranges tried, as a share of the full one; the optimum lies lower the fewer levels there are."""


def round_to_bfloat16(x: Float) -> Float:
    """Nearest value with an 8-bit significand (ties away from zero), so that truncation to bfloat16 is exact."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)


def check_groups(matrix: Float, group_size: int) -> None:
    """Raise ValueError unless the group size divides the columns and every weight is finite."""
    if matrix.shape[1] % group_size:
        raise ValueError(f"group size {group_size} does not divide {matrix.shape[1]} columns")
    if not np.isfinite(matrix).all():
        raise ValueError("weights that are not finite")


def normalised_groups(matrix: Float, group_size: int) -> tuple[Float, NDArray[np.int32]]:
    """Groups [N, G, g] brought near 1 by a power of two each, and its exponents [N, G].

    That rounds nothing, and no square of a weight overflows or vanishes.
    """
    groups = np.ascontiguousarray(matrix, np.float32).reshape(matrix.shape[0], -1, group_size)
    exponent: NDArray[np.int32] = np.frexp(np.abs(groups).max(-1))[1]
    return np.ldexp(groups, -exponent[..., None]), exponent


def _candidate(groups: Float, low: Float, high: Float, bits: int) -> Quantised:
    top = np.float32(2**bits - 1)
    scale = round_to_bfloat16((high - low) / top)
    safe = np.where(scale > 0, scale, np.float32(1))
    zero = np.clip(np.rint(-low / safe), 0, top)
    codes = np.clip(np.rint(groups / safe[..., None]) + zero[..., None], 0, top)
    return codes.astype(np.uint8), scale, zero.astype(np.uint8)


def quantise_groups(matrix: Float, bits: int, group_size: int) -> Quantised:
    """Quantise a matrix row by row in groups of columns.

    Args:
        matrix: [N, K] float32, K a multiple of group_size, finite.
        bits: 8, 4 or 2.
        group_size: columns per group.

    Returns:
        codes [N, K], scales [N, K / group_size] (exact in bfloat16), zero points [N, K / group_size]. A group of zeros
        has scale 0.

    Raises:
        ValueError: when group_size does not divide K, or a weight is not finite.
    """
    check_groups(matrix, group_size)
    groups, exponent = normalised_groups(matrix, group_size)
    # the range must hold 0, so that an exact zero stays exact and the zero point fits
    low = np.minimum(groups.min(axis=-1), 0)
    high = np.maximum(groups.max(axis=-1), 0)
    best_error = np.full(low.shape, np.inf, np.float32)
    codes = np.zeros(groups.shape, np.uint8)
    scales, zeros = np.zeros(low.shape, np.float32), np.zeros(low.shape, np.uint8)
    for shrink in SHRINKS[bits]:
        factor = np.float32(shrink)
        trial, scale, zero = _candidate(groups, low * factor, high * factor, bits)
        difference = dequantise_groups(trial, scale, zero) - groups
        error = np.einsum("...g,...g->...", difference, difference)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        codes[better] = trial[better]
        scales, zeros = np.where(better, scale, scales), np.where(better, zero, zeros)
    return codes.reshape(matrix.shape), round_to_bfloat16(np.ldexp(scales, exponent)), zeros


@dataclass(frozen=True)
class Rtn(Quantiser):
    """Round to nearest with clipping; the range of least squared error."""

    name: ClassVar[str] = "rtn"
    version: ClassVar[int] = 1

    def quantise(
        self,
        matrix: Float,
        bits: int,
        group_size: int,
        statistics: InputStatistics | None = None,  # noqa: ARG002 - data-free
    ) -> Quantised:
        return quantise_groups(matrix, bits, group_size)


def dequantise_groups(codes: Codes, scales: Float, zeros: Codes) -> Float:
    """(q - z) s for codes [..., G, g] or [N, K] with scales and zero points [..., G]."""
    grouped = codes.reshape(*scales.shape, -1)
    values = (grouped.astype(np.float32) - zeros[..., None].astype(np.float32)) * scales[..., None]
    return values.astype(np.float32, copy=False).reshape(codes.shape)
