"""Matrices of one level on their packed grid, with gradients: what they will be once packed, and latent weights behind.

w = (clip(round(W / s + z), 0, 2^bits - 1) - z) s with latent W, one scale s and one zero point z a group of columns.
Rounding passes its gradient straight through; the scale s = s0 exp(r) learns as in LSQ (Esser et al. 2020). Zero points
stay where the quantiser put them. Scales are rounded as they are stored, so that `packed` holds exactly the values that
the forward pass used. The groups of all matrices lie in one tensor: a GPU spends more time on being told of forty small
products than on one large one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qslm_edge.quantize.packed import PackedMatrix
from qslm_edge.quantize.packing import pack_blocked, pack_planar, unpack_blocked
from qslm_edge.tuning.straight import straight_through

__all__ = ["PackedGrid", "grid_kind"]

INSIDE = 0.499
"""Distance from a code, in steps, within which a latent weight surely rounds to it."""


def grid_kind(matrix: PackedMatrix) -> str:
    """Matrices of one kind share a grid: width, group size, values and the width of their scales."""
    level = matrix.level
    return f"{level.bits}g{level.group_size}{'m' if level.midrise else ''}s{matrix.module.scale_bits}"


class PackedGrid:
    """Matrices that are tuned on the grid of their level.

    Args:
        starts: the matrices as the quantiser packed them, all of one kind; they give scales and zero points.
        weights: float32 [N, K] each, the latent weights to begin with.

    Attributes:
        latent: W of every group, [G, g], to be tuned; the groups of one matrix after those of another.
        log_scale: r [G, 1], to be tuned.
    """

    def __init__(self, starts: Sequence[PackedMatrix], weights: Sequence[Tensor]) -> None:
        if len({grid_kind(start) for start in starts}) != 1 or not starts[0].level.is_packed:
            raise ValueError("only packed levels have a grid, and one kind of them shares it")
        self.starts, self.top = tuple(starts), 2 ** starts[0].level.bits - 1
        self._half = starts[0].module.scale_bits == 16
        size, device = starts[0].level.group_size or 1, weights[0].device

        def joined(parts: Sequence[NDArray[np.float32]]) -> Tensor:
            return torch.from_numpy(np.concatenate([part.reshape(-1, 1) for part in parts])).to(device)

        scales = joined([np.asarray(start.scales, np.float32) for start in starts])
        # a group of zeros has scale 0: it stays so, whatever its weights would like to be
        self._dead = scales == 0
        self._base = torch.where(self._dead, torch.ones_like(scales), scales)
        self._zero = joined([_zero_points(start) for start in starts])
        self._counts = [start.module.n_params // size for start in starts]
        given = torch.cat([tensor.detach().reshape(-1, size) for tensor in weights])
        chosen = torch.cat([torch.from_numpy(start.dequantise()).reshape(-1, size) for start in starts])
        self.latent = self._nearest(given, chosen.to(device)).requires_grad_()
        self.log_scale = torch.zeros_like(self._base).requires_grad_()

    def _nearest(self, weights: Tensor, values: Tensor) -> Tensor:
        """Latent weights nearest to the given ones that round to the codes the quantiser chose.

        Round-to-nearest keeps them as they are; a quantiser that feeds errors forward chose other codes for some.
        """
        steps = torch.where(self._dead, 0.0, values / self._base)
        low = torch.where(steps <= -self._zero, -torch.inf, steps - INSIDE)
        high = torch.where(steps >= self.top - self._zero, torch.inf, steps + INSIDE)
        return torch.clamp(weights / self._base, low, high) * self._base

    def _scale(self) -> Tensor:
        return straight_through(self._base * torch.exp(self.log_scale), self._as_stored)

    def _as_stored(self, scale: Tensor) -> Tensor:
        rounded = scale.bfloat16()
        return rounded.half().float() if self._half else rounded.float()

    def _codes(self, scale: Tensor) -> Tensor:
        return straight_through(self.latent / scale + self._zero, torch.round).clamp(0, self.top)

    def dense(self) -> tuple[Tensor, ...]:
        """The float32 matrices [N, K] that the packed forms stand for, with gradients of both parameters."""
        scale = self._scale()
        values = torch.where(self._dead, 0.0, (self._codes(scale) - self._zero) * scale)
        parts = zip(values.split(self._counts), self.starts, strict=True)
        return tuple(part.reshape(start.module.rows, start.module.columns) for part, start in parts)

    @torch.no_grad()
    def packed(self) -> tuple[PackedMatrix, ...]:
        """The matrices as they would be stored now; their values are those of `dense` to the last bit."""
        scale = self._scale()
        codes = self._codes(scale).to(torch.uint8).split(self._counts)
        scales = torch.where(self._dead, 0.0, scale).split(self._counts)
        return tuple(
            _stored(start, part.cpu().numpy(), factors.cpu().numpy())
            for start, part, factors in zip(self.starts, codes, scales, strict=True)
        )


def _stored(start: PackedMatrix, codes: NDArray[np.uint8], scales: NDArray[np.float32]) -> PackedMatrix:
    """The matrix with other codes [G, g] and scales [G, 1]."""
    module, bits = start.module, start.level.bits
    shape, dtype = (module.rows, len(codes) // module.rows, -1), np.asarray(start.scales).dtype
    factors = scales.reshape(shape[:2]).astype(dtype)
    if module.kind == "embedding":
        return replace(start, data=pack_planar(codes.reshape(module.rows, -1), bits), scales=factors)
    return replace(start, data=pack_blocked(codes.reshape(shape), bits), scales=factors)


def _zero_points(matrix: PackedMatrix) -> NDArray[np.float32]:
    """Zero points of all groups; mid-rise levels lie symmetrically about the middle of their codes."""
    bits, groups = matrix.level.bits, np.asarray(matrix.scales).shape[1]
    if matrix.zeros is None:
        return np.full((matrix.module.rows, groups), (2**bits - 1) / 2, np.float32)
    return unpack_blocked(matrix.zeros, bits, groups).astype(np.float32)
