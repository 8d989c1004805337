"""INA3221 monitors of Jetson modules through hwmon (JetPack 5 and newer): voltage x current of each rail.

Folders are found by the file `name`, since their numbers move between boots, and in /sys/class/hwmon only: one
monitor also stands below /sys/bus and /sys/devices. in1 to in3 are voltages; in4 to in7 are shunt voltages
and their sum. One step of the shunt is 40 uV: 8 mA at 5 mOhm, 20 mA at 2 mOhm.
Source: https://docs.kernel.org/hwmon/ina3221.html
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qslm_edge.runner.observe import list_paths, read_int, read_text
from qslm_edge.runner.power.base import PowerPlan, PowerSource, Unavailable
from qslm_edge.runner.power.rails import NOT_CONNECTED, Rail, RailSource, choose_total

__all__ = ["HWMON", "Monitors", "find_folders", "find_monitors", "open_ina3221"]

HWMON = "sys/class/hwmon"
CHANNELS = (1, 2, 3)
SHUNT_STEP_V = 40e-6
SCOPE = "module rails, without the carrier board"


@dataclass(frozen=True)
class Monitors:
    """Rails of all INA3221 of the board by label, and the longest interval at which a monitor renews them."""

    rails: dict[str, Rail]
    update_s: float | None
    n_monitors: int


def find_folders(root: Path, chip: str) -> list[str]:
    """Folders of hwmon whose file `name` holds the name of a chip."""
    names = list_paths(root, f"{HWMON}/hwmon*/name")
    return [path.rsplit("/", 1)[0] for path in names if read_text(root, path).value == chip]


def _rail(root: Path, folder: str, channel: int) -> Rail | None:
    label = read_text(root, f"{folder}/in{channel}_label").value
    if not label or label in NOT_CONNECTED or read_int(root, f"{folder}/in{channel}_enable").value == 0:
        return None
    shunt_uohm = read_int(root, f"{folder}/shunt{channel}_resistor", low=1, high=10**7).value
    return Rail(
        label,
        voltage=f"{folder}/in{channel}_input",
        current=f"{folder}/curr{channel}_input",
        step_a=None if shunt_uohm is None else SHUNT_STEP_V / (shunt_uohm * 1e-6),
    )


def find_monitors(root: Path) -> Monitors:
    """Every rail with a label; the first of two with the same label counts, since they are one monitor."""
    rails: dict[str, Rail] = {}
    intervals_ms: list[int] = []
    folders = find_folders(root, "ina3221")
    for folder in folders:
        interval_ms = read_int(root, f"{folder}/update_interval", low=1, high=60_000).value
        intervals_ms += [] if interval_ms is None else [interval_ms]
        for channel in CHANNELS:
            rail = _rail(root, folder, channel)
            if rail is not None:
                rails.setdefault(rail.name, rail)
    return Monitors(rails, max(intervals_ms) / 1000 if intervals_ms else None, len(folders))


def open_ina3221(
    root: Path = Path("/"), plan: PowerPlan | None = None, *, clock: Callable[[], float] = time.monotonic
) -> PowerSource | Unavailable:
    """Open the monitors of a Jetson module.

    Args:
        root: "/" on a host, a folder with the same tree in a test.
        plan: rails of the profile.
        clock: monotonic clock in seconds.

    Returns:
        The sum of the rails that make the total, after a first reading; or Unavailable with the reason.
    """
    plan = plan or PowerPlan()
    found = find_monitors(root)
    if not found.n_monitors:
        return Unavailable("ina3221", f"no monitor named ina3221 below /{HWMON}", absent=True)
    choice = choose_total(list(found.rails), plan)
    if isinstance(choice, str):
        return Unavailable("ina3221", choice)
    source = RailSource(
        root,
        "ina3221",
        plan.scope or SCOPE,
        [found.rails[name] for name in choice.total],
        [found.rails[name] for name in choice.parts],
        clock,
    )
    source.update_s, source.notes = found.update_s, choice.notes
    failure = source.prove()
    return source if failure is None else Unavailable("ina3221", failure)
