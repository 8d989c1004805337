"""Byte sizes as users write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.errors import UsageError
from qslm_edge.units import parse_bytes

FACTORS = {
    "": 1,
    "B": 1,
    "kB": 1000,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 1024,
    "MiB": 2**20,
    "GiB": 2**30,
}


@given(
    number=st.integers(1, 10**8),
    unit=st.sampled_from(sorted(FACTORS)),
    space=st.sampled_from(["", " ", "  "]),
    case=st.sampled_from([str, str.lower, str.upper]),
)
def test_whole_numbers_are_exact(number: int, unit: str, space: str, case: type[str]) -> None:
    assert parse_bytes(f"{space}{number}{space}{case(unit)}{space}", "--x") == number * FACTORS[unit]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("400MB", 400_000_000),
        ("1.5 GiB", 1_610_612_736),
        ("0.1MB", 100_000),
        ("0.5kB", 500),
        ("9007199254740993", 9007199254740993),
        ("0.3GB", 300_000_000),
        ("000012kB", 12_000),
    ],
)
def test_sizes_by_example(text: str, expected: int) -> None:
    size = parse_bytes(text, "--memory-budget")
    assert (size, type(size)) == (expected, int)


@pytest.mark.parametrize(
    "text",
    ["", " ", "MB", "-1MB", "+1MB", "0", "0.0GB", "0.1B", "0.0001kB", "1e3", "1,5GB", "1.MB", ".5MB", "1 TB",
     "1 M", "1 M B", "nan", "inf", "0x10", "1_000", "四MB", "٣MB", "²", "1MB1", "1\n\n2", "9" * 400, "9" * 31,
     "1000000000001 MB"],
)  # fmt: skip
def test_what_is_no_size_names_the_flag(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_bytes(text, "--memory-budget")
    assert str(caught.value).startswith("--memory-budget: not a size; found ")
    assert "MiB" in str(caught.value)


@given(text=st.text(max_size=8) | st.from_regex(r"\A[0-9.]{1,9} ?[kMGiB]{0,3}\Z"))
def test_any_text_is_a_size_or_a_usage_error(text: str) -> None:
    try:
        size = parse_bytes(text, "--x")
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert size >= 1
