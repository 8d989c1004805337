"""The closing table of a run on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qslm_edge.cli import console
from qslm_edge.report.figures import clean
from qslm_edge.report.text import bundle_line, render_table, verdict_line

__all__ = ["show_report"]

_STYLES = {"pass": "bold green", "fail": "bold red", "inconclusive": "bold yellow"}


def show_report(report: dict[str, Any]) -> None:
    """Print before → after, constraint and verdict of every figure; last, the place of the bundle."""
    console.print_block(render_table(report, console.terminal_columns()))
    console.print_block(verdict_line(report), style=_STYLES.get(report["verdict"]))
    page = Path(report["bundle"]["path"]).parent / "report.html"
    if page.is_file():
        console.print_block(f"Report: {clean(page)}")
    console.print_block(bundle_line(report))
