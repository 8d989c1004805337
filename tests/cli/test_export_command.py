"""``qslm-edge export``: bundles of a run and of a given setting, their parity, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from qslm_edge.bundle.reader import open_bundle
from qslm_edge.steps.plan import Plan
from tests.helpers.directory import write_sentences

Invoke = Callable[..., Result]


@pytest.fixture
def copied(searched: Path, tmp_path: Path) -> Path:
    """A run directory that a test may change."""
    return shutil.copytree(searched, tmp_path / "run")


def levels_of(found: dict[str, Any]) -> dict[str, str]:
    chosen: dict[str, str] = found["chosen"]["setting"]
    return chosen


# a searched run


def test_a_run_becomes_a_whole_bundle(run: Invoke, copied: Path) -> None:
    result = run("export", copied, "--json")
    assert result.exit_code == 0, result.stderr
    exported = json.loads(result.stdout)
    chosen = json.loads((copied / "search.json").read_text("utf-8"))
    assert exported["setting"] == levels_of(chosen)
    bundle = open_bundle(copied / "bundle")  # compares every file with its digest
    assert bundle.manifest["setting"] == levels_of(chosen)
    assert bundle.digest == exported["bundle"]["digest"]
    assert exported["bytes"] == sum(path.stat().st_size for path in bundle.path.rglob("*") if path.is_file())
    assert exported["weights"]["bytes"] == chosen["chosen"]["weight_bytes"]
    assert exported["parity"]["ok"] is True
    inner = {name for name in exported["setting"] if name.startswith("blocks.")}
    assert len(inner) == 14
    assert inner <= exported["parity"]["modules"].keys()
    assert json.loads((copied / "export.json").read_text("utf-8")) == exported
    assert not [path for path in copied.iterdir() if ".partial" in path.name or ".old" in path.name]


def test_the_scores_of_the_search_come_from_its_journal(
    run: Invoke, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the chosen setting was evaluated again")

    run("export", copied)  # keeps the float scores of the report items
    monkeypatch.setattr("qslm_edge.search.evaluator.Evaluator.evaluate", never)
    result = run("export", copied)
    assert result.exit_code == 0, result.output
    found = json.loads((copied / "search.json").read_text("utf-8"))
    expected = open_bundle(copied / "bundle").expected_scores()
    assert expected.n_items == found["chosen"]["n_items"]


def test_the_same_run_gives_the_same_bytes(run: Invoke, copied: Path, tmp_path: Path) -> None:
    first = json.loads(run("export", copied, "--json").stdout)
    second = json.loads(run("export", copied, "--out", tmp_path / "again", "--json").stdout)
    assert first["bundle"]["digest"] == second["bundle"]["digest"]
    assert (tmp_path / "again" / "bundle" / "model.onnx").is_file()


def test_the_text_shows_parity_files_and_the_next_step(run: Invoke, copied: Path) -> None:
    result = run("export", copied)
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert any(line.startswith("matrix products, worst") for line in lines)
    assert any(line.startswith("spikes that flip") for line in lines)
    assert sum(line.startswith("firing rate") for line in lines) == 2
    assert any(line.startswith("model.bin ") for line in lines)
    assert lines[-1] == f"Verify it: qslm-edge verify {copied / 'bundle'}"
    assert "export" in result.stderr


def test_the_number_of_report_items_may_differ(run: Invoke, copied: Path) -> None:
    assert run("export", copied, "--report-windows", "3").exit_code == 0
    bundle = open_bundle(copied / "bundle")
    assert bundle.items("report").n_items == 3
    assert bundle.items("search").n_items == 20


# a given setting


def test_one_level_everywhere(bundle: Path) -> None:
    setting = open_bundle(bundle).manifest["setting"]
    assert {level for name, level in setting.items() if name != "emb"} == {"8g64"}
    assert setting["emb"] == "8g64f"  # looked up, never multiplied


def test_a_file_names_the_level_of_every_module(
    run: Invoke, inputs: Any, copied: Path, tmp_path: Path
) -> None:
    found = json.loads((copied / "search.json").read_text("utf-8"))
    levels = dict.fromkeys(levels_of(found), "4") | {
        "head": "16",
        "emb": "4g32",
        "blocks.0.att.key": "4g64f",
    }
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(levels), "utf-8")
    result = run("export", *inputs.flags(), "--setting", path, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    setting = json.loads(result.stdout)["setting"]
    assert (setting["head"], setting["emb"]) == ("16", "4g32f")
    assert (setting["blocks.0.att.key"], setting["blocks.0.att.value"]) == ("4g64f", "4g64")


def test_a_classifier_ships_no_language_model_head(classifier: Path) -> None:
    bundle = open_bundle(classifier)
    assert "head" not in bundle.manifest["setting"]
    assert bundle.classifier_weight().shape == (2, 64)
    assert bundle.manifest["model"]["labels"] == ["negative", "positive"]


def test_the_default_directory_names_the_setting(
    run: Invoke, inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("export", *inputs.flags(), "--setting", "8", "--report-windows", "2").exit_code == 0
    assert (tmp_path / "runs" / "x86-laptop-wikitext2-8" / "bundle" / "manifest.json").is_file()


# what is refused


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--setting", "5g64"], "--setting: not a precision level"),
        (["--setting", "4g48"], "--setting: not a precision level"),
        (["--setting", "q8"], "--setting: not a level to search"),
        (["--setting", "none.json"], "none.json: the setting cannot be read; found No such file"),
        (["--setting", "2", "--profile", "jetson-orin"], "cannot use 2-bit weights"),
        (["--setting", "8g64f"], "float activations at this width fall off the fast path"),
        (["--setting", "8", "--profile", "jetson-orni"], "Did you mean 'jetson-orin'?"),
        ([], "nothing to export; allowed: a run directory, or --setting with --profile"),
    ],
)
def test_bad_flags_are_one_line_and_2(
    run: Invoke, inputs: Any, tmp_path: Path, words: list[str], says: str
) -> None:
    result = run("export", *inputs.flags(), *words, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out" / "bundle").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"blocks.0.att.kee": "8"},
            "no such module in the model; found blocks.0.att.kee. Did you mean blocks",
        ),
        ({"head": None}, "head: not a precision level; found None"),
        ({"head": "q8"}, "head: a simulated level cannot be exported"),
        ({"head": "1"}, "head: one bit is for a binary embedding only"),
        ({"emb": "1"}, "emb: one bit is for a binary embedding only"),
        (
            {"head": "4g128"},
            "head: this matrix of 64 columns cannot take the level; found 4g128; allowed: 4g64",
        ),
        ({"head": "seven"}, "not a precision level; found 'seven'"),
    ],
)
def test_a_bad_setting_file_names_the_module(
    run: Invoke, inputs: Any, searched: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    found = json.loads((searched / "search.json").read_text("utf-8"))
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**dict.fromkeys(levels_of(found), "8"), **change}), "utf-8")
    result = run("export", *inputs.flags(), "--setting", path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            '{"head": "8"}',
            "modules without a level; found emb, blocks.0.att.key, blocks.0.att.value and 12 more",
        ),
        ("[1]", "must hold a JSON object; found list"),
        ("{", "the setting cannot be read"),
    ],
)
def test_an_incomplete_setting_file(
    run: Invoke, inputs: Any, tmp_path: Path, content: str, says: str
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content, "utf-8")
    result = run("export", *inputs.flags(), "--setting", path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"{path}: {says}" in result.stderr


def test_a_directory_without_a_finished_search(run: Invoke, tmp_path: Path) -> None:
    result = run("export", tmp_path, "--json")
    assert result.exit_code == 2
    assert "no finished search here" in result.stderr
    assert json.loads(result.stdout)["error"]["type"] == "RunError"
    assert "no such run directory" in run("export", tmp_path / "none").stderr


def test_a_result_of_another_recipe_is_refused(run: Invoke, copied: Path) -> None:
    with (copied / "recipe.toml").open("a", encoding="utf-8") as file:
        file.write("mu = 2.5\n")
    result = run("export", copied)
    assert result.exit_code == 2
    assert "the result was found with another recipe than recipe.toml; found different mu" in result.stderr
    assert not (copied / "bundle").exists()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": "qslm-edge/search/2"}', '{"schema": "qslm-edge/search/1"}']
)
def test_a_damaged_result_is_refused(run: Invoke, copied: Path, text: str) -> None:
    (copied / "search.json").write_text(text, "utf-8")
    result = run("export", copied)
    assert result.exit_code == 2
    assert str(copied / "search.json") in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_model_that_changed_since_the_search_is_refused(
    run: Invoke, copied: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from tests.helpers.directory import write_model

    other = write_model(tmp_path / "other", seed=5)
    for name in ("recipe.toml", "search.json"):
        text = (copied / name).read_text("utf-8")
        (copied / name).write_text(text.replace(str(tiny_model), str(other)), "utf-8")
    result = run("export", copied)
    assert result.exit_code == 2
    assert "the journal belongs to another search; found different model" in result.stderr


def test_a_run_brings_its_own_recipe(run: Invoke, copied: Path) -> None:
    result = run("export", copied, "--profile", "x86-cpu")
    assert result.exit_code == 2
    assert "--profile: a run directory brings its own recipe" in result.stderr


def test_a_setting_does_not_replace_the_bundle_of_a_search(run: Invoke, inputs: Any, copied: Path) -> None:
    result = run("export", *inputs.flags(), "--setting", "8", "--out", copied)
    assert result.exit_code == 2
    assert "this directory holds the run of a search" in result.stderr


def test_something_that_is_no_bundle_is_not_replaced(run: Invoke, copied: Path) -> None:
    (copied / "bundle").mkdir()
    (copied / "bundle" / "mine.txt").write_text("mine", "utf-8")
    result = run("export", copied)
    assert result.exit_code == 4
    assert "refusing to replace something that is not a bundle" in result.stderr
    assert (copied / "bundle" / "mine.txt").read_text("utf-8") == "mine"


def test_an_interrupted_export_keeps_the_old_bundle(
    run: Invoke, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("export", copied).exit_code == 0
    before = open_bundle(copied / "bundle").digest

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qslm_edge.steps.export.check_parity", interrupted)
    result = run("export", copied, "--report-windows", "2")
    assert result.exit_code == 130
    assert open_bundle(copied / "bundle").digest == before
    assert not [path for path in copied.iterdir() if ".partial" in path.name]


def test_a_graph_that_computes_something_else_is_1(
    run: Invoke, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from qslm_edge.exporters.parity import check_parity

    monkeypatch.setattr(
        "qslm_edge.steps.export.check_parity",
        lambda *words: replace(check_parity(*words), fault="blocks.0.att.key: 0.5 above 0.002"),
    )
    result = run("export", copied)
    assert result.exit_code == 1
    assert "the exported graph does not compute what the torch model computes" in result.stderr
    assert not (copied / "bundle").exists()


# a tuned model


@pytest.fixture(scope="module")
def tuned(run: Invoke, inputs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a search that tuned one setting, for a few steps."""
    folder = tmp_path_factory.mktemp("tuned")
    sentences = write_sentences(folder / "train.tsv", 400, seed=3)
    more = ("--calibration-data", sentences, "--tune", "--tune-tokens", "1", "--tune-rounds", "1")
    flags = (*inputs.flags("sst2"), *more, "--max-accuracy-drop", "90", "--levels", "2")
    result = run("search", *flags, "--out", folder / "run")
    assert result.exit_code == 0, result.output
    return folder / "run"


def test_a_tuned_model_is_exported_where_it_was_not_made(
    run: Invoke, inputs: Any, tuned: Path, tmp_path: Path
) -> None:
    (file,) = (tuned / "tuned").iterdir()
    result = run("export", *inputs.flags("sst2"), "--setting", file, "--out", tmp_path / "there", "--json")
    assert result.exit_code == 0, result.output
    result = run("export", tuned, "--out", tmp_path / "here", "--json")
    assert result.exit_code == 0, result.output
    one, other = ((tmp_path / name / "bundle" / "model.bin").read_bytes() for name in ("there", "here"))
    assert one == other
    assert open_bundle(tmp_path / "there" / "bundle").manifest["tuning"]["steps"] == 1


def test_a_run_that_tuned_on_a_gpu_is_exported_without_one(
    run: Invoke, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    shutil.copytree(tuned, there)
    header, *records = (there / "journal.jsonl").read_text("utf-8").splitlines()
    elsewhere = {**json.loads(header), "fingerprint": "0" * 64}
    (there / "journal.jsonl").write_text("\n".join([json.dumps(elsewhere), *records, ""]), "utf-8")
    assert run("export", tuned, "--out", here).exit_code == 0
    assert "another search" in run("export", there).stderr  # made here, its journal would have to fit
    with monkeypatch.context() as patch:
        patch.setattr(
            Plan, "tuning_mark", lambda *_: "0" * 64
        )  # what this machine would tune is not that model
        result = run("export", there)
    assert result.exit_code == 0, result.output
    for name in ("model.bin", "eval/search-expected.npz"):
        assert (there / "bundle" / name).read_bytes() == (here / "bundle" / name).read_bytes()


@pytest.mark.parametrize(
    ("mark", "said"),
    [(None, "fingerprint of the tuned model is missing"), ("1" * 64, "no tuned model"), ("../x", "missing")],
)
def test_a_run_whose_tuned_model_is_not_there_is_refused(
    run: Invoke, tuned: Path, tmp_path: Path, mark: str | None, said: str
) -> None:
    shutil.copytree(tuned, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "search.json").read_text("utf-8"))
    found["tuning"]["mark"] = mark
    (tmp_path / "run" / "search.json").write_text(json.dumps(found), "utf-8")
    result = run("export", tmp_path / "run")
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_a_tuned_model_of_other_levels_or_another_model_is_refused(
    run: Invoke, inputs: Any, tuned: Path, tmp_path: Path
) -> None:
    (file,) = (tuned / "tuned").iterdir()
    other = inputs.flags("sst2", "jetson-orin")  # its runtime runs no 2 bits
    result = run("export", *other, "--setting", file, "--out", tmp_path / "a")
    assert result.exit_code == 2
    assert "2-bit" in result.stderr
    result = run("export", "--profile", "x86-laptop", "--setting", file, "--out", tmp_path / "b")
    assert result.exit_code == 2
    assert "belongs to another float model" in " ".join(result.stderr.split())
    result = run(
        "export", *inputs.flags("sst2"), "--setting", tmp_path / "c.safetensors", "--out", tmp_path / "c"
    )
    assert result.exit_code == 2
    assert "no tuned model" in " ".join(result.stderr.split())


def test_a_search_goes_on_from_a_tuned_model(run: Invoke, inputs: Any, tuned: Path, tmp_path: Path) -> None:
    (file,) = (tuned / "tuned").iterdir()
    more = (
        "--calibration-data",
        tuned.parent / "train.tsv",
        "--tune",
        "--tune-tokens",
        "1",
        "--tune-rounds",
        "1",
    )
    flags = (*inputs.flags("sst2"), *more, "--max-accuracy-drop", "90", "--levels", "2")
    result = run("search", *flags, "--tune-start", file, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "run" / "search.json").read_text("utf-8"))
    before = json.loads((tuned / "search.json").read_text("utf-8"))
    assert found["tuning"]["start"] == before["tuning"]["mark"] != found["tuning"]["mark"]
    assert run("export", tmp_path / "run").exit_code == 0
    result = run("search", *inputs.flags("sst2"), "--tune-start", file, "--out", tmp_path / "other")
    assert result.exit_code == 2
    assert "Add --tune" in " ".join(result.stderr.split())
