"""`qslm-edge export`: the bundle of a searched run, or of a setting that the user gives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qslm_edge.cli import console
from qslm_edge.cli import options as opt
from qslm_edge.cli.console import Json
from qslm_edge.cli.flags import recipe_from_flags
from qslm_edge.errors import RunError, UsageError

if TYPE_CHECKING:
    from qslm_edge.steps.found import Found
    from qslm_edge.steps.front import SavedFront

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """
[bold]Examples[/bold]

  [cyan]qslm-edge export runs/jetson-orin-nano-wikitext2[/cyan]   what a search chose, into RUN/bundle
  [cyan]qslm-edge export RUN --weights-budget 4MB[/cyan]          from the front of --method pareto
  [cyan]qslm-edge export -p jetson-orin --setting 4g64[/cyan]     one level everywhere, no search
  [cyan]qslm-edge export -p x86-cpu -m my.pth --embedding dense --setting mine.json -o runs/mine[/cyan]

A setting file is a JSON object {module: level}; `qslm-edge inspect --json` lists the modules. A tuned model may
come from another machine: --setting RUN/tuned/NAME.safetensors. Exit codes:
0 written, 1 the graph does not compute what torch computes, 2 bad input, 4 environment, 130 interrupted.
"""

_LIMITS = ("max_ppl_increase", "max_accuracy_drop", "weights_budget")
"""What a front can be asked for."""


def command(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]",
            help="Run directory of a finished search or deployment. [dim]Else give --setting.[/dim]",
            show_default=False,
        ),
    ] = None,
    setting: Annotated[
        str | None,
        opt.option(
            "--setting",
            help="Without a search: one level for all modules, e.g. 4g64, a JSON file {module: level}, or a tuned "
            "model of a run, RUN/tuned/*.safetensors.",
        ),
    ] = None,
    profile: opt.Profile = None,
    model: opt.Model = None,
    task: opt.Task = None,
    out: Annotated[
        Path | None,
        opt.option(
            "--out",
            "-o",
            help="Directory that gets bundle/ and export.json.",
            default="RUN, or runs/PROFILE-TASK-SETTING",
        ),
    ] = None,
    embedding: opt.Embedding = None,
    tokenizer: opt.TokenizerFile = None,
    max_ppl_increase: opt.MaxPplIncrease = None,
    max_accuracy_drop: opt.MaxAccuracyDrop = None,
    memory_budget: opt.MemoryBudget = None,
    weights_budget: opt.WeightsBudget = None,
    max_latency: opt.MaxLatency = None,
    min_decode_speed: opt.MinDecodeSpeed = None,
    max_energy: opt.MaxEnergy = None,
    search_windows: opt.SearchWindows = None,
    report_windows: opt.ReportWindows = None,
    window: opt.Window = None,
    quantiser: opt.QuantiserName = None,
    calibration_data: opt.CalibrationData = None,
    calibration_tokens: opt.CalibrationTokens = None,
    search_data: opt.SearchData = None,
    report_data: opt.ReportData = None,
    as_json: Json = False,
) -> None:
    """Write the bundle of a setting, and prove that its graph computes what torch computes."""
    flags: dict[str, Any] = {
        "profile": profile,
        "model": model,
        "task": task,
        "embedding": embedding,
        "tokenizer": tokenizer,
        "max_ppl_increase": max_ppl_increase,
        "max_accuracy_drop": max_accuracy_drop,
        "memory_budget": memory_budget,
        "weights_budget": weights_budget,
        "max_latency": max_latency,
        "min_decode_speed": min_decode_speed,
        "max_energy": max_energy,
        "search_windows": search_windows,
        "report_windows": report_windows,
        "window": window,
        "quantiser": quantiser,
        "calibration_data": calibration_data,
        "calibration_tokens": calibration_tokens,
        "search_data": search_data,
        "report_data": report_data,
    }
    with console.RichProgress() as progress:
        if run is not None:
            _refuse(run, setting, flags)
            exported = _export_run(run, out or run, report_windows, flags, progress)
        elif setting is not None:
            made = recipe_from_flags(None, **flags)
            exported = _export_setting(made, setting, out, progress)
        else:
            raise UsageError(
                "nothing to export",
                allowed="a run directory, or --setting with --profile",
                hint="see `qslm-edge export --help`",
            )
    if as_json:
        console.print_json(exported)
    else:
        _show(exported)


def _refuse(run: Path, setting: str | None, flags: dict[str, Any]) -> None:
    """A run has its own recipe; only the number of report items may differ, and a front may be asked for a limit."""
    given = {"setting": setting, **flags}
    free = {"report_windows", *(_LIMITS if (run / "front.json").is_file() else ())}
    names = [name for name, value in given.items() if value is not None and name not in free]
    if names:
        raise UsageError(
            "a run directory brings its own recipe",
            where=f"--{names[0].replace('_', '-')}",
            found=f"RUN {run}",
            hint="leave out RUN to export a setting of your own, or search again with this flag",
        )


def _export_run(
    run: Path,
    out: Path,
    report_windows: int | None,
    flags: dict[str, Any],
    progress: console.RichProgress,
) -> dict[str, Any]:
    from qslm_edge.deploy import open_run
    from qslm_edge.steps.found import journaled_scores, read_found, tuned_model
    from qslm_edge.steps.front import check_front
    from qslm_edge.steps.prepare import prepare
    from qslm_edge.steps.setting import setting_from_levels

    front, found = (
        _asked(run, flags) if any(flags[name] is not None for name in _LIMITS) else (None, read_found(run))
    )
    _refuse_simulated(found)
    recipe = found.recipe
    if report_windows is not None:
        recipe = recipe.model_copy(update={"report_windows": report_windows})
    with open_run(out):
        plan = prepare(recipe)
        chosen = setting_from_levels(found.setting, plan, str(found.source))
        items = plan.items("search")
        if front is not None:
            check_front(front, plan, items)
        tuned = tuned_model(plan, chosen, found.tuned, run)
        expected = journaled_scores(plan, items, chosen, run, tuned)
        return _write(plan, chosen, items, expected, out, progress, tuned)


def _asked(run: Path, flags: dict[str, Any]) -> tuple[SavedFront, Found]:
    """The front of a run, and its answer to the limits in `flags` as if a search had found it."""
    from qslm_edge.cli.front import front_limits
    from qslm_edge.steps.found import Found
    from qslm_edge.steps.front import read_front

    front = read_front(run)
    limit, budget = front_limits(front.kind, *(flags[name] for name in _LIMITS))
    point = front.answer(limit, budget)
    changes = {"max_degradation": limit, "weights_budget_bytes": budget}
    recipe = front.recipe.model_copy(update={key: v for key, v in changes.items() if v is not None})
    return front, Found(recipe, point.setting, front.source)


def _refuse_simulated(found: Found) -> None:
    if found.recipe.method == "qslm":
        raise UsageError(
            "the paper's scheme is a simulation and cannot be exported",
            where=found.source,
            found="method qslm",
            hint="search without --method qslm for a setting that can be deployed",
        )


def _export_setting(
    recipe: Any, setting: str, out: Path | None, progress: console.RichProgress
) -> dict[str, Any]:
    from qslm_edge.deploy import open_run
    from qslm_edge.profiles import load_profile
    from qslm_edge.steps.found import FILE
    from qslm_edge.steps.prepare import prepare
    from qslm_edge.steps.setting import given_setting, given_tuned

    place = out or Path("runs") / f"{load_profile(recipe.profile).id}-{recipe.task}-{Path(setting).stem}"
    for name in (FILE, "report.json"):
        if (place / name).exists():
            raise RunError(
                "this directory holds the run of a search, whose bundle would no longer be its own",
                where=place,
                found=name,
                hint="use another --out",
            )
    with open_run(place):
        plan = prepare(recipe)
        tuned = given_tuned(setting, plan) if setting.endswith(".safetensors") else None
        chosen = given_setting(setting, plan) if tuned is None else tuned.setting
        return _write(plan, chosen, plan.items("search"), None, place, progress, tuned)


def _write(
    plan: Any, chosen: Any, items: Any, expected: Any, out: Path, progress: console.RichProgress, tuned: Any
) -> dict[str, Any]:
    from qslm_edge.steps.export import describe_export, export_bundle
    from qslm_edge.steps.find import write_json

    bundle, _, facts = export_bundle(plan, chosen, items, expected, out / "bundle", progress, tuned)
    exported = describe_export(plan, chosen, bundle, facts)
    write_json(out / "export.json", exported)
    progress.done()
    return exported


def _show(exported: dict[str, Any]) -> None:
    weights, parity = exported["weights"], exported["parity"]
    console.print_line(
        f"{exported['model']['name']} for {exported['profile']['name']}: {exported['summary']}", style="bold"
    )
    console.print_line(
        f"weights {weights['bytes'] / 1e6:.2f} MB, {100 * weights['reduction']:.2f} % smaller than "
        f"{weights['float32_bytes'] / 1e6:.2f} MB in float32; "
        f"predicted peak {weights['predicted_peak_rss_bytes'] / 1e6:.0f} MB"
    )
    console.print_line()
    module, piece = parity["worst_module"], parity["worst_piece"]
    rows = [
        ("matrix products, worst", f"{parity['modules'][module]:.2g}", f"relative RMS, {module}"),
        ("everything else, worst", f"{parity['pieces'][piece]:.2g}", piece),
        ("spikes that flip", f"{100 * parity['spike_flip_rate']:.3g} %", "both sides running freely"),
        ("firing rate, torch", f"{100 * parity['firing_rate_torch']:.3f} %", "all layers"),
        ("firing rate, graph", f"{100 * parity['firing_rate_graph']:.3f} %", "all layers"),
        ("largest output difference", f"{parity['max_abs_output']:.3g}", f"{parity['n_tokens']} tokens"),
    ]
    if parity["perplexity_torch"] is not None:
        rows.append(("perplexity, torch", f"{parity['perplexity_torch']:.3f}", "of the same tokens"))
        rows.append(("perplexity, graph", f"{parity['perplexity_graph']:.3f}", "of the same tokens"))
    columns = ("parity of torch and graph", "value", "of")
    console.print_table(columns, rows, right=("value",))
    console.print_line()
    files = [(name, f"{size:,}") for name, size in exported["files"].items()]
    console.print_table(("file", "bytes"), [*files, ("total", f"{exported['bytes']:,}")], right=("bytes",))
    console.print_line(f"Bundle: {exported['bundle']['path']}")
    console.print_line(f"Verify it: qslm-edge verify {exported['bundle']['path']}")
