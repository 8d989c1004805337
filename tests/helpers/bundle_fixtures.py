"""Fixtures over one tiny bundle of each kind; a conftest that wants them imports them by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qslm_edge.bundle.reader import Bundle, open_bundle
from tests.helpers.bundles import make_bundle

__all__ = ["CopyBundle", "classifier_bundle", "copy_bundle", "lm_bundle"]

CopyBundle = Callable[[Bundle], Path]


@pytest.fixture(scope="session")
def lm_bundle(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A language model at 8 bits; not to be changed."""
    return make_bundle(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="session")
def classifier_bundle(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A classifier at 8 bits; not to be changed."""
    return make_bundle(tmp_path_factory.mktemp("classifier"), "sst2")


@pytest.fixture
def copy_bundle(tmp_path: Path) -> CopyBundle:
    """Copies a bundle to a place where it may be changed."""

    def copy(bundle: Bundle) -> Path:
        target = tmp_path / "copy"
        shutil.copytree(bundle.path, target)
        open_bundle(target)
        return target

    return copy
