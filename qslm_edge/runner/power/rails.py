"""Rails: supplies that the kernel shows as files, their sum, and which of them make the total of a board.

A rail has one file of power, or one of voltage and one of current. A rail that is switched off reads 0 W, and
a few steps below 0 happen on an idle one: both are kept as they are. The total of a board that runs is above
0; a total with a rail that cannot be read is unknown, never the sum of the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qslm_edge.runner.observe import Observed, read_int
from qslm_edge.runner.power.base import Kind, PowerPlan, PowerSource, Reading, refusal

__all__ = ["MAX_RAIL_W", "Choice", "Rail", "RailSource", "add_rails", "choose_total"]

MAX_RAIL_W = 10_000.0
MAX_VOLTAGE_MV = 100_000
MAX_CURRENT_MA = 200_000
UNKNOWN_STEP_A = 0.02
NEGATIVE_STEPS = 5  # an idle rail reads a few steps below 0

INPUT_RAILS = ("VDD_IN", "POM_5V_IN")  # these hold all others
MODULE_RAILS = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")  # AGX Orin has no input rail
FED_BY_OTHERS = ("VDDQ_VDD2_1V8AO",)  # comes out of VIN_SYS_5V0: adding it counts it twice
NOT_CONNECTED = ("NC", "sum of shunt voltages")


@dataclass(frozen=True)
class Rail:
    """One measured supply.

    Args:
        name: label of the rail.
        power: file of the power, below the root; None to multiply voltage and current.
        unit_w: watts that one count of `power` stands for.
        voltage, current: files in millivolts and milliamperes.
        step_a: smallest step of the current in amperes; None if not known.
        power_step_w: smallest step of `power` in watts; None if not known.
    """

    name: str
    power: str | None = None
    unit_w: float = 1e-6
    voltage: str = ""
    current: str = ""
    step_a: float | None = None
    power_step_w: float | None = None

    def read(self, root: Path) -> Observed[float]:
        """Power in watts, or the reason of the file that gave none."""
        if self.power is not None:
            high = int(MAX_RAIL_W / self.unit_w)
            return read_int(root, self.power, low=0, high=high).map(lambda count: count * self.unit_w)
        volts = read_int(root, self.voltage, low=0, high=MAX_VOLTAGE_MV)
        least = -round(1000 * NEGATIVE_STEPS * (self.step_a or UNKNOWN_STEP_A))
        amps = read_int(root, self.current, low=least, high=MAX_CURRENT_MA)
        for part in (volts, amps):
            if part.value is None:
                return Observed(None, part.source, part.reason)
        return volts.map(lambda millivolt: millivolt * (amps.value or 0) / 1e6)

    def step_w(self, root: Path) -> float | None:
        """Smallest step of the power at the present voltage; None if not known."""
        if self.power is not None:
            return self.power_step_w
        if self.step_a is None:
            return None
        volts = read_int(root, self.voltage, low=0, high=MAX_VOLTAGE_MV).value
        return None if volts is None else self.step_a * volts / 1000


@dataclass(frozen=True)
class Choice:
    """Rails that make the total, rails told beside it, and what a reader of the figure must know."""

    total: tuple[str, ...]
    parts: tuple[str, ...]
    notes: tuple[str, ...] = ()


def choose_total(found: Sequence[str], plan: PowerPlan) -> Choice | str:
    """Which of the rails that were found make the total.

    Args:
        found: labels of the rails of this board.
        plan: the profile; its `total` counts where no rail is the input of the whole module.

    Returns:
        The choice, or why there is none: a total of which a rail is missing would pass for the whole.
    """
    usable = [name for name in dict.fromkeys(found) if name not in (*NOT_CONNECTED, *plan.skip)]
    notes: list[str] = []
    asked = tuple(name for name in plan.total if name not in FED_BY_OTHERS)
    if asked != plan.total:
        notes.append(f"{', '.join(FED_BY_OTHERS)} is fed from another rail of the sum and is not added")
    inputs = [name for name in INPUT_RAILS if name in usable]
    if inputs:
        if asked and asked != (inputs[0],):
            notes.append(f"{inputs[0]} holds every other rail and is the total, not {' + '.join(asked)}")
        total: tuple[str, ...] = (inputs[0],)
    elif "*" in asked:
        total = tuple(name for name in usable if name not in FED_BY_OTHERS)
    elif asked:
        total = asked
    elif all(name in usable for name in MODULE_RAILS):
        total = MODULE_RAILS
    else:
        return (
            f"no rail here is known to hold the whole board; rails: {', '.join(usable) or 'none'}; name those "
            "to add under power.total of the profile"
        )
    missing = [name for name in total if name not in usable]
    if missing or not total:
        return f"rail {', '.join(missing) or 'of any name'} is missing; rails: {', '.join(usable) or 'none'}"
    wanted = plan.parts or tuple(usable)
    return Choice(total, tuple(name for name in wanted if name in usable and name not in total), tuple(notes))


def add_rails(powers_w: Sequence[float]) -> float | str:
    """Sum of the rails of the total in watts, or why it cannot be the power of a board that runs."""
    total_w = math.fsum(powers_w)
    if total_w <= 0:
        return f"the total is {total_w:g} W: a board that runs takes more than nothing"
    if total_w > MAX_RAIL_W:
        return f"implausible value {total_w:g} W"
    return total_w


class RailSource(PowerSource):
    """The sum of some rails, with others beside it.

    Args:
        root: "/" on a host, a folder with the same tree in a test.
        name: key in the registry.
        scope: what the sum covers.
        total: rails to add.
        parts: rails told beside the total.
        clock: monotonic clock in seconds.
    """

    kind: Kind = "power"

    def __init__(
        self,
        root: Path,
        name: str,
        scope: str,
        total: Sequence[Rail],
        parts: Sequence[Rail] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root, self._total, self._parts, self._clock = root, tuple(total), tuple(parts), clock
        self.name, self.scope = name, scope
        self.rails = tuple(rail.name for rail in total)

    def read(self) -> Reading:
        """Read every rail once; the time is the middle of the reads."""
        start_s = self._clock()
        total = [rail.read(self._root) for rail in self._total]
        parts = [rail.read(self._root) for rail in self._parts]
        time_s = (start_s + self._clock()) / 2
        extra_w = {rail.name: seen.value for rail, seen in zip(self._parts, parts, strict=True)}
        if len(total) > 1:
            extra_w |= {rail.name: seen.value for rail, seen in zip(self._total, total, strict=True)}
        failure = next((seen for seen in total if seen.value is None), None)
        if failure is not None:
            return Reading(time_s, extra_w=extra_w, reason=refusal(failure))
        power_w = add_rails([seen.value for seen in total if seen.value is not None])
        if isinstance(power_w, str):
            return Reading(time_s, extra_w=extra_w, reason=power_w)
        return Reading(time_s, power_w=power_w, extra_w=extra_w)

    def prove(self) -> str | None:
        """Take a first reading and tell the resolution; None, or why there is no reading."""
        reading = self.read()
        if reading.power_w is None:
            return reading.reason or "no reading"
        steps = [rail.step_w(self._root) for rail in self._total]
        known = [step for step in steps if step is not None]
        if len(known) == len(steps):
            self.resolution_w = math.fsum(known)
            self.notes += (f"one step of the monitor is {1000 * self.resolution_w:.3g} mW of the total",)
        else:
            self.notes += ("the interface does not tell its resolution",)
        return None
