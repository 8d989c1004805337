"""The embedding of the portable graph: rows of the packed table, unpacked after the lookup.

The table is packed in planes, whose codes come out by shifts and masks in operators that every ONNX Runtime since 1.18
has; so no wider copy of the table stands in memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from qslm_edge.exporters.onnx_graph import Graph
from qslm_edge.quantize.packed import PackedMatrix
from qslm_edge.spikegpt.config import SpikeGPTConfig

__all__ = ["embed"]


def embed(g: Graph, packed: PackedMatrix, config: SpikeGPTConfig, tokens: str) -> str:
    """Rows of the table [T, B, C], float32.

    Args:
        g: where nodes and the table go.
        packed: the table.
        config: sizes, and whether the embedding is binary.
        tokens: ids [T, B].
    """
    c, bits = config.n_embd, packed.level.bits
    rows = g.one("Gather", [g.weight("emb", packed.data), tokens], name="emb.rows", axis=0)
    if packed.level.is_float:
        if bits == 16:
            rows = g.one("Cast", [rows], name="emb.float", to=TensorProto.FLOAT)
        if config.embedding == "binary":
            at_least = g.one("GreaterOrEqual", [rows, g.constant(0.0, np.float32)], name="emb.sign")
            rows = g.one("Cast", [at_least], name="emb.spikes", to=TensorProto.FLOAT)
        return rows
    if bits < 8:
        shifts = g.constant(np.arange(0, 8, bits).reshape(-1, 1), np.uint8)
        planes = g.one("Unsqueeze", [rows, g.constant([-2])], name="emb.unsqueeze")
        shifted = g.one("BitShift", [planes, shifts], name="emb.shift", direction="RIGHT")
        rows = g.one("BitwiseAnd", [shifted, g.constant(2**bits - 1, np.uint8)], name="emb.mask")
    codes = g.one("Cast", [rows], name="emb.codes", to=TensorProto.FLOAT)
    if bits == 1:
        return g.one("Reshape", [codes, g.constant([0, 0, c])], name="emb.bits")
    if packed.scales is None:
        raise ValueError("a packed embedding has scales")
    groups = packed.scales.shape[1]
    codes = g.one("Reshape", [codes, g.constant([0, 0, groups, c // groups])], name="emb.groups")
    if packed.zeros is None:
        zero = g.constant((2**bits - 1) / 2, np.float32)
    else:
        zero_rows = _zero_rows(g, packed.zeros, bits, groups, tokens)
        zero_float = g.one("Cast", [zero_rows], name="emb.zero_float", to=TensorProto.FLOAT)
        zero = g.one("Unsqueeze", [zero_float, g.constant([-1])], name="emb.zero")
    scale_rows = g.one("Gather", [g.weight("emb.scales", packed.scales), tokens], name="emb.scale_rows")
    if packed.scales.dtype == np.float16:
        scale_rows = g.one("Cast", [scale_rows], name="emb.scale_float", to=TensorProto.FLOAT)
    scale = g.one("Unsqueeze", [scale_rows, g.constant([-1])], name="emb.scale")
    values = g.one("Mul", [g.one("Sub", [codes, zero], name="emb.centred"), scale], name="emb.values")
    return g.one("Reshape", [values, g.constant([0, 0, c])], name="emb.out")


def _zero_rows(g: Graph, zeros: NDArray[np.uint8], bits: int, groups: int, tokens: str) -> str:
    """Zero points [T, B, groups] of the rows in use, as bytes."""
    rows = g.one("Gather", [g.weight("emb.zeros", zeros), tokens], name="emb.zero_rows")
    if bits == 8:
        return rows
    shifts = g.constant(np.arange(0, 8, bits), np.uint8)
    columns = g.one("Unsqueeze", [rows, g.constant([-1])], name="emb.zero_bytes")
    shifted = g.one("BitShift", [columns, shifts], name="emb.zero_shift", direction="RIGHT")
    fields = g.one("BitwiseAnd", [shifted, g.constant(2**bits - 1, np.uint8)], name="emb.zero_mask")
    flat = g.one("Reshape", [fields, g.constant([0, 0, zeros.shape[1] * 8 // bits])], name="emb.zero_all")
    if zeros.shape[1] * 8 // bits == groups:
        return flat
    # a row ends at a byte: what is left of its last one belongs to no group
    return g.one(
        "Slice", [flat, g.constant([0]), g.constant([groups]), g.constant([2])], name="emb.zero_used"
    )
