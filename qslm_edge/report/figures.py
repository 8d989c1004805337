"""Figures as text: a value with its unit, or the word unavailable with the reason, never a 0 that is none.

A value too small for the digits asked for is written with two significant ones, so that 0.003 does not become
0.00; an exact 0 is written as 0. Text from a report is one line without control characters: a report can name
what it likes.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = [
    "FLAGGED",
    "UNAVAILABLE",
    "clean",
    "count",
    "error",
    "flag_words",
    "megabytes",
    "milliseconds",
    "number",
    "shown",
    "unavailable",
]

UNAVAILABLE = "unavailable"
FLAGGED = "Flagged"
_ABSURD = 1e99
"""Bounds of a single item are this wide: no figure."""


def clean(value: object) -> str:
    """Text as one line, control characters written out."""
    line = " ".join(str(value).split())
    return "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape").decode("ascii") for mark in line
    )


def unavailable(reason: object = None) -> str:
    """The word, and why if that is known."""
    return UNAVAILABLE if not reason else f"{UNAVAILABLE}: {clean(reason)}"


def known(value: Any) -> bool:
    """Whether a value is a number that can be shown."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and abs(value) < _ABSURD
    )


def number(
    value: float | None, digits: int = 2, unit: str = "", *, signed: bool = False, reason: object = None
) -> str:
    """A value with a fixed number of decimals.

    Args:
        value: None, NaN and infinity are unavailable.
        digits: decimals, unless they would round the value to 0.
        unit: written after a space.
        signed: write a plus as well.
        reason: why the value is absent, if it is.
    """
    if value is None or not known(value):
        return unavailable(reason)
    plus = "+" if signed else ""
    if value == 0:
        text = "0"
    else:
        text = f"{value:{plus}.{digits}f}"
        if float(text) == 0:
            text = f"{value:{plus}.2g}"
    return f"{text} {unit}".rstrip()


def error(value: float | None, standard_error: float | None, digits: int = 2) -> str:
    """A signed difference with its standard error, which is left out where there is none."""
    text = number(value, digits, signed=True)
    return text if not known(standard_error) else f"{text} ± {number(standard_error, digits)}"


def flag_words(n: int) -> str:
    """What a verdict says of the flags that its figures stand under."""
    return "" if not n else f", {n} flagged condition{'s' if n > 1 else ''}"


def count(value: float | None, reason: object = None) -> str:
    """A whole number with separators."""
    return unavailable(reason) if value is None or not known(value) else f"{round(value):,}"


def megabytes(value: float | None, digits: int = 2, reason: object = None) -> str:
    """Bytes as MB (10^6)."""
    return number(None if value is None else value / 1e6, digits, "MB", reason=reason)


def milliseconds(value: float | None, digits: int = 2, reason: object = None) -> str:
    """Seconds as ms."""
    return number(None if value is None else 1e3 * value, digits, "ms", reason=reason)


def shown(value: Any) -> str:
    """Any JSON value in a cell: null is "none", a list is joined."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(shown(entry) for entry in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{clean(key)} {shown(entry)}" for key, entry in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else clean(value)
