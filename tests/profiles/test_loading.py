"""Profiles by name and by path, and the shipped set as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from qslm_edge import device_profiles
from qslm_edge.errors import ProfileError
from qslm_edge.profiles import list_profiles, load_profile, loading
from tests.helpers.profiles import H100, PI, line_of, write


def test_a_name_is_a_board_and_a_path_is_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, PI)
    assert load_profile(str(path)) == load_profile("raspberry-pi-5-8gb")


def test_a_toml_name_without_a_folder_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, PI)
    monkeypatch.chdir(tmp_path)
    assert load_profile("my-board.toml").id == "raspberry-pi-5-8gb"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("raspbery-pi-5", "raspberry-pi-5"),
        ("H100", "h100"),
        ("jetson-orinn", "jetson-orin"),
        ("x86_laptop", "x86-laptop"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile(name)
    assert f"did you mean '{near}'" in str(caught.value).lower()
    assert "`qslm-edge profiles list`" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("orin-nx", "'orin-nx-8gb' or 'orin-nx-16gb'"),
        ("Jetson_Orin_NX", "'jetson-orin-nx-8gb' or 'jetson-orin-nx-16gb'"),
        ("rpi5", None),
    ],
)
def test_a_board_without_its_memory_is_asked_back(name: str, sizes: str | None) -> None:
    if sizes is None:
        assert load_profile(name).id == "raspberry-pi-5-8gb"
        return
    with pytest.raises(ProfileError) as caught:
        load_profile(name)
    assert f"did you mean {sizes}?" in str(caught.value).lower()


@pytest.mark.parametrize("name", ["", "zzzz", "\x1b[31m"])
def test_a_hopeless_name_suggests_nothing(name: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile(name)
    assert "did you mean" not in str(caught.value).lower()
    assert "\x1b" not in str(caught.value)


def test_missing_file_folder_and_bad_bytes(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no such profile file"):
        load_profile(str(tmp_path / "none.toml"))
    with pytest.raises(ProfileError, match="cannot read the profile"):
        load_profile(f"{tmp_path}/")
    with pytest.raises(ProfileError, match="cannot read the profile"):
        load_profile("a\0b.toml")
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"name = \xff")
    with pytest.raises(ProfileError, match="not UTF-8 text; found byte 0xff at 7"):
        load_profile(str(bad))


def test_a_file_above_the_limit_is_not_parsed(tmp_path: Path) -> None:
    assert "too large for a profile" in line_of(write(tmp_path, PI + "#" * loading.MAX_FILE_BYTES))


def test_two_shipped_profiles_must_not_share_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ship(
        tmp_path,
        monkeypatch,
        {
            "raspberry-pi-5-8gb": PI,
            "h100": H100.replace('"h100-sxm"', '"raspberry-pi-5-8gb"', 1),
        },
    )
    with pytest.raises(ProfileError, match="two shipped profiles share a name"):
        list_profiles()


def test_a_shipped_id_is_the_name_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ship(tmp_path, monkeypatch, {"another": PI})
    with pytest.raises(ProfileError, match="the id is not the name of the file"):
        list_profiles()


def ship(folder: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    """Make these files the shipped set."""
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(device_profiles, "names", lambda: sorted(files))
    monkeypatch.setattr(device_profiles, "path", lambda name: folder / f"{name}.toml")
