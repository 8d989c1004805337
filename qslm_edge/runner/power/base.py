"""What a power source is, the registry of sources, and the choice of one that really reads.

A source is one file with one opener: `opener(root) -> PowerSource | Unavailable`. The opener proves the
source by a reading; that a library imports proves nothing. There is no energy of 0 for "not known": a
source that cannot be read is `Unavailable` with the reason, and a source used in place of another says so.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = [
    "KNOWN_SOURCES",
    "SOURCES",
    "Kind",
    "Opener",
    "PowerSource",
    "Reading",
    "Unavailable",
    "open_source",
]

Kind = Literal["counter", "power"]


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
    """A source that cannot be used here: its name and a plain reason, with the next step if there is one."""

    name: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        """Both fields, ready for JSON."""
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
        range_j: value at which the counter wraps; None if it does not, or if the source unwraps it.
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
    range_j: float | None = None
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
            "notes": list(self.notes),
            "skipped": [item.to_dict() for item in self.skipped],
        }


Opener = Callable[[Path], "PowerSource | Unavailable"]

# Filled by the package, in the order in which sources are tried when nothing is preferred.
SOURCES: dict[str, Opener] = {}

# Every name that a device profile may use, with what to do where this version has no reader for it.
KNOWN_SOURCES: dict[str, str] = {
    "ina3221": "connect an external meter to the supply of the board",
    "ina3221x": "connect an external meter to the supply of the board",
    "ina238": "connect an external meter to the supply of the board",
    "nvml": "",
    "rapl": "",
    "rpi-pmic": "connect an external meter to the supply of the board",
    "hwmon": "connect an external meter to the supply of the board",
    "battery": "connect an external meter to the supply",
    "powermetrics": "connect an external meter to the supply",
    "csv": "read the external meter by hand over the run window",
    "none": "the profile names no power read-out: connect an external meter to the supply of the board",
}


def _open_one(name: str, root: Path) -> PowerSource | Unavailable:
    opener = SOURCES.get(name)
    if opener is not None:
        return opener(root)
    if name == "none":
        return Unavailable(name, KNOWN_SOURCES[name])
    if name in KNOWN_SOURCES:
        return Unavailable(name, f"{name} is not supported by this version; {KNOWN_SOURCES[name]}")
    known = ", ".join(KNOWN_SOURCES)
    return Unavailable(name, f"{name} is not a power source; known are {known}")


def open_source(
    preferred: str | None = None,
    root: Path = Path("/"),
    *,
    use_gpu: bool = False,
    only_preferred: bool = False,
) -> PowerSource | Unavailable:
    """Open the preferred source, or else what this host has.

    Args:
        preferred: name from the device profile; None takes what the host has.
        root: "/" on a host, a folder with the same tree in a test.
        use_gpu: the run works on a GPU; only then is NVML taken without being preferred, since it does not
            see the processor.
        only_preferred: this host must be the board of the profile, so that a figure of another interface
            would have another scope: nothing is tried in place of the preferred source.

    Returns:
        A source that gave a reading, with `skipped` telling what was passed over and why; or Unavailable
        with all reasons.
    """
    skipped: list[Unavailable] = []
    names = [] if preferred is None else [preferred]
    if not (only_preferred and preferred is not None):
        names += [name for name in SOURCES if name not in names and (use_gpu or name != "nvml")]
    for name in names:
        source = _open_one(name, root)
        if isinstance(source, PowerSource):
            source.skipped = tuple(skipped)
            return source
        skipped.append(source)
    if not skipped:
        return Unavailable("any", "no power source is known to this version")
    if len(skipped) == 1:
        return skipped[0]
    return Unavailable(preferred or "any", "; ".join(item.reason for item in skipped))
