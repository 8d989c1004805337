"""One value read from the host: with the place it came from, or the reason why it is absent.

Every reader of /proc, /sys or a command goes through here, so that a missing file, a refused permission
or a sensor that is switched off becomes `None` with a reason and never a 0 or a traceback.
Files are read with `os.read`: Python's file objects turn EAGAIN, which thermal zones of gated units
return, into an empty result without an error. They are opened non-blocking, so nothing can hang here.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

__all__ = ["Observed", "is_live", "list_paths", "read_int", "read_text", "run_command"]

MAX_BYTES = 4 * 2**20
MAX_DIGITS = 20  # 2**64 has 20: no kernel counter is longer

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Observed(Generic[T]):
    """A value with its source, or `None` with the reason.

    Args:
        value: what was read, in the unit that the name of the field says; None if it could not be read.
        source: path below the root, command line or function that was asked.
        reason: why the value is None; None when there is a value.
    """

    value: T | None
    source: str
    reason: str | None = None

    def map(self, convert: Callable[[T], U]) -> Observed[U]:
        """Convert the value and keep the source; a ValueError of `convert` becomes the reason."""
        if self.value is None:
            return Observed(None, self.source, self.reason)
        try:
            return Observed(convert(self.value), self.source)
        except ValueError as error:
            return Observed(None, self.source, str(error))

    def to_dict(self) -> dict[str, object]:
        """The three fields, ready for JSON."""
        return {"value": self.value, "source": self.source, "reason": self.reason}


def is_live(root: Path) -> bool:
    """True when `root` is this host, so that commands and libraries speak of the same machine."""
    return root == Path("/")


def _read_once(path: Path) -> bytes:
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        parts: list[bytes] = []
        size = 0
        while size <= MAX_BYTES:
            part = os.read(handle, 65536)
            if not part:
                return b"".join(parts)
            parts.append(part)
            size += len(part)
        raise OSError(errno.EFBIG, f"larger than {MAX_BYTES} bytes")
    finally:
        os.close(handle)


def _why(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "no such file"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "permission denied"
    if error.errno == errno.EAGAIN:
        return "temporarily unavailable (EAGAIN) at two attempts"
    return (error.strerror or type(error).__name__).lower()


def read_text(root: Path, relative: str, *, strict: bool = True) -> Observed[str]:
    """Read a small text file below `root`, without surrounding blanks and NUL bytes.

    Args:
        root: "/" on a host, a folder with the same tree in a test.
        relative: path below the root, without a leading slash.
        strict: False replaces bytes that are not UTF-8 (files that hold names chosen by users).

    Returns:
        The text. EAGAIN is tried once more, then it is a reason like any other error.
    """
    source = "/" + relative
    try:
        try:
            data = _read_once(root / relative)
        except BlockingIOError:
            data = _read_once(root / relative)
    except OSError as error:
        return Observed(None, source, _why(error))
    try:
        text = data.decode("utf-8", "strict" if strict else "replace")
    except UnicodeDecodeError:
        return Observed(None, source, "not UTF-8 text")
    return Observed(text.strip("\0 \t\r\n"), source)


def read_int(root: Path, relative: str, *, low: int | None = None, high: int | None = None) -> Observed[int]:
    """Read a file that holds one integer; anything else, or a value outside low..high, is a reason."""

    def convert(text: str) -> int:
        if not re.fullmatch(rf"[+-]?[0-9]{{1,{MAX_DIGITS}}}", text):
            raise ValueError(f"not an integer: {text[:40]!r}")
        number = int(text)
        if (low is not None and number < low) or (high is not None and number > high):
            raise ValueError(f"implausible value {number}")
        return number

    return read_text(root, relative).map(convert)


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", text)]


def list_paths(root: Path, pattern: str) -> list[str]:
    """Paths below `root` that match a glob pattern, relative to it, with 10 sorted after 9."""
    found = [path.relative_to(root).as_posix() for path in root.glob(pattern)]
    return sorted(found, key=_natural)


def run_command(argv: Sequence[str], timeout_s: float = 5.0) -> Observed[str]:
    """Run a read-only tool without a shell and return what it printed.

    Args:
        argv: name of the tool, looked up in PATH, and its arguments.
        timeout_s: seconds after which the tool is ended.

    Returns:
        Its output, or why there is none: not installed, failed, too slow.
    """
    source = " ".join(argv)
    tool = shutil.which(argv[0])
    if tool is None:
        return Observed(None, source, f"{argv[0]} is not installed")
    try:
        done = subprocess.run(
            [tool, *argv[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        return Observed(None, source, f"no answer within {timeout_s:g} s")
    except OSError as error:
        return Observed(None, source, _why(error))
    if done.returncode != 0:
        message = done.stderr.decode("utf-8", "replace").strip()[:200] or "no message"
        return Observed(None, source, f"exit status {done.returncode}: {' '.join(message.split())}")
    return Observed(done.stdout[:MAX_BYTES].decode("utf-8", "replace").strip(), source)
