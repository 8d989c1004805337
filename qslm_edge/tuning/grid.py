"""One matrix on its packed grid, with gradients: what it will be once packed, and latent weights behind it.

w = (clip(round(W / s + z), 0, 2^bits - 1) - z) s with a latent W, one scale s and one zero point z a group.
Rounding passes its gradient straight through; the scale s = s0 exp(r) learns as in LSQ (Esser et al. 2020). Zero points
stay where the quantiser put them. Scales are rounded as they are stored, so that `packed` holds exactly the values that
the forward pass used.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qslm_edge.quantize.packed import PackedMatrix
from qslm_edge.quantize.packing import pack_blocked, pack_planar, unpack_blocked
from qslm_edge.tuning.straight import straight_through

__all__ = ["PackedGrid"]

INSIDE = 0.499
"""Distance from a code, in steps, within which a latent weight surely rounds to it."""


class PackedGrid:
    """A matrix that is tuned on the grid of its level.

    Args:
        start: the matrix as the quantiser packed it; it gives scales and zero points.
        weights: float32 [N, K], the latent weights to begin with.

    Attributes:
        latent: W [N, K], to be tuned.
        log_scale: r [N, K/g, 1], to be tuned.
    """

    def __init__(self, start: PackedMatrix, weights: Tensor) -> None:
        if start.scales is None:
            raise ValueError(f"{start.module.name}: only packed levels have a grid")
        self.start, self.top = start, 2**start.level.bits - 1
        self._stored = start.scales.dtype
        device = weights.device
        groups = start.scales.shape[1]
        self._shape = (start.module.rows, groups, start.module.columns // groups)
        scales = torch.from_numpy(start.scales.astype(np.float32)).to(device).unsqueeze(-1)
        # a group of zeros has scale 0: it stays so, whatever its weights would like to be
        self._dead = scales == 0
        self._base = torch.where(self._dead, torch.ones_like(scales), scales)
        self._zero = torch.from_numpy(_zero_points(start, groups)).to(device).unsqueeze(-1)
        self.latent = self._nearest(weights.detach()).requires_grad_()
        self.log_scale = torch.zeros_like(self._base).requires_grad_()

    def _nearest(self, weights: Tensor) -> Tensor:
        """Latent weights nearest to the given ones that round to the codes the quantiser chose.

        Round-to-nearest keeps them as they are; a quantiser that feeds errors forward chose other codes for some.
        """
        values = torch.from_numpy(self.start.dequantise()).to(weights.device).reshape(self._shape)
        steps = torch.where(self._dead, 0.0, values / self._base)
        low = torch.where(steps <= -self._zero, -torch.inf, steps - INSIDE)
        high = torch.where(steps >= self.top - self._zero, torch.inf, steps + INSIDE)
        groups = weights.reshape(self._shape) / self._base
        return (torch.clamp(groups, low, high) * self._base).reshape(weights.shape)

    @property
    def parameters(self) -> tuple[Tensor, Tensor]:
        return self.latent, self.log_scale

    def _scale(self) -> Tensor:
        return straight_through(self._base * torch.exp(self.log_scale), self._as_stored)

    def _as_stored(self, scale: Tensor) -> Tensor:
        rounded = scale.bfloat16()
        return rounded.half().float() if self.start.module.scale_bits == 16 else rounded.float()

    def _codes(self, scale: Tensor) -> Tensor:
        groups = self.latent.reshape(self._shape)
        return straight_through(groups / scale + self._zero, torch.round).clamp(0, self.top)

    def dense(self) -> Tensor:
        """The float32 matrix [N, K] that the packed form stands for, with gradients of both parameters."""
        scale = self._scale()
        values = (self._codes(scale) - self._zero) * scale
        return torch.where(self._dead, 0.0, values).reshape(self.latent.shape)

    @torch.no_grad()
    def packed(self) -> PackedMatrix:
        """The matrix as it would be stored now; its values are those of `dense` to the last bit."""
        scale = self._scale()
        codes = self._codes(scale).reshape(self.latent.shape).to(torch.uint8).cpu().numpy()
        scales = torch.where(self._dead, 0.0, scale).squeeze(-1).cpu().numpy()
        scales = scales.astype(self._stored)
        bits, module = self.start.level.bits, self.start.module
        if module.kind == "embedding":
            return replace(self.start, data=pack_planar(codes, bits), scales=scales)
        blocks = codes.reshape(self._shape)
        return replace(self.start, data=pack_blocked(blocks, bits), scales=scales)


def _zero_points(matrix: PackedMatrix, groups: int) -> NDArray[np.float32]:
    """Zero points [N, K/g]; mid-rise levels lie symmetrically about the middle of their codes."""
    bits = matrix.level.bits
    if matrix.zeros is None:
        return np.full((matrix.module.rows, groups), (2**bits - 1) / 2, np.float32)
    return unpack_blocked(matrix.zeros, bits, groups).astype(np.float32)
