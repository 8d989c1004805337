"""`qslm-edge doctor`: what this machine can run and measure. Runs on the base install: no torch, no onnx."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from qslm_edge.cli import console
from qslm_edge.cli import options as opt
from qslm_edge.cli.console import Json

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """
[bold]Examples[/bold]

  [cyan]qslm-edge doctor[/cyan]                        this machine
  [cyan]qslm-edge doctor runs/demo/bundle[/cyan]       and whether it can verify that bundle
  [cyan]python3 bundle/run.pyz doctor[/cyan]           without this package
  [cyan]qslm-edge doctor --json[/cyan]                 with every figure of every proof

Exit codes: 0 everything needed works, 1 the bundle's needs are not met, 2 no bundle or usage, 4 this machine
lacks what any run needs.
"""
_STYLES = {0: "bold green", 1: "bold red", 3: "bold yellow", 4: "bold red"}


def command(
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="[BUNDLE]", help="Bundle directory to try as well.", show_default=False),
    ] = None,
    root: opt.Root = Path("/"),
    as_json: Json = False,
) -> None:
    """Try what this machine can run and measure: runtime, providers, widths, memory, power, conditions.

    Each line is ok, warning or problem, with the reason and the next step. Takes some seconds.
    """
    from qslm_edge.progress import runner_stages
    from qslm_edge.runner.doctor import examine

    with console.RichProgress() as progress:
        document = examine(bundle, root=root, on_progress=runner_stages(progress, prefix=""))
        progress.done()
    if as_json:
        console.print_json(document)
    else:
        _show(document)
    raise typer.Exit(int(document["exit_code"]))


def _show(document: dict[str, Any]) -> None:
    from qslm_edge.runner.findings import finding_lines

    *lines, summary = finding_lines(document)
    console.print_block("\n".join(lines))
    console.print_line(summary, style=_STYLES[document["exit_code"]])
