"""In which width the scales of a matrix are stored: float16 where it holds every one of them exactly.

Scales have eight significant bits (bfloat16), and float16 holds eleven from 2^-14 and eight from 2^-17 on. So a
matrix takes float16 when no group can need a smaller or larger scale, whatever the level: this is known before
anything is quantised, and bytes are counted exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from qslm_edge.quantize.base import Float
from qslm_edge.quantize.levels import GROUP_SIZES
from qslm_edge.spikegpt.hierarchy import Hierarchy, Module

__all__ = ["scale_bits", "with_scale_bits"]

SMALLEST_EXACT = 2.0**-17
LARGEST_WEIGHT = 2.0**14
"""Far below float16's end, since error feedback may widen a range."""
SMALLEST_STEP = 0.94 / 255
"""Smallest scale of any level over the range of its group: 8 bits with the range that is clipped most."""


def scale_bits(weights: Float) -> Literal[16, 32]:
    """Width of the scales of a matrix [N, K]: 16 where float16 is exact, else 32.

    Groups of zeros have scale 0. A quantiser that feeds errors forward may still leave a group with a smaller range
    than this foresees; its scale is then rounded to float16, by at most 2^-25, before it is scored.
    """
    group = min(GROUP_SIZES)
    if weights.shape[1] % group or not np.isfinite(weights).all():
        return 32
    groups = weights.reshape(weights.shape[0], -1, group)
    span = np.maximum(groups.max(-1), 0) - np.minimum(groups.min(-1), 0)
    used = span[span > 0]
    small = used.size and float(used.min()) * SMALLEST_STEP < SMALLEST_EXACT
    return 32 if small or float(np.abs(weights).max()) > LARGEST_WEIGHT else 16


def with_scale_bits(hierarchy: Hierarchy, weights: Callable[[Module], Float]) -> Hierarchy:
    """The same hierarchy with the scale width of every module.

    Args:
        hierarchy: blocks and modules.
        weights: float32 values of a module.
    """
    blocks = tuple(
        replace(
            block,
            modules=tuple(
                replace(module, scale_bits=scale_bits(weights(module))) for module in block.modules
            ),
        )
        for block in hierarchy.blocks
    )
    return replace(hierarchy, blocks=blocks)
