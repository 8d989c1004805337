"""GPTQ against a plain implementation, against every possible code, and against round-to-nearest."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qslm_edge.quantize.base import Float, InputStatistics, Quantised
from qslm_edge.quantize.gptq import Gptq
from qslm_edge.quantize.rtn import (
    dequantise_groups,
    dequantise_midrise,
    midrise_groups,
    quantise_groups,
)

Double = NDArray[np.float64]
seeds = st.integers(0, 2**32 - 1)


def problem(seed: int, rows: int, columns: int, n: int = 256) -> tuple[Float, InputStatistics]:
    """A matrix, and statistics of inputs whose columns are correlated and of unequal energy."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((rows, columns)).astype(np.float32)
    shared = rng.standard_normal((n, 3)) @ rng.standard_normal((3, columns))
    X = (shared + rng.standard_normal((n, columns))) * np.exp(rng.standard_normal(columns) / 2)
    return W, InputStatistics((X.T @ X / n).astype(np.float32), n)


def hessian(statistics: InputStatistics, damping: float = 0.1) -> Double:
    H = 2 * statistics.gram.astype(np.float64)
    return H + damping * np.mean(np.diag(H)) * np.eye(len(H))


def loss(W: Float, quantised: Quantised, H: Double) -> float:
    """Squared error of the outputs, summed over rows."""
    E = W.astype(np.float64) - dequantise_groups(*quantised)
    return float(np.einsum("nk,kl,nl->", E, H, E))


def plain(W: Float, bits: int, group: int, H: Double, order: list[int]) -> Quantised:
    """Optimal brain surgeon as it is written: the inverse of what is left, updated after each column."""
    left = W.astype(np.float64)
    inverse = np.linalg.inv(H)
    codes = np.zeros(W.shape, np.uint8)
    scales = np.zeros((W.shape[0], W.shape[1] // group), np.float32)
    zeros = np.zeros(scales.shape, np.uint8)
    for position, j in enumerate(order):
        g = j // group
        if position % group == 0:
            members = order[position : position + group]
            _, s, z = quantise_groups(left[:, members].astype(np.float32), bits, group)
            scales[:, g], zeros[:, g] = s[:, 0], z[:, 0]
        for row in range(W.shape[0]):
            step, shift = float(scales[row, g]), int(zeros[row, g])
            code = min(max(round(left[row, j] / step) + shift, 0), 2**bits - 1)
            codes[row, j] = code
            left[row] -= (left[row, j] - (code - shift) * step) / inverse[j, j] * inverse[j]
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j, j] = 1.0  # done with; its row and column are 0 now
    return codes, scales, zeros


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("order", ["columns", "activation"])
def test_it_is_the_plain_algorithm(bits: int, order: Any) -> None:
    W, statistics = problem(3, 5, 24)
    H = hessian(statistics)
    columns = list(range(24))
    if order == "activation":  # groups by energy, columns of a group by energy
        energy = np.diag(H)
        groups = sorted(range(3), key=lambda g: -energy[8 * g : 8 * g + 8].sum())
        columns = [j for g in groups for j in sorted(range(8 * g, 8 * g + 8), key=lambda j: -energy[j])]
    found = Gptq(order=order).quantise(W, bits, 8, statistics)
    for mine, theirs in zip(found, plain(W, bits, 8, H, columns), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_no_code_beats_the_best_and_feedback_comes_near_it() -> None:
    """All 4^4 codes of each row of 2 x 4 matrices, on the grid that was chosen."""
    best_sum = gptq_sum = nearest_sum = 0.0
    for seed in range(20):
        W, statistics = problem(seed, 2, 4)
        H = hessian(statistics)
        quantised = codes, scales, zeros = Gptq().quantise(W, 2, 4, statistics)
        options = np.array(list(product(range(4), repeat=4)), np.float64)
        best = 0.0
        for row in range(2):
            E = W[row].astype(np.float64) - (options - zeros[row, 0]) * float(scales[row, 0])
            best += float(np.einsum("ok,kl,ol->o", E, H, E).min())
        nearest = np.clip(np.rint(W / scales) + zeros, 0, 3).astype(np.uint8)
        assert loss(W, quantised, H) >= best - 1e-9
        best_sum, gptq_sum = best_sum + best, gptq_sum + loss(W, (codes, scales, zeros), H)
        nearest_sum += loss(W, (nearest, scales, zeros), H)
    assert gptq_sum < 1.25 * best_sum
    assert gptq_sum < nearest_sum


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_inputs_without_correlation_need_no_feedback(bits: int) -> None:
    W, _ = problem(5, 7, 64)
    expected = quantise_groups(W, bits, 32)
    for statistics in (InputStatistics(np.eye(64, dtype=np.float32), 100), None):
        for mine, nearest in zip(Gptq().quantise(W, bits, 32, statistics), expected, strict=True):
            np.testing.assert_array_equal(mine, nearest)


@settings(max_examples=15)
@given(seed=seeds, bits=st.sampled_from([2, 4]), order=st.sampled_from(["columns", "activation"]))
def test_outputs_are_nearer_than_of_round_to_nearest(seed: int, bits: int, order: Any) -> None:
    W, statistics = problem(seed, 32, 32)
    H = hessian(statistics, 0)
    found = Gptq(order=order).quantise(W, bits, 16, statistics)
    codes, scales, zeros = found
    assert (codes.shape, scales.shape, zeros.shape) == ((32, 32), (32, 2), (32, 2))
    assert [array.dtype.name for array in found] == ["uint8", "float32", "uint8"]
    assert max(codes.max(), zeros.max()) < 2**bits
    assert not np.any(scales.view(np.uint32) & 0xFFFF)  # bfloat16 holds them
    assert loss(W, found, H) <= loss(W, quantise_groups(W, bits, 16), H)


def test_zeros_stay_zeros_and_dead_inputs_keep_their_weights() -> None:
    W, statistics = problem(1, 4, 32)
    W[2] = 0
    gram = statistics.gram.copy()
    gram[5], gram[:, 5] = 0, 0
    quantised = Gptq().quantise(W, 4, 16, InputStatistics(gram, 10))
    restored = dequantise_groups(*quantised)
    assert not quantised[1][2].any()
    assert not restored[2].any()
    assert np.abs(restored[:, 5] - W[:, 5]).max() < 0.5
    silent = Gptq().quantise(W, 4, 16, InputStatistics(np.zeros((32, 32), np.float32), 10))
    np.testing.assert_array_equal(silent[0], quantise_groups(W, 4, 16)[0])


def test_what_cannot_be_quantised_is_refused() -> None:
    W, statistics = problem(0, 2, 32)
    with pytest.raises(ValueError, match="group size 24 does not divide 32"):
        Gptq().quantise(W, 4, 24, statistics)
    with pytest.raises(ValueError, match="statistics of 32 columns for a matrix of 16"):
        Gptq().quantise(W[:, :16], 4, 16, statistics)
    broken = statistics.gram.copy()
    broken[0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        Gptq().quantise(W, 4, 16, InputStatistics(broken, 3))
    W[1, 3] = np.inf
    with pytest.raises(ValueError, match="weights that are not finite"):
        Gptq().quantise(W, 4, 16, statistics)


def test_mid_rise_outputs_are_nearer_with_feedback() -> None:
    midrise = nearest = 0.0
    for seed in range(10):
        W, statistics = problem(seed, 32, 32)
        H = hessian(statistics)
        codes, scales = Gptq().quantise_midrise(W, 2, 16, statistics)
        assert codes.max() <= 3
        assert not np.any(scales.view(np.uint32) & 0xFFFF)
        E = W.astype(np.float64) - dequantise_midrise(codes, scales, 2)
        midrise += float(np.einsum("nk,kl,nl->", E, H, E))
        E = W.astype(np.float64) - dequantise_midrise(*midrise_groups(W, 2, 16), 2)
        nearest += float(np.einsum("nk,kl,nl->", E, H, E))
    assert midrise < 0.8 * nearest


def test_mid_rise_without_correlation_is_round_to_nearest() -> None:
    W, _ = problem(5, 7, 64)
    expected = midrise_groups(W, 2, 32)
    for statistics in (InputStatistics(np.eye(64, dtype=np.float32), 100), None):
        for mine, theirs in zip(Gptq().quantise_midrise(W, 2, 32, statistics), expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)
