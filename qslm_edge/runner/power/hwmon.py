"""Any other monitor that Linux shows below /sys/class/hwmon: INA219, INA226, power meters, energy counters.

energy*_input (microjoules, a counter) is taken before power*_input (microwatts) and that before
power*_average; where a chip has neither, there is no figure. Chips that stand for a battery or a plug are left to
battery.py, which looks whether it discharges. What a channel covers only the wiring tells, so
that without a profile nothing is taken where more than one channel could be meant.
Source: https://docs.kernel.org/hwmon/sysfs-interface.html
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qslm_edge.runner.observe import list_paths, read_int, read_text
from qslm_edge.runner.power.base import Kind, PowerPlan, PowerSource, Reading, Unavailable, refusal
from qslm_edge.runner.power.rails import Rail, RailSource

__all__ = ["Channel", "EnergyChannel", "find_channels", "open_hwmon"]

HWMON = "sys/class/hwmon"
GPU_CHIPS = ("amdgpu", "i915", "xe", "nouveau", "radeon")  # they do not see the processor
# Watts of one step of power times ohms of the shunt: the driver's multiple of the current's step.
STEP_W_OHM = {"ina219": 20 * 10e-6, "ina220": 20 * 10e-6, "ina226": 25 * 2.5e-6, "ina230": 25 * 2.5e-6}
MAX_ENERGY_UJ = 2**64 - 1
_FILE = re.compile(r"(energy|power)([0-9]+)_(input|average)")
_PREFERENCE = ("energy_input", "power_input", "power_average")


@dataclass(frozen=True)
class Channel:
    """One file: its chip, its label if it has one, and where it lies below the root."""

    chip: str
    label: str | None
    path: str

    @property
    def file(self) -> str:
        """Name of the file, e.g. power1_input."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def name(self) -> str:
        """Chip and label or file, e.g. "ina219/power1_input"."""
        return f"{self.chip}/{self.label or self.file}"

    def is_called(self, text: str) -> bool:
        """Whether a profile means this channel: by label, by file, or by chip before one of them."""
        return text in (self.label, self.file, self.name, f"{self.chip}/{self.file}", self.chip)


def find_channels(root: Path) -> list[Channel]:
    """The best file of every channel of every chip, in order of the folders."""
    # hwmon writes the name of a power supply with "_" for "-"
    supplies = {
        path.rsplit("/", 1)[-1].replace("-", "_") for path in list_paths(root, "sys/class/power_supply/*")
    }
    best: dict[tuple[str, str], tuple[int, Channel]] = {}
    for path in list_paths(root, f"{HWMON}/hwmon*/*_*"):
        folder, _, file = path.rpartition("/")
        match = _FILE.fullmatch(file)
        chip = read_text(root, f"{folder}/name").value if match else None
        if match is None or not chip or chip in supplies:
            continue
        what, number, form = match.groups()
        if f"{what}_{form}" not in _PREFERENCE:
            continue
        rank = _PREFERENCE.index(f"{what}_{form}")
        label = read_text(root, f"{folder}/{what}{number}_label").value
        key = (folder, number)
        if key not in best or rank < best[key][0]:
            best[key] = (rank, Channel(chip, label, path))
    return [channel for _, channel in best.values()]


class EnergyChannel(PowerSource):
    """An energy counter in microjoules.

    Args:
        root: "/" on a host, a folder with the same tree in a test.
        channel: its file.
        scope: what it covers.
        clock: monotonic clock in seconds.
    """

    name = "hwmon"
    kind: Kind = "counter"

    def __init__(
        self, root: Path, channel: Channel, scope: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._root, self._path, self._clock = root, channel.path, clock
        self.rails, self.scope = (channel.name,), scope

    def read(self) -> Reading:
        """The present total; a counter that stands at 0 counts as not working."""
        start_s = self._clock()
        seen = read_int(self._root, self._path, low=1, high=MAX_ENERGY_UJ)
        time_s = (start_s + self._clock()) / 2
        if seen.value is None:
            return Reading(time_s, reason=refusal(seen))
        return Reading(time_s, energy_j=seen.value / 1e6)


def _rail(root: Path, channel: Channel) -> Rail:
    shunt_uohm = read_int(root, f"{channel.path.rpartition('/')[0]}/shunt_resistor", low=1, high=10**9).value
    step_w = STEP_W_OHM.get(channel.chip)
    return Rail(
        channel.name,
        power=channel.path,
        power_step_w=step_w / (shunt_uohm * 1e-6) if step_w and shunt_uohm else None,
    )


def _chosen(channels: list[Channel], plan: PowerPlan) -> list[Channel] | str:
    known = ", ".join(channel.name for channel in channels)
    if not plan.total or plan.total == ("*",):
        usable = [channel for channel in channels if channel.chip not in GPU_CHIPS]
        if len(usable) == 1:
            return usable
        return f"what to read is not clear among {known}; name it under power.total of the profile"
    chosen: list[Channel] = []
    for name in plan.total:
        meant = [channel for channel in channels if channel.is_called(name)]
        if len(meant) != 1:
            return f"{name} is {'no channel' if not meant else 'more than one channel'}; channels: {known}"
        chosen += [channel for channel in meant if channel not in chosen]
    return chosen


def open_hwmon(
    root: Path = Path("/"), plan: PowerPlan | None = None, *, clock: Callable[[], float] = time.monotonic
) -> PowerSource | Unavailable:
    """Open a monitor of the board; arguments and result as `open_ina3221`."""
    plan = plan or PowerPlan()
    channels = find_channels(root)
    if not channels:
        return Unavailable("hwmon", f"no power or energy channel below /{HWMON}", absent=True)
    chosen = _chosen(channels, plan)
    if isinstance(chosen, str):
        return Unavailable("hwmon", chosen)
    counters = [channel for channel in chosen if channel.file.startswith("energy")]
    scope = plan.scope or "the supply that the monitor is wired into"
    if counters and len(chosen) > 1:
        return Unavailable("hwmon", "energy counters are not added: name one, or channels of power")
    if counters:
        source = EnergyChannel(root, counters[0], scope, clock)
        first = source.read()
        return source if first.energy_j is not None else Unavailable("hwmon", first.reason or "no reading")
    rails = RailSource(root, "hwmon", scope, [_rail(root, channel) for channel in chosen], clock=clock)
    if any(channel.file.endswith("_average") for channel in chosen):
        rails.notes += ("an average of the driver: it follows a step late",)
    failure = rails.prove()
    return rails if failure is None else Unavailable("hwmon", failure)
