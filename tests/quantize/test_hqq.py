"""Half-quadratic refinement: never worse than its start in its own norm, and what the runtime can store."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm_edge.quantize.base import Float, Quantised
from qslm_edge.quantize.hqq import Hqq
from qslm_edge.quantize.rtn import dequantise_groups, quantise_groups


def loss(
    W: Float, quantised: Quantised, group: int, norm: float = 0.7
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    difference = np.abs(dequantise_groups(*quantised).astype(np.float64) - W)
    result: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = (
        (difference**norm).reshape(W.shape[0], -1, group).sum(-1)
    )
    return result


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.sampled_from([2, 4, 8]),
    scale=st.sampled_from([1.0, 0.01, 300.0]),
    tails=st.booleans(),
)
def test_no_group_is_worse_than_clipped_rounding(seed: int, bits: int, scale: float, tails: bool) -> None:
    rng = np.random.default_rng(seed)
    W = rng.standard_t(3, (4, 32)) if tails else rng.standard_normal((4, 32))
    matrix: Float = (W * scale).astype(np.float32)
    found = codes, scales, zeros = Hqq().quantise(matrix, bits, 16)
    assert (codes.shape, scales.shape, zeros.shape) == ((4, 32), (4, 2), (4, 2))
    assert [array.dtype.name for array in found] == ["uint8", "float32", "uint8"]
    assert max(codes.max(), zeros.max()) < 2**bits
    assert not np.any(scales.view(np.uint32) & 0xFFFF)
    start = loss(matrix, quantise_groups(matrix, bits, 16), 16)
    assert (loss(matrix, found, 16) <= start * (1 + 1e-4)).all()


def test_it_gains_on_heavy_tails() -> None:
    W = np.random.default_rng(0).standard_t(3, (64, 128)).astype(np.float32)
    start = loss(W, quantise_groups(W, 2, 64), 64).sum()
    assert loss(W, Hqq().quantise(W, 2, 64), 64).sum() < 0.99 * start


def test_brute_force_over_scale_and_zero_point_is_no_lower_than_by_a_few_percent() -> None:
    """Two bits, four weights: every zero point and a fine grid of scales."""
    total = best = 0.0
    for seed in range(20):
        W = np.random.default_rng(seed).standard_normal((1, 4)).astype(np.float32)
        total += float(loss(W, Hqq().quantise(W, 2, 4), 4)[0, 0])
        scales = np.linspace(0.02, 3, 300)[:, None, None]
        zeros = np.arange(4)[None, :, None]
        codes = np.clip(np.rint(W[0] / scales) + zeros, 0, 3)
        best += float((np.abs((codes - zeros) * scales - W[0]) ** 0.7).sum(-1).min())
    assert best <= total < 1.6 * best


def test_zeros_stay_zeros() -> None:
    W = np.zeros((2, 32), np.float32)
    W[1, 20] = -3
    codes, scales, zeros = Hqq().quantise(W, 4, 16)
    restored = dequantise_groups(codes, scales, zeros)
    assert scales[0].tolist() == [0, 0]
    assert not restored[0].any()
    assert restored[1, 20] == pytest.approx(-3, rel=0.01)


def test_a_group_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="does not divide"):
        Hqq().quantise(np.ones((2, 40), np.float32), 4, 32)
