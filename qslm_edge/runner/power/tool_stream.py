"""A tool that prints one line per reading (tegrastats, nvidia-smi), run as long as the measurement lasts.

A thread takes each line with the monotonic time of its arrival, so that a reader always gets the newest one.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

from qslm_edge.runner.power.base import Unavailable

__all__ = ["LineTool", "start_tool"]

MAX_LINE = 65536
GRACE_S = 2.0


class LineTool:
    """A running tool.

    Args:
        argv: program and arguments.
        clock: monotonic clock in seconds.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, argv: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = argv[0].rsplit("/", 1)[-1], clock
        self._process = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._news = threading.Condition()
        self._latest: tuple[float, str] | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._work, name=f"{self._name}-reader", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        stream = self._process.stdout
        while stream is not None:
            raw = stream.readline(MAX_LINE)
            text = raw.decode("utf-8", "replace").strip()
            with self._news:
                if text:  # a blank line after an error must not hide it
                    self._latest = (self._clock(), text)
                elif not raw:
                    self._ended = True
                self._news.notify_all()
            if not raw:
                return

    def next_line(self, timeout_s: float) -> tuple[float, str] | str:
        """The newest line that was not given yet with its time, waiting for one; or why there is none."""
        with self._news:
            self._news.wait_for(lambda: self._latest is not None or self._ended, timeout_s)
            latest, self._latest = self._latest, None
            if latest is not None:
                return latest
            if not self._ended:
                return f"{self._name} printed nothing within {timeout_s:g} s"
        return f"{self._name} ended with status {self._process.wait()}"

    def close(self) -> None:
        """End the tool."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join()
        if self._process.stdout is not None:
            self._process.stdout.close()


def start_tool(
    name: str, argv: Sequence[str], clock: Callable[[], float] = time.monotonic
) -> LineTool | Unavailable:
    """Start a tool that is found in PATH.

    Args:
        name: of the source, for the reason.
        argv: program and arguments.
        clock: monotonic clock in seconds.
    """
    path = shutil.which(argv[0])
    if path is None:
        return Unavailable(name, f"{argv[0]} is not installed", absent=True)
    try:
        return LineTool([path, *argv[1:]], clock)
    except OSError as error:
        return Unavailable(name, f"{path} does not start: {(error.strerror or str(error)).lower()}")
