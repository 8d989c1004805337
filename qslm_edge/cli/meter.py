"""`qslm-edge meter`: energy per token from the log of an external meter. Runs without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from qslm_edge.cli import console
from qslm_edge.cli import options as opt
from qslm_edge.cli.console import Json
from qslm_edge.errors import OutputError, UsageError

__all__ = ["EXAMPLES", "command"]

EXAMPLES = """
[bold]Examples[/bold]

  [cyan]qslm-edge verify bundle --power-source csv --power-marker --output v.json[/cyan]
  [cyan]qslm-edge meter v.json log.csv[/cyan]                  aligned by the marker
  [cyan]qslm-edge meter v.json ppk2.csv --supply-v 5.0[/cyan]  a log without a voltage
  [cyan]qslm-edge meter v.json log.csv --align clock[/cyan]    both clocks set by NTP

Exit codes: 0 figures, 2 a file that cannot be used or aligned, 3 no valid window, 130 interrupted.
"""


def command(
    result: Annotated[Path, typer.Argument(metavar="VERIFY_JSON", help="What `verify --output` wrote.")],
    log: Annotated[Path, typer.Argument(metavar="LOG", help="Log of the meter.")],
    form: Annotated[
        str, typer.Option("--format", help="auto, ppk2, joulescope, fnb58, ptdaemon or generic.")
    ] = "auto",
    supply_v: Annotated[
        float | None,
        opt.option("--supply-v", help="Supply voltage, for a log of current alone (PPK2)."),
    ] = None,
    align: Annotated[
        str, typer.Option("--align", help="auto (marker if one was made), clock or marker.")
    ] = "auto",
    log_start: Annotated[
        str | None,
        opt.option("--log-start", help="Wall-clock time of stamp 0, for a log that counts from its start."),
    ] = None,
    clock_error_s: Annotated[
        float, typer.Option("--clock-error-s", help="Seconds by which the two clocks may differ.")
    ] = 0.8,
    output: Annotated[
        Path | None,
        opt.option("--output", help="Write the whole result as JSON to this file."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compute energy per token from an external meter's log, over the windows that a verification recorded."""
    from qslm_edge.report.text import write_text
    from qslm_edge.runner.power.meter import MeterOptions, import_log, meter_lines
    from qslm_edge.runner.power.meter_command import ALIGNMENTS, LOG_FORMATS, parse_start

    for flag, value, allowed in (("--format", form, LOG_FORMATS), ("--align", align, ALIGNMENTS)):
        if value not in allowed:
            raise UsageError("unknown choice", where=flag, found=value, allowed=", ".join(allowed))
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise OutputError(
            "the result cannot be written there", where=output, allowed="a file in a directory that exists"
        )
    options = MeterOptions(form, supply_v, align, parse_start(log_start), clock_error_s)
    found = import_log(result, log, options)
    if output is not None:
        write_text(output, json.dumps(found, indent=1, allow_nan=False) + "\n")
    if as_json:
        console.print_json(found)
    else:
        for line in meter_lines(found):
            console.print_line(line)
    raise typer.Exit(int(found["exit_code"]))
