"""Matrix products of the step graph: float16 where what is stored is exact in it, by the kernels meant for one row."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from onnx import TensorProto

from qslm_edge.exporters.onnx_graph import MICROSOFT, Graph
from qslm_edge.quantize.packed import PackedMatrix

__all__ = ["multiply"]

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
ROW_BLOCK = 8
"""Rows that one block of the kernel for a single stream computes: other numbers of rows miss it."""


def multiply(g: Graph, packed: PackedMatrix, x: str, *, half: bool) -> str:
    """One matrix product.

    Args:
        g: where nodes go.
        packed: the matrix; its parts are in the weight file.
        x: [1, B, columns].
        half: x and the product are float16. A matrix that float16 does not hold exactly is then multiplied in
            float32 between two Casts.
    """
    module, level = packed.module.name, packed.level
    name, rows = f"{module}.output", packed.module.rows
    narrow = half and (level.bits == 16 or (packed.scales is not None and packed.scales.dtype == np.float16))
    casts = half and not narrow
    if casts:
        x = g.one("Cast", [x], name=f"{module}.input", to=FLOAT)
    product = f"{module}.product" if casts else name
    if level.is_float:
        weight = g.stored(f"{module}.weight")
        if level.bits == 16 and not narrow:
            weight = g.one("Cast", [weight], name=f"{module}.float", to=FLOAT)
        g.node("MatMul", [x, weight], [product], name=module)
    else:
        whole = rows // ROW_BLOCK * ROW_BLOCK
        spans = list(pairwise([0, whole, rows] if 0 < whole < rows else [0, rows]))
        names = [product] if len(spans) == 1 else [f"{module}.rows{start}" for start, _ in spans]
        for span, output in zip(spans, names, strict=True):
            _rows(g, packed, span, x, output, narrow)
        if len(names) > 1:
            g.node("Concat", names, [product], name=f"{module}.joined", axis=-1)
    return g.one("Cast", [product], name=name, to=HALF) if casts else name


def _rows(g: Graph, packed: PackedMatrix, span: tuple[int, int], x: str, output: str, narrow: bool) -> None:
    """Product with some rows of a packed matrix."""
    module, level = packed.module, packed.level
    codes, scales = (g.stored(f"{module.name}.{part}", span) for part in ("codes", "scales"))
    if packed.scales is not None and packed.scales.dtype == np.float16 and not narrow:
        scales = g.one("Cast", [scales], name=f"{output}.scales_float", to=FLOAT)
    zeros = [] if packed.zeros is None else [g.stored(f"{module.name}.zeros", span)]
    product = f"{output}.whole_steps" if level.midrise else output
    g.node(
        "MatMulNBits",
        [x, codes, scales, *zeros],
        [product],
        name=f"{output}.matmul",
        domain=MICROSOFT,
        K=module.columns,
        N=span[1] - span[0],
        bits=level.bits,
        block_size=level.group_size,
        accuracy_level=level.accuracy_level,
    )
    if level.midrise:
        g.node(
            "Add",
            [product, _half_steps(g, packed, x, scales, output, narrow)],
            [output],
            name=f"{output}.sum",
        )


def _half_steps(g: Graph, packed: PackedMatrix, x: str, scales: str, name: str, narrow: bool) -> str:
    """Half a scale times the block sums of x: what mid-rise values add to codes minus 2^(bits - 1)."""
    groups = packed.module.columns // (packed.level.group_size or 1)
    blocks = g.one("Reshape", [x, g.constant([0, 0, groups, -1])], name=f"{name}.blocks")
    sums = g.one("ReduceSum", [blocks, g.constant([-1])], name=f"{name}.block_sums", keepdims=0)
    # folded when the model loads
    wide = g.one("Cast", [scales], name=f"{name}.scales_wide", to=FLOAT) if narrow else scales
    columns = g.one("Transpose", [wide], name=f"{name}.scale_columns", perm=[1, 0])
    halves = g.one("Mul", [columns, g.constant(0.5, np.float32)], name=f"{name}.half_scales")
    halves = g.one("Cast", [halves], name=f"{name}.halves", to=HALF) if narrow else halves
    return g.one("MatMul", [sums, halves], name=f"{name}.half_steps")
