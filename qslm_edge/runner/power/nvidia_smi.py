"""nvidia-smi as comma-separated values, for where pynvml is not installed: power of an NVIDIA GPU board.

Every cell carries its unit, and a value that a GPU does not have is `[N/A]`, which is no number. power.draw
is a 1 s average from Ampere on; power.draw.instant, where the driver knows it, is taken before it.
"""

from __future__ import annotations

import csv
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path

from qslm_edge.runner.observe import is_live
from qslm_edge.runner.power.base import Kind, PowerPlan, PowerSource, Reading, Unavailable
from qslm_edge.runner.power.nvml import AVERAGE_LAG_S, first_visible_gpu
from qslm_edge.runner.power.tool_stream import LineTool, start_tool

__all__ = ["NvidiaSmiSource", "open_nvidia_smi", "parse_query", "power_of"]

FIELDS = ("power.draw.instant", "power.draw")  # in order of preference
PERIOD_S = 0.1
WAIT_S = 5.0  # without persistence mode the driver starts first
MAX_W = 10_000.0
_WATTS = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?) W")


def parse_query(text: str) -> list[dict[str, str | None]]:
    """Rows of `nvidia-smi --query-gpu=... --format=csv` by column, without the unit in the header.

    A cell in square brackets ([N/A], [Not Supported], [Unknown Error]) or one that the row lacks is None.
    """
    try:
        rows = [row for row in csv.reader(text.replace("\0", "").splitlines(), skipinitialspace=True) if row]
    except csv.Error:
        return []
    if not rows:
        return []
    names = [re.sub(r" \[[^]]*\]$", "", cell.strip()) for cell in rows[0]]
    found: list[dict[str, str | None]] = []
    for row in rows[1:]:
        cells = [cell.strip() for cell in row] + [""] * len(names)
        found.append(
            {
                name: None if not cell or cell.startswith("[") else cell
                for name, cell in zip(names, cells, strict=False)
            }
        )
    return found


def power_of(cell: str | None) -> float | None:
    """Watts of a cell such as "90.00 W"; None for anything else."""
    match = _WATTS.fullmatch(cell or "")
    value = float(match[1]) if match else math.nan
    return value if 0 < value <= MAX_W else None


class NvidiaSmiSource(PowerSource):
    """One GPU board, as the running tool prints it.

    Args:
        tool: the running tool.
        field: column of the power.
        gpu: name of the GPU with its index.
    """

    name = "nvidia-smi"
    kind: Kind = "power"
    scope = "GPU board, without the host"
    rate_hz = 1 / PERIOD_S
    update_s = PERIOD_S
    resolution_w = 0.01

    def __init__(self, tool: LineTool, field: str, gpu: str) -> None:
        self._tool, self._field = tool, field
        self.rails = (gpu,)
        if field == "power.draw":
            self.lag_s = AVERAGE_LAG_S
            self.notes = (f"average power: the first {AVERAGE_LAG_S} s of a window are left out",)

    def read(self) -> Reading:
        """The newest line, waiting for one; the time is that of its arrival."""
        answer = self._tool.next_line(WAIT_S)
        if isinstance(answer, str):
            return Reading(time.monotonic(), reason=answer)
        power_w = power_of(answer[1])
        reason = None if power_w is not None else f"{self._field}: no power in: {answer[1][:80]}"
        return Reading(answer[0], power_w=power_w, reason=reason)

    def close(self) -> None:
        """End the tool."""
        self._tool.close()


def _command(program: Sequence[str], index: int, field: str) -> list[str]:
    every_ms = round(1000 * PERIOD_S)
    return [
        *program,
        f"--id={index}",
        f"--query-gpu={field}",
        "--format=csv,noheader",
        f"--loop-ms={every_ms}",
    ]


def open_nvidia_smi(
    root: Path = Path("/"),
    plan: PowerPlan | None = None,  # noqa: ARG001 - a GPU board has no rails to choose
    *,
    program: Sequence[str] | None = None,
) -> PowerSource | Unavailable:
    """Start nvidia-smi and read a first power.

    Args:
        root: anything but "/" has no tools, unless a program is given.
        plan: not used.
        program: stands in for nvidia-smi, for tests.

    Returns:
        The source, or Unavailable with the reason.
    """
    if program is None and not is_live(root):
        return Unavailable("nvidia-smi", "a tree of files has no tools", absent=True)
    program = program or ("nvidia-smi",)
    index = first_visible_gpu()
    failures: list[str] = []
    for field in FIELDS:
        tool = start_tool("nvidia-smi", _command(program, index, field))
        if isinstance(tool, Unavailable):
            return tool
        source = NvidiaSmiSource(tool, field, f"GPU {index}")
        first = source.read()
        if first.power_w is not None:
            source.notes += tuple(failures)
            return source
        source.close()
        failures.append(first.reason or "no reading")
    return Unavailable("nvidia-smi", "; ".join(failures))
