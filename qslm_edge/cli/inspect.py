"""`qslm-edge inspect`: what a checkpoint consists of, and what each precision level would take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from qslm_edge.cli import console, flags
from qslm_edge.cli import options as opt
from qslm_edge.cli.console import Json

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """
[bold]Examples[/bold]

  [cyan]qslm-edge inspect[/cyan]                                         the embedded reference model
  [cyan]qslm-edge inspect my.pth --embedding dense[/cyan]                a checkpoint of your own
  [cyan]qslm-edge inspect my-model/ --task sst2 -p jetson-orin[/cyan]    its classifier, against a board
  [cyan]qslm-edge inspect my-model/ --levels 8,4g32,4g128 --json[/cyan]
"""
_HEADS = {"lm": "language model", "classifier": "classifier"}


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
    task: Annotated[
        str | None,
        opt.option(
            "--task",
            "-t",
            help="Whose head is counted: wikitext2 or sst2.",
            default="the language model where there is one",
        ),
    ] = None,
    embedding: opt.Embedding = None,
    profile: opt.Profile = None,
    levels: opt.Levels = None,
    group_size: opt.Group = None,
    as_json: Json = False,
) -> None:
    """Show blocks, modules, parameters and the bytes of every precision level. Nothing is evaluated.

    With a profile: its levels, and the predicted peak of the process against its memory budget.
    """
    from qslm_edge.profiles import load_profile
    from qslm_edge.steps.inspect import inspect_model

    flags.check_group_size(group_size)
    found = inspect_model(
        model,
        task=task,
        embedding=embedding,
        profile=None if profile is None else load_profile(profile),
        levels=flags.split_levels(levels),
        group_size=group_size,
    )
    if as_json:
        console.print_json(found)
        return
    _show(found)


def _show(found: dict[str, Any]) -> None:
    model = found["model"]
    heads = ", ".join(_HEADS[head] for head in model["heads"])
    labels = f" ({', '.join(model['labels'])})" if model["labels"] else ""
    console.print_line(f"{model['name']}: SpikeGPT, {found['n_params']:,} parameters", style="bold")
    console.print_line(
        f"{model['n_layer']} layers, {model['n_embd']} channels, {model['ffn_dim']} hidden units, "
        f"vocabulary {model['vocab_size']:,}, {model['embedding']} embedding, context {model['ctx_len']}"
    )
    console.print_line(f"heads: {heads}{labels}; counted here: {_HEADS[found['head']]} ({found['task']})")
    console.print_line(f"state of a stream: {_kb(found['state_bytes'])}, whatever the context length")
    console.print_line(f"digest {model['digest']}")
    console.print_line()
    _show_modules(found["blocks"])
    console.print_line()
    _show_levels(found)


def _show_modules(blocks: Sequence[dict[str, Any]]) -> None:
    """One line for each kind of matrix; every attention block has the same ones."""
    kinds: dict[tuple[str, int, int], list[int]] = {}
    for block in blocks:
        for module in block["modules"]:
            kind = module["name"].split(".", 2)[-1]
            kinds.setdefault((kind, module["rows"], module["columns"]), []).append(module["n_params"])
    rows = [
        (kind, f"{height} × {width}", str(len(each)), f"{each[0]:,}", f"{sum(each):,}")
        for (kind, height, width), each in kinds.items()
    ]
    columns = ("matrix", "rows × columns", "number", "parameters", "in all")
    console.print_table(columns, rows, right=columns[1:])


def _show_levels(found: dict[str, Any]) -> None:
    levels = found["levels"]
    names = [level["level"] for level in levels]
    columns = ["block", "modules", "parameters", "share", "32", *names]
    rows = [
        [
            block["name"],
            str(len(block["modules"])),
            f"{block['n_params']:,}",
            f"{100 * block['share']:.1f} %",
            _mb(block["float32_bytes"]),
            *(_mb(block["bytes"][name]) for name in names),
        ]
        for block in found["blocks"]
    ]
    count = sum(len(block["modules"]) for block in found["blocks"])
    total = [f"{found['n_params']:,}", "100.0 %", _mb(found["float32_bytes"])]
    rows.append(["total", str(count), *total, *(_mb(level["weight_bytes"]) for level in levels)])
    blank = ["", "", "", ""]
    rows.append(["smaller by", *blank, *(f"{100 * level['reduction']:.1f} %" for level in levels)])
    board = found["profile"]
    if board is not None:
        peaks = (f"{level['predicted_peak_rss_bytes'] / 1e6:.0f}" for level in levels)
        rows.append(["predicted peak", *blank, *peaks])
        rows.append(["within budget", *blank, *(_fits(level["fits"]) for level in levels)])
    console.print_table(columns, rows, title="MB (10^6 bytes) at each level", right=columns[1:])
    for level in levels:
        if level["elsewhere"]:
            console.print_line(f"at {level['level']} other levels are taken by {_elsewhere(level)}")
    if board is not None:
        _show_board(board)


def _show_board(board: dict[str, Any]) -> None:
    if board["budget_bytes"] is None:
        console.print_line(f"{board['name']}: {board['reason']}")
    else:
        console.print_line(
            f"{board['name']}: budget {board['budget_bytes'] / 1e6:.0f} MB for the peak of the process; "
            "the peak of a decoding process is an estimate, `verify` measures it"
        )
    for width in board["refused_widths"]:
        console.print_line(f"not {width['bits']} bits: {width['reason']}")


def _elsewhere(level: dict[str, Any]) -> str:
    taken = sorted(set(level["elsewhere"].values()))
    return f"{len(level['elsewhere'])} matrices, whose columns its groups do not divide ({', '.join(taken)})"


def _fits(fits: bool | None) -> str:
    return "unknown" if fits is None else "yes" if fits else "no"


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f}"


def _kb(size: int) -> str:
    return f"{size / 1e3:.1f} kB"
