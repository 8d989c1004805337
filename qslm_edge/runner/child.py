"""Measurements in processes of their own, and the small protocol between parent and child.

A peak RSS never falls and a runtime never gives back all it took, so scoring and decoding each run in a fresh
process. The child is this same program (a run.pyz, or the installed package); it answers with one JSON file,
and tells progress as lines on stderr that start with a marker. Ctrl-C reaches the whole process group: the
child leaves it to its parent, which ends it and removes what it wrote; nothing that a dying child prints
reaches the terminal.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qslm_edge import errors
from qslm_edge.errors import EnvironmentFault, QslmError

__all__ = ["MEMORY_HINT", "PROGRESS", "report_progress", "run_child", "write_answer"]

PROGRESS = "@qslm "
ANSWER = "answer.json"
GRACE_S = 5.0
MEMORY_HINT = "memory was probably short: free some, or raise the limit of the container"


def report_progress(title: str, share: float) -> None:
    """Tell the parent what is being done and how much of it this step was."""
    sys.stderr.write(f"{PROGRESS}{json.dumps([title, share])}\n")
    sys.stderr.flush()


def write_answer(path: Path, answer: dict[str, Any] | QslmError) -> None:
    """Write a result, or the error that ended the work."""
    if isinstance(answer, QslmError):
        payload: dict[str, Any] = {
            "error": type(answer).__name__,
            "line": answer.line(),
            "exit_code": answer.exit_code,
        }
    else:
        payload = {"result": answer}
    path.write_text(json.dumps(payload), "utf-8")


def _command() -> tuple[list[str], dict[str, str]]:
    """How to start this program once more, and with which environment."""
    root = Path(errors.__file__).resolve().parent.parent  # the archive, or the folder that holds the package
    if root.is_file():
        return [sys.executable, str(root)], dict(os.environ)
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    return [sys.executable, "-m", "qslm_edge.runner"], {**os.environ, "PYTHONPATH": path}


def run_child(arguments: list[str], on_progress: Callable[[str, float], None]) -> dict[str, Any]:
    """Run a measuring process to its end.

    Args:
        arguments: hidden sub-command and its options.
        on_progress: told (title, share) of each step.

    Returns:
        The child's result.

    Raises:
        QslmError: the error that the child reported, with its own class and exit code.
        EnvironmentFault: the child died without an answer (killed for memory, say).
    """
    with tempfile.TemporaryDirectory(prefix="qslm-edge-") as folder:
        answer = Path(folder) / ANSWER
        program, environment = _command()
        with subprocess.Popen(
            [*program, *arguments, "--answer", str(answer)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
        ) as process:
            try:
                tail = _listen(process, on_progress)
                process.wait()
            finally:
                _end(process)
        return _answer(answer, process.returncode, tail)


def _listen(process: subprocess.Popen[str], on_progress: Callable[[str, float], None]) -> list[str]:
    """Pass progress on until the process closes its stderr, and return the last other lines."""
    tail: list[str] = []
    for line in process.stderr or ():
        step = _progress(line)
        if step is None:
            tail = [*tail[-4:], line.strip()]
        else:
            on_progress(*step)
    return tail


def _progress(line: str) -> tuple[str, float] | None:
    """Title and share of a progress line; None for other lines, and for one that a kill cut short."""
    if not line.startswith(PROGRESS):
        return None
    try:
        title, share = json.loads(line[len(PROGRESS) :])
        return str(title), float(share)
    except (ValueError, TypeError):
        return None


def _end(process: subprocess.Popen[str]) -> None:
    """End a process that still runs, because the user stopped this one or progress could not be shown."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _answer(path: Path, code: int, tail: list[str]) -> dict[str, Any]:
    try:
        payload = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        cause = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        hint = MEMORY_HINT if code in (-9, 137) else None
        found = f"{cause}; {' '.join(tail)}" if tail else cause
        raise EnvironmentFault(
            "the measuring process ended without a result", found=found[:400], hint=hint
        ) from None
    if "error" in payload:
        kind = getattr(errors, payload["error"], EnvironmentFault)
        raise kind(payload["line"])
    result: dict[str, Any] = payload["result"]
    return result
