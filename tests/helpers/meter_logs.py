"""Verifications that never were, with the logs that a meter would have written beside them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

IDLE_W, RUN_W = 3.0, 8.0
START_S = 1000.0
WALL_S = 1_800_000_000.0  # of the monotonic 0
TOKENS = 500
MARKER = [(1000.0, 1002.0), (1004.0, 1006.0), (1009.0, 1011.0)]
PHASES = {
    "settle": (1013.0, 1015.0),
    "idle_loaded": (1015.0, 1021.0),
    "warm_up": (1021.0, 1024.0),
    "run": (1024.0, 1034.0),
    "idle_after": (1034.0, 1038.0),
}
BUSY = (*MARKER, PHASES["warm_up"], PHASES["run"])

Edit = Callable[[dict[str, Any]], None]


def power_w(time_s: float) -> float:
    """True power at a monotonic time."""
    return RUN_W if any(start <= time_s < end for start, end in BUSY) else IDLE_W


def write_result(folder: Path, edit: Edit = lambda _run: None, *, marker: bool = True) -> Path:
    """What verify would have written, after `edit` of its one run."""
    run: dict[str, Any] = {
        "tokens": TOKENS,
        "phases": {name: list(edges) for name, edges in PHASES.items()},
        "wall_phases": {name: [edge + WALL_S for edge in edges] for name, edges in PHASES.items()},
        "marker": [list(edges) for edges in MARKER] if marker else [],
    }
    edit(run)
    path = folder / "verify.json"
    result = {"bundle": {"digest": "ab"}, "decode": {"energy": {"reason": "why", "runs": [run]}}}
    path.write_text(json.dumps(result), "utf-8")
    return path


def readings(
    rate_hz: float = 50.0, before_s: float = 10.0, after_s: float = 5.0
) -> Iterator[tuple[float, float]]:
    """Monotonic times with the power a meter sees, with a little noise."""
    noise = random.Random(1)
    begin_s = START_S - before_s
    for number in range(round((before_s + 38 + after_s) * rate_hz)):
        time_s = begin_s + number / rate_hz
        yield time_s, power_w(time_s) + noise.gauss(0, 0.01)


def write_generic(folder: Path, clock_error_s: float = 0.0, **how: float) -> Path:
    """The plain form with wall-clock stamps."""
    path = folder / "log.csv"
    rows = [f"{time_s + WALL_S + clock_error_s:.4f},{watts:.4f}" for time_s, watts in readings(**how)]
    path.write_text("\n".join(["timestamp_s,power_w", *rows]) + "\n", "utf-8")
    return path
