"""Half-quadratic quantisation: rounding that lets a few weights be far off so that the many fit closely. Data-free.

After Badri and Shaji 2023 (HQQ): minimise sum |w - (q - z) s|^p with p < 1 by splitting off the outliers e:

    e <- shrink(w - (q - z) s)          generalised soft threshold of the l_p norm
    z <- mean(q - (w - e) / s)          over the group
    s <- <q - z, w - e> / <q - z, q - z>

HQQ keeps s and leaves z a float. The runtime has integer zero points, with which refining z alone changes next to
nothing, so z is rounded and s is refined as well. Starts from the clipped ranges of `rtn` and keeps, group by
group, the best that it has seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qslm_edge.quantize.base import Codes, Float, InputStatistics, Quantised, Quantiser
from qslm_edge.quantize.rtn import dequantise_groups, normalised_groups, quantise_groups, round_to_bfloat16

__all__ = ["Hqq"]


@dataclass(frozen=True)
class Hqq(Quantiser):
    """Half-quadratic refinement of clipped round-to-nearest.

    Attributes:
        norm: p of the norm that is minimised, 0 < p <= 1.
        steps: most refinements.
        beta, kappa: weight of the split in the first step, and its growth per step (the published values).
    """

    name: ClassVar[str] = "hqq"
    version: ClassVar[int] = 1

    norm: float = 0.7
    steps: int = 20
    beta: float = 10.0
    kappa: float = 1.01

    def quantise(
        self,
        matrix: Float,
        bits: int,
        group_size: int,
        statistics: InputStatistics | None = None,  # noqa: ARG002 - data-free
    ) -> Quantised:
        codes, scales, zeros = quantise_groups(matrix, bits, group_size)
        groups, exponent = normalised_groups(matrix, group_size)
        codes = codes.reshape(groups.shape)
        scales = np.ldexp(scales, -exponent)
        best = self._error(groups, codes, scales, zeros)
        trial, beta = (codes, scales, zeros), np.float32(self.beta)
        for _ in range(self.steps):
            trial = self._refine(groups, *trial, bits, beta)
            error = self._error(groups, *trial)
            better = error < best
            best = np.where(better, error, best)
            codes = np.where(better[..., None], trial[0], codes)
            scales, zeros = np.where(better, trial[1], scales), np.where(better, trial[2], zeros)
            beta *= np.float32(self.kappa)
        return codes.reshape(matrix.shape), round_to_bfloat16(np.ldexp(scales, exponent)), zeros

    def _error(self, groups: Float, codes: Codes, scales: Float, zeros: Codes) -> Float:
        difference = np.abs(dequantise_groups(codes, scales, zeros) - groups)
        error: Float = (difference**self.norm).sum(-1)
        return error

    def _refine(
        self, groups: Float, codes: Codes, scales: Float, zeros: Codes, bits: int, beta: np.float32
    ) -> Quantised:
        difference = groups - dequantise_groups(codes, scales, zeros)
        size = np.abs(difference)
        # |x|^(p-1) grows without bound towards 0, where the threshold is above any x
        power = np.maximum(size, np.float32(1e-8)) ** np.float32(self.norm - 1)
        outliers = np.sign(difference) * np.maximum(size - power / beta, 0)
        target = groups - outliers
        top = np.float32(2**bits - 1)
        safe = np.where(scales > 0, scales, np.float32(1))
        zeros = np.clip(np.rint((codes - target / safe[..., None]).mean(-1)), 0, top)
        centred = codes - zeros[..., None]
        length = (centred * centred).sum(-1)
        fitted = np.where(length > 0, (centred * target).sum(-1) / np.where(length > 0, length, 1), scales)
        scales = round_to_bfloat16(np.where(fitted > 0, fitted, scales).astype(np.float32))
        safe = np.where(scales > 0, scales, np.float32(1))
        codes = np.clip(np.rint(groups / safe[..., None]) + zeros[..., None], 0, top)
        return codes.astype(np.uint8), scales, zeros.astype(np.uint8)
