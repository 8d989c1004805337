"""`qslm-edge report`, run as a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BLOCK = "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnx', 'onnxruntime', 'tokenizers']));"
RUN = "from qslm_edge.cli.app import main; main()"


@pytest.fixture
def stored(fixtures: Path) -> str:
    return str(fixtures / "small.json")


def report(root: Path, *words: str, encoding: str = "utf-8") -> subprocess.CompletedProcess[str]:
    """Run the command with the host's libraries blocked, on a terminal of some encoding."""
    return subprocess.run(
        [sys.executable, "-c", BLOCK + RUN, "report", *words],
        cwd=root,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def test_text_to_a_pipe(root: Path, stored: str) -> None:
    done = report(root, stored)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-1] == "Bundle: runs/small/bundle"
    assert lines[-2] == "Verdict: pass (rehearsal)"
    assert "\x1b" not in done.stdout


def test_json_is_the_report(root: Path, stored: str) -> None:
    done = report(root, stored, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == json.loads(Path(stored).read_text("utf-8"))
    assert report(root, stored, "--format", "json").stdout == done.stdout


def test_a_page_to_a_file(root: Path, stored: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = report(root, stored, "--format", "html", "--output", str(page))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert page.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert report(root, stored, "-f", "html").stdout == page.read_text("utf-8")


def test_a_locale_without_the_signs_of_the_table(root: Path, stored: str) -> None:
    done = report(root, stored, encoding="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "+0.59 ? 0.44" in done.stdout
    page = report(root, stored, "-f", "markdown", encoding="ascii")
    assert "+0.59 ± 0.44" in page.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nowhere"], 2, "no report here"),
        (["STORED", "--format", "pdf"], 2, "allowed: text, markdown, html, json"),
        (["STORED", "--output", "no/such/place.md"], 4, "no such directory"),
        (["DAMAGED"], 2, "the report is incomplete or damaged; found KeyError"),
    ],
)
def test_one_line_for_what_is_wrong(
    root: Path, stored: str, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    damaged = tmp_path / "report.json"
    damaged.write_text('{"schema": "qslm-edge/report/1"}', "utf-8")
    places = {"STORED": stored, "DAMAGED": str(damaged)}
    done = report(root, *[places.get(word, word) for word in words])
    assert done.returncode == code
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
