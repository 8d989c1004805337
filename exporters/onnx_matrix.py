"""Matrix products of the portable graph: MatMulNBits over packed codes, MatMul over floats."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from qslm_edge.exporters.onnx_graph import MICROSOFT, Graph
from qslm_edge.quantize.packed import PackedMatrix

__all__ = ["multiply"]


def multiply(g: Graph, packed: PackedMatrix, x: str, output: str) -> None:
    """One matrix product.

    Args:
        g: where nodes and the parts of the matrix go.
        packed: the matrix.
        x: [T, B, columns].
        output: name of the product [T, B, rows].
    """
    if not packed.level.is_float:
        _multiply_packed(g, packed, x, output)
        return
    name = packed.module.name
    transposed: NDArray[Any] = np.ascontiguousarray(packed.data.T)
    weight = g.weight(f"{name}.weight", transposed)
    if packed.level.bits == 16:
        weight = g.one("Cast", [weight], name=f"{name}.float", to=TensorProto.FLOAT)
    g.node("MatMul", [x, weight], [output], name=name)


def _multiply_packed(g: Graph, packed: PackedMatrix, x: str, output: str) -> None:
    module, level = packed.module, packed.level
    if packed.scales is None:
        raise ValueError(f"{module.name}: packed codes without scales")
    codes, scales = (
        g.weight(f"{module.name}.{part}", array)
        for part, array in (("codes", packed.data), ("scales", packed.scales))
    )
    if packed.scales.dtype == np.float16:  # folded when the model loads: the kernel takes float32
        scales = g.one("Cast", [scales], name=f"{module.name}.scales_float", to=TensorProto.FLOAT)
    # without zero points the kernel takes 2^(bits - 1), half a step above the middle of mid-rise codes
    zeros = [] if packed.zeros is None else [g.weight(f"{module.name}.zeros", packed.zeros)]
    product = f"{module.name}.product" if level.midrise else output
    g.node(
        "MatMulNBits",
        [x, codes, scales, *zeros],
        [product],
        name=module.name,
        domain=MICROSOFT,
        K=module.columns,
        N=module.rows,
        bits=level.bits,
        block_size=level.group_size,
        accuracy_level=level.accuracy_level,
    )
    if level.midrise:
        g.node("Add", [product, _half_steps(g, packed, x, scales)], [output], name=f"{module.name}.sum")


def _half_steps(g: Graph, packed: PackedMatrix, x: str, scales: str) -> str:
    """Half a scale times the block sums of x: what mid-rise values add to codes minus 2^(bits - 1)."""
    name, groups = packed.module.name, packed.module.columns // (packed.level.group_size or 1)
    blocks = g.one("Reshape", [x, g.constant([0, 0, groups, -1])], name=f"{name}.blocks")
    sums = g.one("ReduceSum", [blocks, g.constant([-1])], name=f"{name}.block_sums", keepdims=0)
    halves = g.one("Mul", [sums, g.constant(0.5, np.float32)], name=f"{name}.half_sums")
    columns = g.one("Transpose", [scales], name=f"{name}.scale_columns", perm=[1, 0])
    return g.one("MatMul", [halves, columns], name=f"{name}.half_steps")
