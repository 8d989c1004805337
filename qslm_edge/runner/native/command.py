"""`build-native`: compile the engine ahead of its first use, and say what came of it."""

from __future__ import annotations

import json
from typing import Any

from qslm_edge.runner.native.build import Built, build
from qslm_edge.runner.native.interface import Library

__all__ = ["add_build_command", "build_lines", "built_document", "run_build"]


def add_build_command(commands: Any) -> None:
    """Add the command to the sub-parsers of the runner."""
    parser = commands.add_parser(
        "build-native", help="compile the native engine for this machine, with $CXX or c++, g++, clang++"
    )
    parser.add_argument("--cuda", action="store_true", help="the GPU engine, with nvcc")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run_build(cuda: bool, as_json: bool) -> str:
    """Compile and load; the text to print.

    Raises:
        RuntimeFault: no compiler, it fails, or the library does not load.
    """
    document = built_document(cuda)
    return json.dumps(document, indent=1) if as_json else "\n".join(build_lines(document))


def built_document(cuda: bool) -> dict[str, Any]:
    """Compile and load the engine; what it is, ready for JSON."""
    built: Built = build(cuda)
    return {"engine": Library(built.path).describe(), **built.to_dict()}


def build_lines(document: dict[str, Any]) -> list[str]:
    """The same for people."""
    seconds = document["seconds"]
    return [
        f"engine    {document['engine']}",
        f"library   {document['library']}",
        f"compiler  {document['compiler']}",
        f"built     {'already there' if seconds is None else f'in {seconds:.1f} s'}",
    ]
