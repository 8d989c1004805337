"""What a search refuses: limits that cannot be met, bad input, places that cannot be written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from qslm_edge import device_profiles
from tests.helpers.search_runs import LEVELS, Invoke


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
        (["--method", "genetic"], "UsageError", "--method: Input should be 'budgeted'"),
        (["--cut-hidden", "1"], "UsageError", "--cut-hidden: Input should be less than 1; found 1.0"),
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
