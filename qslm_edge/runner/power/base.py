"""What a power source is, the registry of sources, and the choice of one that really reads.

A source is one file with one opener: `opener(root, plan) -> PowerSource | Unavailable`. The plan is what the
device profile says of power. The opener proves the source by a reading; that a library imports proves
nothing. There is no energy of 0 for "not known": a source that cannot be read is `Unavailable` with the
reason, and a source used in place of another says so.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qslm_edge.runner.observe import Observed
from qslm_edge.runner.power.plan import Estimate, PowerPlan

__all__ = [
    "KNOWN_SOURCES",
    "SOURCES",
    "Kind",
    "Opener",
    "PowerPlan",
    "PowerSource",
    "Reading",
    "Unavailable",
    "open_source",
    "refusal",
]

Kind = Literal["counter", "power"]


def refusal(observed: Observed[Any]) -> str:
    """Why a file could not be read; for a refused permission also which right is missing and how to get it."""
    text = f"{observed.source}: {observed.reason}"
    if "permission denied" not in str(observed.reason):
        return text
    return (
        f"{text}; the file needs the right to read: run as root, or until the next start: "
        f"sudo chmod a+r {observed.source} (a udev or tmpfiles rule makes it last)"
    )


@dataclass(frozen=True)
class Reading:
    """What a source said at one moment.

    Args:
        time_s: monotonic clock at the reading, in seconds.
        energy_j: energy counter in joules since a moment that the source chooses; None if it has none.
        power_w: power in watts; None if the source gives none.
        extra_w: other powers in watts, recorded apart (an average beside an instant value, single rails).
        reason: why a value is missing.
        fault: True if readings before and after this one must not be joined, because the counter restarted.
    """

    time_s: float
    energy_j: float | None = None
    power_w: float | None = None
    extra_w: Mapping[str, float | None] = field(default_factory=dict)
    reason: str | None = None
    fault: bool = False

    def to_dict(self) -> dict[str, object]:
        """All fields, ready for JSON; `extra_w`, `reason` and `fault` only where they say something."""
        values = {key: value for key, value in dataclasses.asdict(self).items() if value or key == "time_s"}
        return {**values, "energy_j": self.energy_j, "power_w": self.power_w}


@dataclass(frozen=True)
class Unavailable:
    """A source that cannot be used here.

    Args:
        name: of the source.
        reason: in plain words, with the next step if there is one.
        absent: True if the host simply does not have it, so that nothing could be done about it.
    """

    name: str
    reason: str
    absent: bool = False

    def to_dict(self) -> dict[str, str]:
        """Name and reason, ready for JSON."""
        return {"name": self.name, "reason": self.reason}


class PowerSource(abc.ABC):
    """One interface that tells power or energy.

    Attributes:
        name: key in the registry.
        kind: "counter" if `energy_j` of a reading is a running total, else "power".
        scope: what the figure includes, in words; figures of different scope are never compared.
        rails: rails or zones that the figure is the sum of.
        rate_hz: sampling rate that suits the interface.
        update_s: interval at which the interface renews its value; None if not known.
        lag_s: seconds that a power value needs to follow a step; 0 for a counter.
        resolution_w: smallest step of the power in watts; None if the interface does not tell. A counter's
            resolution is its update.
        range_j: value at which the counter wraps; None if it does not, or if the source unwraps it.
        estimate: calibration to the whole board, told apart and never part of the figure.
        deferred: why readings come only after the run (an external meter); the phases run all the same.
        notes: what a reader of the figure must know.
        skipped: sources that were asked for or looked at first, each with the reason why not.
    """

    name: str
    kind: Kind
    scope: str
    rails: tuple[str, ...] = ()
    rate_hz: float = 10.0
    update_s: float | None = None
    lag_s: float = 0.0
    resolution_w: float | None = None
    range_j: float | None = None
    estimate: Estimate | None = None
    deferred: str | None = None
    notes: tuple[str, ...] = ()
    skipped: tuple[Unavailable, ...] = ()

    @abc.abstractmethod
    def read(self) -> Reading:
        """Take one reading. Never raises for what the host does: a failure is a reading with a reason."""

    def close(self) -> None:  # noqa: B027 - most sources hold nothing open
        """Give back what the source holds."""

    def to_dict(self) -> dict[str, object]:
        """What the source is, ready for JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "scope": self.scope,
            "rails": list(self.rails),
            "update_s": self.update_s,
            "lag_s": self.lag_s,
            "resolution_w": self.resolution_w,
            "estimate": None if self.estimate is None else dataclasses.asdict(self.estimate),
            "notes": list(self.notes),
            "skipped": [item.to_dict() for item in self.skipped],
        }


Opener = Callable[[Path, PowerPlan], "PowerSource | Unavailable"]

# Filled by the package, in the order in which sources are tried when nothing is preferred.
SOURCES: dict[str, Opener] = {}

# Names of a device profile that this version has no reader for, with what to do instead.
NO_READER: dict[str, str] = {
    "powermetrics": "connect an external meter to the supply, and verify with --power-source csv",
    "none": "the profile names no power read-out: connect an external meter to the supply of the board, and "
    "verify with --power-source csv",
}

# Every name that a profile or a user may give.
KNOWN_SOURCES = (
    *("ina3221", "ina3221x", "ina238", "tegrastats", "nvml", "nvidia-smi", "rapl"),
    *("rpi-pmic", "hwmon", "battery", "powermetrics", "csv", "none"),
)

# Other ways to the same monitor: the figure has the same scope, so they may stand in on the board too.
SAME_MONITOR: dict[str, tuple[str, ...]] = {
    "ina3221": ("ina3221x", "tegrastats"),
    "ina3221x": ("ina3221", "tegrastats"),
    "tegrastats": ("ina3221", "ina3221x"),
    "nvml": ("nvidia-smi",),
    "nvidia-smi": ("nvml",),
}
GPU_SOURCES = ("nvml", "nvidia-smi")  # they do not see the processor
ON_REQUEST = ("csv",)


def _open_one(name: str, root: Path, plan: PowerPlan) -> PowerSource | Unavailable:
    opener = SOURCES.get(name)
    if opener is not None:
        fits = plan.source in (None, name, *SAME_MONITOR.get(name, ()))
        return opener(root, plan if fits else PowerPlan())
    if name == "none":
        return Unavailable(name, NO_READER[name])
    if name in KNOWN_SOURCES:
        todo = NO_READER.get(name, "connect an external meter to the supply")
        return Unavailable(name, f"{name} is not supported by this version; {todo}")
    return Unavailable(name, f"{name} is not a power source; known are {', '.join(KNOWN_SOURCES)}")


def open_source(
    preferred: str | None = None,
    root: Path = Path("/"),
    *,
    plan: PowerPlan | None = None,
    use_gpu: bool = False,
    only_preferred: bool = False,
) -> PowerSource | Unavailable:
    """Open the preferred source, or else what this host has.

    Args:
        preferred: name from the device profile or the user; None takes what the host has.
        root: "/" on a host, a folder with the same tree in a test.
        plan: what the profile says of power; it is given only to sources that have the profile's rails.
        use_gpu: the run works on a GPU; only then is a GPU's source taken without being preferred, since it
            does not see the processor.
        only_preferred: this host must be the board of the profile, or the user chose, so that a figure of
            another interface would have another scope: only other ways to the same monitor may stand in.

    Returns:
        A source that gave a reading, with `skipped` telling what was passed over and why; or Unavailable
        with the reasons, where those that this host simply does not have are not named one by one.
    """
    skipped: list[Unavailable] = []
    names = [] if preferred is None else [preferred, *SAME_MONITOR.get(preferred, ())]
    if not (only_preferred and preferred is not None):
        names += [
            name
            for name in SOURCES
            if name not in (*names, *ON_REQUEST) and (use_gpu or name not in GPU_SOURCES)
        ]
    for name in names:
        source = _open_one(name, root, plan or PowerPlan())
        if isinstance(source, PowerSource):
            source.skipped = tuple(skipped)
            return source
        skipped.append(source)
    return Unavailable(preferred or "any", _together(preferred, skipped))


def _together(preferred: str | None, skipped: list[Unavailable]) -> str:
    """The reason of the preferred source, then those of sources that are here but cannot be read."""
    if not skipped:
        return "no power source is known to this version"
    told = [item for item in skipped if item.name == preferred or not item.absent]
    reasons = list(dict.fromkeys(item.reason for item in told))
    rest = [item.name for item in skipped if item not in told]
    if rest:
        reasons.append(f"this host has none of {', '.join(rest)}")
    return "; ".join(reasons)
