"""``qslm-edge profiles detect``: once for real on the base install, else with a machine that does not exist."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from qslm_edge.profiles import read_profile
from qslm_edge.profiles import survey as survey_module
from qslm_edge.profiles.survey import Survey
from qslm_edge.runner.survey import RuntimeFacts
from tests.helpers.surveys import make_survey

Invoke = Callable[..., Result]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[[Survey], None]:
    """Puts a survey in the place of a look at this machine."""

    def put(survey: Survey) -> None:
        def take(_root: Path, on_progress: Any) -> Survey:
            on_progress("reading the machine", 0.0)
            return survey

        monkeypatch.setattr(survey_module, "take_survey", take)

    return put


def test_this_machine_without_torch_and_onnx(root: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfor name in ('torch', 'onnx', 'filelock', 'platformdirs'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = ['qslm-edge', *sys.argv[1:]]\n"
        "from qslm_edge.cli.app import main\nmain()"
    )
    path = tmp_path / "board.toml"
    command = [sys.executable, "-c", code, "profiles", "detect", "--out", str(path), "--json"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    profile = read_profile(path)
    assert document["digest"] == profile.digest
    assert document["found"]["runtime"]["release"] == profile.runtime.onnxruntime
    assert profile.provider == "CPUExecutionProvider"
    widths = {width.bits: width for width in profile.widths}
    assert widths.keys() >= {32, 16, 8, 4}
    assert widths[8].accuracy_level == 4
    assert {fact.grade for fact in profile.facts()} == {"measured", "chosen"}
    forms = document["found"]["probes"][0]["forms"]
    assert len(forms) == 1 + 3 * 2 * 3
    assert all(form["relative_error"] < 2e-2 for form in forms if form["status"] != "refused")


def test_a_board_is_written_and_shown(
    found: Callable[[Survey], None], run: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found(make_survey())
    result = run("profiles", "detect", "--name", "My Pi", "--memory-budget", "2GB")
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0] == "my-pi: My Pi"
    assert "memory 8060 MiB, budget 1907 MiB" in lines
    known = "device_tree_model Raspberry Pi 5 Model B Rev 1.0; min_memory_mib 6045; max_memory_mib 12090"
    assert f"known again by {known}" in lines
    assert "2 CPUExecutionProvider 4 32, 64, 128 activations rounded to int8" in lines
    assert lines[-1] == "written: my-board.toml; next: qslm-edge deploy --profile ./my-board.toml"
    assert run("profiles", "validate", "my-board.toml").stdout == "ok my-board.toml (my-pi)\n"
    again = run("profiles", "detect")
    assert again.exit_code == 4
    assert "a file stands there already" in again.stderr
    assert run("profiles", "detect", "--force").exit_code == 0
    assert read_profile(Path("my-board.toml")).name == "Raspberry Pi 5 Model B Rev 1.0"


def test_without_a_runtime_what_is_known_is_told_and_nothing_is_written(
    found: Callable[[Survey], None], run: Invoke, tmp_path: Path
) -> None:
    runtime = RuntimeFacts(None, (), (), "cannot be imported: No module named 'onnxruntime'")
    found(make_survey(runtime=runtime, probes={}))
    path = tmp_path / "board.toml"
    result = run("profiles", "detect", "--out", path)
    assert result.exit_code == 4
    assert "python3 -m pip install onnxruntime; then run this again" in result.stderr.splitlines()[-1]
    assert "Raspberry Pi 5 Model B Rev 1.0 (aarch64)" in result.stdout
    as_json = run("profiles", "detect", "--out", path, "--json")
    document = json.loads(as_json.stdout)
    assert (as_json.exit_code, document["error"]["exit_code"], document["profile"]) == (4, 4, None)
    assert document["found"]["machine"]["arch"] == "aarch64"
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_out_and_what_is_simulated_is_said(
    found: Callable[[Survey], None], run: Invoke, tmp_path: Path
) -> None:
    found(make_survey(simulated=True, runtime=RuntimeFacts("1.23.2", (), ())))
    result = run("profiles", "detect", "--out", tmp_path / "board.toml")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert lines[0].startswith("simulated from a recorded tree of files")
    assert "left out: 2 bits on CPUExecutionProvider: needs onnxruntime 1.28.0, here is 1.23.2" in lines


def test_a_budget_that_is_no_size_is_2(run: Invoke, tmp_path: Path) -> None:
    result = run("profiles", "detect", "--out", tmp_path / "x.toml", "--memory-budget", "lots")
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
