"""`qslm-edge search`: find a setting under a board's limits, without exporting it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from qslm_edge.cli import console, flags
from qslm_edge.cli import options as opt
from qslm_edge.cli.console import Json
from qslm_edge.report.statistics_view import statistics_line

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """
[bold]Examples[/bold]

  [cyan]qslm-edge search --profile jetson-orin[/cyan]                     the embedded reference model
  [cyan]qslm-edge search -p x86-cpu --task sst2 --levels 8,4,2[/cyan]     its classifier, at given widths
  [cyan]qslm-edge search -p jetson-orin --mu 2.5[/cyan]                   selection by Eq. 1 of QSLM
  [cyan]qslm-edge search -p jetson-orin --method qslm[/cyan]              the paper's simulation, to compare
  [cyan]qslm-edge search -p jetson-orin --method pareto[/cyan]            a front of sizes; then, at once:
  [cyan]qslm-edge search --from-front RUN --weights-budget 4MB[/cyan]

`qslm-edge export RUN` makes the bundle. Exit codes: 0 found, 1 infeasible, 2 bad input, 4 environment,
130 interrupted; the same command again goes on where it stopped.
"""
_SHOWN = 8


def command(
    profile: opt.Profile = None,
    model: opt.Model = None,
    task: opt.Task = None,
    out: Annotated[
        Path | None,
        opt.option(
            "--out",
            "-o",
            help="Run directory; the same one again resumes.",
            default="runs/PROFILE-TASK, with -qslm behind it for that method",
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
    levels: opt.Levels = None,
    group_size: opt.Group = None,
    mu: opt.Mu = None,
    method: opt.Method = None,
    search_windows: opt.SearchWindows = None,
    report_windows: opt.ReportWindows = None,
    window: opt.Window = None,
    quantiser: opt.QuantiserName = None,
    calibration_data: opt.CalibrationData = None,
    calibration_tokens: opt.CalibrationTokens = None,
    cut_hidden: opt.CutHidden = None,
    tune: opt.Tune = None,
    tune_tokens: opt.TuneTokens = None,
    tune_rounds: opt.TuneRounds = None,
    tune_rate: opt.TuneRate = None,
    tune_start: opt.TuneStart = None,
    seed: opt.Seed = None,
    search_data: opt.SearchData = None,
    report_data: opt.ReportData = None,
    recipe: opt.RecipeFile = None,
    from_front: Annotated[
        Path | None,
        opt.option(
            "--from-front",
            help="Answer --weights-budget or a limit from the front of this run directory, at once.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Search a mixed-precision setting: the smallest that holds the limits, or the best under a budget."""
    choices = {
        "profile": profile,
        "model": model,
        "task": task,
        "embedding": embedding,
        "tokenizer": tokenizer,
        "memory_budget": memory_budget,
        "levels": levels,
        "group_size": group_size,
        "method": method,
        "search_windows": search_windows,
        "report_windows": report_windows,
        "window": window,
        "quantiser": quantiser,
        "calibration_data": calibration_data,
        "calibration_tokens": calibration_tokens,
        "cut_hidden": cut_hidden,
        "tune": tune,
        "tune_tokens": tune_tokens,
        "tune_rounds": tune_rounds,
        "tune_rate": tune_rate,
        "tune_start": tune_start,
        "seed": seed,
        "search_data": search_data,
        "report_data": report_data,
    }
    if from_front is not None:
        from qslm_edge.cli.front import answer_from_front

        others = {**choices, "recipe": recipe, "out": out}
        answer_from_front(
            from_front, max_ppl_increase, max_accuracy_drop, weights_budget, mu, others, as_json
        )
        return
    made = flags.recipe_from_flags(
        recipe,
        max_ppl_increase=max_ppl_increase,
        max_accuracy_drop=max_accuracy_drop,
        weights_budget=weights_budget,
        max_latency=max_latency,
        min_decode_speed=min_decode_speed,
        max_energy=max_energy,
        mu=mu,
        **choices,
    )
    from qslm_edge.profiles import load_profile

    name = f"{load_profile(made.profile).id}-{made.task}" + ("-qslm" if made.method == "qslm" else "")
    place = out or Path("runs") / name
    with console.RichProgress() as progress:
        found = _search(made, place, progress)
    if as_json:
        console.print_json(found)
    else:
        _show(found, place)


def _search(recipe: Any, place: Path, progress: console.RichProgress) -> dict[str, Any]:
    from qslm_edge.deploy import open_run
    from qslm_edge.recipe import write_recipe
    from qslm_edge.runner.text import json_ready
    from qslm_edge.steps.find import find_setting, write_json
    from qslm_edge.steps.found import FILE, describe_search
    from qslm_edge.steps.prepare import prepare
    from qslm_edge.steps.statistics import setting_statistics

    with open_run(place):
        plan = prepare(recipe)
        items = plan.items("search")
        write_recipe(recipe, place / "recipe.toml")
        result, evaluator, tuned = find_setting(plan, items, place, progress)
        found = describe_search(plan, items, result, evaluator, tuned)
        statistics = setting_statistics(plan, items, evaluator.store, result.chosen.setting, progress, tuned)
        found["statistics"] = json_ready(statistics)
        write_json(place / FILE, found)
        progress.done()
    return found


def _show(found: dict[str, Any], place: Path) -> None:
    task, base, limit = found["task"], found["float"], found["constraints"]["max_degradation"]
    direction = "drop" if task["metric"] == "accuracy" else "increase"
    simulated = "" if found["deployable"] else " (simulated, not deployable)"
    console.print_line(
        f"{found['model']['name']} for {found['profile']['name']}: float {task['metric']} "
        f"{base['value']:.2f} ± {base['standard_error']:.2f}, {direction} of at most {limit:g} allowed"
    )
    shown = found["candidates"][:_SHOWN]
    columns = ["candidate", "found in", "weights", "smaller by", task["metric"], direction, "95 % bound"]
    columns += ["items", "predicted peak"] if found["deployable"] else ["items"]
    rows = [_row(number, trial, found["deployable"]) for number, trial in enumerate(shown, 1)]
    title = f"{len(shown)} of {len(found['candidates'])} candidates{simulated}, best first"
    console.print_table(columns, rows, title=title, right=[*columns[2:]])
    console.print_line(f"selection: {found['selection']}; weights: {found['accounting']}")
    if found["front"]:
        from qslm_edge.cli.front import show_front

        float_bytes = found["model"]["float32_bytes"]
        show_front(found["front"], task["metric"], float_bytes, found["chosen"])
    _show_chosen(found, simulated)
    console.print_line(statistics_line(found["statistics"]))
    cost = found["cost"]
    console.print_line(
        f"{len(found['trials'])} trials, {cost['evaluations']} evaluations of {cost['tokens']:,} tokens in "
        f"{cost['seconds']:.1f} s; {cost['replayed_from_journal']:,} results of {cost['replayed_tokens']:,} "
        "tokens taken from the journal"
    )
    after = f"Export it: qslm-edge export {place}" if found["deployable"] else f"Written to {place}"
    console.print_line(after)
    if found["front"]:
        console.print_line(f"Other budgets: qslm-edge search --from-front {place} --weights-budget 4MB")


def _row(number: int, trial: dict[str, Any], peak: bool) -> Sequence[str]:
    compared = trial["comparison"]
    cells = [
        f"{number}  {trial['summary']}",
        trial["tier"],
        f"{trial['weight_bytes'] / 1e6:.2f} MB",
        f"{100 * trial['reduction']:.2f} %",
        f"{trial['metric']:.2f}",
        f"{compared['degradation']:+.3f} ± {compared['standard_error']:.3f}",
        f"{compared['upper']:+.3f}",
        f"{trial['n_items']} of {trial['n_items_total']}",
    ]
    return [*cells, f"{trial['predicted_peak_rss_bytes'] / 1e6:.0f} MB"] if peak else cells


def _show_chosen(found: dict[str, Any], simulated: str) -> None:
    """The chosen setting by block: one level, or the level of each module that differs."""
    chosen = found["chosen"]
    console.print_line()
    console.print_line(f"Chosen{simulated}: {chosen['summary']}", style="bold green")
    setting = chosen["setting"]
    rows = []
    for block in found["model"]["blocks"]:
        levels = {module["name"]: setting[module["name"]] for module in block["modules"]}
        if levels:
            rows.append((block["name"], ", ".join(_grouped(levels))))
    console.print_table(("block", "levels"), rows)


def _grouped(levels: dict[str, str]) -> list[str]:
    by_level: dict[str, list[str]] = {}
    for name, level in levels.items():
        by_level.setdefault(level, []).append(".".join(name.split(".")[-2:]))
    if len(by_level) == 1:
        return list(by_level)
    return [f"{level} ({' '.join(names)})" for level, names in by_level.items()]
