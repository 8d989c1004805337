"""One matrix at one level: what is stored, how many bytes, and the float values that it stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qslm_edge.allocator import lasting_array
from qslm_edge.errors import CheckpointError, UsageError
from qslm_edge.quantize.base import Float, InputStatistics, Quantiser
from qslm_edge.quantize.levels import Level
from qslm_edge.quantize.packing import pack_blocked, pack_planar, unpack_blocked, unpack_planar
from qslm_edge.quantize.rtn import Rtn, dequantise_groups, dequantise_midrise
from qslm_edge.spikegpt.hierarchy import Module

__all__ = ["PackedMatrix", "pack_matrix"]

_NEAREST = Rtn()
PART_WEIGHTS = 2**22
"""Weights quantised or restored at once: rows do not depend on each other, and the head of a large model is large."""


@dataclass(frozen=True)
class PackedMatrix:
    """A stored matrix.

    Attributes:
        module: which matrix [N, K].
        level: its precision level.
        data: float32 or float16 [N, K]; blocked codes [N, K/g, g*bits/8] of a linear module; planar codes
            [N, K*bits/8] of an embedding.
        scales: float16 or float32 [N, K/g], as the module says; None for float and sign levels.
        zeros: zero points, packed along a row: [N, ceil(K/g*bits/8)]; None for mid-rise levels too.
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

    def take_rows(self, rows: NDArray[np.int64], level: Level) -> PackedMatrix:
        """Some rows of a linear matrix, as stored: what packing them alone gives, since no row depends on another.

        Args:
            rows: their numbers.
            level: that of the result, which says how many rows are left.
        """
        scales = None if self.scales is None else self.scales[rows]
        zeros = None if self.zeros is None else self.zeros[rows]
        return PackedMatrix(replace(self.module, rows=len(rows)), level, self.data[rows], scales, zeros)

    def dequantise(self) -> Float:
        """The float32 matrix [N, K] that the stored form stands for."""
        rows, columns = self.module.rows, self.module.columns
        if self.level.is_float:
            return self.data.astype(np.float32, copy=False)
        values = np.empty((rows, columns), np.float32)
        step = max(1, PART_WEIGHTS // columns)
        for row in range(0, rows, step):
            values[row : row + step] = self._values(slice(row, row + step))
        return values

    def _values(self, rows: slice) -> Float:
        """Some rows of a packed or sign matrix."""
        bits, codes = self.level.bits, self.data[rows].astype(np.uint8, copy=False)
        if bits == 1:
            return unpack_planar(codes, 1).astype(np.float32)
        if self.scales is None:
            raise ValueError(f"{self.module.name}: packed codes without scales")
        scales = self.scales[rows].astype(np.float32, copy=False)
        if self.module.kind == "embedding":
            flat = unpack_planar(codes, bits)
        else:
            flat = unpack_blocked(codes.reshape(len(codes), -1), bits, self.module.columns)
        if self.zeros is None:
            return dequantise_midrise(flat, scales, bits)
        return dequantise_groups(flat, scales, unpack_blocked(self.zeros[rows], bits, scales.shape[1]))


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
    parts: list[tuple[NDArray[Any], ...]] = []
    step = max(1, PART_WEIGHTS // module.columns)
    for row in range(0, module.rows, step):
        rows = weights[row : row + step]
        if level.midrise:
            parts.append(quantiser.quantise_midrise(rows, level.bits, group, statistics))
        else:
            parts.append(quantiser.quantise(rows, level.bits, group, statistics))
    codes, scales, *zeros = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    packed_zeros = pack_blocked(zeros[0], level.bits) if zeros else None
    stored: NDArray[np.floating[Any]] = (
        scales.astype(np.float16) if module.scale_bits == 16 else scales.astype(np.float32, copy=False)
    )
    if module.kind == "embedding":
        return PackedMatrix(module, level, pack_planar(codes, level.bits), stored, packed_zeros)
    blocks = codes.reshape(module.rows, -1, group)
    return PackedMatrix(module, level, pack_blocked(blocks, level.bits), stored, packed_zeros)
