"""Everything the program prints: results to stdout, progress, notes and errors to stderr.

The one module where printing is allowed. A stream that is not a terminal gets no colour, no cursor movement
and no line wrapping, whatever the environment says, so that pipes and logs stay clean; on a terminal
``NO_COLOR`` is honoured. Text from outside is never read as markup, and its control characters are made
visible. ``--json`` is remembered in the context, so that an error can be printed as JSON too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBars
from rich.table import Table
from rich.text import Text

__all__ = [
    "JSON_KEY",
    "Json",
    "RichProgress",
    "print_block",
    "print_error",
    "print_json",
    "print_line",
    "print_note",
    "print_part",
    "print_raw",
    "print_table",
    "terminal_columns",
    "visible",
]

JSON_KEY = "qslm_edge.json"
_UNWRAPPED = 1_000_000
_LINE_EVERY_S = 5.0


class _Console(Console):
    """A console that leaves a broken pipe to the caller: rich would exit with 1, a failed gate."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _console(*, stderr: bool) -> _Console:
    stream = sys.stderr if stderr else sys.stdout
    terminal = stream.isatty()
    return _Console(
        stderr=stderr,
        force_terminal=terminal,
        width=None if terminal else _UNWRAPPED,
        color_system="auto" if terminal else None,
        highlight=False,
        markup=False,
        emoji=False,
    )


def _remember_json(context: typer.Context, value: bool) -> bool:
    context.meta[JSON_KEY] = value
    return value


Json = Annotated[
    bool,
    typer.Option(
        "--json",
        is_eager=True,
        callback=_remember_json,
        help="Print the result, or the error, as one JSON document.",
    ),
]
"""The ``--json`` option of every command that has one."""


def visible(text: str) -> str:
    """Return the text as one line, with control characters written out."""
    return _written_out(" ".join(text.split()))


def _written_out(text: str, keep: str = "") -> str:
    return "".join(
        mark if mark.isprintable() or mark in keep else mark.encode("unicode_escape").decode("ascii")
        for mark in text
    )


def print_line(text: str = "", *, style: str | None = None) -> None:
    """Print one line of the result to stdout."""
    _console(stderr=False).print(Text(visible(text), style=style or ""), soft_wrap=True)


def print_block(text: str, *, style: str | None = None) -> None:
    """Print lines that are laid out already to stdout, spaces kept and control characters written out."""
    console = _console(stderr=False)
    for line in text.splitlines():
        console.print(Text(_written_out(line), style=style or ""), soft_wrap=True)


def print_raw(document: str) -> None:
    """Write a finished document, such as a page of HTML, to stdout as it is, in UTF-8 whatever the locale."""
    sys.stdout.flush()
    stream = getattr(sys.stdout, "buffer", None)
    if stream is None:  # a stand-in for text only
        sys.stdout.write(document)
    else:
        stream.write(document.encode("utf-8"))
    sys.stdout.flush()


def terminal_columns() -> int | None:
    """Width of the terminal that stdout goes to; None when it is not one, where no line is ever wrapped."""
    console = _console(stderr=False)
    return console.width if console.is_terminal else None


def print_part(text: str) -> None:
    """Write a piece of generated text to stdout at once; line ends and tabs stay as they are."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(_written_out(text, keep="\n\t").encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def print_note(text: str) -> None:
    """Print one line to stderr, above the progress bar if one is up."""
    RichProgress.console_in_use().print(Text(visible(text)), soft_wrap=True)


def print_error(text: str, *, label: str = "error") -> None:
    """Print one line ``error: ...`` to stderr, after taking down a progress bar that is still up."""
    RichProgress.take_down()
    line = Text(f"{label}: ", style="bold red")
    line.append(visible(text), style="not bold default")
    _console(stderr=True).print(line, soft_wrap=True)


def print_json(data: object) -> None:
    """Print one JSON document to stdout, keys in the order given, never wrapped or coloured, in ASCII.

    Raises:
        ValueError: the data holds NaN or infinity, which JSON has no word for: absent numbers are None.
    """
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str | None = None,
    right: Iterable[str] = (),
) -> None:
    """Print a table to stdout.

    Args:
        columns: headings; the first column, the name, is never wrapped.
        rows: cells as plain text, one sequence a row.
        title: line above the table.
        right: headings of the columns that are aligned to the right, such as numbers.
    """
    console = _console(stderr=False)
    if title is not None:
        console.print(Text(visible(title), style="bold"), soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    numbers = set(right)
    for place, column in enumerate(columns):
        side: Literal["left", "right"] = "right" if column in numbers else "left"
        table.add_column(Text(column), justify=side, overflow="fold", no_wrap=place == 0)
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    console.print(table)


class RichProgress:
    """A ``qslm_edge.progress.Progress`` on stderr: bars on a terminal, else a line per stage or 5 s.

    Use it as a context manager, so that the bar comes down whatever happens.

    Args:
        console: where to draw; by default stderr.
        clock: seconds that only grow; tests pass their own.
    """

    _shown: RichProgress | None = None

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console if console is not None else _console(stderr=True)
        self._clock = clock
        self._bars = self._make_bars() if self._console.is_terminal else None
        self._task: TaskID | None = None
        self._title: str | None = None
        self._total: float | None = None
        self._steps = 0.0
        self._note = ""
        self._started_s = self._said_s = clock()

    def __enter__(self) -> RichProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop(finished=kind is None)

    @classmethod
    def take_down(cls) -> None:
        """Stop the bar that is up, if any, leaving it as far as it came."""
        if cls._shown is not None:
            cls._shown._stop(finished=False)

    @classmethod
    def console_in_use(cls) -> Console:
        """Return the console of the bar that is up, else one for stderr."""
        return cls._shown._console if cls._shown is not None else _console(stderr=True)

    def stage(self, title: str, total: float | None = None) -> None:
        """Begin a stage and end the one before."""
        self._finish_stage()
        self._title, self._total, self._steps, self._note = visible(title), total, 0.0, ""
        self._started_s = self._clock()
        if self._bars is None:
            self._say(self._title)
            return
        if RichProgress._shown is not self:
            self._bars.start()
            RichProgress._shown = self
        self._task = self._bars.add_task(self._title, total=total, note="")

    def advance(self, steps: float = 1.0, note: str = "") -> None:
        """Count steps of the stage."""
        self._steps += steps
        self._note = visible(note) or self._note
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, advance=steps, note=self._note)
        elif self._title is not None and self._clock() - self._said_s >= _LINE_EVERY_S:
            self._say(self._status())

    def note(self, text: str) -> None:
        """Keep one line above the bar, or in the log."""
        self._console.print(Text(visible(text)), soft_wrap=True)

    def done(self) -> None:
        """End the last stage and take the bar down."""
        self._stop(finished=True)

    def _stop(self, *, finished: bool) -> None:
        if finished:
            self._finish_stage()
        self._title = self._task = None
        if self._bars is not None:
            self._bars.stop()
        if RichProgress._shown is self:
            RichProgress._shown = None

    def _finish_stage(self) -> None:
        if self._title is None:
            return
        if self._bars is not None and self._task is not None:
            end = self._total if self._total is not None else max(self._steps, 1.0)
            self._bars.update(self._task, total=end, completed=end)
        elif self._clock() - self._said_s >= _LINE_EVERY_S:
            self._say(f"{self._title}: done in {_seconds(self._clock() - self._started_s)}")
        self._title = self._task = None

    def _say(self, text: str) -> None:
        self._said_s = self._clock()
        self._console.print(Text(text), soft_wrap=True)

    def _status(self) -> str:
        elapsed_s = self._clock() - self._started_s
        words = [f"{self._title}: {self._steps:g}"]
        if self._total:
            share = min(self._steps / self._total, 1.0)
            counted = f"{self._steps:g} of {self._total:g} ({share:.0%})"
            # a stage of one step is a share of the whole, and not counted
            words = [f"{self._title}: {share:.0%}" if self._total == 1 else f"{self._title}: {counted}"]
            if share > 0:
                words.append(f"{_seconds(elapsed_s * (1 - share) / share)} left")
        words.insert(1, f"{_seconds(elapsed_s)} elapsed")
        return ", ".join(words + ([self._note] if self._note else []))

    def _make_bars(self) -> RichBars:
        return RichBars(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            redirect_stdout=False,  # it would send results to stderr when only stdout is piped
        )


def _seconds(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60:02d} s"
