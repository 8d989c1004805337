"""What a report says, as headings, text, tables and charts, before it becomes Markdown or HTML.

The sections are built once, so that no view can say something that another does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from qslm_edge.report.figures import clean

__all__ = ["Block", "Bullets", "Chart", "Code", "Document", "Section", "Table", "Text", "table", "text"]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of short lines."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Commands to copy, line by line."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        columns: headings.
        rows: cells, as many a row as there are columns.
        right: numbers of the columns aligned to the right.
        folded: HTML shows it only when asked; the chart before it says the same.
        cards: on a phone HTML shows each row as a card, since the table is too wide to be read there.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()
    folded: bool = False
    cards: bool = False


@dataclass(frozen=True)
class Chart:
    """A drawing that HTML alone shows; `caption` says what is drawn."""

    name: Literal["trials", "sensitivity"]
    caption: str


Block = Text | Bullets | Code | Table | Chart


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        title: model, board and task.
        verdict: pass, fail or inconclusive, and whether that was a rehearsal.
        lead: what the verdict rests on; stands directly below it.
        sections: the rest, the most asked for first.
    """

    title: str
    verdict: str
    lead: tuple[str, ...]
    sections: tuple[Section, ...]


def text(words: str) -> Text:
    """A paragraph of clean text."""
    return Text(clean(words))


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Iterable[int] = (),
    folded: bool = False,
    cards: bool = False,
) -> Table:
    """A table of clean text."""
    cells = tuple(tuple(clean(cell) for cell in row) for row in rows)
    return Table(tuple(columns), cells, frozenset(right), folded, cards)
