"""``qslm-edge profiles``: list the boards, show one with the grade and source of each fact, check a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from qslm_edge.cli import detect
from qslm_edge.cli.console import Json, print_error, print_json, print_line, print_table
from qslm_edge.errors import EXIT_PASS, ProfileError
from qslm_edge.profiles import Fact, Profile, Width, list_profiles, load_profile, read_profile
from qslm_edge.profiles.overview import grouped, unconfirmed

__all__ = ["app"]

app = typer.Typer(
    name="profiles",
    help="Boards: what each has, what its runtime runs, and how well that is known.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)

_LIST_EXAMPLES = """
[bold]Examples[/bold]

  [cyan]qslm-edge profiles list[/cyan]
  [cyan]qslm-edge profiles list --json[/cyan]
"""
_SHOW_EXAMPLES = """
[bold]Examples[/bold]

  [cyan]qslm-edge profiles show jetson-orin[/cyan]      a shipped board, by id or alias
  [cyan]qslm-edge profiles show ./my-board.toml[/cyan]  a file of your own
"""
_VALIDATE_EXAMPLES = """
[bold]Examples[/bold]

  [cyan]qslm-edge profiles validate my-board.toml[/cyan]
  [cyan]qslm-edge profiles validate boards/*.toml --json[/cyan]
"""


@app.command("list", epilog=_LIST_EXAMPLES)
def list_command(as_json: Json = False) -> None:
    """List the shipped boards by family: memory budget, weight widths, power source, a shorter name.

    The column "open" counts the facts that nobody has confirmed; `show` names them, and every other name.
    """
    profiles = list_profiles()
    if as_json:
        print_json({"profiles": [_summary(profile) for profile in profiles]})
        return
    columns = ("board", "budget", "bits", "power", "open", "also")
    rows: list[tuple[str, ...]] = []
    for _, boards in grouped(profiles):
        rows += [("",) * len(columns)] if rows else []
        rows += [_row(profile) for profile in boards]
    print_table(columns, rows, right=("budget", "open"))
    print_line()
    for line in _remarks(profiles):
        print_line(line)


@app.command("show", epilog=_SHOW_EXAMPLES)
def show_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A board, an alias, or a profile file.")],
    as_json: Json = False,
) -> None:
    """Show every fact of a board with its grade and source, and the widths it does not run."""
    profile = load_profile(name)
    if as_json:
        print_json(_details(profile))
        return
    print_line(f"{profile.id}: {profile.name}", style="bold")
    print_line(profile.description)
    if profile.aliases:
        print_line(f"also called {', '.join(profile.aliases)}")
    print_line(f"{profile.status}, digest {profile.digest}")
    print_line()
    _print_facts(profile.facts())
    print_line()
    doubtful = unconfirmed(profile)
    if doubtful:
        print_line(f"unconfirmed, check on the board: {', '.join(doubtful)}")
    print_line(f"weight widths with {profile.provider}: {_bits(profile.usable_widths())} bits")
    for bits, reason in profile.refused_widths():
        print_line(f"not {bits} bits: {reason}")
    if profile.runtime.install is not None:
        print_line(f"install first: {profile.runtime.install}")
        print_line(_stock(profile))
    for note in profile.all_notes():
        print_line(f"note: {note}")


@app.command("validate", epilog=_VALIDATE_EXAMPLES)
def validate_command(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Profile files.")],
    as_json: Json = False,
) -> None:
    """Check profile files: "ok", or one line that names file, key, what was found and what is allowed.

    Exits with 2 if any file is wrong.
    """
    results: list[dict[str, Any]] = []
    code = EXIT_PASS
    for file in files:
        try:
            profile = read_profile(Path(file))
        except ProfileError as error:
            code = error.exit_code
            results.append({"file": file, "ok": False, "id": None, "digest": None, "error": error.line()})
            print_error(error.line())
        else:
            results.append(
                {"file": file, "ok": True, "id": profile.id, "digest": profile.digest, "error": None}
            )
            if not as_json:
                print_line(f"ok {file} ({profile.id})")
    if as_json:
        print_json({"files": results})
    raise typer.Exit(code)


app.command("detect", epilog=detect.EXAMPLES)(detect.command)


def _bits(widths: Iterable[Width], between: str = ", ") -> str:
    return between.join(str(width.bits) for width in widths)


def _row(profile: Profile) -> tuple[str, ...]:
    return (
        profile.id,
        f"{profile.memory.budget_mib} MiB",
        _bits(profile.usable_widths(), " "),
        profile.power.source,
        str(sum(fact.grade == "unconfirmed" for fact in profile.facts())),
        next(iter(profile.aliases), "-"),  # the usual one; a terminal of 80 columns has no room for all
    )


def _remarks(profiles: Iterable[Profile]) -> list[str]:
    """What the columns of the list do not say: which boards are no target, and which need more than they bring."""
    kinds = {
        "legacy": [profile.id for profile in profiles if profile.status == "legacy"],
        "to develop on, not to ship to": [
            profile.id for profile in profiles if profile.status == "development-host"
        ],
        "runs a bundle only after something is installed (`show` says what)": [
            profile.id for profile in profiles if profile.runtime.install is not None
        ],
    }
    lines = [f"{words}: {', '.join(ids)}" for words, ids in kinds.items() if ids]
    return [
        *lines,
        "open: facts that nobody has confirmed; `show` names them, and every other name of a board",
    ]


def _stock(profile: Profile) -> str:
    """What the system as delivered would do, for a profile that plans with another runtime."""
    stock = profile.runtime.stock
    if stock is None:
        return ""
    if stock.onnxruntime is None:
        return f"as delivered: {stock.system}, whose onnxruntime is not known here"
    python = f" with Python {stock.python}" if stock.python else ""
    does = f"runs {_bits(profile.stock_widths())} bits" if profile.stock_widths() else "runs no width"
    return f"as delivered: {stock.system}{python} gets onnxruntime {stock.onnxruntime}, which {does}"


def _print_facts(facts: tuple[Fact, ...]) -> None:
    numbers: dict[str, int] = {}
    rows = []
    for fact in facts:
        marks = [str(numbers.setdefault(source, len(numbers) + 1)) for source in fact.sources]
        rows.append((fact.path, _shown(fact.value), fact.grade, ", ".join(marks) or "-"))
    print_table(("fact", "value", "grade", "sources"), rows)
    print_line()
    for source, number in numbers.items():
        print_line(f"[{number}] {source}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{key} {_shown(below)}" for key, below in value.items() if below is not None and below != []
        )
    if isinstance(value, list):
        words = [_shown(entry) for entry in value]
        return words[0] if len(words) == 1 else f"[{', '.join(words)}]"
    return str(value)


def _summary(profile: Profile) -> dict[str, Any]:
    return {
        "id": profile.id,
        "name": profile.name,
        "aliases": list(profile.aliases),
        "family": profile.family,
        "status": profile.status,
        "memory_kind": profile.memory.kind,
        "visible_mib": profile.memory.visible_mib,
        "budget_mib": profile.memory.budget_mib,
        "provider": profile.provider,
        "usable_bits": [width.bits for width in profile.usable_widths()],
        "refused": [{"bits": bits, "reason": reason} for bits, reason in profile.refused_widths()],
        "install_first": profile.runtime.install,
        "power_source": profile.power.source,
        "lowest_grade": profile.lowest_grade(),
        "unconfirmed": list(unconfirmed(profile)),
        "digest": profile.digest,
    }


def _details(profile: Profile) -> dict[str, Any]:
    return {
        **_summary(profile),
        "description": profile.description,
        "usable_widths": [_width(width) for width in profile.usable_widths()],
        "facts": [
            {"path": fact.path, "value": fact.value, "grade": fact.grade, "sources": list(fact.sources)}
            for fact in profile.facts()
        ],
        "stock_bits": [width.bits for width in profile.stock_widths()],
        "notes": list(profile.all_notes()),
    }


def _width(width: Width) -> dict[str, Any]:
    return width.model_dump(mode="json")
