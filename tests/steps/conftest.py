"""One tiny bundle of each kind for all tests of this folder, and plans for a tiny model with data of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qslm_edge.recipe import make_recipe
from qslm_edge.steps.plan import Plan
from qslm_edge.steps.prepare import prepare
from tests.helpers.bundle_fixtures import classifier_bundle, copy_bundle, lm_bundle
from tests.helpers.bundles import MakePlan, cache
from tests.helpers.directory import make_text, write_model, write_sentences

__all__ = ["cache", "classifier_bundle", "copy_bundle", "lm_bundle"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with data of its own."""
    folder = tmp_path_factory.mktemp("own")
    write_model(folder / "model")
    (folder / "search.txt").write_text(make_text(700, seed=1), "utf-8")
    (folder / "report.txt").write_text(make_text(500, seed=2), "utf-8")
    write_sentences(folder / "search.tsv", 40, seed=3)
    write_sentences(folder / "report.tsv", 24, seed=4)
    return folder


@pytest.fixture(scope="module")
def plan(folder: Path) -> MakePlan:
    def make(task: str = "wikitext2", **choices: Any) -> Plan:
        ending = "txt" if task == "wikitext2" else "tsv"
        values = {
            "profile": "x86-laptop",
            "task": task,
            "model": str(folder / "model"),
            "search_data": str(folder / f"search.{ending}"),
            "report_data": str(folder / f"report.{ending}"),
        }
        return prepare(make_recipe(**(values | choices)), device="cpu")

    return make
