"""`qslm-edge report`: views of a finished run, from its report.json alone; needs neither torch nor onnx."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qslm_edge.cli import console
from qslm_edge.cli.console import Json
from qslm_edge.errors import OutputError, RunError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EXAMPLES", "FORMATS", "command"]

EXAMPLES = """
[bold]Examples[/bold]

  [cyan]qslm-edge report runs/demo[/cyan]                              the closing table
  [cyan]qslm-edge report runs/demo -f html --output demo.html[/cyan]   one page to pass on
  [cyan]qslm-edge report runs/demo -f markdown >> notes.md[/cyan]
  [cyan]qslm-edge report runs/demo --json[/cyan]                       all, raw samples too

Exit codes: 0 shown, whatever the verdict of the run; 2 no report or usage; 4 output not writable.
"""
FORMATS = ("text", "markdown", "html", "json")


def command(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run directory of a finished run, or its report.json.")
    ],
    format_: Annotated[str, typer.Option("--format", "-f", help="text, markdown, html or json.")] = "text",
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Write to this file. [dim]Default: stdout.[/dim]", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the report of a finished run: the closing table, Markdown, one HTML page, or JSON."""
    from qslm_edge.report.model import read_report

    if format_ not in FORMATS:
        raise UsageError("unknown format", where="--format", found=format_, allowed=", ".join(FORMATS))
    format_ = "json" if as_json else format_
    _check_output(output)
    report = read_report(run)
    try:
        if output is not None:
            _write(output, _renderers()[format_](report))
        elif format_ == "text":
            from qslm_edge.cli.closing import show_report

            show_report(report)
        elif format_ == "json":
            console.print_json(report)
        else:
            console.print_raw(_renderers()[format_](report))
    except (KeyError, TypeError, AttributeError, IndexError) as error:  # only reading the report raises these
        found = f"{type(error).__name__}: {error}"
        raise RunError("the report is incomplete or damaged", where=run, found=found) from None


def _renderers() -> dict[str, Callable[[dict[str, Any]], str]]:
    from qslm_edge.report.html import render_html
    from qslm_edge.report.markdown import render_markdown
    from qslm_edge.report.text import render_text

    return {"text": render_text, "markdown": render_markdown, "html": render_html, "json": _json}


def _json(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=1, ensure_ascii=False) + "\n"


def _check_output(output: Path | None) -> None:
    if output is None:
        return
    if output.is_dir():
        raise OutputError("a directory is in the way", where=output, hint="give a file name to --output")
    if not output.parent.is_dir():
        raise OutputError("no such directory", where=output.parent, hint="make it first")


def _write(output: Path, text: str) -> None:
    from qslm_edge.report.text import write_text

    write_text(output, text)
