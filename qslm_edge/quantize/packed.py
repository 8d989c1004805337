"""One matrix at one level: what is stored, how many bytes, and the float values that it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qslm_edge.allocator import lasting_array
from qslm_edge.errors import CheckpointError, UsageError
from qslm_edge.quantize.base import Float, InputStatistics, Quantiser
from qslm_edge.quantize.levels import Level
from qslm_edge.quantize.packing import pack_blocked, pack_planar, unpack_blocked, unpack_planar
from qslm_edge.quantize.rtn import Rtn, dequantise_groups
from qslm_edge.spikegpt.hierarchy import Module

__all__ = ["PackedMatrix", "pack_matrix"]

_NEAREST = Rtn()


@dataclass(frozen=True)
class PackedMatrix:
    """A stored matrix.

    Attributes:
        module: which matrix [N, K].
        level: its precision level.
        data: float32 or float16 [N, K]; blocked codes [N, K/g, g*bits/8] of a linear module; planar codes
            [N, K*bits/8] of an embedding.
        scales: float16 or float32 [N, K/g], as the module says; None for float and sign levels.
        zeros: zero points, packed along a row: [N, ceil(K/g*bits/8)].
    """

    module: Module
    level: Level
    data: NDArray[np.generic]
    scales: NDArray[np.floating[Any]] | None = None
    zeros: NDArray[np.uint8] | None = None

    @property
    def nbytes(self) -> int:
        parts = (self.data, self.scales, self.zeros)
        return sum(part.nbytes for part in parts if part is not None)

    def lasting(self) -> PackedMatrix:
        """The same matrix in memory apart from the heap, for one that is kept."""
        scales = None if self.scales is None else lasting_array(self.scales)
        zeros = None if self.zeros is None else lasting_array(self.zeros)
        return PackedMatrix(self.module, self.level, lasting_array(self.data), scales, zeros)

    def dequantise(self) -> Float:
        """The float32 matrix [N, K] that the stored form stands for."""
        rows, columns = self.module.rows, self.module.columns
        if self.level.is_float:
            return self.data.astype(np.float32, copy=False)
        codes = self.data.astype(np.uint8, copy=False)
        if self.level.bits == 1:
            return unpack_planar(codes, 1).astype(np.float32)
        bits = self.level.bits
        if self.scales is None or self.zeros is None:
            raise ValueError(f"{self.module.name}: packed codes without scales")
        scales = self.scales.astype(np.float32, copy=False)
        zeros = unpack_blocked(self.zeros, bits, scales.shape[1])
        if self.module.kind == "embedding":
            return dequantise_groups(unpack_planar(codes, bits), scales, zeros)
        return dequantise_groups(unpack_blocked(codes.reshape(rows, -1), bits, columns), scales, zeros)


def pack_matrix(
    module: Module,
    weights: Float,
    level: Level,
    quantiser: Quantiser = _NEAREST,
    statistics: InputStatistics | None = None,
) -> PackedMatrix:
    """Store a matrix at a level.

    Args:
        module: which matrix.
        weights: float32 [N, K].
        level: float, packed, or sign (which keeps only w >= 0: lossless for a binary embedding).
        quantiser: chooses codes, scales and zero points of packed levels.
        statistics: of the inputs of this matrix, for a quantiser that needs them.

    Raises:
        UsageError: when the group size does not divide the columns, fp16 would overflow, or the level is simulated.
        CheckpointError: a weight is not finite.
    """
    if level.simulated:
        raise UsageError("a simulated level has no stored form", where=module.name, found=level)
    if level.bits == 32:
        return PackedMatrix(module, level, weights)
    if level.bits == 16:
        with np.errstate(over="ignore"):
            half = weights.astype(np.float16)
        if not np.isfinite(half).all():
            raise UsageError(
                "a weight does not fit float16",
                where=module.name,
                found=f"{np.abs(weights).max():g}",
                hint="leave 16 out of --levels",
            )
        return PackedMatrix(module, level, half)
    if level.bits == 1:
        return PackedMatrix(module, level, pack_planar((weights >= 0).astype(np.uint8), 1))
    group = level.group_size
    if group is None or module.columns % group:
        raise UsageError(
            "group size does not divide the columns of the matrix",
            where=module.name,
            found=f"group {group}, {module.columns} columns",
        )
    if not np.isfinite(weights).all():
        raise CheckpointError("a weight is not finite", where=module.name)
    codes, scales, zeros = quantiser.quantise(weights, level.bits, group, statistics)
    stored: NDArray[np.floating[Any]] = (
        scales.astype(np.float16) if module.scale_bits == 16 else scales.astype(np.float32, copy=False)
    )
    packed_zeros = pack_blocked(zeros, level.bits)
    if module.kind == "embedding":
        return PackedMatrix(module, level, pack_planar(codes, level.bits), stored, packed_zeros)
    blocks = codes.reshape(module.rows, -1, group)
    return PackedMatrix(module, level, pack_blocked(blocks, level.bits), stored, packed_zeros)
