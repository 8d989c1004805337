"""The closing table as plain text, for a terminal of any width or none, and writing a text file all at once.

Three layouts, the first that fits: with the status column; without it, figures of this host marked with an
asterisk; one line a figure. Reasons and long remarks stand below the table, so that a reason never widens it.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qslm_edge.errors import OutputError
from qslm_edge.report.figures import UNAVAILABLE, clean
from qslm_edge.report.statistics_view import statistics_line
from qslm_edge.report.summary import (
    MEASURED_HERE,
    condition_lines,
    cuts_line,
    quantiser_line,
    title_line,
    tuning_line,
    verdict_words,
    where_line,
)

__all__ = ["bundle_line", "render_table", "render_text", "verdict_line", "write_text"]

_GAP = "  "
_MARK = " *"
_COLUMNS = ("figure", "before", "after", "change", "constraint", "verdict", "status")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text under a temporary name and rename it.

    Raises:
        OutputError: the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, "utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OutputError("cannot be written", where=path, found=error.strerror) from None


def verdict_line(report: dict[str, Any]) -> str:
    """The line that says it all."""
    return f"Verdict: {verdict_words(report)}"


def bundle_line(report: dict[str, Any]) -> str:
    """Where the bundle is; never broken, so that it can be copied."""
    return f"Bundle: {clean(report['bundle']['path'])}"


def render_text(report: dict[str, Any], columns: int | None = None) -> str:
    """What a run prints at its end: table and remarks, the verdict, and last the place of the bundle.

    Args:
        report: as in report.json.
        columns: width to keep to; None keeps every line whole.
    """
    return f"{render_table(report, columns)}{verdict_line(report)}\n{bundle_line(report)}\n"


def render_table(report: dict[str, Any], columns: int | None = None) -> str:
    """Title, table, and the remarks below it."""
    lines = [*_wrapped(title_line(report), columns), ""]
    table, marked = _table(report["summary"], columns)
    lines += [*table, ""]
    for remark in _remarks(report, marked):
        lines += _wrapped(remark, columns)
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[dict[str, str]], columns: int | None) -> tuple[list[str], bool]:
    """Lines of the table, and whether figures of this host are marked in it."""
    names = [name for name in _COLUMNS if name != "verdict" or any(row["verdict"] for row in rows)]
    full = _grid([names, *([clean(row[name]) for name in names] for row in rows)])
    if columns is None or _width(full) <= columns:
        return full, False
    marks = [_MARK if row["status"] == MEASURED_HERE else "" for row in rows]
    names = names[:-1]
    cells = [[clean(row[name]) for name in names] for row in rows]
    for row, mark in zip(cells, marks, strict=True):
        row[0] += mark
    narrow = _grid([["limit" if name == "constraint" else name for name in names], *cells])
    if _width(narrow) <= columns:
        return narrow, any(marks)
    return [
        line
        for row, mark in zip(rows, marks, strict=True)
        for line in _wrapped(f"{_sentence(row)}{mark}", columns)
    ], any(marks)


def _grid(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        _GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _width(lines: Sequence[str]) -> int:
    return max(len(line) for line in lines)


def _sentence(row: dict[str, str]) -> str:
    values = f"{row['before']} → {row['after']}" if row["before"] else row["after"]
    words = f"{row['figure']}: {values}"
    if row["change"]:
        words += f" ({row['change']})"
    if row["constraint"]:
        words += f", limit {row['constraint']}: {row['verdict']}"
    return clean(words)


def _remarks(report: dict[str, Any], marked: bool) -> list[str]:
    """What the table leaves out and the reader must know."""
    verification = report["verification"]
    lines = [f"{_MARK.strip()} {where_line(report)}" if marked else where_line(report)]
    lines += [
        f"{row['figure']}: {UNAVAILABLE}: {row['note'].removeprefix(f'{UNAVAILABLE}: ')}"
        for row in report["summary"]
        if row["status"] == UNAVAILABLE
    ]
    lines += [
        f"{check['name']}: {check['verdict']}: {check['detail']}"
        for check in verification["checks"]
        if check["verdict"] != "pass"
    ]
    if quantiser := quantiser_line(report):
        lines.append(quantiser)
    if cuts := cuts_line(report):
        lines.append(cuts)
    if tuning := tuning_line(report):
        lines.append(tuning)
    if report["search"] is not None:
        lines.append(statistics_line(report["search"].get("statistics")))
    placement = verification["placement"]
    lines.append(f"Provider: {placement['provider']} ({placement['note']})")
    return [*(clean(line) for line in lines), *condition_lines(report)]


def _wrapped(words: str, columns: int | None) -> list[str]:
    if columns is None:
        return [words]
    return textwrap.wrap(
        words, max(columns, 20), subsequent_indent=_GAP, break_on_hyphens=False, break_long_words=False
    ) or [""]
