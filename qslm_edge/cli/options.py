"""Flags that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AllowFallback",
    "CalibrationData",
    "CalibrationTokens",
    "CutHidden",
    "Embedding",
    "Engine",
    "Group",
    "Levels",
    "MaxAccuracyDrop",
    "MaxEnergy",
    "MaxLatency",
    "MaxPplIncrease",
    "MemoryBudget",
    "Method",
    "MinDecodeSpeed",
    "Model",
    "Mu",
    "Power",
    "PowerMarker",
    "PowerSource",
    "Profile",
    "Provider",
    "QuantiserName",
    "RecipeFile",
    "ReportData",
    "ReportWindows",
    "Root",
    "SearchData",
    "SearchWindows",
    "Seed",
    "Spinning",
    "Task",
    "Threads",
    "TokenizerFile",
    "Tune",
    "TuneRate",
    "TuneRounds",
    "TuneStart",
    "TuneTokens",
    "WeightsBudget",
    "Window",
]

Profile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        "-p",
        help="Board: a name or alias (see `profiles list`), or a TOML file.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Checkpoint: .pth, .safetensors or model directory. [dim]Default: the embedded reference.[/dim]",
        show_default=False,
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        "-t",
        help="wikitext2 (perplexity) or sst2 (accuracy). [dim]Default: wikitext2.[/dim]",
        show_default=False,
    ),
]
Embedding = Annotated[
    str | None,
    typer.Option(
        "--embedding",
        help="dense or binary: needed for a bare .pth whose vocabulary does not tell.",
        show_default=False,
    ),
]
TokenizerFile = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        help="tokenizer.json. [dim]Default: beside the model; GPT-NeoX-20B for a vocabulary of 50277.[/dim]",
        show_default=False,
    ),
]
SearchData = Annotated[
    str | None,
    typer.Option(
        "--search-data",
        help="Own data that steers the search: text, or TSV sentence<TAB>label.",
        show_default=False,
    ),
]
ReportData = Annotated[
    str | None,
    typer.Option("--report-data", help="Own data for the verdict, in the same formats.", show_default=False),
]
SearchWindows = Annotated[
    int | None,
    typer.Option(
        "--search-windows",
        min=1,
        help="Items that steer the search. [dim]Default: 48 windows, or all sentences.[/dim]",
        show_default=False,
    ),
]
ReportWindows = Annotated[
    int | None,
    typer.Option(
        "--report-windows", min=1, help="Items for the verdict. [dim]Default: all.[/dim]", show_default=False
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        "--window",
        min=2,
        help="Tokens a window. [dim]Default: the model's context length.[/dim]",
        show_default=False,
    ),
]
MaxPplIncrease = Annotated[
    float | None,
    typer.Option(
        "--max-ppl-increase",
        min=0,
        help="Perplexity increase allowed. [dim]Default: 1.0.[/dim]",
        show_default=False,
    ),
]
MaxAccuracyDrop = Annotated[
    float | None,
    typer.Option(
        "--max-accuracy-drop",
        min=0,
        help="Accuracy drop allowed, in percentage points. [dim]Default: 2.[/dim]",
        show_default=False,
    ),
]
MemoryBudget = Annotated[
    str | None,
    typer.Option(
        "--memory-budget",
        help="Limit of the process peak, e.g. 400MB. [dim]Default: the profile's.[/dim]",
        show_default=False,
    ),
]
WeightsBudget = Annotated[
    str | None,
    typer.Option("--weights-budget", help="Limit of the packed weights, e.g. 5MB.", show_default=False),
]
MaxLatency = Annotated[
    str | None,
    typer.Option(
        "--max-latency",
        help="Limit on the board of the 95th percentile of a token's latency, e.g. 20ms.",
        show_default=False,
    ),
]
MinDecodeSpeed = Annotated[
    str | None,
    typer.Option(
        "--min-decode-speed",
        help="Least decoding speed on the board in tokens/s, e.g. 50.",
        show_default=False,
    ),
]
MaxEnergy = Annotated[
    str | None,
    typer.Option(
        "--max-energy",
        help="Limit on the board of the energy of a token, idle part included, e.g. 5mJ.",
        show_default=False,
    ),
]
Levels = Annotated[
    str | None,
    typer.Option(
        "--levels",
        help="Precision levels, e.g. 8,4 or 16,8g64,4g32,4g128. [dim]Default: all of the profile.[/dim]",
        show_default=False,
    ),
]
Group = Annotated[
    int | None,
    typer.Option(
        "--group-size", help="Group size of levels given as bare widths: 32, 64 or 128.", show_default=False
    ),
]
QuantiserName = Annotated[
    str | None,
    typer.Option(
        "--quantiser",
        help="rtn, hqq or gptq. [dim]Default: gptq where there is calibration data, else rtn.[/dim]",
        show_default=False,
    ),
]
CalibrationData = Annotated[
    str | None,
    typer.Option(
        "--calibration-data",
        help="Training data of the model for gptq, in the formats of --search-data, or `embedded`. "
        "[dim]Default: embedded, for the embedded model.[/dim]",
        show_default=False,
    ),
]
CalibrationTokens = Annotated[
    int | None,
    typer.Option(
        "--calibration-tokens",
        min=1,
        help="Tokens to calibrate on. [dim]Default: 32768.[/dim]",
        show_default=False,
    ),
]
Mu = Annotated[
    float | None,
    typer.Option(
        "--mu",
        min=0,
        help="Select by Eq. 1 of QSLM with this priority of memory. "
        "[dim]Default: the smallest feasible setting.[/dim]",
        show_default=False,
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="budgeted, pareto (a front for any budget), tiered (the paper's), or qslm (its simulation; search only). "
        "[dim]Default: budgeted.[/dim]",
        show_default=False,
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe", help="Run a saved recipe.toml again; other flags override it.", show_default=False
    ),
]
Power = Annotated[
    str, typer.Option("--power", help="Power measurement: smoke (25 s), release (5 min) or off.")
]
PowerSource = Annotated[
    str | None,
    typer.Option(
        "--power-source",
        help="Read power by this interface and no other; csv for an external meter. "
        "[dim]Default: the profile's.[/dim]",
        show_default=False,
    ),
]
PowerMarker = Annotated[
    bool,
    typer.Option("--power-marker", help="Make three bursts of load first, to align an external meter's log."),
]
Provider = Annotated[
    str | None,
    typer.Option(
        "--provider",
        help="Execution provider. [dim]Default: the profile's first choice that is here.[/dim]",
        show_default=False,
    ),
]
Root = Annotated[
    Path,
    typer.Option(
        "--root", exists=True, file_okay=False, hidden=True, help="A recorded tree that plays the board."
    ),
]
"""For tests: see docs/measurement.md, "A simulated board"."""
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="Threads for decoding. [dim]Default: run-settings.json of the bundle, else 1.[/dim]",
        show_default=False,
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="What runs the bundle: onnxruntime, or an engine of the runner's own. "
        "[dim]Default: run-settings.json, else onnxruntime.[/dim]",
        show_default=False,
    ),
]
Spinning = Annotated[
    bool | None,
    typer.Option(
        "--spinning/--no-spinning",
        help="Let waiting threads spin. [dim]Default: run-settings.json, else not.[/dim]",
        show_default=False,
    ),
]
AllowFallback = Annotated[
    bool, typer.Option("--allow-fallback", help="Accept that the provider leaves nodes to the CPU.")
]


CutHidden = Annotated[
    float | None,
    typer.Option(
        "--cut-hidden",
        help="Largest share of each layer's hidden units that the search may cut out, e.g. 0.5. "
        "[dim]Default: none.[/dim]",
        show_default=False,
    ),
]
Tune = Annotated[
    bool | None,
    typer.Option(
        "--tune",
        help="Tune the weights of each setting on training data "
        "(a minute each on a GPU, half an hour or more on a CPU).",
        show_default=False,
    ),
]
TuneTokens = Annotated[
    int | None,
    typer.Option(
        "--tune-tokens",
        min=1,
        help="Training tokens of each tuning. [dim]Default: 3000000; 9000000 on a GPU.[/dim]",
        show_default=False,
    ),
]
TuneRounds = Annotated[
    int | None,
    typer.Option(
        "--tune-rounds",
        min=1,
        max=20,
        help="Settings that are tuned, at the most. [dim]Default: 3.[/dim]",
        show_default=False,
    ),
]
TuneRate = Annotated[
    float | None,
    typer.Option(
        "--tune-rate", help="Learning rate of tuning. [dim]Default: 0.0015.[/dim]", show_default=False
    ),
]
TuneStart = Annotated[
    str | None,
    typer.Option(
        "--tune-start",
        metavar="FILE",
        help="Go on from a tuned model, RUN/tuned/*.safetensors, of this or another setting. "
        "[dim]Default: from the float model.[/dim]",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="Seed of tuning. [dim]Default: 0.[/dim]", show_default=False),
]
