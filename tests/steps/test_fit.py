"""Whether a model fits a board: what each level needs, the verdict, and what would help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qslm_edge.errors import CheckpointError, UsageError
from qslm_edge.profiles import load_profile
from qslm_edge.quantize.accounting import predict_memory, weight_bytes
from qslm_edge.quantize.levels import parse_level
from qslm_edge.search.space import LevelMap
from qslm_edge.spikegpt import build_hierarchy, load_checkpoint
from qslm_edge.steps.fit import fit_model

MB = 10**6
ORIN, PI, CARD = "jetson-orin-nano", "raspberry-pi-5-8gb", "h100"
Found = dict[str, Any]


def fit(model: Path | None, board: str = ORIN, **options: Any) -> Found:
    return fit_model(None if model is None else str(model), load_profile(board), **options)


def level(found: Found, name: str) -> Found:
    (row,) = (row for row in found["levels"] if row["level"] == name)
    return dict(row)


@pytest.fixture(scope="module")
def smallest(tiny_model: Path) -> int:
    """Bytes that the tiny model needs at least on the Orin."""
    return min(int(row["peak_bytes"]) for row in fit(tiny_model)["levels"] if row["verdict"] == "fits")


def test_every_width_is_compared_with_the_budget(tiny_model: Path) -> None:
    found = fit(tiny_model)
    assert (found["verdict"], found["exit_code"], found["would_fit"]) == ("fits", 0, [])
    assert [row["level"] for row in found["levels"]] == ["32", "16", "8g64", "4g32", "4g64", "4g128", "2g64"]
    budget = found["profile"]["budget_bytes"]
    assert (budget, found["profile"]["budget_source"]) == (2861 * 2**20, "profile")
    for row in found["levels"]:
        assert row["margin_bytes"] == budget - row["peak_bytes"]
        assert row["peak_bytes"] == max(row["load_peak_bytes"], row["steady_bytes"])
        assert row["overhead_bytes"] == row["peak_bytes"] - row["weight_bytes"]
    two = level(found, "2g64")
    assert (two["verdict"], two["onnxruntime_min"]) == ("not run", "1.28.0")
    assert "runs it from onnxruntime 1.28.0, the board has 1.23.2" in two["reason"]
    assert found["model"]["state_bytes_per_stream"] == 4 * 7 * 2 * 64
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_figures_are_those_of_the_search(tiny_model: Path) -> None:
    config = load_checkpoint(tiny_model).config
    hierarchy = build_hierarchy(config, "lm")
    setting = LevelMap(config).setting(hierarchy, parse_level("4g32"))
    memory = predict_memory(hierarchy, setting)
    row = level(fit(tiny_model, levels=("4g32",)), "4g32")
    assert row["weight_bytes"] == weight_bytes(hierarchy, setting)
    assert (row["load_peak_bytes"], row["steady_bytes"]) == (memory.load_peak_bytes, memory.steady_bytes)


def test_one_byte_decides(tiny_model: Path, smallest: int) -> None:
    enough, short = fit(tiny_model, budget_bytes=smallest), fit(tiny_model, budget_bytes=smallest - 1)
    assert (enough["verdict"], enough["exit_code"]) == ("fits", 0)
    assert (short["verdict"], short["exit_code"]) == ("does not fit", 1)
    assert short["profile"]["budget_source"] == "--memory-budget"
    assert any(
        line.startswith(f"a budget of {-(-smallest // MB)} MB (--memory-budget)")
        for line in short["would_fit"]
    )
    assert (
        fit(tiny_model, budget_bytes=-(-smallest // MB) * MB)["verdict"] == "fits"
    )  # what is told is enough


def test_a_narrower_width_is_told(tiny_model: Path) -> None:
    wide = fit(tiny_model, PI, levels=("32",))
    budget = level(wide, "32")["peak_bytes"] - 1
    found = fit(tiny_model, PI, levels=("32",), budget_bytes=budget)
    assert found["exit_code"] == 1
    assert any(line.startswith("--levels 2g64, which needs ") for line in found["would_fit"])


def test_a_width_that_another_runtime_unlocks_is_told() -> None:
    needs = level(fit(None), "2g64")["peak_bytes"]
    found = fit(None, budget_bytes=needs)
    assert found["exit_code"] == 1
    (line,) = (line for line in found["would_fit"] if line.startswith("2g64"))
    assert "runs it from onnxruntime 1.28.0" in line


def test_larger_boards_are_told(tiny_model: Path) -> None:
    found = fit(tiny_model, budget_bytes=10 * MB)
    (line,) = (line for line in found["would_fit"] if line.startswith("another board: "))
    assert "raspberry-pi-zero-2w" in line  # the smallest that holds it comes first
    assert "h100" not in line


def test_memory_of_a_card_is_not_known(tiny_model: Path) -> None:
    found = fit(tiny_model, CARD)
    assert (found["verdict"], found["exit_code"]) == ("unknown", 3)
    assert level(found, "8g64f")["reason"] == "no rule predicts what a GPU takes beyond the weights"
    # but weights that are larger than it do not fit
    small = fit(tiny_model, CARD, budget_bytes=1000)
    assert (small["verdict"], small["exit_code"], small["would_fit"]) == ("does not fit", 1, [])


def test_a_level_that_the_board_does_not_run_is_told_and_not_counted(tiny_model: Path) -> None:
    found = fit(tiny_model, levels=("2",))
    assert (found["verdict"], found["exit_code"]) == ("does not fit", 1)
    assert level(found, "2g64")["verdict"] == "not run"


def test_the_head_of_the_task_counts(tiny_model: Path) -> None:
    lm, classifier = fit(tiny_model), fit(tiny_model, task="sst2")
    assert (lm["model"]["head"], classifier["model"]["head"]) == ("lm", "classifier")
    assert level(lm, "32")["weight_bytes"] > level(classifier, "32")["weight_bytes"]


def test_values_are_not_looked_at(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        pytest.fail("a value was read")

    monkeypatch.setattr(torch, "isfinite", fail)
    monkeypatch.setattr(torch.Tensor, "to", fail)
    assert fit(tiny_model)["exit_code"] == 0


def test_what_cannot_be_used_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        fit(tmp_path / "absent.pth")
    with pytest.raises(UsageError):
        fit(tiny_model, levels=("5",))
    with pytest.raises(UsageError):
        fit(tiny_model, task="chess")


def test_the_reference_model_fits_everywhere() -> None:
    assert fit(None)["verdict"] == "fits"
