"""The runner's command line: exit codes, one line for each error, JSON, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qslm_edge import __version__
from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import BundleError, EnvironmentFault, QslmError, RuntimeFault
from qslm_edge.runner import __main__ as program
from qslm_edge.runner import processes
from qslm_edge.runner.child import MEMORY_HINT
from qslm_edge.runner.limits import Limits
from qslm_edge.runner.power import PowerPlan
from qslm_edge.runner.sessions.base import SessionOptions
from qslm_edge.runner.verify import VerifyOptions
from tests.helpers.settings import DEFAULT_SETTINGS

Result = dict[str, Any]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a result or an error in the place of the verification, and keeps what was asked for."""

    class Verified:
        asked: list[tuple[Path, VerifyOptions]] = []  # noqa: RUF012
        answer: Any = None

        def __call__(self, path: Path, options: VerifyOptions, progress: Callable[[str, float], None]) -> Any:
            self.asked.append((path, options))
            progress("search items", 0.5)
            progress("search items", 0.5)
            progress("loading", 0.0)
            if isinstance(self.answer, BaseException):
                raise self.answer
            return self.answer

    fake = Verified()
    fake.asked, fake.answer = [], make_result()
    monkeypatch.setattr(program, "verify_bundle", fake)
    return fake


def make_result(exit_code: int = 0) -> Result:
    return {
        "host": {"why": "a desk"},
        "rehearsal": True,
        "placement": {"provider": "CPUExecutionProvider", "note": "first choice of the profile"},
        "run_settings": DEFAULT_SETTINGS,
        "checks": [],
        "decode": None,
        "conditions": {"flags": []},
        "verdict": {0: "pass", 1: "fail", 3: "inconclusive"}[exit_code],
        "exit_code": exit_code,
    }


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_exit_code_is_that_of_the_verdict(code: int, verified: Any, capsys: Captured) -> None:
    verified.answer = make_result(code)
    assert program.main(["verify", "place"]) == code
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == f"verdict: {verified.answer['verdict']}"
    assert err.splitlines() == ["search items ...", "loading ..."]  # each step once, on stderr


def test_json_prints_the_whole_result(verified: Any, capsys: Captured) -> None:
    assert program.main(["verify", "place", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == verified.answer


def test_options_arrive(verified: Any, capsys: Captured) -> None:
    words = ["verify", "place", "--provider", "X", "--threads", "3", "--steps", "9", "--power", "release"]
    limits = ["--max-latency", "20ms", "--min-decode-speed", "50", "--max-energy", "5mJ"]
    program.main([*words, *limits, "--power-source", "csv", "--power-marker"])
    asked = Limits(max_latency_s=0.02, min_decode_tokens_per_s=50.0, max_energy_j_per_token=0.005)
    given = VerifyOptions("X", 3, 9, "release", asked, power_source="csv", power_marker=True)
    assert verified.asked == [(Path("place"), given)]
    program.main(["verify", "place"])
    assert verified.asked[1] == (Path("place"), VerifyOptions(None, None, None, "smoke", Limits()))
    program.main(["verify", "place", "--tune", "--no-spinning", "--engine", "onnxruntime"])
    assert verified.asked[2][1] == VerifyOptions(tune=True, spinning=False, engine="onnxruntime")


@pytest.mark.parametrize(
    "words", [["--max-latency", "20"], ["--max-energy", "5W"], ["--min-decode-speed", "0"]]
)
def test_a_limit_that_is_none_is_refused_before_any_work(
    words: list[str], verified: Any, capsys: Captured
) -> None:
    assert program.main(["verify", "place", *words]) == 2
    assert f"error: {words[0]}: not a quantity of this kind; found '{words[1]}'" in capsys.readouterr().err
    assert verified.asked == []


def test_without_a_bundle_it_is_the_folder_of_the_archive(
    verified: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "run.pyz")])
    program.main(["verify"])
    monkeypatch.setattr(sys, "argv", ["something"])
    program.main(["verify"])
    assert [path for path, _ in verified.asked] == [tmp_path, Path()]


@pytest.mark.parametrize(
    "words",
    [
        *([], ["verify", "--threads", "0"], ["verify", "--threads", "x"], ["verify", "--steps", "-1"]),
        *(["verify", "--power", "much"], ["verify", "--power-source", "none"], ["meter", "a.json"]),
        *(["meter", "a.json", "b.csv", "--format", "x"], ["meter", "a.json", "b.csv", "--supply-v", "x"]),
        *(["nonsense"], ["verify", "--unknown"], ["_score", "place"]),
    ],
)
def test_wrong_usage_is_2(words: list[str], verified: Any, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        program.main(words)
    assert caught.value.code == 2
    assert verified.asked == []
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert "_score" not in line.replace("run.pyz _score", "")


def test_version_and_help(capsys: Captured) -> None:
    for words, text in ((["--version"], __version__), (["verify", "--help"], "--provider")):
        with pytest.raises(SystemExit) as caught:
            program.main(words)
        assert caught.value.code == 0
        assert text in capsys.readouterr().out


# ---- errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BundleError("tampered", where="model.bin"), 2),
        (RuntimeFault("onnxruntime is too old", found="1.16"), 4),
        (EnvironmentFault("killed"), 4),
    ],
)
def test_an_error_is_one_line_and_json_too(
    error: QslmError, code: int, verified: Any, capsys: Captured
) -> None:
    verified.answer = error
    assert program.main(["verify", "place"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == f"error: {error.line()}"
    assert program.main(["verify", "place", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == {"error": {"message": error.line(), "exit_code": code}}


def test_what_the_system_refuses_is_one_line(verified: Any, capsys: Captured) -> None:
    verified.answer = PermissionError(errno.EACCES, "Permission denied", "/some/file")
    assert program.main(["verify", "place"]) == 4
    expected = "error: /some/file: the system refused; found Permission denied"
    assert capsys.readouterr().err.splitlines()[-1] == expected


def test_no_bundle_is_2(tmp_path: Path, capsys: Captured) -> None:
    assert program.main(["verify", str(tmp_path)]) == 2
    assert program.main(["info", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


def test_info_prints_the_manifest(lm_bundle: Bundle, capsys: Captured) -> None:
    assert program.main(["info", str(lm_bundle.path)]) == 0
    assert json.loads(capsys.readouterr().out) == lm_bundle.manifest


# ---- interrupts


def test_ctrl_c_is_130_and_one_word(verified: Any, capsys: Captured) -> None:
    verified.answer = KeyboardInterrupt()
    assert program.main(["verify", "place", "--json"]) == 130
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[-1]) == ("", "interrupted")


def test_sigterm_is_as_ctrl_c_and_the_handler_is_put_back(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def verify(*_: Any) -> Any:
        assert signal.getsignal(signal.SIGTERM) is not before
        os.kill(os.getpid(), signal.SIGTERM)
        for _tick in range(10**6):
            pass
        pytest.fail("the signal was lost")

    monkeypatch.setattr(program, "verify_bundle", verify)
    assert program.main(["verify", "place"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_a_thread_no_handler_is_set(verified: Any) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(program.main(["verify", "place"])))
    thread.start()
    thread.join()
    assert codes == [0]


# ---- the result in a file


def test_the_result_is_written_whole(verified: Any, tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "result.json"
    path.write_text("old", "utf-8")
    assert program.main(["verify", "place", "--output", str(path)]) == 0
    assert json.loads(path.read_text("utf-8")) == verified.answer
    assert list(tmp_path.iterdir()) == [path]
    assert "verdict: pass" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["absent/result.json", ".", "file/result.json"])
def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    place: str, verified: Any, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "file").touch()
    assert program.main(["verify", "place", "--output", str(tmp_path / place)]) == 4
    assert "the result cannot be written there" in capsys.readouterr().err
    assert verified.asked == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_result(
    error: BaseException, verified: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    path = tmp_path / "result.json"
    path.write_text("old", "utf-8")

    def replace(_source: Path, _target: Path) -> None:
        raise error

    monkeypatch.setattr(os, "replace", replace)
    code = program.main(["verify", "place", "--output", str(path)])
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 4)
    assert path.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]
    out, err = capsys.readouterr()
    assert "verdict" not in out  # no verdict is shown for a result that was not kept
    assert "No space left" in err or "interrupted" in err


# ---- the measuring processes


@pytest.fixture
def own_sigint() -> Any:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def answer_of(path: Path) -> Result:
    found: Result = json.loads(path.read_text("utf-8"))
    return found


@pytest.mark.usefixtures("own_sigint")
def test_the_scoring_process_answers(lm_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    assert program.main(["_score", str(lm_bundle.path), "--answer", str(path), "--threads", "2"]) == 0
    result = answer_of(path)["result"]
    assert result["splits"].keys() == {"search", "report"}
    assert result["session"]["threads"] == 2
    assert result["session"]["spinning"] is False
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # Ctrl-C is the parent's


@pytest.mark.usefixtures("own_sigint")
@pytest.mark.parametrize("command", ["_memory", "_latency", "_prefill", "_energy"])
def test_each_measuring_process_answers(
    command: str, lm_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def measure(_bundle: Bundle, items: Any, options: Any, _note: Any) -> Result:
        given.extend([items.split, options])
        return {"x": 1}

    monkeypatch.setitem(vars(processes)["_MEASURES"], command, measure)
    path = tmp_path / "answer.json"
    words = [command, str(lm_bundle.path), f"--answer={path}", "--steps=5", "--power=smoke"]
    words += ["--power-source=rapl", "--only-power-source", "--power-marker", "--is-board"]
    session = SessionOptions(threads=2, spinning=True, allow_fallback=True)
    words += session.to_arguments()
    assert program.main(words) == 0
    assert answer_of(path) == {"result": {"x": 1}}
    split, options = given
    assert split == "search"
    assert (options.steps, options.power, options.power_source, options.is_board) == (
        5,
        "smoke",
        "rapl",
        True,
    )
    assert options.session == session
    assert (options.only_source, options.power_marker) == (True, True)
    assert options.power_plan == PowerPlan.from_mapping(lm_bundle.manifest["profile"]["power"])
    assert options.power_plan.total


@pytest.mark.usefixtures("own_sigint")
@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (RuntimeFault("onnxruntime failed"), "RuntimeFault", 4),
        (BundleError("cannot be read"), "BundleError", 2),
        (MemoryError(), "EnvironmentFault", 4),
    ],
)
def test_the_error_of_a_measuring_process_is_its_answer(
    error: BaseException,
    kind: str,
    code: int,
    lm_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(processes, "score_bundle", fail)
    path = tmp_path / "answer.json"
    assert program.main(["_score", str(lm_bundle.path), "--answer", str(path)]) == code
    answer = answer_of(path)
    assert (answer["error"], answer["exit_code"]) == (kind, code)
    if isinstance(error, MemoryError):
        assert "out of memory" in answer["line"]
        assert answer["line"].endswith(MEMORY_HINT[1:])


@pytest.mark.usefixtures("own_sigint")
def test_a_proving_process_answers(lm_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    assert program.main(["_golden", str(lm_bundle.path), "--answer", str(path)]) == 0
    golden = answer_of(path)["result"]["golden"]
    assert golden["ok"] is True
    assert program.main(["_probe", "NoSuchExecutionProvider", "--answer", str(path)]) == 0
    assert answer_of(path)["result"]["runs"] is False
    assert program.main(["_allocation", "--answer", str(path)]) == 0
    assert answer_of(path)["result"]["taken_bytes"] >= 64 * 2**20


# ---- doctor


def test_the_doctor_prints_lines_or_json_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, tmp_path: Path
) -> None:
    asked: list[Any] = []
    finding = {"area": "memory", "name": "read-out", "status": "ok", "detail": "moved"}
    document = {"findings": [finding], "summary": "That is all.", "exit_code": 3}

    def examine(bundle: Path | None, *, root: Path, on_progress: Any) -> Any:
        asked.append((bundle, root))
        on_progress("checking", 0.0)
        on_progress("checking", 0.0)
        return document

    monkeypatch.setattr(program, "examine", examine)
    assert program.main(["doctor", "place", "--root", str(tmp_path)]) == 3
    out, err = capsys.readouterr()
    assert out == "memory:\n  ok       read-out: moved\nThat is all.\n"
    assert err == "checking ...\n"
    assert program.main(["doctor", "--json"]) == 3
    assert json.loads(capsys.readouterr().out) == document
    assert asked == [(Path("place"), tmp_path), (None, Path("/"))]
