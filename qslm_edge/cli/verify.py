"""`qslm-edge verify`: judge a bundle on this machine. Runs on the base install: no torch, no onnx."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from qslm_edge.cli import console, flags
from qslm_edge.cli import options as opt
from qslm_edge.cli.console import Json

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """
[bold]Examples[/bold]

  [cyan]qslm-edge verify runs/demo/bundle[/cyan]
  [cyan]qslm-edge verify runs/demo/bundle --power off --json > verify.json[/cyan]  in CI
  [cyan]qslm-edge verify bundle --max-ppl-increase 0.5[/cyan]                      under a tighter limit
  [cyan]qslm-edge verify bundle --power-source csv --power-marker[/cyan]           see `meter`
  [cyan]qslm-edge verify bundle --max-latency 20ms --max-energy 5mJ[/cyan]         on the board
  [cyan]qslm-edge verify bundle --tune[/cyan]                                     threads and more by measurement
  [cyan]python3 bundle/run.pyz verify[/cyan]                                       without this package

Exit codes: 0 pass, 1 fail, 2 bad bundle or usage, 3 inconclusive, 4 environment, 130 interrupted.
"""
_STYLES = {
    "pass": "bold green",
    "fail": "bold red",
    "inconclusive": "bold yellow",
    "simulated": "bold yellow",
}


def command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle directory.")],
    output: Annotated[
        Path | None,
        opt.option("--output", help="Write the whole result as JSON to this file."),
    ] = None,
    provider: opt.Provider = None,
    engine: opt.Engine = None,
    threads: opt.Threads = None,
    spinning: opt.Spinning = None,
    allow_fallback: opt.AllowFallback = False,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="First measure which threads, spinning, engine and chunk run fastest here, and keep them in "
            "run-settings.json of the bundle.",
        ),
    ] = False,
    steps: Annotated[
        int | None,
        opt.option("--steps", help="Decode steps to time.", default="at least 512, and 4 s", min=1),
    ] = None,
    power: opt.Power = "smoke",
    power_source: opt.PowerSource = None,
    power_marker: opt.PowerMarker = False,
    memory_budget: Annotated[
        str | None,
        opt.option("--memory-budget", help="Limit of the process peak, e.g. 400MB.", default="the bundle's"),
    ] = None,
    max_ppl_increase: Annotated[
        float | None,
        opt.option("--max-ppl-increase", help="Perplexity increase allowed.", default="the bundle's", min=0),
    ] = None,
    max_accuracy_drop: Annotated[
        float | None,
        opt.option(
            "--max-accuracy-drop",
            help="Accuracy drop allowed, in percentage points.",
            default="the bundle's",
            min=0,
        ),
    ] = None,
    max_latency: opt.MaxLatency = None,
    min_decode_speed: opt.MinDecodeSpeed = None,
    max_energy: opt.MaxEnergy = None,
    root: opt.Root = Path("/"),
    as_json: Json = False,
) -> None:
    """Check files, metric, memory, latency and power of a bundle where it lies, and give a verdict."""
    from qslm_edge.bundle.reader import open_bundle
    from qslm_edge.progress import runner_stages
    from qslm_edge.report.text import write_text
    from qslm_edge.runner.limits import Limits
    from qslm_edge.runner.verify import VerifyOptions, verify_bundle
    from qslm_edge.units import parse_bytes

    flags.check_power(power)
    flags.check_power_source(power, power_source, power_marker)
    flags.check_output(output)
    task = open_bundle(bundle, check=False).manifest["task"]
    options = VerifyOptions(
        provider=provider,
        threads=threads,
        steps=steps,
        power=power,
        limits=Limits(
            max_degradation=flags.limit_from_flags(str(task["kind"]), max_ppl_increase, max_accuracy_drop),
            memory_budget_bytes=None
            if memory_budget is None
            else parse_bytes(memory_budget, "--memory-budget"),
            **flags.own_limits(max_latency, min_decode_speed, max_energy),
        ),
        power_source=power_source,
        power_marker=power_marker,
        engine=engine,
        spinning=spinning,
        allow_fallback=allow_fallback,
        tune=tune,
        root=root,
    )
    with console.RichProgress() as progress:
        result = verify_bundle(bundle, options, runner_stages(progress))
        progress.done()
    if output is not None:
        write_text(output, json.dumps(result, indent=1, allow_nan=False) + "\n")
    if as_json:
        console.print_json(result)
    else:
        _show(result, str(task["metric"]))
    raise typer.Exit(int(result["exit_code"]))


def _show(result: dict[str, Any], metric: str) -> None:
    from qslm_edge.report.figures import FLAGGED, flag_words
    from qslm_edge.runner.run_settings import settings_words
    from qslm_edge.runner.text import figure

    placement, host = result["placement"], result["host"]
    kind = "Rehearsal" if result["rehearsal"] else "On the board"
    console.print_line(f"{kind}: {host['why']}; {placement['provider']} ({placement['note']}).")
    console.print_line(f"Settings: {settings_words(result['run_settings'])}.")
    console.print_line()
    rows = [
        (
            check["name"],
            figure(check["value"], check["unit"]),
            figure(check["limit"], check["unit"]),
            check["verdict"],
            check["detail"],
        )
        for check in result["checks"]
    ]
    console.print_table(
        ("check", "measured", "limit", "verdict", "detail"), rows, right=("measured", "limit")
    )
    console.print_line()
    figures = _scores(result["scoring"], metric)
    figures += _decode(result["decode"], result["rehearsal"])
    figures.append(("bundle", f"{result['bundle']['bytes'] / 1e6:.2f} MB", "all files"))
    console.print_table(("figure", "value", "of"), figures, right=("value",))
    console.print_line()
    conditions = result["conditions"]
    for flag in conditions["flags"]:
        console.print_line(f"{FLAGGED}: {flag}", style=_STYLES["inconclusive"])
    if conditions["not_read"]:
        console.print_line(f"Conditions {conditions['not_read']}")
    words = f"Verdict: {result['verdict']}{flag_words(len(conditions['flags']))}"
    console.print_line(words, style=_STYLES[result["verdict"]])


def _scores(scoring: dict[str, Any], metric: str) -> list[tuple[str, str, str]]:
    rows = []
    for split, found in scoring["splits"].items():
        after, before, agreement = found["bundle"], found["float"], found["top1_agreement"]
        error = after["standard_error"]  # None for a single item
        spread = "" if error is None else f" ± {error:.2f}"
        rows.append(
            (
                f"{metric}, {split} items",
                f"{after['value']:.2f}{spread}",
                f"{found['n_items']} items; float {before['value']:.2f}",
            )
        )
        of = agreement["reason"] if agreement["value"] is None else f"{agreement['n']:,} {agreement['of']}"
        rows.append(_figure(f"agreement with float, {split}", agreement["value"], 100, ".2f", "%", of))
    return rows


def _decode(decode: dict[str, Any] | None, rehearsal: bool) -> list[tuple[str, str, str]]:
    """Memory counts wherever it is measured; speed and power are this host's."""
    if decode is None:
        return [("decoding", "not measured", "the golden vectors differ")]
    host = "this host, not the board" if rehearsal else "this board"
    latency, first, prefill = decode["latency"], decode["first_token"], decode["prefill"]
    memory, why = decode["memory"], latency["reasons"]
    rows = [
        _figure("peak RSS, loading", memory["load_peak_rss_bytes"], 1e-6, ".1f", "MB", "fresh process"),
        _figure("peak RSS, decoding", memory["decode_peak_rss_bytes"], 1e-6, ".1f", "MB", "the same process"),
        *_gpu(memory["gpu"]),
        _figure("latency a token, median", latency["p50_s"], 1e3, ".3f", "ms", why.get("p50_s", host)),
        _figure("latency a token, p95", latency["p95_s"], 1e3, ".3f", "ms", _bounds(latency, why)),
        _figure(
            *("decode", latency["tokens_per_s_total"], 1, ".0f", "tokens/s"),
            why.get("tokens_per_s_total", f"{host}, {latency['n']:,} steps"),
        ),
        _figure(
            *("prefill", prefill["tokens_per_s"], 1, ".0f", "tokens/s"),
            prefill.get("reason") or f"{host}, {prefill['tokens']} tokens",
        ),
        _figure(
            *("first token", first["seconds"], 1e3, ".1f", "ms"),
            f"{host}, after {first['prompt_tokens']} tokens",
        ),
    ]
    energy = decode["energy"]
    if energy["status"] == "measured":
        place = f"{host}, {energy['source']['name']}"
        for kind in ("gross", "net"):
            error_j = energy[f"{kind}_uncertainty_j_per_token"]
            of = place if error_j is None else f"± {1e3 * error_j:.2g} mJ, {place}"
            of = energy["net_reason"] or of if kind == "net" else of
            rows.append(
                _figure(f"energy a token, {kind}", energy[f"{kind}_j_per_token"], 1e3, ".3g", "mJ", of)
            )
    else:
        rows.append(("energy a token", energy["status"], str(energy["reason"])))
    return rows


def _gpu(gpu: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Memory of the card, where the bundle ran on one."""
    if gpu["status"] == "not used":
        return []
    rows = [_figure("GPU memory", gpu["total_bytes"], 1e-6, ".1f", "MB", gpu["reason"] or gpu["method"])]
    of = gpu["context_reason"] or "context of the driver apart"
    return [*rows, _figure("GPU memory, model", gpu["model_bytes"], 1e-6, ".1f", "MB", of)]


def _bounds(latency: dict[str, Any], why: dict[str, str]) -> str:
    """The 95 % interval of p95, or what it needs."""
    low, high = latency["p95_ci95_low_s"], latency["p95_ci95_high_s"]
    if latency["p95_s"] is None or low is None or high is None:
        return why.get("p95_s") or f"no interval: {why.get('p95_ci95_high_s', 'not known')}"
    return f"95 % interval {1e3 * low:.3f} to {1e3 * high:.3f} ms"


def _figure(
    name: str, value: float | None, factor: float, form: str, unit: str, of: str
) -> tuple[str, str, str]:
    """A row of the table; an absent figure has its reason in `of`."""
    return (name, "not measured" if value is None else f"{format(value * factor, form)} {unit}", of)
