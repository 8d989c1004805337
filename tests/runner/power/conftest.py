"""Copies of the trees of boards, shared by the tests of the sources."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.power_trees import FIXTURES


@pytest.fixture
def board(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a board's tree, to damage it."""
    return lambda name: Path(shutil.copytree(FIXTURES / name, tmp_path / name))
