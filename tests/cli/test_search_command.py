"""``qslm-edge search``: what it finds and writes, resuming, interruption, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from qslm_edge import device_profiles

Invoke = Callable[..., Result]
LEVELS = ("--levels", "16,8,4")


def found_in(place: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((place / "search.json").read_text("utf-8"))
    return data


def answer(found: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on how often the search was stopped."""
    return {key: found[key] for key in ("chosen", "candidates", "trials", "sensitivity", "float", "items")}


def test_a_run_directory_holds_the_whole_search(searched: Path) -> None:
    names = {path.name for path in searched.iterdir()} - {".lock"}
    assert names == {"recipe.toml", "journal.jsonl", "sensitivity.json", "search.json"}
    found = found_in(searched)
    assert found["schema"] == "qslm-edge/search/1"
    assert found["deployable"] is True
    assert found["chosen"]["feasible"]
    assert found["chosen"]["n_items"] == found["chosen"]["n_items_total"] == 20
    sizes = [trial["weight_bytes"] for trial in found["candidates"]]
    assert sizes == sorted(sizes)
    assert found["candidates"][0]["setting"] == found["chosen"]["setting"]
    assert {trial["tier"] for trial in found["trials"]} <= {"knapsack", "final"}
    assert found["recipe"]["levels"] == ["16", "8", "4"]


def test_the_table_names_candidates_and_choice(run: Invoke, inputs: Any, searched: Path) -> None:
    result = run("search", *inputs.flags(), *LEVELS, "--out", searched)
    found = found_in(searched)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert f"Chosen: {found['chosen']['summary']}" in lines
    assert lines[-1] == f"Export it: qslm-edge export {searched}"
    assert any("selection: smallest feasible" in line for line in lines)
    assert any(line.startswith("Against float, first 8 of 20 search items: KL ") for line in lines)
    assert "predicted cost of every matrix" in result.stderr


def test_a_second_run_replays_the_journal(run: Invoke, inputs: Any, searched: Path) -> None:
    journal = (searched / "journal.jsonl").read_bytes()
    before = found_in(searched)
    result = run("search", *inputs.flags(), *LEVELS, "--out", searched, "--json")
    after = json.loads(result.stdout)
    assert after == found_in(searched)
    assert answer(after) == answer(before)
    assert (after["cost"]["evaluations"], after["cost"]["tokens"]) == (0, 0)
    assert (searched / "journal.jsonl").read_bytes() == journal


def test_a_torn_journal_is_mended(run: Invoke, inputs: Any, searched: Path, tmp_path: Path) -> None:
    place = shutil.copytree(searched, tmp_path / "run")
    text = (place / "journal.jsonl").read_text("utf-8")
    lines = text.splitlines(keepends=True)
    (place / "journal.jsonl").write_text("".join(lines[:8]) + lines[8][:40], "utf-8")
    result = run("search", *inputs.flags(), *LEVELS, "--out", place)
    assert result.exit_code == 0
    assert answer(found_in(place)) == answer(found_in(searched))
    assert (place / "journal.jsonl").read_text("utf-8") == text


PAUSE = """
import sys, time
from qslm_edge.search.journal import Journal

put, count = Journal.put, [0]

def counted(self, *words):
    put(self, *words)
    count[0] += 1
    if count[0] == 6:
        print("here", flush=True)
        time.sleep(600)

Journal.put = counted
from qslm_edge.cli.app import main
sys.argv[0] = "qslm-edge"
main()
"""


def test_ctrl_c_leaves_nothing_half_written_and_the_rest_resumes(
    run: Invoke, root: Path, inputs: Any, searched: Path, tmp_path: Path
) -> None:
    place = tmp_path / "run"
    words = ["search", *inputs.flags(), *LEVELS, "--out", str(place)]
    with subprocess.Popen(
        [sys.executable, "-c", PAUSE, *words, "--json"],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert json.loads(out)["error"]["exit_code"] == 130
    assert err.splitlines()[-1] == "interrupted: stopped by the keyboard"
    assert "Traceback" not in err
    assert {path.name for path in place.iterdir()} == {".lock", "recipe.toml", "journal.jsonl"}
    lines = (place / "journal.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 1 + 6
    assert all(json.loads(line) for line in lines)

    result = run(*words, "--json")
    assert result.exit_code == 0
    again = json.loads(result.stdout)
    assert again["cost"]["replayed_from_journal"] >= 6
    assert answer(again) == answer(found_in(searched))


def test_method_qslm_is_a_labelled_simulation(run: Invoke, inputs: Any, tmp_path: Path) -> None:
    place = tmp_path / "run"
    words = ["search", *inputs.flags(), "--method", "qslm", "--levels", "8,4", "--out", place]
    words += ["--max-ppl-increase", "200"]
    found = json.loads(run(*words, "--json").stdout)
    assert found["deployable"] is False
    assert found["selection"] == "Eq. 1 (reconstruction), mu = 1.0"
    assert found["accounting"].startswith("parameters × bits")
    chosen = found["chosen"]
    bits = {
        module["name"]: int(chosen["setting"][module["name"]][1:])
        for b in found["model"]["blocks"]
        for module in b["modules"]
    }
    floats = sum(block["float_params"] for block in found["model"]["blocks"])
    sizes = {m["name"]: m["rows"] * m["columns"] for b in found["model"]["blocks"] for m in b["modules"]}
    assert chosen["weight_bytes"] == 4 * floats + sum(sizes[name] * bits[name] // 8 for name in sizes)
    quantised = found["statistics"]["operations"]["quantised"]
    assert quantised["footprint_bytes"] == chosen["weight_bytes"]  # by the paper's accounting too
    assert 0 < found["statistics"]["spikes"]["flip_rate"] < 1
    text = run(*words).stdout
    assert text.count("(simulated, not deployable)") == 2
    assert "Eq. 1 (reconstruction)" in text
    assert "predicted peak" not in text
    refused = run("export", place)
    assert refused.exit_code == 2
    assert "is a simulation and cannot be exported" in refused.stderr


def test_the_method_has_a_directory_of_its_own(
    run: Invoke, inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*inputs.flags(), "--method", "qslm", "--levels", "8", "--max-ppl-increase", "200"]
    assert run("search", *words).exit_code == 0
    assert (tmp_path / "runs" / "x86-laptop-wikitext2-qslm" / "search.json").is_file()


def test_the_tiers_are_still_there_and_share_the_directory(
    run: Invoke, inputs: Any, searched: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(searched, tmp_path / "run")
    words = ["search", *inputs.flags(), *LEVELS, "--out", place, "--json"]
    tiered = json.loads(run(*words, "--method", "tiered").stdout)
    assert {trial["tier"] for trial in tiered["trials"]} <= {"global", "block", "module", "final"}
    assert {cell["source"] for cell in tiered["sensitivity"]} <= {"measured", "exact"}
    again = json.loads(run(*words, "--method", "budgeted").stdout)
    assert answer(again) == answer(found_in(searched))
    assert again["cost"]["tokens"] == 0
    assert again["cost"]["replayed_tokens"] > 0


def test_predicted_costs_are_kept_for_every_matrix_and_level(searched: Path) -> None:
    table = json.loads((searched / "sensitivity.json").read_text("utf-8"))
    modules = [m["name"] for block in found_in(searched)["model"]["blocks"] for m in block["modules"]]
    assert [cell["module"] for cell in table["modules"]][::3] == modules
    assert {cell["source"] for cell in table["modules"]} <= {"predicted", "exact"}
    assert {cell["source"] for cell in table["cells"]} <= {"predicted", "exact"}


# fronts


@pytest.fixture(scope="module")
def fronted(run: Invoke, inputs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a finished Pareto search; copy it to change it."""
    place = tmp_path_factory.mktemp("runs") / "fronted"
    words = [*inputs.flags(), *LEVELS, "--max-ppl-increase", "300", "--method", "pareto", "--out", place]
    result = run("search", *words)
    assert result.exit_code == 0, result.output
    assert "front of" in result.stdout
    assert result.stdout.splitlines()[-1].startswith(f"Other budgets: qslm-edge search --from-front {place}")
    return place


def test_a_front_answers_a_budget_and_a_limit_at_once(run: Invoke, fronted: Path) -> None:
    points = json.loads((fronted / "front.json").read_text("utf-8"))["points"]
    assert points == found_in(fronted)["front"]
    before = {path.name: path.stat().st_mtime_ns for path in fronted.iterdir()}
    size = points[-1]["weight_bytes"]
    by_budget = json.loads(
        run("search", "--from-front", fronted, "--weights-budget", f"{size}B", "--json").stdout
    )
    assert by_budget["chosen"] == points[-1]
    limit = str(points[-1]["upper"] + 0.001)
    by_limit = json.loads(
        run("search", "--from-front", fronted, "--max-ppl-increase", limit, "--json").stdout
    )
    assert by_limit["chosen"] == points[-1]
    table = run("search", "--from-front", fronted, "--weights-budget", f"{size}B")
    assert table.exit_code == 0
    assert table.stdout.count("→") == 1
    assert table.stdout.splitlines()[-1] == f"Export it: qslm-edge export {fronted} --weights-budget {size}B"
    assert "Ask it: --weights-budget" in run("search", "--from-front", fronted).stdout
    assert {path.name: path.stat().st_mtime_ns for path in fronted.iterdir()} == before


def test_what_a_front_answers_can_be_exported(run: Invoke, fronted: Path, tmp_path: Path) -> None:
    points = json.loads((fronted / "front.json").read_text("utf-8"))["points"]
    words = [
        "export",
        fronted,
        "--weights-budget",
        f"{points[0]['weight_bytes']}B",
        "--out",
        tmp_path / "out",
    ]
    exported = json.loads(run(*words, "--json").stdout)
    assert exported["setting"] == points[0]["setting"]
    assert exported["constraints"]["weights_budget_bytes"] == points[0]["weight_bytes"]


def test_a_front_names_the_nearest_where_it_has_no_answer(run: Invoke, fronted: Path) -> None:
    below = run("search", "--from-front", fronted, "--weights-budget", "1kB", "--json")
    assert below.exit_code == 1
    assert "below the smallest setting of the front" in below.stderr
    assert "Nearest: " in below.stderr
    strict = run("export", fronted, "--max-ppl-increase", "0", "--weights-budget", "1MB")
    assert strict.exit_code == 1
    assert strict.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--profile", "jetson-orin"], "--profile: a front brings its own model, board and data"),
        (["--model", "other.pth"], "--model: a front brings its own model, board and data"),
        (["--method", "tiered"], "--method: a front brings its own"),
        (["--max-accuracy-drop", "1"], "the limit does not belong to the task"),
        (["--weights-budget", "much"], "--weights-budget: not a size"),
    ],
)
def test_what_a_front_has_settled_is_no_question(
    run: Invoke, fronted: Path, words: list[str], says: str
) -> None:
    result = run("search", "--from-front", fronted, *words)
    assert result.exit_code == 2
    assert says in result.stderr


def test_no_front_and_damaged_fronts_are_one_line(
    run: Invoke, searched: Path, fronted: Path, tmp_path: Path
) -> None:
    none = run("search", "--from-front", searched, "--weights-budget", "1MB")
    assert (none.exit_code, none.stdout) == (2, "")
    assert "no front here" in none.stderr
    assert "search --method pareto" in none.stderr
    text = (fronted / "front.json").read_text("utf-8")
    place = tmp_path / "run"
    place.mkdir()
    for old, new, says in (
        ("qslm-edge/front/1", "qslm-edge/front/9", "not a front of this version"),
        ('"tool_version": "', '"tool_version": "9.', "the front was made by another version"),
        ('"weight_bytes": ', '"weight_bytes": "a", "x": ', "damaged front"),
        ('"points"', '"pints"', "damaged front"),
        ("{", "[", "cannot be read"),
    ):
        assert old in text
        (place / "front.json").write_text(text.replace(old, new, 1), "utf-8")
        result = run("search", "--from-front", place, "--weights-budget", "1MB")
        assert result.exit_code == 2, says
        assert says in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_front_of_another_model_is_not_exported(run: Invoke, fronted: Path, tmp_path: Path) -> None:
    place = shutil.copytree(fronted, tmp_path / "run")
    data = json.loads((place / "front.json").read_text("utf-8"))
    data["parts"]["model"] = "another"
    (place / "front.json").write_text(json.dumps(data), "utf-8")
    result = run("export", place, "--weights-budget", "10MB", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "the front belongs to another search; found different model" in result.stderr
    assert not (tmp_path / "out" / "bundle").exists()


def test_mu_selects_by_eq_1(run: Invoke, inputs: Any, searched: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    shutil.copy(searched / "journal.jsonl", place)  # another selection, the same evidence
    result = run("search", *inputs.flags(), *LEVELS, "--mu", "0", "--out", place, "--json")
    found = json.loads(result.stdout)
    assert found["selection"] == "Eq. 1 (reconstruction), mu = 0.0"
    assert found["chosen"]["metric"] == min(trial["metric"] for trial in found["candidates"])
    assert found["eq1_score"] == pytest.approx(found["chosen"]["metric"])


def test_sentences_of_ones_own(run: Invoke, inputs: Any, tmp_path: Path) -> None:
    place = tmp_path / "run"
    words = [*inputs.flags("sst2"), "--levels", "8", "--max-accuracy-drop", "90", "--out", place]
    result = run("search", *words)
    assert result.exit_code == 0, result.stderr
    assert "float accuracy" in result.stdout
    assert "head" not in found_in(place)["chosen"]["setting"]


def test_the_saved_recipe_runs_again(run: Invoke, searched: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    result = run("search", "--recipe", searched / "recipe.toml", "--out", place, "--json")
    assert result.exit_code == 0
    assert answer(json.loads(result.stdout)) == answer(found_in(searched))
    assert (place / "recipe.toml").read_bytes() == (searched / "recipe.toml").read_bytes()


# what cannot be met


def test_a_budget_below_any_setting_is_refused_before_work(run: Invoke, inputs: Any, tmp_path: Path) -> None:
    result = run("search", *inputs.flags(), "--weights-budget", "1kB", "--out", tmp_path / "run", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["type"] == "InfeasibleError"
    assert "no setting can fit the memory constraint" in result.stderr
    assert "budget 0.00 MB" in result.stderr
    assert not (tmp_path / "run" / "search.json").exists()


def test_a_limit_that_nothing_meets_is_explained(run: Invoke, inputs: Any, tmp_path: Path) -> None:
    words = [*inputs.flags(), "--levels", "4g64", "--max-ppl-increase", "0", "--out", tmp_path / "run"]
    result = run("search", *words)
    assert (result.exit_code, result.stdout) == (1, "")
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: no setting meets every constraint; ")
    assert "nearest that fits: " in line
    assert "Allow at least" in line
    assert not (tmp_path / "run" / "search.json").exists()


# bad input


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        (["--profile", "jetson-orni"], "ProfileError", "Did you mean 'jetson-orin'?"),
        (["--task", "sst3"], "UsageError", "unknown task; found 'sst3'"),
        (["--max-accuracy-drop", "1"], "UsageError", "the limit does not belong to the task"),
        (["--memory-budget", "many"], "UsageError", "--memory-budget: not a size; found 'many'"),
        (["--memory-budget", "0MB"], "UsageError", "--memory-budget: not a size"),
        (["--levels", "3"], "UsageError", "not a precision level"),
        (["--levels", "2", "--profile", "jetson-orin"], "UsageError", "cannot use 2-bit weights"),
        (["--method", "genetic"], "UsageError", "recipe: method"),
        (["--method", "qslm", "--levels", "8g64"], "UsageError", "not a simulated width"),
        (["--model", "none.pth"], "CheckpointError", "none.pth: no such checkpoint"),
        (["--recipe", "none.toml"], "UsageError", "none.toml: the recipe cannot be read"),
        (["--group-size", "48"], "UsageError", "--group-size: not a group size"),
    ],
)
def test_bad_flags_are_one_line_and_2(
    run: Invoke, inputs: Any, tmp_path: Path, words: list[str], kind: str, says: str
) -> None:
    place = tmp_path / "run"
    result = run("search", *inputs.flags(), "--out", place, *words, "--json")
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert json.loads(result.stdout)["error"]["type"] == kind
    assert not list(place.glob("*.toml"))


def test_no_board_is_a_usage_error(run: Invoke) -> None:
    result = run("search")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: --profile: no board chosen. E.g. --profile jetson-orin")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"river\xff\xfe", "not UTF-8; found byte 0xff"),
        (b"a", "a language model needs two tokens or more; found 1"),
        (b"the river runs", "a search needs two items or more: a single one has no error"),
    ],
)
def test_bad_text_is_one_line_and_2(
    run: Invoke, inputs: Any, tmp_path: Path, content: bytes | None, says: str
) -> None:
    path = tmp_path / "data.txt"
    if content is not None:
        path.write_bytes(content)
    result = run("search", *inputs.flags(), "--search-data", path, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert path.name in result.stderr
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        ("text\tlabel\na\t1\n", 1, "the header needs one column 'sentence'"),
        ("sentence\tlabel\na b\n", 2, "wrong number of columns; found 1; allowed: 2"),
        ("sentence\tlabel\na\t1\nb\tgood\n", 3, "unknown label; found 'good'"),
    ],
)
def test_bad_sentences_name_the_line(
    run: Invoke, inputs: Any, tmp_path: Path, content: str, line: int, says: str
) -> None:
    path = tmp_path / "data.tsv"
    path.write_text(content, "utf-8")
    result = run("search", *inputs.flags("sst2"), "--search-data", path, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert f"{path}:{line}: {says}" in result.stderr


def test_the_same_data_cannot_steer_and_judge(run: Invoke, inputs: Any, tmp_path: Path) -> None:
    words = [*inputs.flags(), "--report-data", inputs.search_text, "--out", tmp_path / "run"]
    result = run("search", *words)
    assert result.exit_code == 2
    assert "the same data would steer the search and judge it" in result.stderr


def test_a_tokenizer_of_another_model_is_refused(run: Invoke, inputs: Any, tmp_path: Path) -> None:
    from qslm_edge import reference

    other = reference.model_path() / "tokenizer.json"
    result = run("search", *inputs.flags(), "--tokenizer", other, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "the tokenizer has ids that the model lacks; found id 4095" in result.stderr


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [("budget_mib", "budget_mb", "unknown key"), ("visible_mib = ", "visible_mib = -", "memory.visible_mib")],
)
def test_a_bad_profile_file_names_the_key(
    run: Invoke, inputs: Any, tmp_path: Path, old: str, new: str, says: str
) -> None:
    path = tmp_path / "mine.toml"
    text = device_profiles.path("x86-laptop").read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")
    result = run("search", *inputs.flags(), "--profile", path, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert str(path) in result.stderr
    assert says in result.stderr


def test_a_journal_of_another_search_is_refused(
    run: Invoke, inputs: Any, searched: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(searched, tmp_path / "run")
    before = (place / "journal.jsonl").read_bytes()
    result = run("search", *inputs.flags(), "--search-windows", "18", "--out", place)
    assert result.exit_code == 2
    assert "the journal belongs to another search; found different items" in result.stderr
    assert (place / "journal.jsonl").read_bytes() == before


def test_a_damaged_journal_names_the_line(run: Invoke, inputs: Any, searched: Path, tmp_path: Path) -> None:
    place = shutil.copytree(searched, tmp_path / "run")
    lines = (place / "journal.jsonl").read_text("utf-8").splitlines()
    lines[3] = lines[3][:50]
    (place / "journal.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    result = run("search", *inputs.flags(), *LEVELS, "--out", place)
    assert result.exit_code == 2
    assert "journal.jsonl, line 4: damaged journal" in result.stderr


# output


def test_a_file_in_the_way_is_4(run: Invoke, inputs: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine", "utf-8")
    result = run("search", *inputs.flags(), "--out", path)
    assert result.exit_code == 4
    assert f"{path}: the run directory cannot be used; found File exists" in result.stderr
    assert path.read_text("utf-8") == "mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody may write")
def test_a_read_only_place_is_4(run: Invoke, inputs: Any) -> None:
    result = run("search", *inputs.flags(), "--out", "/proc/qslm-edge-run")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "error: /proc/qslm-edge-run: the run directory cannot be used" in result.stderr


def test_a_full_disk_is_4(run: Invoke, inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("qslm_edge.search.journal.os.fsync", full)
    result = run("search", *inputs.flags(), "--out", tmp_path / "run")
    assert result.exit_code == 4
    assert result.stderr.splitlines()[-1].endswith(
        "the journal cannot be written; found No space left on device"
    )


def test_two_searches_cannot_share_a_directory(run: Invoke, inputs: Any, tmp_path: Path) -> None:
    from qslm_edge.deploy import open_run

    with open_run(tmp_path / "run"):
        result = run("search", *inputs.flags(), "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "another process works in this run directory" in result.stderr
