"""``qslm-edge fit``: the table, the JSON, and the exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Invoke = Callable[..., Result]


def test_a_model_that_fits_is_0(run: Invoke, tiny_model: Path) -> None:
    result = run("fit", tiny_model, "-p", "jetson-orin")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0] == "tiny on NVIDIA Jetson Orin Nano 8GB (Super)"
    assert "level runs from weights in memory load peak steady margin verdict" in lines
    rows = {line.split()[0]: line.split()[-1] for line in lines if line.split()[-1:] == ["fits"]}
    assert list(rows) == ["32", "16", "8g64", "4g32", "4g64", "4g128", "Verdict:"]
    assert any(
        line.startswith("2g64: CPUExecutionProvider runs it from onnxruntime 1.28.0") for line in lines
    )
    assert "state of each further stream: 3.6 kB, whatever the context" in lines
    assert lines[-1] == "Verdict: fits"


def test_one_that_does_not_is_1_and_says_what_would_help(run: Invoke, tiny_model: Path) -> None:
    result = run("fit", tiny_model, "-p", "jetson-orin", "--memory-budget", "20MB")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[-1] == "Verdict: does not fit"
    assert [line for line in lines if line.startswith("would fit: a budget of ")] != []
    assert [line for line in lines if line.startswith("would fit: another board: ")] != []


def test_json_and_the_memory_of_a_card(run: Invoke, tiny_model: Path) -> None:
    result = run("fit", tiny_model, "-p", "h100", "--levels", "8,4", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["verdict"]) == (3, "unknown")
    assert [row["level"] for row in found["levels"]] == ["8g64", "4g64"]
    assert "Verdict: unknown" in run("fit", tiny_model, "-p", "h100").stdout


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "--profile: no board chosen"),
        (["-p", "no-such-board"], "unknown board"),
        (["-p", "jetson-orin", "--group-size", "48"], "not a group size"),
        (["-p", "jetson-orin", "--memory-budget", "lots"], "not a size"),
        (["absent.pth", "-p", "jetson-orin"], "no such checkpoint"),
    ],
)
def test_bad_input_is_2_and_one_line(words: list[str], text: str, run: Invoke) -> None:
    result = run("fit", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert text in result.stderr
    assert len(result.stderr.splitlines()) == 1
