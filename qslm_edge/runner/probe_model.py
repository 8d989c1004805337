"""Models of one node, written without the onnx package, which a board does not have.

A probe is an ONNX file in memory: one matrix product in a form that bundles use (plain float32, float16 with a
cast, or MatMulNBits with zero points), its weights inside the graph. ONNX is Protocol Buffers, of which two
kinds of field suffice: varints (wire type 0) and byte strings (wire type 2). Field numbers are those of
onnx.proto. Opset 21 and IR 10, as in bundles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["COLUMNS", "ROWS", "Form", "Probe", "build_probe"]

ROWS, COLUMNS = 1024, 1024
"""Of the probed matrix: 4 MiB as float32, so that dequantising it on every call shows beside reading it once."""

OPSET, IR_VERSION = 21, 10
MICROSOFT = "com.microsoft"
# TensorProto.DataType and AttributeProto.AttributeType
FLOAT, UINT8, FLOAT16 = 1, 2, 10
ATTRIBUTE_INT = 2
_DATA_TYPES = {"float32": FLOAT, "uint8": UINT8, "float16": FLOAT16}


@dataclass(frozen=True)
class Form:
    """How one matrix is stored in a probe.

    Attributes:
        bits: 32, 16, 8, 4 or 2.
        accuracy_level: of MatMulNBits, 0 or 4; None at 32 and 16 bits.
        block_size: weights that share a scale; None at 32 and 16 bits.
    """

    bits: int
    accuracy_level: int | None = None
    block_size: int | None = None

    @property
    def label(self) -> str:
        """The form in words."""
        if self.block_size is None:
            return f"{self.bits} bits"
        return f"{self.bits} bits, block {self.block_size}, accuracy level {self.accuracy_level}"


@dataclass(frozen=True)
class Probe:
    """A model and the matrix that it multiplies by.

    Attributes:
        form: of the matrix.
        model: the ONNX file; input "x" [M, COLUMNS], output "y" [M, ROWS], both float32.
        weights: float64 [ROWS, COLUMNS]: what the stored form stands for.
    """

    form: Form
    model: bytes
    weights: NDArray[np.float64]

    def expected(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """The product in double precision."""
        result: NDArray[np.float64] = x.astype(np.float64) @ self.weights.T
        return result


def build_probe(form: Form, *, rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> Probe:
    """Build the model of one form, with random weights of a fixed seed.

    Args:
        form: of the matrix; a packed one is asymmetric, as bundles are.
        rows, columns: of the matrix; the block size must divide the columns.
        seed: of the weights.

    Raises:
        ValueError: a form that no bundle has.
    """
    random = np.random.default_rng(seed)
    if form.block_size is None:
        if form.bits not in (32, 16):
            raise ValueError(f"no float form of {form.bits} bits")
        weights = random.standard_normal((rows, columns), np.float32)
        return _float_probe(form, weights)
    if form.bits not in (8, 4, 2) or columns % form.block_size:
        raise ValueError(f"no packed form: {form.label}, {columns} columns")
    blocks = columns // form.block_size
    codes = random.integers(0, 2**form.bits, (rows, blocks, form.block_size), np.uint8)
    zeros = random.integers(0, 2**form.bits, (rows, blocks), np.uint8)
    scales = (random.random((rows, blocks), np.float32) + np.float32(0.5)) / np.float32(2**form.bits)
    centred = codes.astype(np.float64) - zeros[..., None].astype(np.float64)
    weights_64 = (centred * scales[..., None].astype(np.float64)).reshape(rows, columns)
    inputs = {
        "codes": _pack(codes, form.bits),
        "scales": scales,
        "zeros": _pack(zeros, form.bits),
    }
    attributes = {
        "K": columns,
        "N": rows,
        "bits": form.bits,
        "block_size": form.block_size,
        "accuracy_level": form.accuracy_level or 0,
    }
    node = _node("MatMulNBits", ["x", *inputs], ["y"], domain=MICROSOFT, attributes=attributes)
    return Probe(form, _model([node], inputs, rows, columns), weights_64)


def _float_probe(form: Form, weights: NDArray[np.float32]) -> Probe:
    rows, columns = weights.shape
    if form.bits == 32:
        nodes = [_node("MatMul", ["x", "weights"], ["y"])]
        stored: NDArray[np.generic] = np.ascontiguousarray(weights.T)
    else:
        stored = np.ascontiguousarray(weights.T.astype(np.float16))
        nodes = [
            _node("Cast", ["weights"], ["wide"], attributes={"to": FLOAT}),
            _node("MatMul", ["x", "wide"], ["y"]),
        ]
    model = _model(nodes, {"weights": stored}, rows, columns)
    return Probe(form, model, stored.T.astype(np.float64))


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes along the last axis in bytes, lowest bits first; a short last byte is padded with zeros."""
    per_byte = 8 // bits
    short = -codes.shape[-1] % per_byte
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, short)])
    grouped = padded.reshape(*codes.shape[:-1], -1, per_byte).astype(np.uint16)
    shifts = np.arange(0, 8, bits, dtype=np.uint16)
    packed: NDArray[np.uint8] = (grouped << shifts).sum(-1).astype(np.uint8)
    return packed


# ---- Protocol Buffers


def _varint(number: int) -> bytes:
    """Base 128, lowest seven bits first."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _int(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode("utf-8"))


def _node(
    op: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    domain: str = "",
    attributes: Mapping[str, int] | None = None,
) -> bytes:
    """NodeProto with integer attributes."""
    parts = [_text(1, name) for name in inputs] + [_text(2, name) for name in outputs]
    parts += [_text(3, outputs[0]), _text(4, op)]
    for name, number in (attributes or {}).items():
        parts.append(_bytes(5, _text(1, name) + _int(3, number) + _int(20, ATTRIBUTE_INT)))
    if domain:
        parts.append(_text(7, domain))
    return b"".join(parts)


def _tensor(name: str, array: NDArray[np.generic]) -> bytes:
    """TensorProto with raw data, little-endian as the format wants it."""
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    dims = b"".join(_int(1, size) for size in array.shape)
    return dims + _int(2, _DATA_TYPES[array.dtype.name]) + _text(8, name) + _bytes(9, little.tobytes())


def _value(name: str, columns: int) -> bytes:
    """ValueInfoProto of a float32 value [M, columns]."""
    shape = _bytes(1, _text(2, "M")) + _bytes(1, _int(1, columns))
    return _text(1, name) + _bytes(2, _bytes(1, _int(1, FLOAT) + _bytes(2, shape)))


def _model(
    nodes: Sequence[bytes], weights: Mapping[str, NDArray[np.generic]], rows: int, columns: int
) -> bytes:
    """ModelProto."""
    graph = [_bytes(1, node) for node in nodes]
    graph.append(_text(2, "probe"))
    graph += [_bytes(5, _tensor(name, array)) for name, array in weights.items()]
    graph += [_bytes(11, _value("x", columns)), _bytes(12, _value("y", rows))]
    domains = [_text(1, "") + _int(2, OPSET), _text(1, MICROSOFT) + _int(2, 1)]
    model = [_int(1, IR_VERSION), _text(2, "qslm-edge"), _bytes(7, b"".join(graph))]
    return b"".join(model + [_bytes(8, domain) for domain in domains])
