"""From checkpoint to verified bundle on a tiny model: the report, resuming, and whatever can stop it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from qslm_edge import deploy as pipeline
from qslm_edge.bundle.reader import open_bundle
from qslm_edge.deploy import deploy, open_run
from qslm_edge.errors import (
    EnvironmentFault,
    InfeasibleError,
    OutputError,
    QslmError,
    RunError,
    UsageError,
)
from qslm_edge.progress import Silent
from qslm_edge.quantize.levels import parse_level
from qslm_edge.recipe import Recipe, read_recipe, write_recipe
from qslm_edge.runner.limits import Limits
from qslm_edge.runner.verify import VerifyOptions
from qslm_edge.search.trial import Judge
from qslm_edge.steps.find import find_setting
from qslm_edge.targets import get_target
from tests.helpers.bundles import cache, fit_head, tiny_recipe

__all__ = ["cache"]

Report = dict[str, Any]
QUICK = VerifyOptions(power="off", steps=8)
FILES = {".lock", "bundle", "journal.jsonl", "recipe.toml", "report.json", "report.md", "sensitivity.json"}
KEYS = {
    *("schema", "tool_version", "verdict", "exit_code", "rehearsal", "recipe", "model", "profile", "task"),
    *(
        "constraints",
        "setting",
        "quantiser",
        "cuts",
        "tuning",
        "weights",
        "search",
        "export",
        "bundle",
        "verification",
        "seconds",
        "summary",
    ),
}


def small_recipe(folder: Path, task: str = "wikitext2", **choices: Any) -> Recipe:
    """Few items and two widths; the limit lets the search lower some modules and not others."""
    values: dict[str, Any] = {"levels": ("8", "2"), "search_windows": 8, "report_windows": 8}
    values["max_degradation"] = 1.0 if task == "wikitext2" else 60.0
    return tiny_recipe(folder, task, **(values | choices))


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def place(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny model and its data lie."""
    folder = tmp_path_factory.mktemp("deploy")
    tiny_recipe(folder)
    fit_head(folder / "model")
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> Report:
    """A finished deployment in `place/run`; not to be changed."""
    return deploy(small_recipe(place), place / "run", Silent(), verify=QUICK)


def test_the_report_has_its_keys_and_is_what_lies_on_disk(finished: Report, place: Path) -> None:
    assert finished.keys() == KEYS
    assert json.loads((place / "run" / "report.json").read_text("utf-8")) == finished
    assert json.dumps(finished, allow_nan=False)
    assert names(place / "run") >= FILES
    assert finished["schema"] == "qslm-edge/report/1"
    assert finished["seconds"].keys() == {"prepare", "search", "statistics", "export", "verify"}
    assert all(seconds >= 0 for seconds in finished["seconds"].values())
    assert finished["verdict"].encode() in (place / "run" / "report.md").read_bytes()


def test_the_statistics_are_of_the_chosen_setting_on_search_items(finished: Report) -> None:
    statistics, searched = (
        finished["search"]["statistics"],
        finished["verification"]["scoring"]["splits"]["search"],
    )
    assert statistics["source"] == searched["source"]
    assert statistics["n_items"] == min(8, searched["n_items"])
    quantised = statistics["operations"]["quantised"]
    assert quantised["footprint_bytes"] == finished["weights"]["bytes"]
    assert statistics["operations"]["float"]["footprint_bytes"] == finished["model"]["float32_bytes"]
    assert quantised["as_built"]["effective_acs"] == 0
    assert statistics["divergence"]["kl_mean_nats"] > 0


def test_verdict_exit_code_and_checks_agree(finished: Report) -> None:
    codes = {"pass": 0, "fail": 1, "inconclusive": 3}
    verification = finished["verification"]
    assert finished["exit_code"] == verification["exit_code"] == codes[finished["verdict"]]
    assert finished["verdict"] == verification["verdict"]
    verdicts = {check["verdict"] for check in verification["checks"]}
    expected = "fail" if "fail" in verdicts else "inconclusive" if "inconclusive" in verdicts else "pass"
    assert finished["verdict"] == expected
    assert finished["rehearsal"] == verification["rehearsal"]


def test_the_bundle_is_the_setting_that_the_search_chose(finished: Report, place: Path) -> None:
    bundle = open_bundle(place / "run" / "bundle")
    chosen = finished["search"]["chosen"]
    assert finished["bundle"] == {"path": str(place / "run" / "bundle"), "digest": bundle.digest}
    assert chosen["setting"] == finished["setting"] == bundle.manifest["setting"]
    assert chosen["weight_bytes"] == finished["weights"]["bytes"] == finished["export"]["weight_bytes"]
    assert chosen["feasible"] is True
    bits = {parse_level(level).bits for level in chosen["setting"].values()}
    assert bits == {2, 8}  # a mixed setting went through all of it
    assert finished["export"]["parity"]["ok"] is True
    search = finished["verification"]["scoring"]["splits"]["search"]
    assert search["against_search"]["ok"] is True
    assert search["against_search"]["search"]["value"] == pytest.approx(
        bundle.manifest["expected"]["search"]["value"], rel=1e-5
    )


def test_search_and_report_items_are_kept_apart(finished: Report) -> None:
    splits = finished["verification"]["scoring"]["splits"]
    assert splits["search"]["digest"] != splits["report"]["digest"]
    assert "search.txt" in splits["search"]["source"]
    assert "report.txt" in splits["report"]["source"]


def test_the_recipe_runs_the_same_again(finished: Report, place: Path) -> None:
    recipe = read_recipe(place / "run" / "recipe.toml")
    assert recipe == small_recipe(place)
    assert finished["recipe"] == recipe.model_dump(mode="json", by_alias=True, exclude_none=True)


def test_a_second_run_resumes_and_gives_the_identical_bundle(finished: Report, place: Path) -> None:
    before = contents(place / "run" / "bundle")
    journal = (place / "run" / "journal.jsonl").read_bytes()
    again = deploy(small_recipe(place), place / "run", Silent(), verify=QUICK)
    assert contents(place / "run" / "bundle") == before
    assert (place / "run" / "journal.jsonl").read_bytes() == journal
    assert again["search"]["cost"]["evaluations"] == 0
    assert again["search"]["cost"]["replayed_from_journal"] > 0
    measured = {"search", "verification", "seconds", "summary"}
    assert {k: v for k, v in again.items() if k not in measured} == {
        k: v for k, v in finished.items() if k not in measured
    }
    assert again["search"]["chosen"] == finished["search"]["chosen"]
    scores = [r["verification"]["scoring"]["splits"]["report"]["scores"] for r in (finished, again)]
    assert scores[0] == scores[1]  # the runner is deterministic, too


class Interrupt(Silent):
    """Presses Ctrl-C at the n-th step of the stages whose title begins so."""

    def __init__(self, title: str, after: int) -> None:
        self.title, self.after, self.current = title, after, ""

    def stage(self, title: str, total: float | None = None) -> None:
        super().stage(title, total)
        self.current = title
        self._count()

    def advance(self, steps: float = 1.0, note: str = "") -> None:
        super().advance(steps, note)
        self._count()

    def _count(self) -> None:
        if self.current.startswith(self.title):
            self.after -= 1
            if self.after < 0:
                raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("title", "after"), [("search, ", 3), ("selection", 0), ("export", 1), ("verify: search items", 0)]
)
def test_stopped_at_any_moment_it_goes_on_to_the_same_end(
    title: str, after: int, finished: Report, place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        deploy(small_recipe(place), out, Interrupt(title, after), verify=QUICK)
    left = names(out)
    assert "report.json" not in left
    assert left <= FILES - {"report.json", "report.md"}  # nothing half-written, nothing hidden
    assert ("bundle" in left) == title.startswith("verify")
    if title.startswith("verify"):
        open_bundle(out / "bundle")
    again = deploy(small_recipe(place), out, Silent(), verify=QUICK)
    assert again["search"]["cost"]["replayed_from_journal"] > 0
    assert contents(out / "bundle") == contents(place / "run" / "bundle")
    assert again["verdict"] == finished["verdict"]


def test_a_killed_process_leaves_a_directory_that_goes_on(place: Path, tmp_path: Path, root: Path) -> None:
    """SIGKILL in the middle of a search: no cleaning at all."""
    code = f"""
import os, signal, sys
from pathlib import Path
from qslm_edge.deploy import deploy
from qslm_edge.progress import Silent
from qslm_edge.recipe import read_recipe

class Kill(Silent):
    def stage(self, title, total=None):
        if title.startswith("search, "):
            os.kill(os.getpid(), signal.SIGKILL)

deploy(read_recipe(Path({str(tmp_path / "recipe.toml")!r})), Path({str(tmp_path / "run")!r}), Kill())
"""
    write_recipe(small_recipe(place, "sst2"), tmp_path / "recipe.toml")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    report = deploy(small_recipe(place, "sst2"), tmp_path / "run", Silent(), verify=QUICK)
    assert report["search"]["cost"]["replayed_from_journal"] > 0
    assert report["task"]["metric"] == "accuracy"
    assert report["verification"]["scoring"]["splits"].keys() == {"search", "report"}
    assert report["exit_code"] in (0, 1, 3)


# ---- search and bundle disagree


def test_a_bundle_that_measures_something_else_than_the_search_fails(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def optimist(*arguments: Any) -> Any:
        result, evaluator, tuned = find_setting(*arguments)
        scores = result.chosen_scores
        better = dataclasses.replace(scores, loss=scores.loss - 0.2 * scores.count)
        return dataclasses.replace(result, chosen_scores=better), evaluator, tuned

    monkeypatch.setattr(pipeline, "find_setting", optimist)
    report = deploy(small_recipe(place), tmp_path / "run", Silent(), verify=QUICK)
    checks = {check["name"]: check for check in report["verification"]["checks"]}
    check = checks["agreement with the search"]
    assert (report["verdict"], report["exit_code"], check["verdict"]) == ("fail", 1, "fail")
    assert check["value"] == pytest.approx(0.221, abs=0.01)  # exp(0.2) - 1: where they part, and by how much
    rows = [row for row in report["summary"] if row["figure"] == "search agreement"]
    assert [row["verdict"] for row in rows] == ["fail"]
    assert json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))["exit_code"] == 1


def test_memory_below_the_measured_peak_fails(place: Path, tmp_path: Path) -> None:
    options = dataclasses.replace(QUICK, limits=Limits(memory_budget_bytes=10**6))
    report = deploy(small_recipe(place), tmp_path / "run", Silent(), verify=options)
    assert (report["verdict"], report["exit_code"]) == ("fail", 1)


def test_a_runtime_that_computes_something_else_still_gives_a_report(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A golden mismatch, with a value that is no number: the report is whole, and says fail."""
    real = get_target("local")

    class Broken:
        def verify(self, *arguments: Any) -> Report:
            result = real.verify(*arguments)
            result["scoring"]["golden"] |= {"value": None, "ok": False}
            result["scoring"]["splits"] = {}
            result["checks"] = [result["checks"][0] | {"value": None, "verdict": "fail"}]
            return result | {"decode": None, "verdict": "fail", "exit_code": 1}

    monkeypatch.setattr(pipeline, "get_target", lambda _name: Broken())
    report = deploy(small_recipe(place), tmp_path / "run", Silent(), verify=QUICK)
    assert (report["verdict"], report["exit_code"]) == ("fail", 1)
    assert "golden vectors" in (tmp_path / "run" / "report.md").read_text("utf-8")


# ---- refused


def no_work(*_: Any, **__: Any) -> Any:
    pytest.fail("must be refused before any work")


def refused(kind: type[QslmError], match: str, act: Callable[[], object]) -> QslmError:
    with pytest.raises(kind, match=match) as caught:
        act()
    assert "\n" not in caught.value.line()
    return caught.value


def test_the_papers_simulation_is_refused_with_the_next_step(place: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(place, method="qslm")
    error = refused(
        UsageError,
        "--method qslm: the paper's scheme is a simulation and cannot be deployed",
        lambda: deploy(recipe, tmp_path / "run", Silent()),
    )
    assert "`qslm-edge search --method qslm`" in error.line()
    assert not (tmp_path / "run").exists()


def test_an_unknown_target_is_refused_before_any_work(place: Path, tmp_path: Path) -> None:
    refused(
        UsageError,
        "unknown target; found ssh://board",
        lambda: deploy(small_recipe(place), tmp_path / "run", Silent(), target="ssh://board"),
    )
    assert not (tmp_path / "run").exists()


def test_a_second_process_is_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "prepare", no_work)
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        error = refused(
            RunError,
            "another process works in this run directory. Use another --out",
            lambda: deploy(small_recipe(place), tmp_path / "run", Silent()),
        )
        assert error.exit_code == 2
    with open_run(tmp_path / "run"):  # free again
        refused(RunError, "another process", lambda: open_run(tmp_path / "run").__enter__())


def test_the_lock_is_released_whatever_happens(place: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match="inside"), open_run(tmp_path):
            raise RuntimeError("inside")


@pytest.mark.parametrize("way", ["file", "file/below"])
def test_a_file_in_the_way_of_the_directory_is_one_line(way: str, place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", "utf-8")
    error = refused(
        OutputError,
        "the run directory cannot be used; found ",
        lambda: deploy(small_recipe(place), tmp_path / way, Silent()),
    )
    assert error.exit_code == 4
    assert (tmp_path / "file").read_text("utf-8") == "mine"


def test_something_in_the_way_of_the_bundle_is_refused_before_the_search(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "find_setting", no_work)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "bundle").write_text("mine", "utf-8")
    refused(
        OutputError,
        "refusing to replace something that is not a bundle",
        lambda: deploy(small_recipe(place), tmp_path / "run", Silent()),
    )
    assert (tmp_path / "run" / "bundle").read_text("utf-8") == "mine"


def test_an_infeasible_constraint_leaves_no_bundle_and_no_report(place: Path, tmp_path: Path) -> None:
    recipe = small_recipe(place, weights_budget_bytes=1000)
    error = refused(
        InfeasibleError,
        "no setting can fit the memory constraint",
        lambda: deploy(recipe, tmp_path / "run", Silent(), verify=QUICK),
    )
    assert error.exit_code == 1
    assert "budget 0.00 MB" in error.line()
    assert names(tmp_path / "run") <= FILES - {"bundle", "report.json", "report.md"}


def test_the_journal_of_another_model_is_refused(finished: Report, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "journal.jsonl").write_bytes((place / "run" / "journal.jsonl").read_bytes())
    refused(
        RunError,
        "the journal belongs to another search; found different items",
        lambda: deploy(small_recipe(place, search_windows=9), out, Silent()),
    )


def test_a_full_disk_while_exporting_is_one_line(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device", "model.bin")

    monkeypatch.setattr("qslm_edge.exporters.onnx_graph.WeightFile.add", full)
    error = refused(
        OutputError,
        "the model cannot be written; found No space left on device",
        lambda: deploy(small_recipe(place), tmp_path / "run", Silent(), verify=QUICK),
    )
    assert error.exit_code == 4
    assert names(tmp_path / "run") <= FILES - {"bundle", "report.json", "report.md"}


def test_a_measuring_process_that_dies_leaves_the_bundle_and_no_report(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "killed.py"
    script.write_text("import os; os.kill(os.getpid(), 9)", "utf-8")
    monkeypatch.setattr(
        "qslm_edge.runner.child._command", lambda: ([sys.executable, str(script)], dict(os.environ))
    )
    error = refused(
        EnvironmentFault,
        "killed by signal 9.*Memory was probably short",
        lambda: deploy(small_recipe(place), tmp_path / "run", Silent(), verify=QUICK),
    )
    assert error.exit_code == 4
    assert "report.json" not in names(tmp_path / "run")
    open_bundle(tmp_path / "run" / "bundle")


def test_no_result_on_report_items_steers_the_search(
    finished: Report, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other report data: the same search, the same setting."""
    seen: set[str] = set()
    real = Judge.judge

    def judge(self: Judge, *arguments: Any, **more: Any) -> Any:
        seen.add(self.evaluator.items.split)
        return real(self, *arguments, **more)

    monkeypatch.setattr(Judge, "judge", judge)
    other = tmp_path / "other.txt"
    other.write_text("a long night and the wind . " * 60, "utf-8")
    report = deploy(small_recipe(place, report_data=str(other)), tmp_path / "run", Silent(), verify=QUICK)
    assert seen == {"search"}
    assert report["setting"] == finished["setting"]
