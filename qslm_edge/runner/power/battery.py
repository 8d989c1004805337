"""The battery of a laptop: power_now, or voltage_now x current_now, and only while it discharges.

While it charges, or rests at mains, its power says nothing of what the machine takes. The sign of power and
current is a matter of the driver. Firmware renews the value every 1 to 30 s, so that short runs get no figure.
Source: https://docs.kernel.org/power/power_supply_class.html (microwatts, microvolts, microamperes)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from qslm_edge.runner.observe import Observed, list_paths, read_int, read_text
from qslm_edge.runner.power.base import Kind, PowerPlan, PowerSource, Reading, Unavailable, refusal

__all__ = ["BatterySource", "find_batteries", "open_battery"]

SUPPLY = "sys/class/power_supply"
MAX_UW = 10**9
MAX_UV = 10**9
MAX_UA = 10**9


def find_batteries(root: Path) -> list[str]:
    """Folders of the batteries that feed the machine: not those of a mouse or a keyboard."""
    folders = [path.rsplit("/", 1)[0] for path in list_paths(root, f"{SUPPLY}/*/type")]
    return [
        folder
        for folder in folders
        if read_text(root, f"{folder}/type").value == "Battery"
        and read_text(root, f"{folder}/scope").value != "Device"
    ]


def _power_w(root: Path, folder: str) -> Observed[float]:
    power = read_int(root, f"{folder}/power_now", low=-MAX_UW, high=MAX_UW)
    if power.value is not None:
        return power.map(lambda microwatt: abs(microwatt) / 1e6)
    if power.reason != "no such file":
        return Observed(None, power.source, power.reason)
    volts = read_int(root, f"{folder}/voltage_now", low=1, high=MAX_UV)
    amps = read_int(root, f"{folder}/current_now", low=-MAX_UA, high=MAX_UA)
    for part in (volts, amps):
        if part.value is None:
            return Observed(None, part.source, part.reason)
    return volts.map(lambda microvolt: microvolt * abs(amps.value or 0) / 1e12)


class BatterySource(PowerSource):
    """Power that the batteries of a machine give.

    Args:
        root: "/" on a host, a folder with the same tree in a test.
        folders: of the batteries, below the root.
        clock: monotonic clock in seconds.
    """

    name = "battery"
    kind: Kind = "power"
    scope = "the whole machine, screen included, as its battery sees it"
    rate_hz = 1.0

    def __init__(self, root: Path, folders: list[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._root, self._folders, self._clock = root, folders, clock
        self.rails = tuple(folder.rsplit("/", 1)[-1] for folder in folders)
        self.notes = ("firmware renews the value every 1 to 30 s: use --power release",)

    def read(self) -> Reading:
        """Sum of the batteries that discharge; none while one of them charges."""
        start_s = self._clock()
        states = {folder: read_text(self._root, f"{folder}/status", strict=False) for folder in self._folders}
        active = [folder for folder, state in states.items() if state.value == "Discharging"]
        if not active or any(state.value == "Charging" for state in states.values()):
            told = "; ".join(f"{state.source}: {state.value or state.reason}" for state in states.values())
            return Reading(start_s, reason=f"not on battery ({told}): unplug the supply")
        powers = [_power_w(self._root, folder) for folder in active]
        time_s = (start_s + self._clock()) / 2
        failure = next((seen for seen in powers if seen.value is None), None)
        if failure is not None:
            return Reading(time_s, reason=refusal(failure))
        power_w = math.fsum(seen.value or 0.0 for seen in powers)
        if power_w == 0:
            return Reading(time_s, reason="the battery discharges at 0 W: its driver gives no power")
        return Reading(time_s, power_w=power_w)


def open_battery(
    root: Path = Path("/"), plan: PowerPlan | None = None, *, clock: Callable[[], float] = time.monotonic
) -> PowerSource | Unavailable:
    """Open the batteries of this machine; arguments and result as `open_ina3221`."""
    folders = find_batteries(root)
    if not folders:
        return Unavailable("battery", f"no battery below /{SUPPLY}", absent=True)
    source = BatterySource(root, folders, clock)
    source.scope = (plan and plan.scope) or source.scope
    first = source.read()
    return source if first.power_w is not None else Unavailable("battery", first.reason or "no reading")
