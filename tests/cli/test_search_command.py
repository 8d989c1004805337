"""`qslm-edge search`: the run directory, the table, the journal, the methods."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.search_runs import LEVELS, Invoke, found_in


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
