"""``qslm-edge doctor``: lines, JSON and exit codes; what it finds is tested with the runner."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from qslm_edge.runner import doctor

Invoke = Callable[..., Result]


@pytest.mark.parametrize("code", [0, 1, 3, 4])
def test_lines_and_exit_code(code: int, run: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    finding = {"area": "memory", "name": "read-out", "status": "ok", "detail": "moved"}
    document = {"findings": [finding], "summary": "That is all.", "exit_code": code}

    def examine(bundle: Path | None, *, root: Path, on_progress: Any) -> Any:
        asked.append((bundle, root))
        on_progress("running nodes on CPUExecutionProvider", 0.5)
        return document

    monkeypatch.setattr(doctor, "examine", examine)
    result = run("doctor", tmp_path, "--root", tmp_path)
    assert result.exit_code == code
    assert result.stdout == "memory:\n  ok       read-out: moved\nThat is all.\n"
    assert result.stderr == "running nodes on CPUExecutionProvider\n"
    assert json.loads(run("doctor", "--json").stdout) == document
    assert asked == [(tmp_path, tmp_path), (None, Path("/"))]


def test_no_bundle_is_2(run: Invoke, tmp_path: Path) -> None:
    result = run("doctor", tmp_path, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["type"] == "BundleError"


def test_the_option_for_tests_is_not_in_the_help(run: Invoke) -> None:
    for command in (["doctor"], ["verify"], ["profiles", "detect"]):
        assert "--root" not in run(*command, "--help").stdout
