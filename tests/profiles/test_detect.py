"""Writing the profile of a machine: whole or not at all, and the same when it is read again."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from qslm_edge.errors import OutputError, ProfileError
from qslm_edge.profiles import read_profile
from qslm_edge.profiles.detect import check_output, draft_and_check, to_toml, write_profile
from tests.helpers.surveys import make_survey


def test_what_is_written_reads_back_to_the_same_profile(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    detected = draft_and_check(make_survey(), path, name='A "quoted" \\ name, über')
    write_profile(detected, path)
    again = read_profile(path)
    assert again == detected.profile
    assert again.digest == detected.profile.digest
    assert again.name == 'A "quoted" \\ name, über'
    assert path.read_text("utf-8").startswith("# Written by `qslm-edge profiles detect`.\n")
    assert list(tmp_path.iterdir()) == [path]


def test_equal_surveys_give_equal_files() -> None:
    first, second = (draft_and_check(make_survey(), Path("x.toml")).draft.data for _ in range(2))
    assert to_toml(first) == to_toml(second)


def test_a_budget_above_the_memory_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"board\.toml: memory\.budget_mib: more than the board has"):
        draft_and_check(make_survey(), tmp_path / "board.toml", budget_bytes=2**40)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text("old", "utf-8")

    def replace(_source: Path, _target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="No space left on device"):
        write_profile(draft_and_check(make_survey(), path), path, replace)
    assert path.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["absent/board.toml", ".", "file/board.toml"])
def test_a_place_that_cannot_be_written_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="the profile cannot be written there"):
        check_output(tmp_path / place, force=True)


def test_a_file_is_replaced_on_request_only(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    check_output(path, force=False)
    path.touch()
    with pytest.raises(OutputError, match="a file stands there already") as caught:
        check_output(path, force=False)
    assert "--force" in caught.value.line()
    check_output(path, force=True)
