"""The power chip of a Raspberry Pi 5: `vcgencmd pmic_read_adc` prints current and voltage of its rails.

A rail is NAME_A with NAME_V; the index in brackets does not pair them. EXT5V and BATT have a voltage only.
The sum leaves out USB, HAT and PCIe 5 V, so that it lies below board power. A published calibration
estimates board power from it: that is told apart, tagged, and never decides a verdict.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qslm_edge.runner.observe import Observed, is_live, run_command
from qslm_edge.runner.power.base import Kind, PowerPlan, PowerSource, Reading, Unavailable
from qslm_edge.runner.power.rails import add_rails

__all__ = ["Pmic", "PmicSource", "open_rpi_pmic", "parse_pmic"]

COMMAND = ("vcgencmd", "pmic_read_adc")
MAX_A, MAX_V = 100.0, 60.0
NEGATIVE_A = 0.05  # noise of an idle rail
REMEDY = (
    "it needs the right to use /dev/vcio, which the group video has: sudo usermod -aG video $USER, then log "
    "in again"
)
_LINE = re.compile(r"([A-Za-z0-9_]+)_([AV]) (current|volt)\([0-9]+\)=(-?[0-9]{1,6}(?:\.[0-9]{1,12})?)([AV])")

Run = Callable[[Sequence[str]], Observed[str]]


@dataclass(frozen=True)
class Pmic:
    """Powers of the rails in watts by name, or why the output cannot be trusted."""

    powers_w: dict[str, float]
    reason: str | None = None


def parse_pmic(text: str) -> Pmic:
    """Read the output of the command: every line must be understood, every current needs its voltage."""
    amps: dict[str, float] = {}
    volts: dict[str, float] = {}
    for line in text.splitlines():
        words = " ".join(line.split())
        if not words:
            continue
        match = _LINE.fullmatch(words)
        kind = {"current": "A", "volt": "V"}
        if match is None or not match[2] == match[5] == kind[match[3]]:
            return Pmic({}, f"line not understood: {words[:60]}")
        name, value = match[1], float(match[4])
        table, least, most = (amps, -NEGATIVE_A, MAX_A) if match[2] == "A" else (volts, 0.0, MAX_V)
        if name in table:
            return Pmic({}, f"{name}_{match[2]} stands twice")
        if not least <= value <= most:
            return Pmic({}, f"{name}_{match[2]}: implausible value {value:g}")
        table[name] = value
    lonely = [name for name in amps if name not in volts]
    if lonely:
        return Pmic({}, f"{', '.join(lonely)} has a current and no voltage")
    if not amps:
        return Pmic({}, "no rail with current and voltage")
    return Pmic({name: current * volts[name] for name, current in amps.items()})


class PmicSource(PowerSource):
    """Sum of the rails of the power chip.

    Args:
        total: rails to add.
        parts: rails told beside the total.
        run: runs the command.
        clock: monotonic clock in seconds.
    """

    name = "rpi-pmic"
    kind: Kind = "power"
    scope = "PMIC rails; below board power: no USB, HAT or PCIe 5 V"
    rate_hz = 4.0  # each reading starts a process: more would load what is measured

    def __init__(
        self,
        total: Sequence[str],
        parts: Sequence[str] = (),
        run: Run = run_command,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rails, self._parts, self._run, self._clock = tuple(total), tuple(parts), run, clock

    def read(self) -> Reading:
        """Run the command once; the time is the middle of the call."""
        start_s = self._clock()
        answer = self._run(COMMAND)
        time_s = (start_s + self._clock()) / 2
        if answer.value is None:
            return Reading(time_s, reason=f"{answer.source}: {answer.reason}")
        pmic = parse_pmic(answer.value)
        missing = [name for name in self.rails if name not in pmic.powers_w]
        if pmic.reason is not None or missing:
            text = pmic.reason or f"rail {', '.join(missing)} is missing"
            return Reading(time_s, reason=f"{answer.source}: {text}")
        power_w = add_rails([pmic.powers_w[name] for name in self.rails])
        if isinstance(power_w, str):
            return Reading(time_s, reason=power_w)
        extra_w: dict[str, float | None] = {name: pmic.powers_w.get(name) for name in self._parts}
        if self.estimate is not None:
            extra_w[f"board ({self.estimate.tag})"] = self.estimate.board_w(power_w)
        return Reading(time_s, power_w=power_w, extra_w=extra_w)


def open_rpi_pmic(
    root: Path = Path("/"),
    plan: PowerPlan | None = None,
    *,
    run: Run | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> PowerSource | Unavailable:
    """Open the power chip of a Raspberry Pi 5.

    Args:
        root: anything but "/" has no tools, unless `run` is given.
        plan: rails of the profile, and the calibration to board power.
        run: stands in for the command, for tests.
        clock: monotonic clock in seconds.

    Returns:
        The source after a first reading, or Unavailable with the reason.
    """
    if run is None and not is_live(root):
        return Unavailable("rpi-pmic", "a tree of files has no tools", absent=True)
    plan, run = plan or PowerPlan(), run or run_command
    answer = run(COMMAND)
    if answer.value is None:
        missing = str(answer.reason).endswith("is not installed")
        text = f"{answer.source}: {answer.reason}"
        return Unavailable("rpi-pmic", text if missing else f"{text}; {REMEDY}", absent=missing)
    pmic = parse_pmic(answer.value)
    if pmic.reason is not None:
        return Unavailable("rpi-pmic", f"{answer.source}: {pmic.reason} (a Raspberry Pi 5 has this read-out)")
    rails = tuple(pmic.powers_w) if plan.total in ((), ("*",)) else plan.total
    source = PmicSource(
        [name for name in rails if name not in plan.skip],
        [name for name in plan.parts if name in pmic.powers_w],
        run,
        clock,
    )
    source.scope, source.estimate = plan.scope or source.scope, plan.estimate
    source.notes = (f"{len(source.rails)} rails; a process per reading, which is part of the load",)
    if source.estimate is not None:
        source.notes += (f"board power is a {source.estimate.tag}, recorded apart: no verdict rests on it",)
    first = source.read()
    return source if first.power_w is not None else Unavailable("rpi-pmic", first.reason or "no reading")
