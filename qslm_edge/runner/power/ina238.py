"""INA238 at the input of Jetson Thor: power1_input in microwatts, everything that hangs on the board included.

The rails of the INA3221 beside it are recorded and not added: they are fed from this input.
Source: https://docs.kernel.org/hwmon/ina238.html
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from qslm_edge.runner.power.base import PowerPlan, PowerSource, Unavailable
from qslm_edge.runner.power.ina3221 import HWMON, find_folders, find_monitors
from qslm_edge.runner.power.rails import Rail, RailSource

__all__ = ["open_ina238"]

SCOPE = "total input of the board and all that hangs on it"


def open_ina238(
    root: Path = Path("/"), plan: PowerPlan | None = None, *, clock: Callable[[], float] = time.monotonic
) -> PowerSource | Unavailable:
    """Open the monitor at the input of the board; arguments and result as `open_ina3221`."""
    plan = plan or PowerPlan()
    folders = find_folders(root, "ina238")
    if not folders:
        return Unavailable("ina238", f"no monitor named ina238 below /{HWMON}", absent=True)
    if len(folders) > 1:
        places = ", ".join(f"/{folder}" for folder in folders)
        return Unavailable("ina238", f"{len(folders)} monitors named ina238, one is the input: {places}")
    rails = find_monitors(root).rails
    wanted = plan.parts or tuple(rails)
    source = RailSource(
        root,
        "ina238",
        plan.scope or SCOPE,
        [Rail("power1_input", power=f"{folders[0]}/power1_input")],
        [rails[name] for name in wanted if name in rails and name not in plan.skip],
        clock,
    )
    failure = source.prove()
    return source if failure is None else Unavailable("ina238", failure)
