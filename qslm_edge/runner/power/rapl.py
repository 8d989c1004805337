"""RAPL: energy counters of Intel and AMD processors below /sys/class/powercap (Linux powercap).

Zones nest: psys holds the packages, a package holds core, uncore and dram. Exactly one level is taken,
psys before package before core, and a zone that appears both through MSR and through MMIO is taken once,
MMIO first. dram stands beside the package and is added to it, but never to psys.
Each zone counts microjoules up to max_energy_range_uj and starts again: wraps are added per zone before the
sum. A profile may name the zones that count, in order of preference. Since CVE-2020-8694 the counters are
readable by root only (mode 0400).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qslm_edge.runner.observe import Observed, list_paths, read_int, read_text
from qslm_edge.runner.power.base import Kind, PowerPlan, PowerSource, Reading, Unavailable

__all__ = ["MAX_ZONE_POWER_W", "RaplSource", "Zone", "choose_zones", "find_zones", "open_rapl"]

POWERCAP = "sys/class/powercap"
MAX_ZONE_POWER_W = 2000.0  # four times the hottest processor sold: more is a restart, not a wrap
MIN_INTERVAL_S = 1.0  # the power limit is not applied to shorter intervals, since the counter moves in steps
REMEDY = (
    "run as root, or until the next start: sudo chmod a+r /sys/class/powercap/intel-rapl*/energy_uj "
    "(a udev or tmpfiles rule makes it last)"
)


@dataclass(frozen=True)
class Zone:
    """One counter: its folder below the root, name, range in microjoules and whether it comes by MMIO."""

    path: str
    name: str
    range_uj: Observed[int]
    mmio: bool

    @property
    def label(self) -> str:
        """Name and folder, e.g. "package-0 (intel-rapl:0)"."""
        return f"{self.name} ({self.path.rsplit('/', 1)[-1]})"


def find_zones(root: Path) -> list[Zone]:
    """Every RAPL zone of the host, in order of their numbers; zones without a readable name are left out."""
    zones = []
    for path in list_paths(root, f"{POWERCAP}/intel-rapl*/name"):
        name = read_text(root, path).value
        if name:
            folder = path.rsplit("/", 1)[0]
            limit = read_int(root, f"{folder}/max_energy_range_uj", low=1)
            zones.append(Zone(folder, name, limit, "intel-rapl-mmio" in folder))
    return zones


def _level(zones: list[Zone], prefix: str) -> list[list[Zone]]:
    """Zones of one level, each with its twin, MMIO first.

    Twins have one name below a parent of one name: the numbers of the two kinds need not agree, and every
    package holds a zone that is simply called core.
    """
    names = {zone.path: zone.name for zone in zones}
    twins: dict[tuple[str, str], list[Zone]] = {}
    for zone in zones:
        if zone.name == prefix or zone.name.startswith(f"{prefix}-"):
            parent = names.get(zone.path.rpartition(":")[0], "")
            twins.setdefault((parent, zone.name), []).append(zone)
    return [sorted(group, key=lambda zone: not zone.mmio) for group in twins.values()]


SCOPES = {
    "psys": "platform as the processor sees it (RAPL psys)",
    "package+dram": "processor packages and memory (RAPL package + dram)",
    "package": "processor packages, without memory and board (RAPL package)",
    "core": "processor cores only (RAPL core)",
}  # in order of preference


def choose_zones(
    zones: list[Zone], preferred: Sequence[str] = tuple(SCOPES)
) -> list[tuple[str, list[list[Zone]]]]:
    """Levels in order of preference, each as a scope and the groups of twins that make its sum.

    Args:
        zones: every zone of the host.
        preferred: names of levels, as a profile gives them: psys, package-0 (which stands for every package),
            package+dram, core. Zones without a known level are passed over.
    """
    psys, packages, cores = _level(zones, "psys"), _level(zones, "package"), _level(zones, "core")
    memory = _level(zones, "dram")
    known = {
        "psys": psys[:1],  # one platform has one psys domain: a second one would count the same supply again
        "package+dram": packages + memory if packages and memory else [],
        "package": packages,
        "core": cores,
    }
    names = ["+".join(part.strip().split("-")[0] for part in name.split("+")) for name in preferred]
    return [(SCOPES[name], known[name]) for name in dict.fromkeys(names) if known.get(name)]


class RaplSource(PowerSource):
    """Sum of RAPL zones of one level, unwrapped, in joules.

    Args:
        root: "/" on a host, a folder with the same tree in a test.
        zones: counters to add.
        scope: what their sum includes.
        clock: monotonic clock in seconds.
    """

    name = "rapl"
    kind: Kind = "counter"
    rate_hz = 10.0
    update_s = 0.001

    def __init__(
        self, root: Path, zones: list[Zone], scope: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._root, self._zones, self._clock = root, tuple(zones), clock
        self.scope = scope
        self.rails = tuple(zone.label for zone in zones)
        self._last_uj: dict[str, int] = {}
        self._total_uj = 0
        self._last_s = 0.0

    def read(self) -> Reading:
        """Read every zone once; the time is the middle of the reads."""
        start_s = self._clock()
        values = [read_int(self._root, f"{zone.path}/energy_uj", low=0) for zone in self._zones]
        time_s = (start_s + self._clock()) / 2
        new: dict[str, int] = {}
        for zone, observed in zip(self._zones, values, strict=True):
            limit = zone.range_uj.value
            if observed.value is None:
                return Reading(time_s, reason=f"{observed.source}: {observed.reason}")
            if limit is not None and observed.value > limit:
                text = f"{observed.source}: {observed.value} is above the range of {limit} uJ"
                return Reading(time_s, reason=text)
            new[zone.path] = observed.value
        fault = self._add(new, time_s)
        self._last_uj, self._last_s = new, time_s
        if fault is not None:
            return Reading(time_s, reason=fault, fault=True)
        return Reading(time_s, energy_j=self._total_uj / 1e6)

    def _add(self, new: dict[str, int], time_s: float) -> str | None:
        if not self._last_uj:
            self._total_uj = sum(new.values())
            return None
        most_uj = MAX_ZONE_POWER_W * max(time_s - self._last_s, MIN_INTERVAL_S) * 1e6
        fault: str | None = None
        for zone in self._zones:
            step = new[zone.path] - self._last_uj[zone.path]
            if step < 0:
                step += zone.range_uj.value or 0
                if step < 0 or step > most_uj:
                    fault = f"{zone.label}: the counter fell without a wrap"
            elif step > most_uj:
                fault = f"{zone.label}: the counter jumped by {step / 1e6:.0f} J"
            if fault is None:
                self._total_uj += step
        return fault


def _readable(root: Path, groups: list[list[Zone]]) -> tuple[list[Zone], Observed[int] | None]:
    """The first twin of each group that reads more than 0, or the failure of the first group without one."""
    chosen: list[Zone] = []
    for group in groups:
        failure: Observed[int] | None = None
        for zone in group:
            observed = read_int(root, f"{zone.path}/energy_uj", low=1, high=zone.range_uj.value)
            if observed.value is not None:
                chosen.append(zone)
                failure = None
                break
            failure = failure or observed
        if failure is not None:
            return [], failure
    return chosen, None


def open_rapl(
    root: Path = Path("/"), plan: PowerPlan | None = None, *, clock: Callable[[], float] = time.monotonic
) -> PowerSource | Unavailable:
    """Open RAPL at the highest level whose zones can all be read.

    Args:
        root: "/" on a host, a folder with the same tree in a test.
        plan: the zones of the profile in order of preference; no others are taken, for their scope differs.
        clock: monotonic clock in seconds.

    Returns:
        The source after a first reading; Unavailable if there are no zones, or none may be read: then the
        reason names the file, the right that is missing and how to get it. A level of which some zones are
        unreadable is not used: a part of the sum would pass for the whole.
    """
    zones = find_zones(root)
    levels = choose_zones(zones)
    if not levels:
        text = f"no RAPL zones below /{POWERCAP} (none on this processor, or a container)"
        return Unavailable("rapl", text, absent=True)
    if plan is not None and plan.total:
        levels = choose_zones(zones, plan.total)
    if not levels and plan is not None:
        here = ", ".join(zone.label for zone in zones)
        text = f"no RAPL zone {' or '.join(plan.total)}, as the profile asks for; zones: {here}"
        return Unavailable("rapl", text)
    failures: list[str] = []
    for scope, groups in levels:
        chosen, failure = _readable(root, groups)
        if failure is None:
            source = RaplSource(root, chosen, scope, clock)
            first = source.read()
            if first.energy_j is not None:
                source.notes = tuple(f"passed over: {text}" for text in failures)
                return source
            failures.append(first.reason or "no reading")
        else:
            failures.append(f"{failure.source}: {failure.reason}")
    reason = "; ".join(dict.fromkeys(failures))
    if "permission denied" in reason:
        reason = f"{reason}; the file needs the right to read, which only root has; {REMEDY}"
    return Unavailable("rapl", reason)
