"""From a recipe to a plan: limits in force, what comes with the model, and early refusals."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from qslm_edge import reference
from qslm_edge.errors import CheckpointError, ProfileError, TokenizerError, UsageError
from qslm_edge.profiles import load_profile
from qslm_edge.recipe import make_recipe
from qslm_edge.steps.prepare import TUNE_TOKENS, _tuning, prepare
from tests.helpers.bundles import MakePlan
from tests.helpers.directory import make_text, write_model

MIB = 2**20

# Limits.


def test_limits_come_from_the_recipe_then_the_task_and_the_board(plan: MakePlan) -> None:
    budget = load_profile("x86-laptop").memory.budget_mib * MIB
    made = plan().constraints
    assert (made.max_degradation, made.weights_budget_bytes, made.memory_budget_bytes) == (1.0, None, budget)
    assert plan("sst2").constraints.max_degradation == 2.0
    chosen = plan(max_degradation=0.0, weights_budget_bytes=5000, memory_budget_bytes=10**9).constraints
    assert (chosen.max_degradation, chosen.weights_budget_bytes) == (0.0, 5000)
    assert chosen.memory_budget_bytes == 10**9
    assert (chosen.max_latency_s, chosen.min_decode_tokens_per_s, chosen.max_energy_j_per_token) == (
        None,
    ) * 3
    own = plan(max_latency_s=0.02, min_decode_tokens_per_s=50, max_energy_j_per_token=0.005).constraints
    assert (own.max_latency_s, own.min_decode_tokens_per_s, own.max_energy_j_per_token) == (0.02, 50.0, 0.005)


def test_a_gpus_own_memory_is_no_limit_of_the_process_but_a_named_one_is(plan: MakePlan) -> None:
    assert plan(profile="h100").constraints.memory_budget_bytes is None
    assert plan(profile="h100", memory_budget_bytes=10**9).constraints.memory_budget_bytes == 10**9


def test_selection_and_early_decisions(plan: MakePlan) -> None:
    made = plan().options
    assert (made.mu, made.early, made.method) == (None, True, "budgeted")
    assert plan(early=False).options.early is False
    assert plan(mu=0.0).options.mu == 0.0


# What comes with the model.


def test_the_reference_is_the_default() -> None:
    made = prepare(make_recipe(profile="x86-laptop"), device="cpu")
    assert made.model_name == reference.MODEL_NAME
    assert made.model.config.vocab_size == 4096
    assert made.window == 512


def test_the_tokenizer_of_the_recipe_wins(plan: MakePlan, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "mine.json"
    other.write_bytes((folder / "model" / "tokenizer.json").read_bytes() + b"\n")
    assert plan(tokenizer=str(other)).tokenizer.raw == other.read_bytes()


def test_a_bare_file_takes_the_tokenizer_beside_it(plan: MakePlan, folder: Path, tmp_path: Path) -> None:
    model = plan().model
    torch.save(model.tensors, tmp_path / "m.pth")
    with pytest.raises(TokenizerError, match="the model has no tokenizer.*--tokenizer"):
        plan(model=str(tmp_path / "m.pth"), embedding="dense")
    (tmp_path / "tokenizer.json").write_bytes((folder / "model" / "tokenizer.json").read_bytes())
    assert plan(model=str(tmp_path / "m.pth"), embedding="dense").model_name == "m.pth"


# Refusals.


def test_the_same_data_may_not_steer_and_judge(plan: MakePlan, folder: Path, tmp_path: Path) -> None:
    data = folder / "search.txt"
    link = tmp_path / "link.txt"
    link.symlink_to(data)
    for other in (data, link, folder / "model" / ".." / "search.txt", Path(os.path.relpath(data))):
        with pytest.raises(UsageError, match="the same data would steer the search and judge it"):
            plan(search_data=str(data), report_data=str(other))
    plan(search_data=str(data), report_data=None)


@pytest.mark.parametrize(
    ("choices", "error"),
    [
        ({"profile": "no-such-board"}, ProfileError),
        ({"task": "imagenet"}, UsageError),
        ({"model": "no/such/model"}, CheckpointError),
        ({"tokenizer": "no/such/tokenizer.json"}, TokenizerError),
        ({"levels": ("3",)}, UsageError),
    ],
)
def test_what_is_wrong_is_refused_by_its_kind(
    plan: MakePlan, choices: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        plan(**choices)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_model(plan: MakePlan) -> None:
    with pytest.raises(TokenizerError, match="ids that the model lacks"):
        plan(tokenizer=str(reference.model_path() / "tokenizer.json"))


def test_a_model_without_the_head_of_the_task(plan: MakePlan, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "lm", heads=("lm",))
    with pytest.raises(UsageError, match="no classifier head"):
        plan("sst2", model=str(folder))


# Tuning.


def test_a_gpu_tunes_on_more_tokens_unless_told() -> None:
    def tokens(device: str, **choices: Any) -> int:
        found = _tuning(make_recipe(profile="x86-cpu", tune=True, **choices), device)
        assert found is not None
        return found.tokens

    assert tokens("cpu") == TUNE_TOKENS["cpu"] < tokens("cuda") == tokens("cuda:1") == TUNE_TOKENS["cuda"]
    assert tokens("cuda", tune_tokens=5) == tokens("cpu", tune_tokens=5) == 5


def test_predictions_of_a_tuned_search_are_those_that_tuning_leaves(plan: MakePlan) -> None:
    tuned = plan(tune=True, quantiser="rtn", calibration_data="embedded")
    assert tuned.options.remains["ffn"] < 1 < tuned.options.remains["att"]
    assert plan().options.remains == {}


def test_tuning_without_training_data_is_refused_before_any_work(plan: MakePlan, folder: Path) -> None:
    with pytest.raises(UsageError, match="--calibration-data: no training data to tune on; found --tune"):
        plan(tune=True)
    with pytest.raises(UsageError, match="the same data would calibrate"):
        plan(tune=True, calibration_data=str(folder / "search.txt"))


def test_tuning_takes_training_data_with_a_quantiser_that_needs_none(plan: MakePlan, tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text(make_text(3000, seed=9), "utf-8")
    made = plan(tune=True, quantiser="rtn", calibration_data=str(path))
    assert made.choice.items is None
    assert made.training_items.n_items >= 64
    with pytest.raises(UsageError, match="rtn uses no calibration data"):
        plan(quantiser="rtn", calibration_data=str(path))
