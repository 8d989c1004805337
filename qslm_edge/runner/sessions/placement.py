"""Where the nodes of a graph really ran: counted in onnxruntime's own profile of one run.

A provider takes the nodes that it has kernels for, and the rest runs on the CPU without a word. Every release writes
the provider of each node into its profile, so one profiled run shows what no option promises. onnxruntime itself puts
nodes that only compute shapes and indices on the CPU, on purpose: those make a few integers, and are counted apart.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qslm_edge.errors import RuntimeFault
from qslm_edge.runner.runtime import CPU

__all__ = ["Placement", "profiled", "read_placement"]

SHAPE_TYPES = ("int64", "int32", "bool")
SHAPE_VALUES = 64
NAMED = 4


@dataclass(frozen=True)
class Placement:
    """Nodes of one run by the provider that ran them.

    Attributes:
        nodes: number by provider; those that only compute shapes are left out.
        shape_nodes: on the CPU, and make nothing but a few integers.
        on_cpu: operator types of the others there, with their number.
    """

    nodes: dict[str, int]
    shape_nodes: int
    on_cpu: dict[str, int]

    def to_dict(self) -> dict[str, object]:
        """All fields, ready for JSON."""
        return {"nodes": self.nodes, "shape_nodes_on_cpu": self.shape_nodes, "operators_on_cpu": self.on_cpu}

    def check(self, provider: str, allow_fallback: bool) -> None:
        """Refuse nodes that the provider left to the CPU.

        Raises:
            RuntimeFault: there are some, and they were not allowed.
        """
        if provider == CPU or not self.on_cpu or allow_fallback:
            return
        total = sum(self.nodes.values())
        first = ", ".join(f"{count} {op}" for op, count in list(self.on_cpu.items())[:NAMED])
        raise RuntimeFault(
            "the provider leaves nodes to the CPU",
            where=provider,
            found=f"{self.nodes.get(CPU, 0)} of {total} nodes on the CPU ({first})",
            hint="accept that with --allow-fallback, or export for a profile whose provider this is",
        )


@contextmanager
def profiled(given: Any, wanted: bool = True) -> Iterator[Callable[[Any], Placement]]:
    """Let sessions that are opened within write a profile, into a folder that is removed at the end.

    Args:
        given: SessionOptions of onnxruntime.
        wanted: False does nothing.

    Yields:
        What ends the profile of a session after its first run and counts its nodes.
    """
    if not wanted:
        yield _nothing_profiled
        return
    with tempfile.TemporaryDirectory(prefix="qslm-edge-") as folder:
        given.enable_profiling = True
        given.profile_file_prefix = str(Path(folder) / "profile")
        yield lambda session: read_placement(Path(session.end_profiling()))


def _nothing_profiled(_session: Any) -> Placement:
    raise ValueError("no profile was asked for")


def read_placement(path: Path) -> Placement:
    """Count the nodes of a profile that onnxruntime wrote.

    Args:
        path: what `end_profiling` returned.

    Raises:
        RuntimeFault: it cannot be read, or names no node.
    """
    try:
        events = json.loads(path.read_text("utf-8"))
        seen = {
            (event["name"], event["args"].get("node_index")): event["args"]
            for event in events
            if event.get("cat") == "Node" and event["args"].get("provider")
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RuntimeFault("onnxruntime's profile cannot be read", where=path, found=error) from None
    if not seen:
        raise RuntimeFault("onnxruntime's profile names no node", where=path)
    nodes: Counter[str] = Counter()
    on_cpu: Counter[str] = Counter()
    shapes = 0
    for args in seen.values():
        if args["provider"] == CPU and _only_shapes(args.get("output_type_shape")):
            shapes += 1
            continue
        nodes[args["provider"]] += 1
        if args["provider"] == CPU:
            on_cpu[str(args.get("op_name"))] += 1
    return Placement(dict(nodes), shapes, dict(on_cpu.most_common()))


def _only_shapes(outputs: Any) -> bool:
    """Whether a node made nothing but a few integers; outputs are like [{"int64": [2, 3]}]."""
    found = [(kind, shape) for output in outputs or () for kind, shape in output.items()]
    return bool(found) and all(
        kind in SHAPE_TYPES and math.prod(shape) <= SHAPE_VALUES for kind, shape in found
    )
