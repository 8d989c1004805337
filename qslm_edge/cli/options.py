"""Flags that several commands share, and how a flag that may be left out is written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    "option",
]


def option(*names: str, help: str, default: str | None = None, **more: Any) -> Any:  # noqa: A002 - typer's own word
    """A flag that is None when it is left out.

    Args:
        names: such as "--model", "-m".
        help: what it says.
        default: what then holds, shown behind the help.
        more: of `typer.Option`.
    """
    shown = "" if default is None else f" [dim]Default: {default}.[/dim]"
    return typer.Option(*names, help=f"{help}{shown}", show_default=False, **more)


Profile = Annotated[
    str | None,
    option("--profile", "-p", help="Board: a name or alias (see `profiles list`), or a TOML file."),
]
Model = Annotated[
    str | None,
    option(
        "--model",
        "-m",
        help="Checkpoint: .pth, .safetensors or model directory.",
        default="the embedded reference",
    ),
]
Task = Annotated[
    str | None, option("--task", "-t", help="wikitext2 (perplexity) or sst2 (accuracy).", default="wikitext2")
]
Embedding = Annotated[
    str | None,
    option("--embedding", help="dense or binary: needed for a bare .pth whose vocabulary does not tell."),
]
TokenizerFile = Annotated[
    str | None,
    option(
        "--tokenizer",
        help="tokenizer.json.",
        default="beside the model; GPT-NeoX-20B for a vocabulary of 50277",
    ),
]
SearchData = Annotated[
    str | None,
    option("--search-data", help="Own data that steers the search: text, or TSV sentence<TAB>label."),
]
ReportData = Annotated[
    str | None, option("--report-data", help="Own data for the verdict, in the same formats.")
]
SearchWindows = Annotated[
    int | None,
    option(
        "--search-windows", help="Items that steer the search.", default="48 windows, or all sentences", min=1
    ),
]
ReportWindows = Annotated[
    int | None, option("--report-windows", help="Items for the verdict.", default="all", min=1)
]
Window = Annotated[
    int | None, option("--window", help="Tokens a window.", default="the model's context length", min=2)
]
MaxPplIncrease = Annotated[
    float | None, option("--max-ppl-increase", help="Perplexity increase allowed.", default="1.0", min=0)
]
MaxAccuracyDrop = Annotated[
    float | None,
    option("--max-accuracy-drop", help="Accuracy drop allowed, in percentage points.", default="2", min=0),
]
MemoryBudget = Annotated[
    str | None,
    option("--memory-budget", help="Limit of the process peak, e.g. 400MB.", default="the profile's"),
]
WeightsBudget = Annotated[
    str | None, option("--weights-budget", help="Limit of the packed weights, e.g. 5MB.")
]
MaxLatency = Annotated[
    str | None,
    option(
        "--max-latency", help="Limit on the board of the 95th percentile of a token's latency, e.g. 20ms."
    ),
]
MinDecodeSpeed = Annotated[
    str | None, option("--min-decode-speed", help="Least decoding speed on the board in tokens/s, e.g. 50.")
]
MaxEnergy = Annotated[
    str | None,
    option("--max-energy", help="Limit on the board of the energy of a token, idle part included, e.g. 5mJ."),
]
Levels = Annotated[
    str | None,
    option(
        "--levels", help="Precision levels, e.g. 8,4 or 16,8g64,4g32,4g128.", default="all of the profile"
    ),
]
Group = Annotated[
    int | None, option("--group-size", help="Group size of levels given as bare widths: 32, 64 or 128.")
]
QuantiserName = Annotated[
    str | None,
    option("--quantiser", help="rtn, hqq or gptq.", default="gptq where there is calibration data, else rtn"),
]
CalibrationData = Annotated[
    str | None,
    option(
        "--calibration-data",
        help="Training data of the model for gptq, in the formats of --search-data, or `embedded`.",
        default="embedded, for the embedded model",
    ),
]
CalibrationTokens = Annotated[
    int | None, option("--calibration-tokens", help="Tokens to calibrate on.", default="32768", min=1)
]
Mu = Annotated[
    float | None,
    option(
        "--mu",
        help="Select by Eq. 1 of QSLM with this priority of memory.",
        default="the smallest feasible setting",
        min=0,
    ),
]
Method = Annotated[
    str | None,
    option(
        "--method",
        help="budgeted, pareto (a front for any budget), tiered (the paper's), or qslm (its simulation; search only).",
        default="budgeted",
    ),
]
RecipeFile = Annotated[
    Path | None, option("--recipe", help="Run a saved recipe.toml again; other flags override it.")
]
Power = Annotated[
    str, typer.Option("--power", help="Power measurement: smoke (25 s), release (5 min) or off.")
]
PowerSource = Annotated[
    str | None,
    option(
        "--power-source",
        help="Read power by this interface and no other; csv for an external meter.",
        default="the profile's",
    ),
]
PowerMarker = Annotated[
    bool,
    typer.Option("--power-marker", help="Make three bursts of load first, to align an external meter's log."),
]
Provider = Annotated[
    str | None,
    option("--provider", help="Execution provider.", default="the profile's first choice that is here"),
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
    option(
        "--threads", help="Threads for decoding.", default="run-settings.json of the bundle, else 1", min=1
    ),
]
Engine = Annotated[
    str | None,
    option(
        "--engine",
        help="What runs the bundle: onnxruntime, or an engine of the runner's own.",
        default="run-settings.json, else onnxruntime",
    ),
]
Spinning = Annotated[
    bool | None,
    option(
        "--spinning/--no-spinning", help="Let waiting threads spin.", default="run-settings.json, else not"
    ),
]
AllowFallback = Annotated[
    bool, typer.Option("--allow-fallback", help="Accept that the provider leaves nodes to the CPU.")
]
CutHidden = Annotated[
    float | None,
    option(
        "--cut-hidden",
        help="Largest share of each layer's hidden units that the search may cut out, e.g. 0.5.",
        default="none",
    ),
]
Tune = Annotated[
    bool | None,
    option(
        "--tune",
        help="Tune the weights of each setting on training data "
        "(a minute each on a GPU, half an hour or more on a CPU).",
    ),
]
TuneTokens = Annotated[
    int | None,
    option(
        "--tune-tokens", help="Training tokens of each tuning.", default="3000000; 9000000 on a GPU", min=1
    ),
]
TuneRounds = Annotated[
    int | None,
    option("--tune-rounds", help="Settings that are tuned, at the most.", default="3", min=1, max=20),
]
TuneRate = Annotated[float | None, option("--tune-rate", help="Learning rate of tuning.", default="0.0015")]
TuneStart = Annotated[
    str | None,
    option(
        "--tune-start",
        help="Go on from a tuned model, RUN/tuned/*.safetensors, of this or another setting.",
        default="from the float model",
        metavar="FILE",
    ),
]
Seed = Annotated[int | None, option("--seed", help="Seed of tuning.", default="0", min=0)]
