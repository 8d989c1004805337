"""What the packed form means to ONNX Runtime: one MatMulNBits node against our own arithmetic.

The node is the judge: codes, scales and zero points as we pack them must give the product of the values that
`dequantise` returns, and at accuracy level 4 the product with activations as `round_activations` rounds them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qslm_edge.quantize.levels import Level
from qslm_edge.quantize.packed import PackedMatrix, pack_matrix
from qslm_edge.quantize.packing import pack_blocked
from qslm_edge.quantize.weights import round_activations
from qslm_edge.spikegpt import Module

Float = NDArray[np.float32]
GROUPS, ROWS, COLUMNS = (32, 64, 128), 24, 384


def run_node(a: Float, stored: PackedMatrix) -> Float:
    """The product by onnxruntime alone: A [M, K] -> [M, N]."""
    level, module = stored.level, stored.module
    assert stored.scales is not None
    assert stored.zeros is not None
    arrays: dict[str, NDArray[Any]] = {"B": stored.data, "scales": stored.scales, "zeros": stored.zeros}
    node = helper.make_node(
        "MatMulNBits",
        ["A", "B", "scales", "zeros"],
        ["Y"],
        domain="com.microsoft",
        K=module.columns,
        N=module.rows,
        bits=level.bits,
        block_size=level.group_size,
        accuracy_level=level.accuracy_level,
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "one",
        [value("A", TensorProto.FLOAT, ["M", module.columns])],
        [value("Y", TensorProto.FLOAT, ["M", module.rows])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("mlas.disable_kleidiai", "1")  # other arithmetic on some ARM processors
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    result: Float = session.run(None, {"A": a})[0]
    return result


def random_matrix(bits: int, group: int, accuracy_level: int, seed: int = 0) -> PackedMatrix:
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32) * 0.2 + 0.03
    weights[3] = abs(weights[3])  # zero points at both ends
    weights[4] = -abs(weights[4])
    weights[5, :group] = 0
    module = Module("m", 0, "linear", ROWS, COLUMNS)
    return pack_matrix(module, weights, Level(bits, group, accuracy_level))


def activations(m: int, seed: int = 1) -> Float:
    a = np.random.default_rng(seed).standard_normal((m, COLUMNS)).astype(np.float32)
    a[:, 128:256] = 0  # whole groups of zeros at every size
    a[:, 256:] *= 50
    return a


def product(a: Float, stored: PackedMatrix) -> NDArray[np.float64]:
    """The product as the search simulates it, summed in float64."""
    level = stored.level
    if level.accuracy_level:
        a = round_activations(torch.from_numpy(a), level.group_size or 0).numpy()
    result: NDArray[np.float64] = a.astype(np.float64) @ stored.dequantise().astype(np.float64).T
    return result


def relative(found: Float, expected: NDArray[np.float64]) -> float:
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize("group", GROUPS)
def test_float_activations_at_four_bits(group: int, m: int) -> None:
    stored = random_matrix(4, group, 0)
    assert relative(run_node(activations(m), stored), product(activations(m), stored)) < 1e-6


@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounded_activations(bits: int, group: int, m: int) -> None:
    stored = random_matrix(bits, group, 4)
    found = run_node(activations(m), stored)
    assert relative(found, product(activations(m), stored)) < 1e-6
    # the rounding itself is far larger: the test would see it missing
    exact = activations(m).astype(np.float64) @ stored.dequantise().astype(np.float64).T
    assert relative(found, exact) > 1e-3


def identity(bits: int, group: int) -> PackedMatrix:
    """A matrix that hands every activation through: row n picks column n."""
    zero = 2 ** (bits - 1)
    codes = np.full((COLUMNS, COLUMNS), zero, np.uint8)
    np.fill_diagonal(codes, zero + 1)
    groups = COLUMNS // group
    zeros = pack_blocked(np.full((COLUMNS, groups), zero, np.uint8), bits)
    return PackedMatrix(
        Module("m", 0, "linear", COLUMNS, COLUMNS),
        Level(bits, group, 4),
        pack_blocked(codes.reshape(COLUMNS, groups, group), bits),
        np.ones((COLUMNS, groups), np.float32),
        zeros,
    )


@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_ties_of_activations_go_to_even(bits: int, group: int, m: int) -> None:
    # a peak of 127 makes codes of the values themselves, and of the halves ties
    a = np.tile(np.arange(-16, 16, dtype=np.float32) + 0.5, (m, COLUMNS // 32))
    a[:, ::group] = 127
    stored = identity(bits, group)
    np.testing.assert_array_equal(stored.dequantise(), np.eye(COLUMNS, dtype=np.float32))
    expected = np.where(a == 127, 127, np.rint(a))
    found = run_node(a, stored)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(round_activations(torch.from_numpy(a), group).numpy(), expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_groups_of_zeros_give_zero(bits: int) -> None:
    stored = random_matrix(bits, 32, 4)
    a = np.zeros((2, COLUMNS), np.float32)
    assert run_node(a, stored).tolist() == np.zeros((2, ROWS)).tolist()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_zero_point_is_read_from_its_place(bits: int) -> None:
    # seven groups a row: zero points of a row end inside a byte, and the next row starts on a new one
    rng = np.random.default_rng(2)
    module = Module("m", 0, "linear", 5, 7 * 32)
    weights = rng.standard_normal((5, 7, 32)) + rng.uniform(-2, 2, (5, 7, 1))
    stored = pack_matrix(module, weights.reshape(5, -1).astype(np.float32), Level(bits, 32, 4))
    assert stored.zeros is not None
    assert stored.zeros.shape == (5, -(-7 * bits // 8))
    a = rng.standard_normal((3, 7 * 32)).astype(np.float32)
    assert relative(run_node(a, stored), product(a, stored)) < 1e-6


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("size", [3e-37, 1e-38, 1e-44])
def test_groups_too_small_to_scale_give_zero_and_no_nan(bits: int, size: float) -> None:
    a = np.zeros((1, COLUMNS), np.float32)
    a[0, 0], a[0, 1] = size, -size / 3  # 127 / size overflows
    assert not round_activations(torch.from_numpy(a), 32).any()
    assert not run_node(a, identity(bits, 32)).any()
