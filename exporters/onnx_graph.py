"""A small ONNX graph builder: nodes in order, weights streamed into one external data file.

We own the graph to the last node, since what ONNX Runtime makes of it decides speed and memory. Weights are
written one after the other at 64-byte offsets in a fixed order, so that equal inputs give equal bytes and a
large model never stands in memory twice; small constants stay inside the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qslm_edge import __version__

__all__ = ["MICROSOFT", "Graph", "ShapeLike", "WeightFile", "float_value"]

MICROSOFT = "com.microsoft"
ALIGNMENT = 64
ShapeLike = Sequence[int | str]


class WeightFile:
    """The external data file, written tensor by tensor.

    Args:
        path: file to create; only its name enters the graph.
        write: False describes the tensors without writing them, for a second graph over the same file.

    Attributes:
        tensors: name, dtype, shape, offset and bytes of what was added, in order.
    """

    def __init__(self, path: Path, write: bool = True) -> None:
        self.name = path.name
        self.offset, self.weight_bytes = 0, 0
        self.protos: dict[str, TensorProto] = {}
        self.tensors: list[dict[str, Any]] = []
        self._file: BinaryIO | None = path.open("wb") if write else None

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, name: str, array: NDArray[Any]) -> TensorProto:
        """Append an array and return the tensor that refers to it."""
        array = np.ascontiguousarray(array)
        padding = -self.offset % ALIGNMENT
        if self._file is not None:
            self._file.write(b"\0" * padding)
            self._file.write(array.data)
        self.offset += padding
        tensor = TensorProto(
            name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape
        )
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.name), ("offset", self.offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self.tensors.append(
            {
                "name": name,
                "dtype": array.dtype.name,
                "shape": list(array.shape),
                "offset": self.offset,
                "bytes": array.nbytes,
            }
        )
        self.offset += array.nbytes
        self.weight_bytes += array.nbytes
        self.protos[name] = tensor
        return tensor


def float_value(name: str, shape: ShapeLike) -> onnx.ValueInfoProto:
    """Description of a float32 value with symbolic or fixed dimensions."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


class Graph:
    """Nodes and constants of one graph or subgraph.

    Args:
        weights: where large tensors go.
        prefix: put before every generated name; names must be unique over a graph and all its subgraphs.
    """

    def __init__(self, weights: WeightFile, prefix: str = "") -> None:
        self.weights, self.prefix = weights, prefix
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._used: set[str] = set()
        self._count = 0

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """Add a weight to the external file."""
        self.initializers.append(self.weights.add(name, array))
        return name

    def stored(self, name: str, rows: tuple[int, int] | None = None) -> str:
        """Use a weight that another graph over the same file added, or some of its rows."""
        tensor = self.weights.protos[name]
        if rows is not None and rows != (0, tensor.dims[0]):
            tensor = _rows_of(tensor, *rows)
        if tensor.name not in self._used:
            self.initializers.append(tensor)
            self._used.add(tensor.name)
        return str(tensor.name)

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """A small constant inside the graph; equal ones are shared."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{self.prefix}const.{len(self._constants)}"
            self.initializers.append(
                helper.make_tensor(
                    name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.tobytes(), raw=True
                )
            )
            self._constants[key] = name
        return self._constants[key]

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str] | int = 1,
        *,
        name: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Append a node and return the names of its outputs (generated when a number is given)."""
        self._count += 1
        label = name or f"{self.prefix}{op}.{self._count}"
        if isinstance(outputs, int):
            outputs = [label if outputs == 1 else f"{label}:{i}" for i in range(outputs)]
        self.nodes.append(
            helper.make_node(op, list(inputs), list(outputs), name=label, domain=domain, **attributes)
        )
        return list(outputs)

    def one(self, op: str, inputs: Sequence[str], **options: Any) -> str:
        """Append a node with one output and return its name."""
        return self.node(op, inputs, 1, **options)[0]

    def subgraph(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.GraphProto:
        """This graph as the body of a Scan."""
        return helper.make_graph(self.nodes, name, list(inputs), list(outputs), self.initializers)

    def model(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        *,
        opset: int,
        ir_version: int,
        metadata: Mapping[str, str],
    ) -> onnx.ModelProto:
        """The finished model, checked against the ONNX standard."""
        graph = helper.make_graph(self.nodes, name, list(inputs), list(outputs), self.initializers)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)],
            ir_version=ir_version,
            producer_name="qslm-edge",
            producer_version=__version__,
        )
        helper.set_model_props(model, dict(metadata))
        return model

    def operators(self) -> dict[str, int]:
        """How many nodes of each type there are, bodies included, sorted by name."""
        counts: Counter[str] = Counter()
        _count(self.nodes, counts)
        return dict(sorted(counts.items()))


def _rows_of(tensor: TensorProto, start: int, stop: int) -> TensorProto:
    """Rows of a tensor of the external file, as a tensor of their own in the same place."""
    part = TensorProto()
    part.CopyFrom(tensor)
    part.name, part.dims[0] = f"{tensor.name}.{start}", stop - start
    entries = {entry.key: entry for entry in part.external_data}
    row_bytes = int(entries["length"].value) // tensor.dims[0]
    entries["offset"].value = str(int(entries["offset"].value) + start * row_bytes)
    entries["length"].value = str((stop - start) * row_bytes)
    return part


def _count(nodes: Sequence[onnx.NodeProto], counts: Counter[str]) -> None:
    for node in nodes:
        counts[f"{node.domain}::{node.op_type}" if node.domain else node.op_type] += 1
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _count(attribute.g.node, counts)
