"""The embedding of the step graph: rows of the packed table, unpacked by tables of all bytes.

The planar layout was made for shifts, which have no CUDA kernel; a lookup of each byte's codes has one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from qslm_edge.exporters.onnx_graph import Graph
from qslm_edge.quantize.packed import PackedMatrix
from qslm_edge.spikegpt.config import SpikeGPTConfig

__all__ = ["embed"]

FLOAT = TensorProto.FLOAT


def embed(g: Graph, packed: PackedMatrix, config: SpikeGPTConfig, tokens: str) -> str:
    """Rows of the table [1, B, C], float32.

    Args:
        g: where nodes go.
        packed: the table; its parts are in the weight file.
        config: sizes, and whether the embedding is binary.
        tokens: ids [1, B].
    """
    c, bits = config.n_embd, packed.level.bits
    rows = g.one("Gather", [g.stored("emb"), tokens], name="emb.rows", axis=0)
    if packed.level.is_float:
        if bits == 16:
            rows = g.one("Cast", [rows], name="emb.float", to=FLOAT)
        if config.embedding == "binary":
            at_least = g.one("GreaterOrEqual", [rows, g.constant(0.0, np.float32)], name="emb.sign")
            rows = g.one("Cast", [at_least], name="emb.spikes", to=FLOAT)
        return rows
    if bits == 8:
        codes = g.one("Cast", [rows], name="emb.codes", to=FLOAT)
    else:
        table = g.constant(_fields(bits).T, np.float32)
        planes = g.one("Gather", [table, _index(g, rows, "emb.bytes")], name="emb.planes", axis=1)
        codes = g.one("Transpose", [planes], name="emb.codes", perm=[1, 2, 0, 3])
    if bits == 1:
        return g.one("Reshape", [codes, g.constant([1, -1, c])], name="emb.out")
    if packed.scales is None:
        raise ValueError("a packed embedding has scales")
    groups = packed.scales.shape[1]
    codes = g.one("Reshape", [codes, g.constant([1, -1, groups, c // groups])], name="emb.groups")
    zero = (
        g.constant((2**bits - 1) / 2, np.float32)
        if packed.zeros is None
        else _zeros(g, packed.zeros, bits, groups, tokens)
    )
    scale = g.one("Gather", [g.stored("emb.scales"), tokens], name="emb.scale_rows", axis=0)
    if packed.scales.dtype == np.float16:
        scale = g.one("Cast", [scale], name="emb.scale_float", to=FLOAT)
    scale = g.one("Unsqueeze", [scale, g.constant([-1])], name="emb.scale")
    values = g.one("Mul", [g.one("Sub", [codes, zero], name="emb.centred"), scale], name="emb.values")
    return g.one("Reshape", [values, g.constant([1, -1, c])], name="emb.out")


def _zeros(g: Graph, zeros: NDArray[np.uint8], bits: int, groups: int, tokens: str) -> str:
    """Zero points [1, B, groups, 1] of the rows in use, float32."""
    rows = g.one("Gather", [g.stored("emb.zeros"), tokens], name="emb.zero_rows", axis=0)
    if bits == 8:
        found = g.one("Cast", [rows], name="emb.zero_codes", to=FLOAT)
    else:
        table = g.constant(_fields(bits), np.float32)
        fields = g.one("Gather", [table, _index(g, rows, "emb.zero_bytes")], name="emb.zero_fields", axis=0)
        held = zeros.shape[1] * 8 // bits
        found = g.one("Reshape", [fields, g.constant([1, -1, held])], name="emb.zero_codes")
        if held != groups:  # a row ends at a byte: what is left of its last one belongs to no group
            ends = (g.constant([0]), g.constant([groups]), g.constant([2]))
            found = g.one("Slice", [found, *ends], name="emb.zero_used")
    return g.one("Unsqueeze", [found, g.constant([-1])], name="emb.zero")


def _index(g: Graph, rows: str, name: str) -> str:
    return g.one("Cast", [rows], name=name, to=TensorProto.INT32)


def _fields(bits: int) -> NDArray[np.float32]:
    """Codes held by every byte, lowest bits first: [256, 8 / bits]."""
    shifts = np.arange(0, 8, bits)
    fields: NDArray[np.float32] = (np.arange(256)[:, None] >> shifts & (2**bits - 1)).astype(np.float32)
    return fields
