"""tegrastats, the tool of Jetson boards, for where the files of the monitors cannot be read.

A rail stands in a line as `NAME now/mean` (JetPack 4, milliwatts without a unit), as `NAME nowmW/meanmW`
(JetPack 5 and 6), or with a third value, the maximum (JetPack 7). Only the first value is now.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from qslm_edge.runner.observe import is_live
from qslm_edge.runner.power.base import Kind, PowerPlan, PowerSource, Reading, Unavailable
from qslm_edge.runner.power.rails import MAX_RAIL_W, NOT_CONNECTED, add_rails, choose_total
from qslm_edge.runner.power.tool_stream import LineTool, start_tool

__all__ = ["TegrastatsSource", "open_tegrastats", "parse_tegrastats"]

COMMAND = ("tegrastats", "--interval", "100")
PERIOD_S = 0.1
WAIT_S = 2.0
NO_RAILS = ("RAM", "SWAP", "IRAM", *NOT_CONNECTED)  # a line that is cut short leaves them without their unit
_NUMBER = "-?[0-9]{1,12}"
_RAIL = re.compile(
    rf"(?<!\S)([A-Z][A-Z0-9_]*) (?:({_NUMBER})(?:/{_NUMBER}){{1,2}}|({_NUMBER})mW(?:/{_NUMBER}mW){{1,2}})(?!\S)"
)


def parse_tegrastats(line: str) -> dict[str, float]:
    """Present power of every rail in watts, by name.

    Rails that are not connected are left out, as are values that no board has. Everything else in the line
    (RAM, clocks, temperatures) has another form and is passed over, as is a rail that was cut short.
    """
    powers: dict[str, float] = {}
    for name, bare, with_unit in _RAIL.findall(line):
        power_w = int(bare or with_unit) / 1000
        if name not in NO_RAILS and -1.0 < power_w <= MAX_RAIL_W:
            powers.setdefault(name, power_w)
    return powers


class TegrastatsSource(PowerSource):
    """Rails as the running tool prints them.

    Args:
        tool: the running tool.
        total: rails to add.
        parts: rails told beside the total.
        scope: what the total covers.
    """

    name = "tegrastats"
    kind: Kind = "power"
    rate_hz = 1 / PERIOD_S
    update_s = PERIOD_S

    def __init__(self, tool: LineTool, total: Sequence[str], parts: Sequence[str], scope: str) -> None:
        self._tool, self._parts = tool, tuple(parts)
        self.rails, self.scope = tuple(total), scope

    def read(self) -> Reading:
        """The newest line, waiting for one; the time is that of its arrival."""
        answer = self._tool.next_line(WAIT_S)
        if isinstance(answer, str):
            return Reading(time.monotonic(), reason=answer)
        time_s, line = answer
        powers = parse_tegrastats(line)
        shown = (*self._parts, *(self.rails if len(self.rails) > 1 else ()))
        extra_w = {name: powers.get(name) for name in shown}
        missing = [name for name in self.rails if name not in powers]
        if missing:
            return Reading(time_s, extra_w=extra_w, reason=f"no {', '.join(missing)} in: {line[:80]}")
        power_w = add_rails([powers[name] for name in self.rails])
        if isinstance(power_w, str):
            return Reading(time_s, extra_w=extra_w, reason=power_w)
        return Reading(time_s, power_w=power_w, extra_w=extra_w)

    def close(self) -> None:
        """End the tool."""
        self._tool.close()


def open_tegrastats(
    root: Path = Path("/"), plan: PowerPlan | None = None, *, argv: Sequence[str] | None = None
) -> PowerSource | Unavailable:
    """Start tegrastats and read a first line.

    Args:
        root: anything but "/" has no tools, unless a command is given.
        plan: rails of the profile.
        argv: a program that prints such lines, for tests.

    Returns:
        The source, or Unavailable with the reason.
    """
    if argv is None and not is_live(root):
        return Unavailable("tegrastats", "a tree of files has no tools", absent=True)
    plan = plan or PowerPlan()
    tool = start_tool("tegrastats", argv or COMMAND)
    if isinstance(tool, Unavailable):
        return tool
    answer = tool.next_line(WAIT_S)
    failure: str | None = None
    if isinstance(answer, str):
        failure = answer
    else:
        choice = choose_total(list(parse_tegrastats(answer[1])), plan)
        if isinstance(choice, str):
            failure = f"{choice}; the line was: {answer[1][:80]}"
        else:
            source = TegrastatsSource(
                tool, choice.total, choice.parts, plan.scope or "module rails, without the carrier board"
            )
            source.notes = (*choice.notes, "the tool prints whole milliwatts; the monitor's steps are larger")
            return source
    tool.close()
    return Unavailable("tegrastats", failure)
