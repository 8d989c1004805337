"""`qslm-edge build-native`: compile the native engine for this machine. Runs on the base install."""

from __future__ import annotations

from typing import Annotated

import typer

from qslm_edge.cli import console
from qslm_edge.cli.console import Json

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """
[bold]Examples[/bold]

  [cyan]qslm-edge build-native[/cyan]                          with $CXX, or c++, g++, clang++
  [cyan]qslm-edge verify runs/a/bundle --engine native[/cyan]  compiles it too, if it is not there yet
  [cyan]python3 bundle/run.pyz build-native[/cyan]             without this package

Exit codes: 0 the engine is there, 2 usage, 4 no compiler, or it fails.
"""


def command(
    cuda: Annotated[bool, typer.Option("--cuda", help="The GPU engine, compiled by nvcc.")] = False,
    as_json: Json = False,
) -> None:
    """Compile the native engine into the user's cache; `--engine native` then finds it there."""
    from qslm_edge.runner.native.command import build_lines, built_document

    document = built_document(cuda)
    if as_json:
        console.print_json(document)
    else:
        console.print_block("\n".join(build_lines(document)))
