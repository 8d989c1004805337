"""Measuring processes: answers, progress, errors with their class, death without an answer, no leftovers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qslm_edge import errors
from qslm_edge.errors import BundleError, EnvironmentFault, OutputError, QslmError, RuntimeFault
from qslm_edge.runner import child
from qslm_edge.runner.child import MEMORY_HINT, PROGRESS, report_progress, run_child, write_answer

Play = Callable[..., Any]
NOTHING: Callable[[str, float], None] = lambda _title, _share: None  # noqa: E731
HEAD = (
    "import json, os, signal, sys, time\n"
    "answer = sys.argv[sys.argv.index('--answer') + 1]\n"
    "def say(text): sys.stderr.write(text); sys.stderr.flush()\n"
    "def done(result): open(answer, 'w').write(json.dumps({'result': result}))\n"
)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files; empty again after every test."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path) -> Play:
    """Runs some lines of Python in the place of the measuring program."""

    def run(code: str, on_progress: Callable[[str, float], None] = NOTHING, *arguments: str) -> Any:
        script = tmp_path / "program.py"
        script.write_text(HEAD + code, "utf-8")
        monkeypatch.setattr(child, "_command", lambda: ([sys.executable, str(script)], dict(os.environ)))
        try:
            return run_child([*arguments], on_progress)
        finally:
            assert list(temporary.iterdir()) == []

    return run


def test_the_answer_comes_back_with_the_arguments(play: Play) -> None:
    assert play("done({'args': sys.argv[1:3], 'x': 0.1})", NOTHING, "_score", "place") == {
        "args": ["_score", "place"],
        "x": 0.1,
    }


def test_progress_passes_through_and_other_lines_do_not(
    play: Play, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[str, float]] = []
    code = f"""
say('a warning of some library\\n')
say({PROGRESS!r} + json.dumps(['items', 0.25]) + '\\n')
say({PROGRESS!r} + json.dumps(['items', 0.75]) + '\\n')
print('noise on stdout')
done(1)
"""
    assert play(code, lambda title, share: told.append((title, share))) == 1
    assert told == [("items", 0.25), ("items", 0.75)]
    assert capfd.readouterr() == ("", "")  # nothing of the child reaches the terminal


def test_progress_is_written_as_it_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    report_progress("weiß\n", 0.5)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert child._progress(line) == ("weiß\n", 0.5)


@pytest.mark.parametrize(
    "line",
    ["@qslm ", '@qslm ["items", 0.', "@qslm []", "@qslm {}", '@qslm ["a"]', '@qslm ["a", "b"]', "@qslm 3"],
)
def test_a_progress_line_cut_short_by_a_kill_is_no_fault(line: str, play: Play) -> None:
    assert child._progress(line) is None
    told: list[str] = []
    assert play(f"say({line!r}); done(7)", lambda title, _share: told.append(title)) == 7
    assert told == []


@pytest.mark.parametrize("name", [n for n in errors.__all__ if n[:4] != "EXIT" and n != "QslmError"])
def test_an_error_keeps_its_class_and_its_line(name: str, tmp_path: Path) -> None:
    kind: type[QslmError] = getattr(errors, name)
    error = kind("what went wrong", where="a file", found=3, allowed="1, 2", hint="do something else")
    write_answer(tmp_path / "answer.json", error)
    with pytest.raises(kind) as caught:
        child._answer(tmp_path / "answer.json", error.exit_code, [])
    assert type(caught.value) is kind
    assert caught.value.line() == error.line()
    assert caught.value.exit_code == error.exit_code


def test_an_error_of_a_class_that_this_version_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_text('{"error": "NewerError", "line": "something new", "exit_code": 4}', "utf-8")
    with pytest.raises(EnvironmentFault, match="something new"):
        child._answer(path, 4, [])


def test_killed_for_memory_says_so(play: Play) -> None:
    with pytest.raises(EnvironmentFault, match="ended without a result; found killed by signal 9") as caught:
        play("say('last words\\n'); os.kill(os.getpid(), signal.SIGKILL)")
    line = caught.value.line()
    assert "last words" in line
    assert line.endswith(MEMORY_HINT[:1].upper() + MEMORY_HINT[1:])
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("code", "found", "hint"),
    [
        ("sys.exit(137)", "exit status 137", True),  # as a shell or a container tells a kill
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by signal 11", False),
        ("sys.exit(3)", "exit status 3", False),
        ("sys.exit(0)", "exit status 0", False),
        ("open(answer, 'w').write('{\"result\": [1, 2'); sys.exit(1)", "exit status 1", False),
        ("raise ValueError('a bug')", "exit status 1; .*ValueError: a bug", False),
    ],
)
def test_death_without_an_answer_is_one_line(code: str, found: str, hint: bool, play: Play) -> None:
    with pytest.raises(EnvironmentFault, match=f"ended without a result; found {found}") as caught:
        play(code)
    assert (caught.value.hint == MEMORY_HINT) is hint
    assert "\n" not in caught.value.line()
    assert len(caught.value.line()) < 600


def test_the_last_words_are_the_last_five_lines(play: Play) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        play("for i in range(20): say(f'line-{i:02}\\n')\nsys.exit(1)")
    assert "line-15 line-16 line-17 line-18 line-19" in caught.value.line()
    assert "line-14" not in caught.value.line()


def test_bytes_that_are_no_text_do_no_harm(play: Play) -> None:
    assert play("sys.stderr.buffer.write(b'\\xff\\xfe\\n'); done(1)") == 1


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), RuntimeError("the listener failed"), BrokenPipeError()]
)
def test_what_stops_the_parent_ends_the_child(error: BaseException, play: Play, tmp_path: Path) -> None:
    def stop(_title: str, _share: float) -> None:
        raise error

    code = f"""
open({str(tmp_path / "pid")!r}, 'w').write(str(os.getpid()))
say({PROGRESS!r} + '["begun", 0]\\n')
time.sleep(60)
"""
    begun = time.monotonic()
    with pytest.raises(type(error)):
        play(code, stop)
    assert gone(int((tmp_path / "pid").read_text("utf-8")))
    assert time.monotonic() - begun < 30


def test_a_child_that_will_not_end_is_killed(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "GRACE_S", 0.2)

    def stop(_title: str, _share: float) -> None:
        raise KeyboardInterrupt

    code = f"""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open({str(tmp_path / "pid")!r}, 'w').write(str(os.getpid()))
say({PROGRESS!r} + '["begun", 0]\\n')
time.sleep(20)
open({str(tmp_path / "lived")!r}, 'w')
"""
    with pytest.raises(KeyboardInterrupt):
        play(code, stop)
    assert not (tmp_path / "lived").exists()
    assert gone(int((tmp_path / "pid").read_text("utf-8")))


def test_the_program_is_this_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", "one")
    command, environment = child._command()
    assert command == [sys.executable, "-m", "qslm_edge.runner"]
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(root), "one"]
    monkeypatch.delenv("PYTHONPATH")
    assert child._command()[1]["PYTHONPATH"] == str(root)
    archive = tmp_path / "run.pyz"
    archive.touch()
    monkeypatch.setattr(errors, "__file__", str(archive / "qslm_edge" / "errors.py"))
    command, environment = child._command()
    assert command == [sys.executable, str(archive)]
    assert "PYTHONPATH" not in environment


def test_the_real_program_answers_with_its_own_errors(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle: manifest.json is missing") as caught:
        run_child(["_score", str(tmp_path / "absent")], NOTHING)
    assert caught.value.exit_code == 2


def test_an_answer_that_cannot_be_written_is_no_result(temporary: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        write_answer(temporary / "absent" / "answer.json", {"x": 1})
    with pytest.raises(EnvironmentFault, match="ended without a result; found exit status 4"):
        child._answer(temporary / "absent" / "answer.json", 4, [])
    assert issubclass(RuntimeFault, EnvironmentFault)
    assert issubclass(OutputError, EnvironmentFault)


@pytest.mark.parametrize(
    ("number", "step"),
    [
        *((signal.SIGINT, step) for step in ("search items", "memory", "latency")),
        (signal.SIGTERM, "latency"),
    ],
)
def test_a_signal_to_the_group_ends_all_in_silence(
    number: signal.Signals, step: str, lm_bundle: Any, tmp_path: Path, root: Path
) -> None:
    """Ctrl-C, as a terminal sends it, and SIGTERM to the parent alone."""
    folder = tmp_path / "signal"
    folder.mkdir()
    env = {**os.environ, "PYTHONPATH": str(root), "TMPDIR": str(folder)}
    command = [sys.executable, "-m", "qslm_edge.runner", "verify", str(lm_bundle.path), "--power", "smoke"]
    command += ["--steps", "100000000", "--output", str(folder / "result.json")]
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith(step):
                break
        assert len(list(folder.iterdir())) == 1  # where the answer would be written
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(60) == 130
        assert process.stdout.read() == ""
    assert rest == "interrupted\n"
    assert list(folder.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody of the group is left
