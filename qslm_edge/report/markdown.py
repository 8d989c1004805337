"""Markdown view of a report. Everything is escaped: a name from outside stays text, in and out of tables."""

from __future__ import annotations

import re
from typing import Any

from qslm_edge.report.document import Block, Bullets, Chart, Code, Table, Text
from qslm_edge.report.sections import build_document

__all__ = ["render_markdown"]

_SPECIAL = re.compile(r"[\\`*\[\]|~]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")


def render_markdown(report: dict[str, Any]) -> str:
    """The report as GitHub-flavoured Markdown, verdict first.

    Args:
        report: as in report.json.
    """
    document = build_document(report)
    lines = [f"# {_escape(document.title)}: {_escape(document.verdict)}", ""]
    for words in document.lead:
        lines += [_escape(words), ""]
    for section in document.sections:
        lines += [f"## {_escape(section.title)}", ""]
        for block in section.blocks:
            lines += _block(block)
    return "\n".join(lines).rstrip("\n") + "\n"


def _escape(words: str) -> str:
    plain = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(lambda match: f"\\{match[0]}", plain)


def _block(block: Block) -> list[str]:
    match block:
        case Text(words):
            return [_escape(words), ""]
        case Bullets(items):
            return [*(f"- {_escape(item)}" for item in items), ""] if items else []
        case Code(lines):
            ticks = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
            fence = "`" * max(3, ticks + 1)
            return [f"{fence}sh", *lines, fence, ""]
        case Table():
            return _table(block)
        case Chart():
            return []  # the tables beside it say the same


def _table(block: Table) -> list[str]:
    rule = ["---:" if i in block.right else "---" for i in range(len(block.columns))]
    rows = [[_escape(cell) for cell in row] for row in block.rows]
    lines = [[_escape(name) for name in block.columns], rule, *rows]
    return [*(f"| {' | '.join(cells)} |" for cells in lines), ""]
