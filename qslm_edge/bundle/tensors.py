"""tensors.json: what lies where in model.bin, for an engine that reads the weights without the graph.

The table is taken as hostile, as all of a bundle: it decides which memory native code reads. So every tensor must lie
inside the file at its place, be as large as its shape says, and a matrix must have exactly the tensors of its level.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qslm_edge.errors import BundleError

__all__ = ["SCHEMA", "TENSORS", "MatrixEntry", "TensorEntry", "TensorTable", "read_tensors"]

TENSORS, SCHEMA = "tensors.json", "qslm-edge/tensors/1"
ALIGNMENT = 64
MAX_TABLE_BYTES = 16 * 2**20
MAX_DIMENSION = 2**20
GROUPS = (32, 64, 128)
_HINT = "copy the bundle again from the run that made it"
_ITEM_BYTES = {"float32": 4, "float16": 2, "uint8": 1}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor in model.bin, little-endian.

    Attributes:
        dtype: "float32", "float16" or "uint8".
        offset, nbytes: place in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class MatrixEntry:
    """One matrix of the model.

    Attributes:
        rows, columns: outputs (or vocabulary) and inputs (or channels).
        bits: 32, 16, 8, 4, 2, or 1 for a binary embedding.
        group: columns of a scale; None where there is none.
        midrise: values lie symmetrically about zero, without zero points.
        float_activations: inputs stay float32.
        codes: packed codes, or the floats themselves.
        scales, zeros: None where there are none.
    """

    name: str
    rows: int
    columns: int
    bits: int
    group: int | None
    midrise: bool
    float_activations: bool
    codes: TensorEntry
    scales: TensorEntry | None
    zeros: TensorEntry | None


@dataclass(frozen=True)
class TensorTable:
    """What model.bin holds.

    Attributes:
        path: of tensors.json, for messages.
        tensors: by name.
        matrices: by the name of the module.
    """

    path: Path
    tensors: dict[str, TensorEntry]
    matrices: dict[str, MatrixEntry]

    def floats(self, name: str, shape: tuple[int, ...]) -> TensorEntry:
        """A float32 tensor of a shape; dimensions of 1 in front do not count.

        Raises:
            BundleError: it is not there, or is another.
        """
        tensor = self.tensors.get(name)
        if tensor is None or tensor.dtype != "float32" or _squeezed(tensor.shape) != _squeezed(shape):
            raise _wrong(self.path, name, _said(tensor), f"float32 {list(shape)}")
        return tensor

    def matrix(self, name: str, rows: int | None, columns: int) -> MatrixEntry:
        """A matrix by its name and shape; None takes any number of rows.

        Raises:
            BundleError: it is not there, or has another shape.
        """
        matrix = self.matrices.get(name)
        shape = f"{'any' if rows is None else rows} x {columns}"
        if matrix is None:
            raise _wrong(self.path, name, "nothing", shape)
        if matrix.columns != columns or rows not in (None, matrix.rows):
            raise _wrong(self.path, name, f"{matrix.rows} x {matrix.columns}", shape)
        return matrix


def read_tensors(path: Path, file_bytes: int) -> TensorTable:
    """Read tensors.json.

    Args:
        path: the file.
        file_bytes: size of model.bin.

    Raises:
        BundleError: missing, not readable, or anything in it contradicts the file or itself.
    """
    if not path.is_file():
        raise BundleError(
            "the bundle says nothing of where its weights lie",
            where=path,
            hint="export it again, or run it with --engine onnxruntime",
        )
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise ValueError(f"above {MAX_TABLE_BYTES} bytes")
        data = json.loads(path.read_text("utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError("cannot be read", where=path, found=error, hint=_HINT) from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise BundleError(
            "table of another schema",
            where=path,
            found=found,
            allowed=SCHEMA,
            hint="use the run.pyz beside it",
        )
    tensors = {
        entry.name: entry
        for entry in (_tensor(item, path, file_bytes) for item in _list(data, "tensors", path))
    }
    matrices = {m.name: m for m in (_matrix(item, path, tensors) for item in _list(data, "matrices", path))}
    return TensorTable(path, tensors, matrices)


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _list(data: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    entries = data.get(key)
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in entries
    ):
        raise _wrong(path, key, type(entries).__name__, "a list of objects with names")
    names = [entry["name"] for entry in entries]
    if len(set(names)) != len(names):
        raise _wrong(path, key, "a name twice", "each name once")
    return entries


def _is_size(value: Any, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= limit


def _tensor(item: dict[str, Any], path: Path, file_bytes: int) -> TensorEntry:
    entry: Any = item  # of JSON: checked below, key by key
    name, dtype, shape = entry["name"], entry.get("dtype"), entry.get("shape")
    offset, nbytes = entry.get("offset"), entry.get("bytes")
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise _wrong(path, f"{name}: dtype", dtype, ", ".join(_ITEM_BYTES))
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= 4
        or not all(_is_size(n, MAX_DIMENSION) for n in shape)
    ):
        raise _wrong(path, f"{name}: shape", shape, f"one to four sizes, each 1 to {MAX_DIMENSION}")
    if not _is_size(nbytes, file_bytes) or nbytes != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise _wrong(path, f"{name}: bytes", nbytes, math.prod(shape) * _ITEM_BYTES[dtype])
    if not (offset == 0 or _is_size(offset, file_bytes)) or isinstance(offset, bool) or offset % ALIGNMENT:
        raise _wrong(path, f"{name}: offset", offset, f"a multiple of {ALIGNMENT} within the file")
    if offset + nbytes > file_bytes:
        raise _wrong(
            path, f"{name}: offset", f"{offset} + {nbytes} bytes", f"up to {file_bytes}, where the file ends"
        )
    return TensorEntry(name, dtype, tuple(shape), offset, nbytes)


def _matrix(item: dict[str, Any], path: Path, tensors: dict[str, TensorEntry]) -> MatrixEntry:
    entry: Any = item  # of JSON: checked below, key by key
    name, rows, columns, bits = entry["name"], entry.get("rows"), entry.get("columns"), entry.get("bits")
    group, midrise = entry.get("group"), entry.get("midrise")
    float_activations = entry.get("float_activations")
    is_table = name == "emb"
    if not _is_size(rows, MAX_DIMENSION) or not _is_size(columns, MAX_DIMENSION):
        raise _wrong(path, f"{name}: shape", f"{rows} x {columns}", f"sizes of 1 to {MAX_DIMENSION}")
    if not isinstance(midrise, bool) or not isinstance(float_activations, bool):
        raise _wrong(path, name, f"midrise {midrise}, float_activations {float_activations}", "true or false")
    widths = (32, 16, 8, 4, 2, 1) if is_table else (32, 16, 8, 4, 2)
    if bits not in widths or isinstance(bits, bool):
        raise _wrong(path, f"{name}: bits", bits, ", ".join(map(str, widths)))
    if bits in (8, 4, 2):
        if group not in GROUPS or columns % group:
            raise _wrong(path, f"{name}: group", group, f"32, 64 or 128, dividing {columns} columns")
    elif group is not None:
        raise _wrong(path, f"{name}: group", group, f"null at {bits} bits")
    if midrise and bits != 2:
        raise _wrong(path, f"{name}: midrise", midrise, "false but at 2 bits")
    if bits == 1 and columns % 8:
        raise _wrong(path, f"{name}: columns", columns, "a multiple of 8 at 1 bit")

    def part(suffix: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> TensorEntry:
        tensor = tensors.get(name + suffix)
        if tensor is None or tensor.dtype not in dtypes or tensor.shape != shape:
            raise _wrong(path, name + suffix, _said(tensor), f"{' or '.join(dtypes)} {list(shape)}")
        return tensor

    codes, scales, zeros = "" if is_table else ".codes", None, None
    if bits >= 16:
        shape = (rows, columns) if is_table else (columns, rows)
        data = part("" if is_table else ".weight", (f"float{bits}",), shape)
    elif group is None:
        data = part(codes, ("uint8",), (rows, columns // 8))
    else:
        groups = columns // group
        packed = (rows, columns * bits // 8) if is_table else (rows, groups, group * bits // 8)
        data = part(codes, ("uint8",), packed)
        scales = part(".scales", ("float16", "float32"), (rows, groups))
        zeros = None if midrise else part(".zeros", ("uint8",), (rows, -(-groups * bits // 8)))
    return MatrixEntry(name, rows, columns, bits, group, midrise, float_activations, data, scales, zeros)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _said(tensor: TensorEntry | None) -> str:
    return "nothing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"


def _wrong(path: Path, what: str, found: object, allowed: object) -> BundleError:
    return BundleError(
        "table that contradicts its file",
        where=f"{path}: {what}",
        found=str(found)[:80],
        allowed=str(allowed),
        hint=_HINT,
    )
