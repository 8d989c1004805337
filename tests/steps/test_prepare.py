"""From a recipe to a plan: levels of the board, limits in force, data kept apart, and early refusals."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qslm_edge import reference
from qslm_edge.errors import CheckpointError, DataError, ProfileError, TokenizerError, UsageError
from qslm_edge.profiles import load_profile
from qslm_edge.quantize.levels import Level
from qslm_edge.recipe import make_recipe
from qslm_edge.search.reference import model_digest
from qslm_edge.steps.prepare import TUNE_TOKENS, Plan, _tuning, default_levels, listed_levels, prepare
from tests.helpers.directory import make_text, write_model, write_sentences

MakePlan = Callable[..., Plan]
MIB = 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with data of its own."""
    folder = tmp_path_factory.mktemp("prepare")
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


def texts(levels: tuple[Level, ...]) -> list[str]:
    return [str(level) for level in levels]


def board(tmp_path: Path, *changes: tuple[str, str]) -> str:
    """The x86 profile with some text replaced, as a file."""
    text = (Path(__file__).resolve().parents[2] / "device_profiles" / "x86-laptop.toml").read_text("utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "board.toml"
    path.write_text(text, "utf-8")
    return str(path)


# Levels.


def test_default_levels_are_what_the_runtime_runs() -> None:
    assert texts(default_levels(load_profile("x86-laptop"))) == [
        "16",
        "8g64",
        "4g32",
        "4g64",
        "4g128",
        "2g64m",
    ]
    assert texts(default_levels(load_profile("x86-laptop"), cut=True))[-2:] == ["2g64m", "2g128m"]
    assert texts(default_levels(load_profile("x86-laptop"), 32)) == ["16", "8g32", "4g32", "2g32m"]


def test_default_levels_leave_out_what_the_stock_runtime_lacks(tmp_path: Path) -> None:
    old = load_profile(board(tmp_path, ('onnxruntime = "1.31.1"', 'onnxruntime = "1.23.2"')))
    assert texts(default_levels(old)) == ["16", "8g64", "4g32", "4g64", "4g128"]


def test_levels_carry_the_accuracy_level_of_the_board() -> None:
    profile = load_profile("x86-laptop")
    widths = [w.model_copy(update={"accuracy_level": 0}) if w.bits == 4 else w for w in profile.widths]
    exact = profile.model_copy(update={"widths": tuple(widths)})
    assert texts(default_levels(exact)) == ["16", "8g64", "4g32f", "4g64f", "4g128f", "2g64m"]
    assert texts(listed_levels(["8", "4g64", "4g64f"], exact)) == ["8g64", "4g64f"]


def test_float32_is_searched_only_where_nothing_else_runs() -> None:
    profile = load_profile("x86-laptop")
    only = profile.model_copy(update={"widths": tuple(w for w in profile.widths if w.bits == 32)})
    assert texts(default_levels(only)) == ["32"]


def test_a_group_size_that_the_runtime_lacks_is_refused(tmp_path: Path) -> None:
    fewer = load_profile(board(tmp_path, ("block_sizes = [32, 64, 128]", "block_sizes = [32, 64]")))
    with pytest.raises(UsageError, match="--group-size: .* at 8 bits; found 128; allowed: 32, 64"):
        default_levels(fewer, 128)
    assert texts(default_levels(fewer)) == ["16", "8g64", "4g32", "4g64", "2g64m"]


@pytest.mark.parametrize(
    ("given", "group", "expected"),
    [
        (["8", "4", "2"], None, ["8g64", "4g64", "2g64"]),
        (["2", " 8 ", "4"], 128, ["8g128", "4g128", "2g128"]),
        (["4g32", "16", "4g32"], 128, ["16", "4g32"]),
        (["32"], None, ["32"]),
        (["4g64f"], None, ["4g64f"]),
    ],
)
def test_listed_levels(given: list[str], group: int | None, expected: list[str]) -> None:
    assert texts(listed_levels(given, load_profile("x86-laptop"), group)) == expected
    assert texts(listed_levels(given, None, group)) == expected


@pytest.mark.parametrize(
    "text", ["", "1", "q8", "5", "64", "8g", "4g16", "-8", "²", "８", "8.0", "4 g64", "fp16", "int8"]
)
def test_what_is_no_level_to_search(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        listed_levels([text], None)
    assert "4g64" in str(caught.value) or "4g128" in str(caught.value)


def test_levels_that_the_board_does_not_run(tmp_path: Path) -> None:
    profile = load_profile(
        board(
            tmp_path,
            ('onnxruntime = "1.31.1"', 'onnxruntime = "1.23.2"'),
            ("block_sizes = [32, 64, 128]", "block_sizes = [32, 64]"),
        )
    )
    with pytest.raises(UsageError, match="cannot use 2-bit weights.*1.29.0"):
        listed_levels(["2"], profile)
    with pytest.raises(UsageError, match="--levels 4g128: .*found 128; allowed: 32, 64"):
        listed_levels(["4g128"], profile)
    with pytest.raises(UsageError, match="--levels 8g64f: float activations"):
        listed_levels(["8g64f"], profile)
    with pytest.raises(UsageError, match="no precision levels"):
        listed_levels([], profile)


def test_levels_of_the_papers_method(plan: MakePlan) -> None:
    made = plan(method="qslm").options
    assert texts(made.levels) == ["q16", "q14", "q12", "q10", "q8", "q6", "q4"]
    assert (made.mu, made.method) == (1.0, "qslm")
    assert plan(method="qslm", mu=2.5).options.mu == 2.5
    assert texts(plan(method="qslm", levels=("4", "8", "4", " 6 ")).options.levels) == ["q8", "q6", "q4"]
    for wrong in ("1", "17", "8g64", "q8", "²", "", "eight"):
        with pytest.raises(UsageError, match="not a simulated width.*2 to 16"):
            plan(method="qslm", levels=(wrong,))


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


# The plan.


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


def test_data_that_is_missing_is_refused_when_it_is_read(plan: MakePlan) -> None:
    made = plan(search_data="no/such/file.txt")
    with pytest.raises(DataError, match="file.txt"):
        made.items("search")


# ---- tuning


def test_a_gpu_tunes_on_more_tokens_unless_told() -> None:
    def tokens(device: str, **choices: Any) -> int:
        found = _tuning(make_recipe(profile="x86-cpu", tune=True, **choices), device)
        assert found is not None
        return found.tokens

    assert tokens("cpu") == TUNE_TOKENS["cpu"] < tokens("cuda") == tokens("cuda:1") == TUNE_TOKENS["cuda"]
    assert tokens("cuda", tune_tokens=5) == tokens("cpu", tune_tokens=5) == 5


def test_predictions_of_a_tuned_search_are_those_that_tuning_leaves(plan: MakePlan) -> None:
    tuned = plan(tune=True)
    assert tuned.options.remains["ffn"] < 1 < tuned.options.remains["att"]
    assert plan().options.remains == {}
