"""`qslm-edge report`: views of a finished run, from its report.json alone; needs neither torch nor onnx."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from qslm_edge.cli import console, flags
from qslm_edge.cli import options as opt
from qslm_edge.cli.console import Json
from qslm_edge.errors import EXIT_FAIL, EXIT_PASS, RunError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EXAMPLES", "FORMATS", "command"]

EXAMPLES = """
[bold]Examples[/bold]

  [cyan]qslm-edge report runs/demo[/cyan]                              the closing table
  [cyan]qslm-edge report runs/demo -f html --output demo.html[/cyan]   one page to pass on
  [cyan]qslm-edge report runs/demo -f markdown >> notes.md[/cyan]
  [cyan]qslm-edge report runs/demo --json[/cyan]                       all, raw samples too
  [cyan]qslm-edge report verify.json --recompute[/cyan]                does it follow from its raw samples?

Exit codes: 0 shown, whatever the verdict of the run, or recomputed and equal; 1 recomputed and not equal;
2 no report or usage; 4 output not writable.
"""
FORMATS = ("text", "markdown", "html", "json")


def command(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run directory of a finished run, or its report.json.")
    ],
    format_: Annotated[str, typer.Option("--format", "-f", help="text, markdown, html or json.")] = "text",
    output: Annotated[
        Path | None,
        opt.option("--output", help="Write to this file.", default="stdout"),
    ] = None,
    recompute: Annotated[
        bool,
        typer.Option(
            "--recompute",
            help="Derive every statistic anew from the stored raw samples and compare; "
            "RUN may also be the JSON of `verify`.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the report of a finished run: the closing table, Markdown, one HTML page, or JSON."""
    from qslm_edge.report.model import read_report

    if recompute:
        _recompute(run, format_, output, as_json)
    if format_ not in FORMATS:
        raise UsageError("unknown format", where="--format", found=format_, allowed=", ".join(FORMATS))
    format_ = "json" if as_json else format_
    flags.check_output(output)
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


def _recompute(run: Path, format_: str, output: Path | None, as_json: bool) -> NoReturn:
    """Compare a result with what its raw samples give, and end with 0 or 1."""
    from qslm_edge.report.recompute import NOT_RECOMPUTED, read_result, recompute

    if format_ != "text" or output is not None:
        raise UsageError(
            "a comparison is no view of the report",
            where="--recompute",
            found="--output" if output is not None else f"--format {format_}",
            allowed="--json",
        )
    found = recompute(read_result(run), run)
    if as_json:
        console.print_json(found.to_dict())
    else:
        for part in found.differences:
            console.print_line(f"{part.path}: stored {part.stored!r}, recomputed {part.recomputed!r}")
        console.print_line(f"Not recomputed: {'; '.join(NOT_RECOMPUTED)}.")
        words = f"{found.compared:,} values derived from the raw samples"
        if found.equal:
            console.print_line(f"Equal: {words}, all as stored.", style="bold green")
        else:
            console.print_line(f"Parted: {words}, {len(found.differences)} not as stored.", style="bold red")
    raise typer.Exit(EXIT_PASS if found.equal else EXIT_FAIL)


def _renderers() -> dict[str, Callable[[dict[str, Any]], str]]:
    from qslm_edge.report.html import render_html
    from qslm_edge.report.markdown import render_markdown
    from qslm_edge.report.text import render_text

    return {"text": render_text, "markdown": render_markdown, "html": render_html, "json": _json}


def _json(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=1, ensure_ascii=False) + "\n"


def _write(output: Path, text: str) -> None:
    from qslm_edge.report.text import write_text

    write_text(output, text)
