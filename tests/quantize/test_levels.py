"""Levels and settings: their text forms there and back, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.errors import UsageError
from qslm_edge.quantize.levels import (
    FLOAT16,
    FLOAT32,
    GROUP_SIZES,
    PACKED_BITS,
    SIGN,
    Level,
    Setting,
    parse_level,
)

LEVELS = [
    FLOAT32,
    FLOAT16,
    SIGN,
    *(Level(bits, group, level) for bits in PACKED_BITS for group in GROUP_SIZES for level in (0, 4)),
    *(Level(2, group, level, midrise=True) for group in GROUP_SIZES for level in (0, 4)),
    *(Level(bits, simulated=True) for bits in range(2, 17)),
    *(Level(bits, 64, 4, units=units) for bits in PACKED_BITS for units in (1, 768)),
    Level(32, units=256),
    Level(2, 128, 0, midrise=True, units=65_536),
]
ALPHABET = "0123456789gfmq@ ."


@pytest.mark.parametrize("level", LEVELS, ids=str)
def test_every_level_survives_its_text(level: Level) -> None:
    assert parse_level(str(level)) == level


def test_texts_are_distinct() -> None:
    assert len({str(level) for level in LEVELS}) == len(LEVELS)


def test_texts_by_example() -> None:
    assert parse_level("4g64") == Level(4, 64, 4)
    assert parse_level("4g64f") == Level(4, 64, 0)
    assert parse_level("2g64m") == Level(2, 64, 4, midrise=True)
    assert parse_level(" 16 ") == FLOAT16
    assert parse_level("q6") == Level(6, simulated=True)
    assert parse_level("4g64@768") == Level(4, 64, 4, units=768)
    assert parse_level("4g64@768").whole == parse_level("4g64")


@given(text=st.text(ALPHABET, max_size=7) | st.text(max_size=5))
def test_any_text_is_a_level_or_a_usage_error(text: str) -> None:
    try:
        level = parse_level(text)
    except UsageError as error:
        assert "not a precision level" in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert str(level) == text.strip()


@pytest.mark.parametrize(
    "text",
    ["", "8", "4", "2", "3g64", "4g16", "4g256", "32g64", "16f", "1g32", "4g64F", "4 g64", "q1", "q17", "q08",
     "q0", "q", "64", "-4g64", "4g64ff", "fp16", "4g64m", "8g32m", "2m", "2g64fm", "2g64mm"],
)  # fmt: skip
def test_near_misses(text: str) -> None:
    with pytest.raises(UsageError, match="4g64"):
        parse_level(text)


def test_kinds_of_levels() -> None:
    assert [level.is_float for level in (FLOAT32, FLOAT16, SIGN, Level(8, 64))] == [True, True, False, False]
    assert [level.is_packed for level in (FLOAT32, SIGN, Level(2, 32), Level(8, 64))] == [
        False,
        False,
        True,
        True,
    ]
    for bits in (16, 8, 4):
        assert not Level(bits, simulated=True).is_float
        assert not Level(bits, simulated=True).is_packed


def test_settings_round_trip_in_order() -> None:
    setting = Setting((("emb", SIGN), ("a", Level(4, 64, 4)), ("head", FLOAT16), ("b", Level(4, 64, 0))))
    assert setting.to_dict() == {"emb": "1", "a": "4g64", "head": "16", "b": "4g64f"}
    assert Setting.from_dict(setting.to_dict()) == setting
    assert list(Setting.from_dict(setting.to_dict()).to_dict()) == ["emb", "a", "head", "b"]
    with pytest.raises(UsageError):
        Setting.from_dict({"emb": "5"})


def test_settings_change_by_name_only() -> None:
    setting = Setting.uniform(("a", "b", "c"), Level(8, 64, 4))
    changed = setting.with_levels({"b": FLOAT32, "nowhere": FLOAT16})
    assert [str(changed[name]) for name in "abc"] == ["8g64", "32", "8g64"]
    assert str(setting["b"]) == "8g64"
    assert len(changed.levels) == 3
    with pytest.raises(KeyError, match="nowhere"):
        changed["nowhere"]
    assert hash(setting) == hash(Setting.uniform(("a", "b", "c"), Level(8, 64, 4)))


def test_descriptions_count_modules_from_wide_to_narrow() -> None:
    assert Setting.uniform("ab", Level(4, 64, 4)).describe() == "4g64"
    rows = ("emb", Level(4, 64))
    assert Setting((rows, ("head", Level(4, 64, 4)))).describe() == "4g64"
    assert Setting((rows, ("head", Level(4, 64)))).describe() == "4g64f"
    assert Setting((("emb", Level(8, 64)), ("head", Level(4, 64, 4)))).describe() == "1 × 8g64, 1 × 4g64"
    setting = Setting.from_dict({"a": "2g64", "b": "8g64", "c": "2g64", "d": "32"})
    assert setting.describe() == "1 × 32, 1 × 8g64, 2 × 2g64"
