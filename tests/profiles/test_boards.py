"""The page of all boards is made from the profiles, and stays equal to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from qslm_edge.errors import UsageError
from qslm_edge.profiles import Profile, list_profiles, load_profile
from qslm_edge.profiles.boards import BEGIN, END, fill, main, tables

PAGE = f"# Boards\n\n{BEGIN}\nold\n{END}\n\nafter\n"


def test_the_page_in_the_repository_is_the_one_that_the_profiles_make(root: Path) -> None:
    page = (root / "docs" / "boards.md").read_text(encoding="utf-8")
    assert page == fill(page, list_profiles()), "run: python -m qslm_edge.profiles.boards docs/boards.md"


def test_every_board_has_a_row_and_a_line() -> None:
    text = tables(list_profiles())
    for profile in list_profiles():
        assert text.count(f"\n| `{profile.id}` |") == 1
        assert text.count(f"* `{profile.id}`: {profile.name}") == 1


def test_a_row_ends_each_cell_in_its_worst_grade() -> None:
    row = next(
        line for line in tables(list_profiles()).splitlines() if line.startswith("| `jetson-orin-nano-4gb` ")
    )
    assert row == (
        "| `jetson-orin-nano-4gb` | 3620 MiB U | 34, super 51 U | 1144 MiB C | arm64-dotprod S | 32 16 8 4 M "
        "| CPU C | ina3221 S | 7W, 10W, 25W, MAXN_SUPER U |"
    )


def test_what_a_board_needs_and_what_is_open_stands_below_the_table() -> None:
    line = next(line for line in tables(list_profiles()).splitlines() if line.startswith("* `jetson-nano`"))
    assert "Python 3.11, onnxruntime 1.28.0. **Install first:** an own Python 3.11" in line
    assert line.endswith(" Unconfirmed: match.")


def test_a_fact_that_a_profile_does_not_state_is_a_dash() -> None:
    rows = [line for line in tables([load_profile("x86-laptop")]).splitlines() if line.startswith("| `x86")]
    assert rows[0].split(" | ")[2] == "-"


def test_a_board_with_nothing_open_says_so() -> None:
    data = load_profile("h100").model_dump(mode="json", by_alias=True)
    data["grades"] = {"*": "measured"}
    assert tables([Profile.model_validate(data)]).endswith("Nothing unconfirmed.")


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    page = fill(PAGE, list_profiles())
    assert page.startswith(f"# Boards\n\n{BEGIN}\n\n### NVIDIA Jetson\n")
    assert page.endswith(f"\n\n{END}\n\nafter\n")
    assert "\nold\n" not in page
    assert fill(page, list_profiles()) == page


@pytest.mark.parametrize("page", ["", BEGIN, f"{END}{BEGIN}", PAGE + PAGE, f"{PAGE}{END}"])
def test_a_page_without_its_marks_is_refused(page: str) -> None:
    with pytest.raises(UsageError, match="the page lacks its marks"):
        fill(page, list_profiles())


def test_the_command_writes_the_page_or_says_why_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "boards.md"
    path.write_text(PAGE, encoding="utf-8")
    assert main([str(path)]) == 0
    assert path.read_text(encoding="utf-8") == fill(PAGE, list_profiles())
    path.write_text("no marks", encoding="utf-8")
    assert main([str(path)]) == 2
    assert path.read_text(encoding="utf-8") == "no marks"
    assert main([str(tmp_path / "none.md")]) == 2
    assert main([]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "error", "usage"]
    assert [each.name for each in tmp_path.iterdir()] == ["boards.md"]
