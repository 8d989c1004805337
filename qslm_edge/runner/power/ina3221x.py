"""INA3221 monitors of Jetson modules through the iio driver of JetPack 4: power of each rail in milliwatts.

Source: /sys/bus/i2c/drivers/ina3221x/<bus>-<address>/iio:device<n>/ with rail_name_N, in_powerN_input (mW),
in_voltageN_input (mV) and in_currentN_input (mA).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from qslm_edge.runner.observe import list_paths, read_text
from qslm_edge.runner.power.base import PowerPlan, PowerSource, Unavailable
from qslm_edge.runner.power.rails import NOT_CONNECTED, Rail, RailSource, choose_total

__all__ = ["find_rails", "open_ina3221x"]

DRIVER = "sys/bus/i2c/drivers/ina3221x"
SCOPE = "module rails, without the carrier board"


def find_rails(root: Path) -> dict[str, Rail]:
    """Every named rail, by its power where the driver gives it, else by voltage and current."""
    rails: dict[str, Rail] = {}
    for path in list_paths(root, f"{DRIVER}/*/iio*device*/rail_name_*"):
        name = read_text(root, path).value
        folder, number = path.rsplit("/", 1)[0], path.rsplit("_", 1)[1]
        if not name or name in NOT_CONNECTED:
            continue
        power = f"{folder}/in_power{number}_input"
        rail = Rail(
            name,
            power=power if (root / power).exists() else None,
            unit_w=1e-3,
            voltage=f"{folder}/in_voltage{number}_input",
            current=f"{folder}/in_current{number}_input",
        )
        rails.setdefault(name, rail)
    return rails


def open_ina3221x(
    root: Path = Path("/"), plan: PowerPlan | None = None, *, clock: Callable[[], float] = time.monotonic
) -> PowerSource | Unavailable:
    """Open the monitors of a Jetson module under JetPack 4; arguments and result as `open_ina3221`."""
    plan = plan or PowerPlan()
    rails = find_rails(root)
    if not rails:
        return Unavailable("ina3221x", f"no rails of the driver ina3221x below /{DRIVER}", absent=True)
    choice = choose_total(list(rails), plan)
    if isinstance(choice, str):
        return Unavailable("ina3221x", choice)
    source = RailSource(
        root,
        "ina3221x",
        plan.scope or SCOPE,
        [rails[name] for name in choice.total],
        [rails[name] for name in choice.parts],
        clock,
    )
    source.notes = choice.notes
    failure = source.prove()
    return source if failure is None else Unavailable("ina3221x", failure)
