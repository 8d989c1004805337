"""GPTQ: codes chosen one column after the other, each column's error made good by the columns still to come.

After Frantar et al. 2023 (GPTQ), which solves the layer problem of Optimal Brain Surgeon: minimise

    sum over rows of (w - v) H (w - v)^T,    H = 2 X^T X of the layer's inputs

over matrices v that the runtime can store. With U the upper Cholesky factor of H^-1, rounding column j to v leaves the
error e = (w_j - v_j) / U_jj, and every later column k takes w_k - e U_jk. A group's range is chosen when the group
starts, from the weights as changed so far, by the least squared error over clipped ranges as in `rtn`, so scales are
exact in bfloat16 before the first code depends on them. A share of the mean diagonal damps H. Factors are
float64. Deterministic, pure functions on arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from qslm_edge.quantize.base import Codes, Float, InputStatistics, Quantised, Quantiser
from qslm_edge.quantize.rtn import check_groups, midrise_groups, quantise_groups

__all__ = ["Gptq", "damped_hessian"]

Double = NDArray[np.float64]
Grid = Callable[[Float, int], tuple[Float, Double]]


@dataclass(frozen=True)
class Gptq(Quantiser):
    """GPTQ with group scales.

    Attributes:
        damping: share of the mean diagonal that is added to the diagonal of H.
        order: "columns" goes from left to right; "activation" takes groups, and columns within a group, by falling
            energy of their inputs. A group stays whole: the runtime knows contiguous groups only.
    """

    name: ClassVar[str] = "gptq"
    version: ClassVar[int] = 1
    needs_statistics: ClassVar[bool] = True

    damping: float = 0.1
    order: Literal["columns", "activation"] = "columns"

    def quantise(
        self, matrix: Float, bits: int, group_size: int, statistics: InputStatistics | None = None
    ) -> Quantised:
        if statistics is None:  # rows that are looked up have no inputs: every column weighs the same
            return quantise_groups(matrix, bits, group_size)
        codes, scales, shifts = self._solve(matrix, bits, group_size, statistics, _affine)
        return codes, scales, shifts.astype(np.uint8)

    def quantise_midrise(
        self, matrix: Float, bits: int, group_size: int, statistics: InputStatistics | None = None
    ) -> tuple[Codes, Float]:
        if statistics is None:
            return midrise_groups(matrix, bits, group_size)
        return self._solve(matrix, bits, group_size, statistics, _midrise)[:2]

    def _solve(
        self, matrix: Float, bits: int, group_size: int, statistics: InputStatistics, grid: Grid
    ) -> tuple[Codes, Float, Double]:
        """Codes [N, K], scales [N, G], and what is taken from a code [N, G]."""
        check_groups(matrix, group_size)
        rows, columns = matrix.shape
        H = damped_hessian(statistics, columns, self.damping)
        order = _order(H, group_size, self.order)
        U = _inverse_factor(H[np.ix_(order, order)])
        W = np.ascontiguousarray(matrix[:, order].T, np.float64)  # a column of the matrix is a row here
        codes = np.zeros((columns, rows), np.uint8)
        scales = np.zeros((rows, columns // group_size), np.float32)
        shifts = np.zeros(scales.shape)
        for start in range(0, columns, group_size):
            end = start + group_size
            group = int(order[start]) // group_size
            block = W[start:end]
            scales[:, group], shifts[:, group] = grid(np.ascontiguousarray(block.T, np.float32), bits)
            codes[start:end], errors = _round_group(
                block, U[start:end, start:end], scales[:, group].astype(np.float64), shifts[:, group], bits
            )
            W[end:] -= U[start:end, end:].T @ errors
        result = np.empty((rows, columns), np.uint8)
        result[:, order] = codes.T
        return result, scales, shifts


def _affine(block: Float, bits: int) -> tuple[Float, Double]:
    """Scale [N] and zero point [N] for one group [N, g]."""
    _, scales, zeros = quantise_groups(block, bits, block.shape[1])
    return scales[:, 0], zeros[:, 0].astype(np.float64)


def _midrise(block: Float, bits: int) -> tuple[Float, Double]:
    """Scale [N] for one group [N, g], and the middle of all codes."""
    _, scales = midrise_groups(block, bits, block.shape[1])
    return scales[:, 0], np.full(len(block), (2**bits - 1) / 2)


def _round_group(block: Double, U: Double, step: Double, shift: Double, bits: int) -> tuple[Codes, Double]:
    """Codes [g, N] of one group of columns, and their errors [g, N]; `block` [g, N] is used up."""
    half = shift % 1
    safe = np.where(step > 0, step, 1.0)
    codes, errors = np.empty(block.shape, np.uint8), np.empty(block.shape)
    for j, column in enumerate(block):
        code = np.clip(np.rint(column / safe + half) + (shift - half), 0, 2**bits - 1)
        errors[j] = (column - (code - shift) * step) / U[j, j]
        codes[j] = code
        block[j + 1 :] -= np.outer(U[j, j + 1 :], errors[j])
    return codes, errors


def damped_hessian(statistics: InputStatistics, columns: int, damping: float) -> Double:
    """H = 2 X^T X / n, float64 [K, K], with a share of its mean diagonal added to the diagonal.

    Raises:
        ValueError: statistics of another shape or not finite.
    """
    gram = statistics.gram
    if gram.shape != (columns, columns):
        raise ValueError(f"statistics of {gram.shape[0]} columns for a matrix of {columns}")
    if not np.isfinite(gram).all():
        raise ValueError("statistics that are not finite")
    H = 2.0 * gram.astype(np.float64)
    mean = float(np.trace(H)) / columns
    H[np.diag_indices(columns)] += damping * mean if mean > 0 else 1.0
    return H


def _order(H: Double, group_size: int, order: str) -> NDArray[np.int64]:
    """Columns in the order in which they are rounded; those of a group stay together."""
    energy = np.diag(H).reshape(-1, group_size)
    if order == "columns":
        return np.arange(energy.size)
    groups = np.argsort(-energy.sum(1), kind="stable")
    inside = np.argsort(-energy, axis=1, kind="stable")
    return np.concatenate([group * group_size + inside[group] for group in groups])


def _inverse_factor(H: Double) -> Double:
    """Upper U with H^-1 = U^T U: the factor whose rows carry errors to later columns."""
    # H = R R^T with R upper, from the lower factor of H read backwards; then U = R^-1
    lower = np.linalg.cholesky(H[::-1, ::-1])
    R = lower[::-1, ::-1]
    U: Double = np.linalg.inv(R)
    return np.triu(U)
