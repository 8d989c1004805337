"""The paper's per-tensor quantiser, which is only ever simulated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qslm_edge.quantize.simulated import PAPER_LEVELS, simulate_per_tensor

Float = NDArray[np.float32]
BITS = (2, 3, 4, 6, 8, 10, 16)


@st.composite
def matrices(draw: st.DrawFn) -> Float:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    w = rng.standard_normal((draw(st.integers(1, 6)), draw(st.integers(1, 6))))
    w = w * draw(st.sampled_from([1e-30, 1e-3, 1.0, 100.0, 1e30])) + draw(st.sampled_from([0.0, 3.0, -3.0]))
    return w.astype(np.float32)


@given(w=matrices(), bits=st.sampled_from(BITS))
def test_values_lie_on_one_grid_within_a_step(w: Float, bits: int) -> None:
    before = w.copy()
    q = simulate_per_tensor(w, bits)
    np.testing.assert_array_equal(w, before)
    assert q.shape == w.shape
    assert q.dtype.name == "float32"
    assert len(np.unique(q)) <= 2**bits
    low, high = min(w.min(), 0.0), max(w.max(), 0.0)
    step = (float(high) - float(low)) / (2**bits - 1)
    # half a step, and half of another where rounding the zero point moves the grid past an end
    assert np.abs(q.astype(np.float64) - w).max() <= step * 1.001
    if step > 1e-37:
        grid = q.astype(np.float64) / step
        np.testing.assert_allclose(grid, np.rint(grid), atol=1e-2)


@given(w=matrices(), bits=st.sampled_from(BITS))
def test_rounding_keeps_order_and_zero(w: Float, bits: int) -> None:
    w.flat[0] = 0
    q = simulate_per_tensor(w, bits)
    assert q.flat[0] == 0
    order = np.argsort(w, axis=None)
    assert (np.diff(q.flatten()[order]) >= 0).all()


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_torch_rounds_the_same(bits: int) -> None:
    w = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    low, high = float(w.min()), float(w.max())
    scale = (high - low) / (2**bits - 1)
    expected = torch.fake_quantize_per_tensor_affine(
        torch.from_numpy(w), scale, round(-low / scale), 0, 2**bits - 1
    )
    np.testing.assert_allclose(simulate_per_tensor(w, bits), expected.numpy(), atol=scale * 1e-3)


def test_more_bits_are_nearer() -> None:
    w = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    errors = [float(np.abs(simulate_per_tensor(w, bits) - w).mean()) for bits in PAPER_LEVELS]
    assert errors == sorted(errors)
    assert errors[0] < 1e-4


@pytest.mark.parametrize("value", [0.0, 2.5, -2.5])
def test_constant_matrices(value: float) -> None:
    w = np.full((3, 4), value, np.float32)
    q = simulate_per_tensor(w, 4)
    np.testing.assert_allclose(q, w, rtol=1e-6)
    assert q is not w


def test_the_papers_list_falls() -> None:
    assert PAPER_LEVELS == (16, 14, 12, 10, 8, 6, 4)
