"""Round-to-nearest against a brute-force reference in float64, and its bounds and symmetries."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qslm_edge.quantize.rtn import (
    SHRINKS,
    dequantise_groups,
    dequantise_midrise,
    midrise_groups,
    quantise_groups,
)

Float = NDArray[np.float32]
WIDTHS = (8, 4, 2)


@st.composite
def matrices(draw: st.DrawFn, columns: int = 16) -> Float:
    """Small matrices of several kinds: normal, skewed, with outliers, one-sided, sparse, on a coarse grid."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    w = rng.standard_normal((draw(st.integers(1, 3)), columns))
    kind = draw(st.sampled_from(["normal", "skewed", "outlier", "positive", "negative", "sparse", "coarse"]))
    if kind == "skewed":
        w = np.exp(w) - 0.3
    elif kind == "outlier":
        w[:, 0] *= 30
    elif kind == "positive":
        w = abs(w) + 1
    elif kind == "negative":
        w = -abs(w) - 1
    elif kind == "sparse":
        w[:, ::3] = 0
    elif kind == "coarse":
        w = np.rint(w * 2)
    return (w * draw(st.sampled_from([1.0, 0.01, 300.0]))).astype(np.float32)


def bfloat16(x: float) -> float:
    """Nearest number with eight significant bits, ties away from zero."""
    if x == 0:
        return 0.0
    fraction, exponent = math.frexp(x)
    return math.ldexp(math.floor(fraction * 256 + 0.5), exponent - 8)


@dataclass(frozen=True)
class Tried:
    """A range; a zero point that lies at a tie may fall to either side, with a least and a largest error."""

    shrink: float
    error: float
    worst: float


def brute_force(group: list[float], bits: int) -> list[Tried]:
    """Squared error of every range that may be chosen, in plain Python."""
    low, high, top = min(*group, 0.0), max(*group, 0.0), 2**bits - 1
    tried = []
    for shrink in SHRINKS[bits]:
        scale = bfloat16((high - low) * shrink / top)
        ratio = -low * shrink / scale if scale > 0 else 0.0
        found = []
        for zero in {min(max(round(ratio + nudge), 0), top) for nudge in (-1e-4, 1e-4)}:
            values = (
                (min(max(round(w / scale) + zero, 0), top) - zero) * scale if scale > 0 else 0.0
                for w in group
            )
            found.append(sum((value - w) ** 2 for value, w in zip(values, group, strict=True)))
        tried.append(Tried(shrink, min(found), max(found)))
    return tried


def errors(matrix: Float, bits: int, group: int) -> NDArray[np.float64]:
    codes, scales, zeros = quantise_groups(matrix, bits, group)
    difference = dequantise_groups(codes, scales, zeros).astype(np.float64) - matrix
    result: NDArray[np.float64] = (difference**2).reshape(*scales.shape, group).sum(-1)
    return result


@pytest.mark.parametrize("bits", WIDTHS)
@settings(max_examples=40)
@given(matrix=matrices())
def test_the_chosen_range_is_the_best_of_those_tried(bits: int, matrix: Float) -> None:
    found = errors(matrix, bits, 8)
    for row in range(matrix.shape[0]):
        for part in range(2):
            tried = brute_force(matrix[row, part * 8 : part * 8 + 8].astype(float).tolist(), bits)
            # float32 rounds (high - low) / top, so a scale or a code at a tie may fall to the other side
            assert found[row, part] <= min(t.worst for t in tried) * 1.02 + 1e-12
            assert found[row, part] >= min(t.error for t in tried) * 0.98 - 1e-12
            assert found[row, part] <= tried[0].worst * 1.0001 + 1e-12  # never above plain min-max


def test_shrinking_pays_where_an_outlier_stands() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((20, 64)).astype(np.float32)
    for bits, gain in ((2, 0.8), (4, 0.99)):
        plain = sum(brute_force(row.tolist(), bits)[0].error for row in matrix)
        assert errors(matrix, bits, 64).sum() < gain * plain


@pytest.mark.parametrize("bits", WIDTHS)
@settings(max_examples=25)
@given(matrix=matrices())
def test_shapes_and_bounds(bits: int, matrix: Float) -> None:
    codes, scales, zeros = quantise_groups(matrix, bits, 8)
    rows = matrix.shape[0]
    assert (codes.shape, scales.shape, zeros.shape) == (matrix.shape, (rows, 2), (rows, 2))
    assert [array.dtype.name for array in (codes, scales, zeros)] == ["uint8", "float32", "uint8"]
    assert codes.max() < 2**bits
    assert zeros.max() < 2**bits
    assert (scales >= 0).all()
    assert not (scales.view(np.uint32) & 0xFFFF).any()  # truncation to bfloat16 changes nothing
    groups = matrix.reshape(rows, 2, 8)
    width = np.maximum(groups.max(-1), 0) - np.minimum(groups.min(-1), 0)
    assert (scales <= width / (2**bits - 1) * (1 + 2**-8)).all()
    # plain min-max errs by at most a step, and the choice is no worse
    assert (errors(matrix, bits, 8) <= 8 * (1.01 * width / (2**bits - 1)) ** 2).all()


@pytest.mark.parametrize("bits", WIDTHS)
@settings(max_examples=25)
@given(matrix=matrices())
def test_zeros_stay_exact_zeros(bits: int, matrix: Float) -> None:
    matrix[:, 3] = 0
    assert not dequantise_groups(*quantise_groups(matrix, bits, 8))[:, 3].any()


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_group_of_zeros_has_scale_zero(bits: int) -> None:
    matrix = np.ones((2, 16), np.float32)
    matrix[1, 8:] = 0
    codes, scales, zeros = quantise_groups(matrix, bits, 8)
    assert (scales == 0).tolist() == [[False, False], [False, True]]
    restored = dequantise_groups(codes, scales, zeros)
    assert not restored[1, 8:].any()
    assert np.isfinite(restored).all()


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("value", [3.0, -3.0, 0.1, -1e-20, 1e30])
def test_a_constant_group_is_kept_to_the_precision_of_its_scale(bits: int, value: float) -> None:
    restored = dequantise_groups(*quantise_groups(np.full((1, 32), value, np.float32), bits, 32))
    np.testing.assert_allclose(restored, value, rtol=2**-8)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_one_sided_group_uses_all_codes(bits: int, sign: int) -> None:
    matrix = sign * np.linspace(0.01, 1, 64, dtype=np.float32)[None]
    codes, _, zeros = quantise_groups(matrix, bits, 64)
    assert abs(int(zeros[0, 0]) - (0 if sign > 0 else 2**bits - 1)) <= 1  # the scale is rounded
    assert len(set(codes.flatten().tolist())) >= min(2**bits, 50)


@settings(max_examples=40)
@given(matrix=matrices(), power=st.integers(-110, 100), bits=st.sampled_from(WIDTHS))
def test_magnitude_does_not_matter(matrix: Float, power: int, bits: int) -> None:
    codes, scales, zeros = quantise_groups(matrix, bits, 8)
    other, other_scales, other_zeros = quantise_groups(np.ldexp(matrix, power), bits, 8)
    np.testing.assert_array_equal(other, codes)
    np.testing.assert_array_equal(other_zeros, zeros)
    np.testing.assert_array_equal(other_scales, np.ldexp(scales, power))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-20, 1e20, 1e30, 2e38])
def test_the_largest_and_smallest_floats(bits: int, size: float) -> None:
    shape = np.random.default_rng(5).uniform(-0.7, 1, (4, 32)).astype(np.float32)
    matrix = (shape * np.float32(size)).astype(np.float32)
    restored = dequantise_groups(*quantise_groups(matrix, bits, 32))
    assert np.isfinite(restored).all()
    if size > 1e-38:
        usual = dequantise_groups(*quantise_groups(shape, bits, 32)) - shape
        difference = restored.astype(np.float64) / size - shape
        assert np.linalg.norm(difference) <= 1.02 * np.linalg.norm(usual)


@pytest.mark.parametrize("bits", WIDTHS)
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_matrix_on_a_grid_is_restored_exactly(bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**bits, (4, 32)).astype(np.uint8)
    codes[:, ::8], codes[:, 1::8] = 0, 2**bits - 1  # each group spans its range
    zeros = rng.integers(0, 2**bits, (4, 4)).astype(np.uint8)
    scales = np.ldexp(rng.integers(128, 256, (4, 4)).astype(np.float32), -10)
    matrix = dequantise_groups(codes, scales, zeros)
    np.testing.assert_array_equal(dequantise_groups(*quantise_groups(matrix, bits, 8)), matrix)


def test_dequantise_is_code_minus_zero_times_scale() -> None:
    codes = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], np.uint8)
    scales = np.array([[0.5, 2.0], [1.0, 0.25]], np.float32)
    zeros = np.array([[1, 3], [0, 2]], np.uint8)
    expected = [[-0.5, 0.0, -2.0, 0.0], [3.0, 2.0, -0.25, -0.5]]
    assert dequantise_groups(codes, scales, zeros).tolist() == expected
    three = dequantise_groups(codes.reshape(2, 2, 2), scales, zeros)
    assert three.reshape(2, 4).tolist() == expected
    assert three.shape == (2, 2, 2)


def test_groups_and_rows_are_independent_and_memory_order_is_none_of_our_business() -> None:
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal((6, 32)).astype(np.float32)
    order = rng.permutation(6)
    whole = quantise_groups(matrix, 4, 8)
    shuffled = quantise_groups(matrix[order], 4, 8)
    for i in range(3):
        np.testing.assert_array_equal(shuffled[i], whole[i][order])
    for a, b in zip(quantise_groups(np.asfortranarray(matrix), 4, 8), whole, strict=True):
        np.testing.assert_array_equal(a, b)
    right = quantise_groups(matrix[:, 16:], 4, 8)
    np.testing.assert_array_equal(right[0], whole[0][:, 16:])
    np.testing.assert_array_equal(right[1], whole[1][:, 2:])


@pytest.mark.parametrize(("columns", "group"), [(33, 32), (32, 64), (48, 32)])
def test_a_group_size_that_does_not_divide_is_refused(columns: int, group: int) -> None:
    with pytest.raises(ValueError, match=f"group size {group} does not divide {columns} columns"):
        quantise_groups(np.zeros((1, columns), np.float32), 4, group)


@settings(max_examples=40)
@given(matrix=matrices())
def test_mid_rise_values_are_the_nearest_on_the_best_range(matrix: Float) -> None:
    """Against every range in plain Python; the values lie at s {-1.5, -0.5, 0.5, 1.5}."""
    codes, scales = midrise_groups(matrix, 2, 16)
    restored = dequantise_midrise(codes, scales, 2)
    for row, values in zip(matrix.astype(np.float64), restored.astype(np.float64), strict=True):
        peak = abs(row).max()
        best = math.inf
        for shrink in SHRINKS[2]:
            step = bfloat16(peak * 2 * shrink / 3)
            best = min(best, sum(min((w - step * v) ** 2 for v in (-1.5, -0.5, 0.5, 1.5)) for w in row))
        assert ((row - values) ** 2).sum() <= best * (1 + 1e-4) + 1e-30
    steps = np.repeat(scales, 16, axis=1)
    assert set(np.unique(np.abs(restored[steps > 0] / steps[steps > 0]))) <= {0.5, 1.5}


def test_mid_rise_keeps_a_group_of_zeros_and_refuses_what_does_not_divide() -> None:
    matrix = np.zeros((2, 32), np.float32)
    matrix[1, 20] = -3
    restored = dequantise_midrise(*midrise_groups(matrix, 2, 16), 2)
    assert not restored[0].any()
    assert not restored[1, :16].any()
    with pytest.raises(ValueError, match="does not divide"):
        midrise_groups(matrix, 2, 24)
