"""What a plan holds, its items kept apart, and what its scores depend on."""

from __future__ import annotations

from pathlib import Path

import pytest

from qslm_edge.errors import DataError
from qslm_edge.search.reference import model_digest
from tests.helpers.bundles import MakePlan


def test_a_plan_holds_what_was_loaded(plan: MakePlan, folder: Path) -> None:
    made = plan()
    assert made.model.config.n_layer == 2
    assert made.model.device.type == "cpu"
    assert made.hierarchy.head == "lm"
    assert plan("sst2").hierarchy.head == "classifier"
    assert made.model_name == "model"
    assert made.digest == model_digest(made.model)
    assert made.tokenizer.raw == (folder / "model" / "tokenizer.json").read_bytes()
    assert made.store().hierarchy is made.hierarchy


def test_items_of_both_splits_come_from_their_own_data(plan: MakePlan) -> None:
    made = plan(search_windows=5, report_windows=3)
    search, report = made.items("search"), made.items("report")
    assert (search.split, search.n_items, report.split, report.n_items) == ("search", 5, "report", 3)
    assert made.window == 32
    assert set(search.lengths.tolist()) == {32}
    assert plan(window=24).items("search").lengths.max() == 24
    assert search.digest != report.digest
    assert made.items("search").digest == search.digest


def test_without_a_number_the_search_takes_its_default_and_the_report_everything(plan: MakePlan) -> None:
    made = plan(window=8)
    assert made.items("search").n_items == 48
    assert made.items("report").n_items > 60
    sentences = plan("sst2")
    assert (sentences.items("search").n_items, sentences.items("report").n_items) == (40, 24)


def test_fingerprints_name_everything_a_score_depends_on(plan: MakePlan, folder: Path) -> None:
    made = plan()
    parts = made.fingerprint_parts(made.items("search"))
    assert set(parts) == {
        "model",
        "items",
        "head",
        "quantiser",
        "quantiser_options",
        "calibration",
        "version",
        "device",
    }
    changed = [
        plan(window=8).fingerprint_parts(plan(window=8).items("search")),
        plan(search_windows=4).fingerprint_parts(plan(search_windows=4).items("search")),
        plan(search_data=str(folder / "report.txt"), report_data=None).fingerprint_parts(
            plan(search_data=str(folder / "report.txt"), report_data=None).items("search")
        ),
        plan(embedding="binary").fingerprint_parts(made.items("search")),
    ]
    assert all(other != parts for other in changed)
    same = plan(profile="raspberry-pi-5-8gb", max_degradation=9.0, mu=1.0)
    assert same.fingerprint_parts(same.items("search")) == parts


def test_data_that_is_missing_is_refused_when_it_is_read(plan: MakePlan) -> None:
    made = plan(search_data="no/such/file.txt")
    with pytest.raises(DataError, match="file.txt"):
        made.items("search")
