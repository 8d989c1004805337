"""The program's frame: exit codes, error lines, ``--json``, lateness of imports, signals, progress."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from qslm_edge import __version__, progress
from qslm_edge.cli import app as frame
from qslm_edge.cli import console
from qslm_edge.errors import (
    DisagreementError,
    InfeasibleError,
    OutputError,
    ProfileError,
    QslmError,
    RuntimeFault,
    UsageError,
)

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., Result]


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Register a command ``probe`` that does what a test wants, and run it."""

    def run(action: Callable[[], object], *words: str, env: dict[str, str] | None = None) -> Result:
        def command(
            as_json: console.Json = False, size: Annotated[int, typer.Option(help="A number.")] = 1
        ) -> None:
            """Do what the test wants."""
            action()

        module: Any = types.ModuleType("probe_command")
        module.command = command
        monkeypatch.setitem(sys.modules, "probe_command", module)
        monkeypatch.setitem(frame.COMMANDS, "probe", "probe_command")
        return CliRunner().invoke(frame.app, ["probe", *words], env=env)

    return run


def fail(error: BaseException) -> Callable[[], object]:
    def action() -> None:
        raise error

    return action


def program(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the real program in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "qslm_edge", *words],
        env=environment, text=True, timeout=60, check=False, **{"capture_output": True, **options},
    )  # fmt: skip


# help and version


def test_help_shows_the_commands_in_order_with_examples() -> None:
    result = CliRunner().invoke(frame.app, ["--help"])
    assert result.exit_code == 0
    rows = re.findall(rf"^\W*({'|'.join(frame.COMMANDS)}) {{2,}}\w", result.output, re.MULTILINE)
    assert rows == list(frame.COMMANDS)
    assert "qslm-edge profiles list" in result.output
    assert "[cyan]" not in result.output


def test_version() -> None:
    result = program("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"qslm-edge {__version__}\n", "")


def test_no_command_shows_the_help_as_a_usage_error() -> None:
    result = CliRunner().invoke(frame.app, [])
    assert result.exit_code == 2
    assert "Usage: qslm-edge" in result.output


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom qslm_edge.cli.app import app\nimport typer.main\n"
        "try:\n    typer.main.get_command(app).main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr


def test_running_one_command_imports_no_other(run_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(frame.COMMANDS, "broken", "no_such_module_anywhere")
    assert run_command(lambda: None).exit_code == 0


def test_the_examples_of_a_module_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        """Show the model."""

    module: Any = types.ModuleType("probe_command")
    module.command, module.EXAMPLES = command, "[bold]Examples[/bold]\n\n  qslm-edge probe model.pt"
    monkeypatch.setitem(sys.modules, "probe_command", module)
    monkeypatch.setitem(frame.COMMANDS, "probe", "probe_command")
    result = CliRunner().invoke(frame.app, ["probe", "--help"])
    assert "Show the model." in result.output
    assert "qslm-edge probe model.pt" in result.output


# usage


@pytest.mark.parametrize(
    ("words", "path"), [(["--frobnicate"], "qslm-edge"), (["probe", "--frobnicate"], "qslm-edge probe")]
)
def test_an_unknown_option_is_one_line_and_2(run_command: Run, words: list[str], path: str) -> None:
    run_command(lambda: None)  # registers probe
    result = CliRunner().invoke(frame.app, words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(rf"error: no such option:? .*--frobnicate.*\. See `{path} --help`\n", result.stderr)


def test_a_value_of_the_wrong_type_is_one_line_and_2(run_command: Run) -> None:
    result = run_command(lambda: None, "--size", "many")
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(
        r"error: invalid value for '--size': .*\. See `qslm-edge probe --help`\n", result.stderr
    )


def test_an_unknown_command_suggests_the_nearest() -> None:
    result = CliRunner().invoke(frame.app, ["profils"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: no such command 'profils', did you mean 'profiles'?; allowed: ")
    assert result.stderr.endswith(". See `qslm-edge --help`\n")


@pytest.mark.parametrize(
    "words", [["--json", "--frobnicate"], ["--frobnicate", "--json"], ["--json", "--size", "x"]]
)
def test_a_usage_error_under_json_is_json_too(run_command: Run, words: list[str]) -> None:
    result = run_command(lambda: None, *words)
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["exit_code"] == 2
    assert result.stderr.count("\n") == 1


# errors of the work


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("flags contradict"), 2),
        (ProfileError("unknown key", where="a.toml: x"), 2),
        (InfeasibleError("nothing fits"), 1),
        (DisagreementError("they part"), 1),
        (OutputError("full"), 4),
        (RuntimeFault("too old"), 4),
    ],
)
def test_an_error_is_one_line_and_its_code(run_command: Run, error: QslmError, code: int) -> None:
    result = run_command(fail(error))
    assert (result.exit_code, result.stderr, result.stdout) == (code, f"error: {error.line()}\n", "")


def test_an_error_under_json_is_on_stdout_as_well(run_command: Run) -> None:
    error = ProfileError("unknown key", where="a.toml: x", found=3, allowed="y", hint="try y")
    result = run_command(fail(error), "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout) == {
        "error": {
            "type": "ProfileError",
            "message": "a.toml: x: unknown key; found 3; allowed: y. Try y",
            "what": "unknown key",
            "where": "a.toml: x",
            "found": "3",
            "allowed": "y",
            "hint": "try y",
            "exit_code": 2,
        }
    }
    assert result.stderr == f"error: {error.line()}\n"


def test_a_command_may_end_with_its_own_code(run_command: Run) -> None:
    result = run_command(fail(typer.Exit(3)), "--json")
    assert (result.exit_code, result.output) == (3, "")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_an_unwritable_place_is_4(run_command: Run, number: int) -> None:
    result = run_command(fail(OSError(number, os.strerror(number), "runs/a/report.json")))
    assert (result.exit_code, result.stderr) == (4, f"error: runs/a/report.json: {os.strerror(number)}\n")


def test_out_of_memory_is_4(run_command: Run) -> None:
    result = run_command(fail(MemoryError()))
    assert (result.exit_code, result.stderr) == (4, "error: out of memory\n")


def test_a_fault_of_the_program_is_70_and_says_how_to_report_it(run_command: Run) -> None:
    result = run_command(fail(ValueError("bad\nvalue \x1b[31m")), "--json")
    hint = "run again with QSLM_EDGE_TRACEBACK=1 for the traceback and report it"
    line = f"ValueError: bad value \\x1b[31m; {hint}"
    assert (result.exit_code, result.stderr) == (70, f"internal error: {line}\n")
    assert json.loads(result.stdout)["error"] == {"type": "ValueError", "message": line, "exit_code": 70}


def test_the_traceback_is_shown_on_request(run_command: Run) -> None:
    result = run_command(fail(ValueError("bad")), env={"QSLM_EDGE_TRACEBACK": "1"})
    assert result.exit_code == 70
    assert "Traceback (most recent call last)" in result.stderr
    assert "in action" in result.stderr


def test_an_interruption_is_one_line_and_130(run_command: Run) -> None:
    result = run_command(fail(KeyboardInterrupt()), "--json")
    assert (result.exit_code, result.stderr) == (130, "interrupted: stopped by the keyboard\n")
    assert json.loads(result.stdout)["error"]["exit_code"] == 130


def test_an_aborted_prompt_is_130(run_command: Run) -> None:
    assert run_command(fail(typer.Abort())).exit_code == 130


def test_markup_in_an_error_is_shown_as_it_is(run_command: Run) -> None:
    result = run_command(fail(UsageError("odd name", found="[red]x[/red] :smile:")))
    assert "[red]x[/red] :smile:" in result.stderr


# streams of a real process


@pytest.mark.parametrize("words", [["profiles", "list"], ["--help"]])
def test_a_reader_that_goes_away_is_quiet(words: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        result = program(*words, capture_output=False, stdout=write_end, stderr=subprocess.PIPE)
    finally:
        os.close(write_end)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["profiles", "list"], ["profiles", "list", "--json"]])
def test_a_full_stdout_is_4_and_one_line(words: list[str]) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        result = program(*words, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 4
    assert result.stderr == f"error: standard output or an open file: {os.strerror(errno.ENOSPC)}\n"


def test_a_pipe_gets_no_colour_even_when_the_environment_asks() -> None:
    asking = {"FORCE_COLOR": "1", "GITHUB_ACTIONS": "true", "TTY_COMPATIBLE": "1"}
    for words in (["--help"], ["profiles", "list"], ["profiles", "show", "nothing"]):
        result = program(*words, env=asking)
        assert "\x1b" not in result.stdout + result.stderr, words


def test_sigterm_runs_the_clean_up_and_is_130(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, time, types\n"
        "from qslm_edge.cli import app\n"
        "def command() -> None:\n"
        "    try:\n"
        "        print('started', flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        print('cleaned', flush=True)\n"
        "module = types.ModuleType('slow_command')\n"
        "module.command = command\n"
        "sys.modules['slow_command'] = module\n"
        "app.COMMANDS['slow'] = 'slow_command'\n"
        "sys.argv = ['qslm-edge', 'slow']\n"
        "app.main()\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "cleaned\n", "interrupted: stopped by SIGTERM\n")


# printing


def test_json_is_plain_ascii_and_unwrapped(capsys: pytest.CaptureFixture[str]) -> None:
    data = {"z": "é" * 200, "a": None}
    console.print_json(data)
    text = capsys.readouterr().out
    assert json.loads(text) == data
    assert text.isascii()
    assert text.index('"z"') < text.index('"a"')
    with pytest.raises(ValueError, match="JSON"):
        console.print_json({"a": float("nan")})


def test_a_table_in_a_pipe_is_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table(("name", "n"), [("x" * 300, "[1]"), ("y", "22")], title="T", right=("n",))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["T", f"name{' ' * 300}n", f"{'x' * 300}  [1]", f"y{' ' * 302}22"]


def test_a_long_line_in_a_pipe_is_never_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_line("word " * 100)
    console.print_note("word " * 100)
    captured = capsys.readouterr()
    assert (captured.out.count("\n"), captured.err.count("\n")) == (1, 1)


# progress


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_progress_in_a_log_is_a_line_a_stage_or_5_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    with console.RichProgress(Console(file=stream, width=200), clock) as bars:
        bars.stage("read [x]")
        bars.advance()
        bars.stage("search", 40)
        for _ in range(20):
            clock.now += 1
            bars.advance(note="4 bits")
        bars.note("kept 8 bits for the head")
        clock.now += 200
        bars.done()
        bars.done()
    assert stream.getvalue().splitlines() == [
        "read [x]",
        "search",
        "search: 5 of 40 (12%), 5 s elapsed, 35 s left, 4 bits",
        "search: 10 of 40 (25%), 10 s elapsed, 30 s left, 4 bits",
        "search: 15 of 40 (38%), 15 s elapsed, 25 s left, 4 bits",
        "search: 20 of 40 (50%), 20 s elapsed, 20 s left, 4 bits",
        "kept 8 bits for the head",
        "search: done in 3 min 40 s",
    ]


def test_progress_of_a_whole_is_a_share() -> None:
    stream, clock = io.StringIO(), Clock()
    with console.RichProgress(Console(file=stream, width=200), clock) as bars:
        bars.stage("float model", 1.0)
        clock.now += 6
        bars.advance(0.25)
    assert stream.getvalue().splitlines()[1] == "float model: 25%, 6 s elapsed, 18 s left"


def test_progress_without_a_total_counts() -> None:
    stream, clock = io.StringIO(), Clock()
    with console.RichProgress(Console(file=stream, width=200), clock) as bars:
        bars.stage("calibrate")
        clock.now += 6
        bars.advance(3)
    assert stream.getvalue().splitlines() == ["calibrate", "calibrate: 3, 6 s elapsed"]


def test_progress_on_a_terminal_draws_and_comes_down_after_an_error() -> None:
    stream = io.StringIO()
    terminal = Console(file=stream, force_terminal=True, width=120)

    def work() -> None:
        with console.RichProgress(terminal) as bars:
            bars.stage("read")
            bars.stage("search", 4)
            bars.advance(2, note="[head]")
            assert console.RichProgress.console_in_use() is terminal
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert console.RichProgress.console_in_use() is not terminal
    text = stream.getvalue()
    assert text.endswith("\x1b[?25h")  # the cursor is back
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "50%" in shown
    assert "[head]" in shown


def test_an_error_takes_the_bar_down_first(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    bars = console.RichProgress(Console(file=stream, force_terminal=True, width=120))
    bars.stage("search", 4)
    console.print_error("no room")
    assert stream.getvalue().endswith("\x1b[?25h")
    assert capsys.readouterr().err == "error: no room\n"


def test_both_listeners_fit_the_protocol() -> None:
    listeners: list[progress.Progress] = [
        progress.Silent(),
        console.RichProgress(Console(file=io.StringIO())),
    ]
    for listener in listeners:
        listener.stage("one", 2)
        listener.advance()
        listener.note("word")
        listener.done()
