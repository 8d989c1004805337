"""``qslm-edge meter`` and the same as a command of the runner: output, exit codes, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from qslm_edge.runner import __main__ as runner
from tests.helpers.meter_logs import write_generic, write_result

Invoke = Callable[..., Result]


def test_it_tells_the_energy_and_writes_the_result(run: Invoke, tmp_path: Path) -> None:
    verified, log, output = write_result(tmp_path), write_generic(tmp_path), tmp_path / "meter.json"
    result = run("meter", verified, log, "--output", output)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("log: log.csv (generic), ")
    assert "energy a token, net of idle: 9" in result.stdout or "net of idle: 1" in result.stdout
    written = json.loads(output.read_text("utf-8"))
    assert written["schema"] == "qslm-edge/meter/1"
    shown = json.loads(run("meter", verified, log, "--json").stdout)
    assert shown == written


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--format", "x"), "--format: unknown choice; found x; allowed: auto, ppk2"),
        (("--align", "x"), "--align: unknown choice"),
        (("--supply-v", "5"), "--supply-v is for a log without voltage"),
        (("--log-start", "noon"), "--log-start: not a time"),
        (("--clock-error-s", "-1"), "out of range"),
    ],
)
def test_what_it_refuses(words: tuple[str, ...], message: str, run: Invoke, tmp_path: Path) -> None:
    result = run("meter", write_result(tmp_path), write_generic(tmp_path), *words)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_place_that_cannot_be_written(run: Invoke, tmp_path: Path) -> None:
    result = run("meter", write_result(tmp_path), write_generic(tmp_path), "--output", tmp_path)
    assert result.exit_code == 4
    assert "cannot be written there" in " ".join(result.stderr.split())


def test_no_valid_window_is_inconclusive(run: Invoke, tmp_path: Path) -> None:
    log = write_generic(tmp_path, after_s=-30.0)
    result = run("meter", write_result(tmp_path, marker=False), log)
    assert result.exit_code == 3
    assert "energy: rejected: 0 samples in the window" in result.stdout


def test_the_runner_gives_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verified, log, output = str(write_result(tmp_path)), str(write_generic(tmp_path)), tmp_path / "m.json"
    assert runner.main(["meter", verified, log, "--output", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(output.read_text("utf-8"))
    assert runner.main(["meter", verified, log]) == 0
    assert capsys.readouterr().out.startswith("log: log.csv (generic)")
    assert runner.main(["meter", verified, verified]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert runner.main(["meter", verified, log, "--log-start", "noon"]) == 2


def test_verify_names_the_sources_it_can_read(run: Invoke, bundle: Path) -> None:
    result = run("verify", bundle, "--power-source", "raple")
    assert result.exit_code == 2
    message = " ".join(result.stderr.split())
    assert "--power-source: unknown power source; found raple; allowed: battery, csv, hwmon" in message


@pytest.mark.parametrize("words", [("--power-source", "csv"), ("--power-marker",)])
def test_flags_that_contradict(
    words: tuple[str, ...], run: Invoke, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run("verify", bundle, "--power", "off", *words)
    assert result.exit_code == 2
    line = f"{words[0]}: nothing is measured under --power off"
    assert line in " ".join(result.stderr.split())
    assert runner.main(["verify", str(bundle), "--power", "off", *words]) == 2
    assert line in capsys.readouterr().err
