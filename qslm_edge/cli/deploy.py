"""`qslm-edge deploy`: from checkpoint to verified bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qslm_edge.cli import console, flags
from qslm_edge.cli import options as opt
from qslm_edge.cli.console import Json

EXAMPLES = """
[bold]Examples[/bold]

  [cyan]qslm-edge deploy --profile jetson-orin[/cyan]                              the embedded model
  [cyan]qslm-edge deploy -p jetson-orin --task sst2 --max-accuracy-drop 1[/cyan]   its classifier, tighter
  [cyan]qslm-edge deploy -p jetson-orin --max-latency 20ms --max-energy 5mJ[/cyan]  judged on the board
  [cyan]qslm-edge deploy -p raspberry-pi-5-8gb -m my.pth --embedding dense --tokenizer tok.json[/cyan]
  [cyan]qslm-edge deploy --recipe runs/jetson-orin-nano-wikitext2/recipe.toml[/cyan]  the same again

Exit codes: 0 pass, 1 fail or infeasible, 2 bad input, 3 inconclusive, 4 environment, 130 interrupted.
"""


def command(
    profile: opt.Profile = None,
    model: opt.Model = None,
    task: opt.Task = None,
    out: Annotated[
        Path | None,
        opt.option(
            "--out", "-o", help="Run directory; the same one again resumes.", default="runs/PROFILE-TASK"
        ),
    ] = None,
    target: Annotated[str, typer.Option("--target", help="Where the bundle is verified.")] = "local",
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
    power: opt.Power = "smoke",
    as_json: Json = False,
) -> None:
    """Search a setting under a board's limits, export it, verify the bundle, and give a verdict."""
    made = flags.recipe_from_flags(
        recipe,
        profile=profile,
        model=model,
        task=task,
        embedding=embedding,
        tokenizer=tokenizer,
        max_ppl_increase=max_ppl_increase,
        max_accuracy_drop=max_accuracy_drop,
        memory_budget=memory_budget,
        weights_budget=weights_budget,
        max_latency=max_latency,
        min_decode_speed=min_decode_speed,
        max_energy=max_energy,
        levels=levels,
        group_size=group_size,
        mu=mu,
        method=method,
        search_windows=search_windows,
        report_windows=report_windows,
        window=window,
        quantiser=quantiser,
        calibration_data=calibration_data,
        calibration_tokens=calibration_tokens,
        cut_hidden=cut_hidden,
        tune=tune,
        tune_tokens=tune_tokens,
        tune_rounds=tune_rounds,
        tune_rate=tune_rate,
        tune_start=tune_start,
        seed=seed,
        search_data=search_data,
        report_data=report_data,
    )
    from qslm_edge.cli.closing import show_report
    from qslm_edge.deploy import deploy
    from qslm_edge.profiles import load_profile
    from qslm_edge.runner.verify import VerifyOptions

    flags.check_power(power)
    board = load_profile(made.profile)
    place = out or Path("runs") / f"{board.id}-{made.task}"
    if board.runtime.install is not None:
        console.print_note(f"{board.id} runs the bundle only with this installed: {board.runtime.install}")
    with console.RichProgress() as progress:
        report = deploy(made, place, progress, target=target, verify=VerifyOptions(power=power))
    if as_json:
        console.print_json(report)
    else:
        show_report(report)
    raise typer.Exit(report["exit_code"])
