"""`qslm-edge fit`: whether a model fits a board, before any work, and what would make it fit."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qslm_edge.cli import console, flags
from qslm_edge.cli import options as opt
from qslm_edge.cli.console import Json
from qslm_edge.errors import UsageError

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """
[bold]Examples[/bold]

  [cyan]qslm-edge fit -p jetson-orin[/cyan]                      the embedded reference model
  [cyan]qslm-edge fit my.pth -p ./my-board.toml[/cyan]
  [cyan]qslm-edge fit my-model/ -p jetson-orin --levels 8,4g32,2 --memory-budget 300MB[/cyan]

Exit codes: 0 some width fits, 1 none does, 2 bad input or usage, 3 not known (a GPU's memory).
"""
_STYLES = {"fits": "bold green", "does not fit": "bold red", "unknown": "bold yellow"}


def command(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Checkpoint: .pth, .safetensors or model directory. "
            "[dim]Default: the embedded reference.[/dim]",
            show_default=False,
        ),
    ] = None,
    profile: opt.Profile = None,
    task: Annotated[
        str | None,
        opt.option(
            "--task",
            "-t",
            help="Whose head counts: wikitext2 or sst2.",
            default="the language model where there is one",
        ),
    ] = None,
    embedding: opt.Embedding = None,
    levels: opt.Levels = None,
    group_size: opt.Group = None,
    memory_budget: opt.MemoryBudget = None,
    as_json: Json = False,
) -> None:
    """Compare the memory that a model needs at each width with what a board has. Nothing is evaluated."""
    from qslm_edge.profiles import load_profile
    from qslm_edge.steps.fit import fit_model
    from qslm_edge.units import parse_bytes

    if profile is None:
        raise UsageError(
            "no board chosen",
            where="--profile",
            hint="e.g. --profile jetson-orin; see `qslm-edge profiles list`",
        )
    flags.check_group_size(group_size)
    found = fit_model(
        model,
        load_profile(profile),
        task=task,
        embedding=embedding,
        levels=flags.split_levels(levels),
        group_size=group_size,
        budget_bytes=None if memory_budget is None else parse_bytes(memory_budget, "--memory-budget"),
    )
    if as_json:
        console.print_json(found)
    else:
        _show(found)
    raise typer.Exit(int(found["exit_code"]))


def _show(found: dict[str, Any]) -> None:
    model, board = found["model"], found["profile"]
    console.print_line(f"{model['name']} on {board['name']}", style="bold")
    console.print_line(
        f"{model['n_params']:,} parameters ({model['task']}); budget {_mb(board['budget_bytes'])} MB of "
        f"{_mb(board['visible_bytes'])} MB; {board['provider']}, onnxruntime {board['onnxruntime']}"
    )
    console.print_line()
    columns = ("level", "runs from", "weights", "in memory", "load peak", "steady", "margin", "verdict")
    rows = [
        (
            level["level"],
            level["onnxruntime_min"] or "-",
            _mb(level["weight_bytes"]),
            _mb(level["matrices_bytes"]),
            _mb(level["load_peak_bytes"]),
            _mb(level["steady_bytes"]),
            f"{level['margin_bytes'] / 1e6:+.1f}",
            level["verdict"],
        )
        for level in found["levels"]
    ]
    console.print_table(columns, rows, title="MB (10^6 bytes) of the process", right=columns[1:7])
    reasons = dict.fromkeys(level["reason"] for level in found["levels"] if level["reason"] is not None)
    for reason in reasons:
        those = ", ".join(level["level"] for level in found["levels"] if level["reason"] == reason)
        console.print_line(f"{those}: {reason}")
    console.print_line()
    state = model["state_bytes_per_stream"]
    console.print_line(f"state of each further stream: {state / 1e3:.1f} kB, whatever the context")
    console.print_line(found["method"])
    for remedy in found["would_fit"]:
        console.print_line(f"would fit: {remedy}")
    console.print_line(f"Verdict: {found['verdict']}", style=_STYLES[found["verdict"]])


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"
