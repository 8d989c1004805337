"""The tables of docs/boards.md, made from the profiles so that page and profiles cannot part.

``python -m qslm_edge.profiles.boards docs/boards.md`` writes what stands between the two marks of the page
anew and leaves the words around it alone. A test fails while page and profiles differ.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from qslm_edge.errors import QslmError, UsageError
from qslm_edge.profiles.facts import Grade, worst
from qslm_edge.profiles.loading import list_profiles
from qslm_edge.profiles.overview import grouped, unconfirmed
from qslm_edge.profiles.profile import Profile

__all__ = ["BEGIN", "END", "fill", "main", "tables"]

BEGIN = "<!-- made from device_profiles/ by: python -m qslm_edge.profiles.boards docs/boards.md -->"
END = "<!-- end of what is made -->"

_LETTERS: dict[Grade, str] = {"measured": "M", "sourced": "S", "unconfirmed": "U", "chosen": "C"}
_COLUMNS = ("board", "memory", "GB/s", "budget", "CPU class", "bits", "provider", "power", "modes")


def tables(profiles: Iterable[Profile]) -> str:
    """Return a heading, a table and a line a board for every group, as Markdown.

    A cell ends in the letter of its worst grade; a dash is a fact that the profile does not state.
    """
    parts = []
    for title, boards in grouped(profiles):
        rows = [_COLUMNS, tuple("---" for _ in _COLUMNS), *(_row(board) for board in boards)]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        parts += [f"### {title}", table, "\n".join(_about(board) for board in boards)]
    return "\n\n".join(parts)


def fill(page: str, profiles: Iterable[Profile]) -> str:
    """Return the page with the part between its marks made anew.

    Raises:
        UsageError: the page does not have each mark once, in order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise UsageError("the page lacks its marks", allowed=f"'{BEGIN}' and '{END}', once each")
    return f"{before}{BEGIN}\n\n{tables(profiles)}\n\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Write the page that is named; returns the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m qslm_edge.profiles.boards docs/boards.md\n")
        return 2
    path = Path(arguments[0])
    try:
        page = fill(path.read_text(encoding="utf-8"), list_profiles())
        fresh = path.with_name(f"{path.name}.new")
        fresh.write_text(page, encoding="utf-8")
        os.replace(fresh, path)
    except QslmError as error:
        sys.stderr.write(f"error: {error.line()}\n")
        return error.exit_code
    except (OSError, UnicodeDecodeError) as error:
        sys.stderr.write(f"error: cannot write the page: {error}\n")
        return 2
    return 0


def _row(board: Profile) -> tuple[str, ...]:
    memory, modes, cpu = board.memory, board.power_modes, board.cpu
    widths = board.usable_widths()
    speeds = [
        f"{speed:g}" if name == "default" else f"{name} {speed:g}"
        for name, speed in memory.bandwidth_gb_s.items()
    ]
    numbered = [mode.name if mode.id is None else f"{mode.id} {mode.name}" for mode in modes]
    return (
        f"`{board.id}`",
        _graded(board, f"{memory.visible_mib} MiB", "memory.visible_mib"),
        _graded(
            board, ", ".join(speeds), *(f"memory.bandwidth_gb_s.{name}" for name in memory.bandwidth_gb_s)
        ),
        _graded(board, f"{memory.budget_mib} MiB", "memory.budget_mib"),
        _graded(board, cpu.kernel_class or "", "cpu.kernel_class"),
        _graded(
            board,
            " ".join(str(width.bits) for width in widths),
            *(f"widths.{width.provider}.{width.bits}" for width in widths),
        ),
        _graded(board, board.provider.removesuffix("ExecutionProvider"), "runtime.providers"),
        _graded(board, board.power.source, "power.source"),
        _graded(board, ", ".join(numbered), *(f"power_modes.{mode.name}" for mode in modes)),
    )


def _graded(board: Profile, text: str, *paths: str) -> str:
    return f"{text} {_LETTERS[worst(board.grade(path) for path in paths)]}" if text else "-"


def _about(board: Profile) -> str:
    """One line of a board: its names, its runtime, what it needs and what is not confirmed."""
    runtime = board.runtime
    names = f"{board.name}; also {', '.join(board.aliases)}" if board.aliases else board.name
    words = [
        f"* `{board.id}`: {names}.",
        f"{_sentence(runtime.system or 'its stock system')}: {_versions(board)}.",
    ]
    if runtime.install is not None:
        words.append(f"**Install first:** {runtime.install}.")
    doubtful = ", ".join(unconfirmed(board))
    words.append(f"Unconfirmed: {doubtful}." if doubtful else "Nothing unconfirmed.")
    return " ".join(words)


def _versions(board: Profile) -> str:
    return f"Python {board.runtime.python}, onnxruntime {board.runtime.onnxruntime}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
