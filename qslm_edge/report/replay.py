"""Energy of a stored run once more: the protocol itself, fed with the readings and the edges that were stored.

Nothing of the protocol is written a second time: `measure_energy` gets a clock that gives the stored edges of
the phases, a recorder that gives the stored readings, and a workload that gives the stored number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qslm_edge.runner.power import EnergyResult, PowerSource, Reading, energy_dict, measure_energy

__all__ = ["replay_energy"]

_PHASES = ("settle", "idle_loaded", "warm_up", "run", "idle_after")


class _StoredSource(PowerSource):
    """A source that is only what was stored of it; it is never read."""

    def __init__(self, stored: Mapping[str, Any], deferred: str | None) -> None:
        self._stored, self.deferred = dict(stored), deferred
        for key, value in stored.items():
            if key != "skipped":
                setattr(self, key, value)

    def read(self) -> Reading:
        raise RuntimeError("a stored source has no more readings")

    def to_dict(self) -> dict[str, object]:
        """As stored."""
        return self._stored


class _StoredRecorder:
    """Gives the stored readings in place of new ones."""

    def __init__(self, readings: tuple[Reading, ...]) -> None:
        self._readings = readings

    def start(self) -> None:
        """There is nothing to begin."""

    def stop(self) -> tuple[Reading, ...]:
        """Every reading."""
        return self._readings


def replay_energy(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The energy of stored runs, derived anew.

    Args:
        runs: `energy.runs` of a result, each with phases, readings, source and tokens.

    Returns:
        What `energy` of the result must be, its conditions aside.
    """
    return energy_dict([_replay(run) for run in runs])


def _replay(run: Mapping[str, Any]) -> EnergyResult:
    if not run["phases"]:
        return EnergyResult(run["status"], run["reason"], dict(run["source"]))
    edges: Iterator[float] = iter([edge for name in _PHASES for edge in run["phases"][name]])
    wall_edges: Iterator[float] = iter([edge for name in _PHASES for edge in run["wall_phases"][name]])
    readings = tuple(Reading(**sample) for sample in run["samples"])
    # an external meter gave no readings: the phases alone were kept for its log
    deferred = run["reason"] if run["status"] == "unavailable" else None
    found = measure_energy(
        _StoredSource(run["source"], deferred),
        lambda _seconds: int(run["tokens"]),
        settle_s=0,
        idle_s=0,
        warmup_s=0,
        run_s=0,
        idle_after_s=0,
        rate_hz=run["rate_hz"],
        clock=lambda: next(edges),
        wall_clock=lambda: next(wall_edges),
        sleep=lambda _seconds: None,
        recorder=lambda _source, _rate_hz: _StoredRecorder(readings),
    )
    return replace(found, marker=tuple((start, end) for start, end in run["marker"]))
