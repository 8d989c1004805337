"""An external meter: its readings come from a log after the run, so that here only the phases pass.

`qslm-edge meter RESULT LOG` joins the two; see meter.py.
"""

from __future__ import annotations

import time
from pathlib import Path

from qslm_edge.errors import UsageError
from qslm_edge.runner.power.base import Kind, PowerPlan, PowerSource, Reading

__all__ = ["ExternalMeter", "check_power_flags", "open_csv"]


class ExternalMeter(PowerSource):
    """Stands for a meter that this process cannot read.

    Args:
        cause: why nothing here is read instead; None where the user chose the meter.
    """

    name = "csv"
    kind: Kind = "power"
    scope = "external meter: all that hangs on its output"

    def __init__(self, cause: str | None = None) -> None:
        text = "an external meter measures this run: give its log to `qslm-edge meter RESULT LOG`"
        self.deferred = text if cause is None else f"{cause}; {text}"

    def read(self) -> Reading:
        """No value: the log has it."""
        return Reading(time.monotonic(), reason=self.deferred)


def open_csv(
    root: Path = Path("/"),  # noqa: ARG001 - the log comes later
    plan: PowerPlan | None = None,  # noqa: ARG001
) -> PowerSource:
    """Stand for the user's meter."""
    return ExternalMeter()


def check_power_flags(power: str, source: str | None, marker: bool) -> None:
    """Refuse flags that say how to measure power where none is measured.

    Raises:
        UsageError: a source or a marker together with `--power off`.
    """
    if power == "off" and (source is not None or marker):
        flag = "--power-marker" if source is None else "--power-source"
        raise UsageError("nothing is measured under --power off", where=flag, hint="leave one of the two out")
