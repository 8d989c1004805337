"""Shipped profiles with changes, and the line that a wrong one gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from qslm_edge import device_profiles
from qslm_edge.errors import ProfileError
from qslm_edge.profiles import read_profile

__all__ = ["H100", "PI", "changed", "line_of", "write"]

PI = device_profiles.path("raspberry-pi-5-8gb").read_text(encoding="utf-8")
H100 = device_profiles.path("h100").read_text(encoding="utf-8")


def write(folder: Path, text: str) -> Path:
    path = folder / "my-board.toml"
    path.write_text(text, encoding="utf-8")
    return path


def changed(folder: Path, old: str, new: str, text: str = PI) -> Path:
    """Write a shipped profile with one change."""
    assert old in text
    return write(folder, text.replace(old, new, 1))


def line_of(path: Path) -> str:
    """Return the error line of a file, without the folder."""
    with pytest.raises(ProfileError) as caught:
        read_profile(path)
    line = str(caught.value)
    assert "\n" not in line
    return line.replace(f"{path.parent}/", "")
