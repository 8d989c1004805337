"""Runs of the real program on a tiny model and own texts, shared by the tests of the commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from qslm_edge.cli.app import app

Invoke = Callable[..., Result]


@dataclass(frozen=True)
class Inputs:
    """A model directory and evaluation data of one's own."""

    model: Path
    search_text: Path
    report_text: Path
    search_sentences: Path
    report_sentences: Path

    def flags(self, task: str = "wikitext2", profile: str = "x86-laptop") -> list[str]:
        """What makes a command use them, for a board, in seconds."""
        words = ["--profile", profile, "--model", str(self.model), "--task", task]
        search, report = (
            (self.search_sentences, self.report_sentences)
            if task == "sst2"
            else (self.search_text, self.report_text)
        )
        return [*words, "--search-data", str(search), "--report-data", str(report), "--search-windows", "20"]


def qslm_edge(*words: str | Path) -> Result:
    """Run a command line in this process."""
    return CliRunner().invoke(app, [str(word) for word in words])


def parsed(result: Result) -> Any:
    """The one JSON document on stdout."""
    return json.loads(result.stdout)


@pytest.fixture(scope="session")
def run() -> Invoke:
    """The program, as a function of its words."""
    return qslm_edge


@pytest.fixture(scope="session")
def _one_thread() -> Iterator[None]:
    """Tiny products gain nothing from threads, and threads that wait for a busy core cost seconds."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # for processes that tests start
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def inputs(_one_thread: None, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    from tests.helpers.directory import make_text, write_sentences

    folder = tmp_path_factory.mktemp("data")
    texts = [(folder / "search.txt", 800, 1), (folder / "report.txt", 300, 2)]
    for path, n_words, seed in texts:
        path.write_text(make_text(n_words, seed), "utf-8")
    return Inputs(
        tiny_model,
        texts[0][0],
        texts[1][0],
        write_sentences(folder / "search.tsv", 24, seed=1),
        write_sentences(folder / "report.tsv", 16, seed=2),
    )


@pytest.fixture(scope="session")
def searched(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a finished search; copy it to change it."""
    place = tmp_path_factory.mktemp("runs") / "searched"
    result = qslm_edge("search", *inputs.flags(), "--levels", "16,8,4", "--out", place)
    assert result.exit_code == 0, result.output
    return place


@pytest.fixture(scope="session")
def bundle(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model's bundle at 8 bits; copy it to change it."""
    return _exported(inputs, tmp_path_factory, "wikitext2")


@pytest.fixture(scope="session")
def classifier(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier's bundle at 8 bits; copy it to change it."""
    return _exported(inputs, tmp_path_factory, "sst2")


def _exported(inputs: Inputs, factory: pytest.TempPathFactory, task: str) -> Path:
    place = factory.mktemp("runs") / f"exported-{task}"
    # random weights: a limit that no rounding reaches, so that the verdict is on the program
    limit = ["--max-accuracy-drop", "90"] if task == "sst2" else ["--max-ppl-increase", "300"]
    # a board that no host of tests is, so that verifying is a rehearsal
    result = qslm_edge(
        "export", *inputs.flags(task, "jetson-orin"), *limit, "--setting", "8g64", "--out", place
    )
    assert result.exit_code == 0, result.output
    return place / "bundle"
