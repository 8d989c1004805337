"""The sub-command `meter` of run.pyz: its flags, and how they become options."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import Any

from qslm_edge.errors import UsageError
from qslm_edge.runner.power.meter import MeterOptions
from qslm_edge.runner.power.meter_align import CLOCK_ERROR_S
from qslm_edge.runner.power.meter_columns import FORMATS

__all__ = ["ALIGNMENTS", "LOG_FORMATS", "add_meter_command", "meter_options", "parse_start"]

LOG_FORMATS = ("auto", *FORMATS)
ALIGNMENTS = ("auto", "clock", "marker")


def add_meter_command(commands: Any) -> None:
    """Add the sub-command to the program's sub-parsers."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "meter", help="energy per token of a verification by the log of an external meter"
    )
    parser.add_argument("result", type=Path, help="what verify --output wrote")
    parser.add_argument("log", type=Path, help="log of the meter, comma-separated")
    parser.add_argument(
        "--format", choices=LOG_FORMATS, default="auto", help="meter (default: by the header)"
    )
    parser.add_argument("--supply-v", type=float, help="supply voltage, for a log of current alone (PPK2)")
    parser.add_argument(
        "--align", choices=ALIGNMENTS, default="auto", help="by clock or marker (default: marker if made)"
    )
    parser.add_argument("--log-start", help="wall-clock time of stamp 0: ISO 8601, or seconds since 1970")
    parser.add_argument(
        "--clock-error-s",
        type=float,
        default=CLOCK_ERROR_S,
        help=f"seconds by which the clocks may differ (default {CLOCK_ERROR_S:g})",
    )
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")
    parser.add_argument("--output", type=Path, help="write the result as JSON to this file")


def parse_start(text: str | None) -> float | None:
    """Seconds since 1970 of a time given as ISO 8601 (local without a zone) or as such seconds.

    Raises:
        UsageError: neither.
    """
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            "not a time",
            where="--log-start",
            found=text,
            allowed="2027-01-31T12:00:00.250, or seconds since 1970",
        ) from None


def meter_options(options: argparse.Namespace) -> MeterOptions:
    """Options from the parsed flags."""
    return MeterOptions(
        options.format,
        options.supply_v,
        options.align,
        parse_start(options.log_start),
        options.clock_error_s,
    )
