"""Fronts: any budget or limit answered at once, exported, or refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.search_runs import LEVELS, Invoke, found_in


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
