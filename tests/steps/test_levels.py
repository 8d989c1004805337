"""The levels of a search: those of the board, those that a user wrote, and what neither may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from qslm_edge.errors import UsageError
from qslm_edge.profiles import load_profile
from qslm_edge.quantize.levels import Level
from qslm_edge.steps.levels import default_levels, listed_levels
from tests.helpers.bundles import MakePlan


def texts(levels: tuple[Level, ...]) -> list[str]:
    return [str(level) for level in levels]


def board(tmp_path: Path, *changes: tuple[str, str]) -> str:
    """The x86 profile with some text replaced, as a file."""
    text = (Path(__file__).resolve().parents[2] / "device_profiles" / "x86-laptop.toml").read_text("utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "board.toml"
    path.write_text(text, "utf-8")
    return str(path)


def test_default_levels_are_what_the_runtime_runs() -> None:
    assert texts(default_levels(load_profile("x86-laptop"))) == [
        "16",
        "8g64",
        "4g32",
        "4g64",
        "4g128",
        "2g64m",
    ]
    assert texts(default_levels(load_profile("x86-laptop"), cut=True))[-2:] == ["2g64m", "2g128m"]
    assert texts(default_levels(load_profile("x86-laptop"), 32)) == ["16", "8g32", "4g32", "2g32m"]


def test_default_levels_leave_out_what_the_stock_runtime_lacks(tmp_path: Path) -> None:
    old = load_profile(board(tmp_path, ('onnxruntime = "1.31.1"', 'onnxruntime = "1.23.2"')))
    assert texts(default_levels(old)) == ["16", "8g64", "4g32", "4g64", "4g128"]


def test_levels_carry_the_accuracy_level_of_the_board() -> None:
    profile = load_profile("x86-laptop")
    widths = [w.model_copy(update={"accuracy_level": 0}) if w.bits == 4 else w for w in profile.widths]
    exact = profile.model_copy(update={"widths": tuple(widths)})
    assert texts(default_levels(exact)) == ["16", "8g64", "4g32f", "4g64f", "4g128f", "2g64m"]
    assert texts(listed_levels(["8", "4g64", "4g64f"], exact)) == ["8g64", "4g64f"]


def test_levels_of_a_board_that_plans_for_cuda_keep_float_activations() -> None:
    card = load_profile("h100")
    assert texts(default_levels(card)) == ["16", "8g64f", "4g32f", "4g64f", "4g128f", "2g64mf"]
    assert texts(listed_levels(["16", "8", "8g64f", "4g32", "2g64m"], card)) == [
        "16",
        "8g64f",
        "4g32f",
        "2g64mf",
    ]
    # what another runtime on the same board would do is no matter of this one's
    assert "f" not in "".join(texts(default_levels(load_profile("jetson-orin-nano"))))


def test_float32_is_searched_only_where_nothing_else_runs() -> None:
    profile = load_profile("x86-laptop")
    only = profile.model_copy(update={"widths": tuple(w for w in profile.widths if w.bits == 32)})
    assert texts(default_levels(only)) == ["32"]


def test_a_group_size_that_the_runtime_lacks_is_refused(tmp_path: Path) -> None:
    fewer = load_profile(board(tmp_path, ("block_sizes = [32, 64, 128]", "block_sizes = [32, 64]")))
    with pytest.raises(UsageError, match="--group-size: .* at 8 bits; found 128; allowed: 32, 64"):
        default_levels(fewer, 128)
    assert texts(default_levels(fewer)) == ["16", "8g64", "4g32", "4g64", "2g64m"]


@pytest.mark.parametrize(
    ("given", "group", "expected"),
    [
        (["8", "4", "2"], None, ["8g64", "4g64", "2g64"]),
        (["2", " 8 ", "4"], 128, ["8g128", "4g128", "2g128"]),
        (["4g32", "16", "4g32"], 128, ["16", "4g32"]),
        (["32"], None, ["32"]),
        (["4g64f"], None, ["4g64f"]),
    ],
)
def test_listed_levels(given: list[str], group: int | None, expected: list[str]) -> None:
    assert texts(listed_levels(given, load_profile("x86-laptop"), group)) == expected
    assert texts(listed_levels(given, None, group)) == expected


@pytest.mark.parametrize(
    "text", ["", "1", "q8", "5", "64", "8g", "4g16", "-8", "²", "８", "8.0", "4 g64", "fp16", "int8"]
)
def test_what_is_no_level_to_search(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        listed_levels([text], None)
    assert "4g64" in str(caught.value) or "4g128" in str(caught.value)
    assert str(caught.value).startswith("--levels: ")


def test_levels_that_the_board_does_not_run(tmp_path: Path) -> None:
    profile = load_profile(
        board(
            tmp_path,
            ('onnxruntime = "1.31.1"', 'onnxruntime = "1.23.2"'),
            ("block_sizes = [32, 64, 128]", "block_sizes = [32, 64]"),
        )
    )
    with pytest.raises(UsageError, match="cannot use 2-bit weights.*1.29.0"):
        listed_levels(["2"], profile)
    with pytest.raises(UsageError, match="--levels 4g128: .*found 128; allowed: 32, 64"):
        listed_levels(["4g128"], profile)
    with pytest.raises(UsageError, match="--levels 8g64f: float activations"):
        listed_levels(["8g64f"], profile)
    with pytest.raises(UsageError, match="no precision levels"):
        listed_levels([], profile)


def test_levels_of_the_papers_method(plan: MakePlan) -> None:
    made = plan(method="qslm").options
    assert texts(made.levels) == ["q16", "q14", "q12", "q10", "q8", "q6", "q4"]
    assert (made.mu, made.method) == (1.0, "qslm")
    assert plan(method="qslm", mu=2.5).options.mu == 2.5
    assert texts(plan(method="qslm", levels=("4", "8", "4", " 6 ")).options.levels) == ["q8", "q6", "q4"]
    for wrong in ("1", "17", "8g64", "q8", "²", "", "eight"):
        with pytest.raises(UsageError, match="not a simulated width.*2 to 16"):
            plan(method="qslm", levels=(wrong,))
