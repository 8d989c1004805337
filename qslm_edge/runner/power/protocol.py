"""The measurement protocol: settle, idle with the model loaded, warm-up, run, idle again.

Readings are taken by a thread of their own, each with the monotonic time of the reading, and are kept beside
the result; judge.py turns them into figures. For an external meter the edges of the phases are also told on
the wall clock, and a marker pulse of three bursts of load can be made first, so that its log can be aligned.
"""

from __future__ import annotations

import dataclasses
import operator
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypedDict

from qslm_edge.runner.power.base import PowerSource, Reading, Unavailable
from qslm_edge.runner.power.integrate import energy_by_counter, energy_by_trapezoid
from qslm_edge.runner.power.judge import judge_run
from qslm_edge.runner.power.result import EnergyResult, RepeatSummary, summarise_repeats

__all__ = [
    "BURST_S",
    "PRESETS",
    "RESTS_S",
    "EnergyResult",
    "Phases",
    "RepeatSummary",
    "Sampler",
    "energy_by_counter",
    "energy_by_trapezoid",
    "measure_energy",
    "summarise_repeats",
]

BURST_S = 2.0
RESTS_S = (2.0, 3.0)  # unequal, so that the pattern is like itself at one place only


class Lengths(TypedDict):
    """Lengths of the phases in seconds, as keyword arguments."""

    settle_s: float
    idle_s: float
    warmup_s: float
    run_s: float
    idle_after_s: float


@dataclass(frozen=True)
class Phases:
    """Lengths of the phases in seconds, and how often the whole is repeated for a release."""

    settle_s: float
    idle_s: float
    warmup_s: float
    run_s: float
    idle_after_s: float
    repeats: int = 1

    def lengths(self) -> Lengths:
        """Keyword arguments of `measure_energy`."""
        return Lengths(
            settle_s=self.settle_s,
            idle_s=self.idle_s,
            warmup_s=self.warmup_s,
            run_s=self.run_s,
            idle_after_s=self.idle_after_s,
        )


PRESETS: dict[str, Phases] = {
    "smoke": Phases(settle_s=2, idle_s=6, warmup_s=3, run_s=10, idle_after_s=4),
    "release": Phases(settle_s=10, idle_s=30, warmup_s=3, run_s=60, idle_after_s=10, repeats=3),
}


class Recorder(Protocol):
    """What collects readings while the phases pass."""

    def start(self) -> None:
        """Begin to read."""

    def stop(self) -> tuple[Reading, ...]:
        """End, and give every reading in order of time."""


class Sampler:
    """Reads a source from a thread of its own at a given rate.

    A late reading is not made up for: its time stamp tells, and the integrator's gap rule judges.

    Args:
        source: what is read; its readings carry their own time stamps.
        rate_hz: readings per second.
    """

    def __init__(self, source: PowerSource, rate_hz: float) -> None:
        self._source, self._period_s = source, 1.0 / rate_hz
        self._readings: list[Reading] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="power-sampler", daemon=True)

    def _work(self) -> None:
        due = time.monotonic()
        while not self._end.is_set():
            self._readings.append(self._source.read())
            due = max(due + self._period_s, time.monotonic())
            self._end.wait(due - time.monotonic())

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> tuple[Reading, ...]:
        """Take one last reading, so that the last window is enclosed, and end the thread."""
        self._end.set()
        self._thread.join()
        self._readings.append(self._source.read())
        return tuple(self._readings)


def _mark(
    run: Callable[[float], int], clock: Callable[[], float], sleep: Callable[[float], object]
) -> tuple[tuple[float, float], ...]:
    """Three bursts of load with rests between and after them; the edges of each burst."""
    bursts = []
    for rest_s in (*RESTS_S, BURST_S):
        start_s = clock()
        run(BURST_S)
        bursts.append((start_s, clock()))
        sleep(rest_s)
    return tuple(bursts)


def measure_energy(
    source: PowerSource | Unavailable,
    run: Callable[[float], int],
    *,
    settle_s: float,
    idle_s: float,
    warmup_s: float,
    run_s: float,
    idle_after_s: float,
    marker: bool = False,
    rate_hz: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    wall_clock: Callable[[], float] = time.time,
    sleep: Callable[[float], object] = time.sleep,
    recorder: Callable[[PowerSource, float], Recorder] = Sampler,
) -> EnergyResult:
    """Measure the energy of a run by the protocol.

    Args:
        source: an opened source; for Unavailable nothing is run and its reason becomes the result. For an
            external meter the phases pass, and its log gives the figures later.
        run: works for about the given seconds, with the model already loaded, and returns the exact number
            of tokens; it is called once for the warm-up and once for the run.
        settle_s: seconds before anything counts, after the power mode was set.
        idle_s: seconds of idling with the model loaded: the baseline of the net energy.
        warmup_s: seconds of running that do not count.
        run_s: seconds of the run that counts.
        idle_after_s: seconds of idling after it, for the drift.
        marker: make three bursts of load before settling, for the log of an external meter.
        rate_hz: readings per second; None takes what suits the source.
        clock: the monotonic clock that the source stamps its readings with.
        wall_clock: seconds since 1970, told beside the edges of the phases.
        sleep: waits.
        recorder: makes what collects the readings; tests pass one that needs no real time.

    Returns:
        The result. What `run` raises passes through, after the sampling has ended.
    """
    if isinstance(source, Unavailable):
        return EnergyResult("unavailable", source.reason, source.to_dict())
    rate_hz = source.rate_hz if rate_hz is None else rate_hz
    phases: dict[str, tuple[float, float]] = {}
    wall_phases: dict[str, tuple[float, float]] = {}
    counted: list[int] = []
    recording = recorder(source, rate_hz) if source.deferred is None else None
    if recording is not None:
        recording.start()
    readings: tuple[Reading, ...] = ()
    try:
        bursts = _mark(run, clock, sleep) if marker else ()
        steps: list[tuple[str, float, Callable[[float], object]]] = [
            ("settle", settle_s, sleep),
            ("idle_loaded", idle_s, sleep),
            ("warm_up", warmup_s, run),
            ("run", run_s, lambda seconds: counted.append(operator.index(run(seconds)))),
            ("idle_after", idle_after_s, sleep),
        ]
        for name, seconds, act in steps:
            start_s, start_wall_s = clock(), wall_clock()
            act(seconds)
            phases[name], wall_phases[name] = (start_s, clock()), (start_wall_s, wall_clock())
    finally:
        if recording is not None:
            readings = recording.stop()
    result = judge_run(source, readings, phases, counted[0], rate_hz)
    return dataclasses.replace(result, wall_phases=wall_phases, marker=bursts)
