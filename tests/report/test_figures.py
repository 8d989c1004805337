"""Figures as text: no 0 that is none, no unit without a value, no control character."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.report.figures import (
    UNAVAILABLE,
    clean,
    count,
    error,
    megabytes,
    milliseconds,
    number,
    shown,
    unavailable,
)


@pytest.mark.parametrize(
    ("value", "digits", "unit", "text"),
    [
        (22.0298, 2, "", "22.03"),
        (0.0031, 2, "ms", "0.0031 ms"),
        (-4e-7, 3, "", "-4e-07"),
        (0.0, 2, "points", "0 points"),
        (-0.0, 2, "", "0"),
        (None, 2, "mJ", "unavailable"),
        (math.inf, 2, "", "unavailable"),
        (math.nan, 2, "", "unavailable"),
        (2.8e302, 2, "", "unavailable"),
    ],
)
def test_number(value: float | None, digits: int, unit: str, text: str) -> None:
    assert number(value, digits, unit) == text


def test_an_absent_figure_says_why() -> None:
    assert number(None, reason="needs 100 samples,\nthere are 4") == (
        "unavailable: needs 100 samples, there are 4"
    )
    assert milliseconds(None, 2, "no clock") == "unavailable: no clock"
    assert megabytes(None, 2, "no /proc") == "unavailable: no /proc"
    assert count(None, "not counted") == "unavailable: not counted"
    assert unavailable(None) == UNAVAILABLE


def test_signs() -> None:
    assert number(0.8155, 2, signed=True) == "+0.82"
    assert number(-0.0004, 2, signed=True) == "-0.0004"
    assert number(0.0, 2, signed=True) == "0"


def test_a_difference_without_an_error_stands_alone() -> None:
    assert error(0.8155, 0.024) == "+0.82 ± 0.02"
    assert error(0.8155, math.inf) == error(0.8155, None) == "+0.82"


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e98, max_value=1e98), st.integers(0, 6))
def test_a_value_is_shown_as_zero_only_if_it_is(value: float, digits: int) -> None:
    assert (float(number(value, digits)) == 0) == (value == 0)


@given(st.text())
def test_clean_text_is_one_printable_line(words: str) -> None:
    assert clean(words).isprintable()
    assert clean(clean(words)) == clean(words)


def test_control_characters_are_written_out() -> None:
    assert clean("red \x1b[31m\u202eevil\nline") == "red \\x1b[31m\\u202eevil line"


def test_shown_names_what_is_absent() -> None:
    assert shown(None) == shown([]) == shown({}) == "none"
    assert shown({"bits": [8, 4], "early": True}) == "bits 8, 4, early yes"
    assert not re.search(r"\x1b", shown("\x1b[0m"))
