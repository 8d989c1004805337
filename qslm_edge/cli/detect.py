"""`qslm-edge profiles detect`: write the profile of this machine. Runs on the base install: no torch, no onnx."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qslm_edge.cli import console
from qslm_edge.cli import options as opt
from qslm_edge.cli.console import Json
from qslm_edge.errors import EnvironmentFault

if TYPE_CHECKING:
    from qslm_edge.profiles.detect import Detected
    from qslm_edge.profiles.survey import Survey

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """
[bold]Examples[/bold]

  [cyan]qslm-edge profiles detect[/cyan]                             writes my-board.toml
  [cyan]qslm-edge profiles detect --out pi.toml --name "Pi 5"[/cyan]
  [cyan]qslm-edge deploy --profile ./my-board.toml[/cyan]            then deploy for it

Exit codes: 0 written, 2 usage, 4 this machine cannot run a bundle (what to install is told) or output.
"""
SCHEMA = "qslm-edge/detect/1"


def command(
    out: Annotated[Path, typer.Option("--out", help="Profile file to write.")] = Path("my-board.toml"),
    name: Annotated[
        str | None,
        opt.option("--name", help="Name of the board.", default="what the board or its processor says"),
    ] = None,
    memory_budget: Annotated[
        str | None,
        opt.option(
            "--memory-budget",
            help="Peak memory that a process may take, e.g. 400MB.",
            default="40 or 50 % of the memory, 70 % of a card's",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that stands there.")] = False,
    root: opt.Root = Path("/"),
    as_json: Json = False,
) -> None:
    """Write the profile of the machine this runs on: processor, memory, runtime, widths, power.

    Providers and weight widths are proven by running nodes and comparing their results.
    """
    from qslm_edge.profiles.detect import check_output, draft_and_check, write_profile
    from qslm_edge.profiles.survey import take_survey
    from qslm_edge.progress import runner_stages
    from qslm_edge.units import parse_bytes

    budget = None if memory_budget is None else parse_bytes(memory_budget, "--memory-budget")
    check_output(out, force=force)
    with console.RichProgress() as progress:
        survey = take_survey(root, runner_stages(progress, prefix=""))
        progress.done()
    try:
        detected = draft_and_check(survey, out, name=name, budget_bytes=budget)
    except EnvironmentFault as fault:
        _tell_what_is_known(survey, fault, as_json)
        raise typer.Exit(fault.exit_code) from None
    write_profile(detected, out)
    if as_json:
        console.print_json(_document(survey, detected, out))
    else:
        _show(survey, detected, out)


def _document(survey: Survey, detected: Detected, out: Path) -> dict[str, Any]:
    from qslm_edge.runner.text import json_ready

    ready: dict[str, Any] = json_ready(
        {
            "schema": SCHEMA,
            "file": str(out),
            "digest": detected.profile.digest,
            "profile": detected.draft.data,
            "left_out": list(detected.draft.left_out),
            "found": survey.to_dict(),
        }
    )
    return ready


def _tell_what_is_known(survey: Survey, fault: EnvironmentFault, as_json: bool) -> None:
    """No profile can be written; what was found is not withheld."""
    from qslm_edge.runner.text import json_ready

    console.print_error(fault.line())
    if as_json:
        error = {"type": type(fault).__name__, "message": fault.line(), "exit_code": fault.exit_code}
        console.print_json(
            json_ready({"schema": SCHEMA, "profile": None, "error": error, "found": survey.to_dict()})
        )
        return
    console.print_line("No profile was written. What is known of this machine:")
    console.print_table(("fact", "value"), _known(survey))


def _known(survey: Survey) -> list[tuple[str, str]]:
    from qslm_edge.profiles.drafting import kernel_class

    machine, rates = survey.machine, survey.bandwidth
    power = survey.power
    memory = machine.total_memory_bytes
    return [
        ("host", machine.label),
        ("kernel class", kernel_class(machine.arch, machine.features) or "none"),
        (
            "memory",
            machine.reasons.get("total_memory_bytes", "") if memory is None else f"{memory / 1e6:.0f} MB",
        ),
        (
            "memory bandwidth",
            f"{rates.all_threads_bytes_per_s / 1e9:.1f} GB/s"
            if rates.all_threads_bytes_per_s is not None
            else str(rates.reason),
        ),
        ("Python", machine.python_version),
        ("onnxruntime", survey.runtime.version or "none"),
        ("power", f"{power.source}: {power.scope}" if power.source else str(power.reason)),
    ]


def _show(survey: Survey, detected: Detected, out: Path) -> None:
    profile = detected.profile
    if survey.simulated:
        console.print_line(profile.description, style="bold yellow")
    console.print_line(f"{profile.id}: {profile.name}", style="bold")
    rows = [
        ("host", survey.machine.label),
        ("kernel class", str(profile.cpu.kernel_class)),
        ("memory", f"{profile.memory.visible_mib} MiB, budget {profile.memory.budget_mib} MiB"),
        ("bandwidth", _bandwidth(survey)),
        ("runtime", profile.runtime.note or profile.runtime.onnxruntime),
        ("power", profile.power.scope or f"none: {profile.power.note}"),
        ("known again by", _match(profile.match.model_dump(exclude_defaults=True))),
    ]
    console.print_table(("fact", "value"), rows)
    console.print_line()
    widths = [
        (
            str(width.bits),
            width.provider,
            "-" if width.accuracy_level is None else str(width.accuracy_level),
            ", ".join(str(size) for size in width.block_sizes) or "-",
            width.condition or "",
        )
        for width in profile.widths
    ]
    console.print_table(("bits", "provider", "level", "blocks", "condition"), widths)
    for line in detected.draft.left_out:
        console.print_line(f"left out: {line}")
    console.print_line(f"written: {out}; next: qslm-edge deploy --profile {_as_path(out)}")


def _bandwidth(survey: Survey) -> str:
    rates = survey.bandwidth
    if rates.all_threads_bytes_per_s is None or rates.one_thread_bytes_per_s is None:
        return f"not measured: {rates.reason}"
    one, every = rates.one_thread_bytes_per_s / 1e9, rates.all_threads_bytes_per_s / 1e9
    return f"{one:.1f} GB/s by one thread, {every:.1f} by {rates.threads} ({rates.method})"


def _match(match: dict[str, Any]) -> str:
    return "; ".join(
        f"{key} {', '.join(value) if isinstance(value, tuple) else value}" for key, value in match.items()
    )


def _as_path(out: Path) -> str:
    """As `--profile` takes it: a file needs an ending of .toml or a separator."""
    return str(out) if out.is_absolute() or len(out.parts) > 1 else f"./{out}"
