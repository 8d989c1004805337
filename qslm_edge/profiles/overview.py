"""Many boards at a glance: their groups and order, and the facts of one that nobody has confirmed.

A list by id alone would tear families apart and put 8 GB before 16 GB only by luck. So boards stand by
family, those that are no target any more or never were come last, and numbers in an id count as numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from qslm_edge.profiles.profile import Profile

__all__ = ["grouped", "unconfirmed"]

_FAMILIES = {
    "jetson": "NVIDIA Jetson",
    "raspberry-pi": "Raspberry Pi",
    "arm-board": "Other ARM boards",
    "x86": "x86 machines",
    "nvidia-gpu": "NVIDIA graphics cards",
    "apple": "Apple computers",
    "other": "Other boards",
}
_LEGACY = "Legacy boards"
_HOSTS = "Development hosts"


def grouped(profiles: Iterable[Profile]) -> list[tuple[str, list[Profile]]]:
    """Return (title, boards) of every group that has a board, in the order in which they are shown."""
    groups: dict[str, list[Profile]] = {title: [] for title in (*_FAMILIES.values(), _LEGACY, _HOSTS)}
    titles = {"legacy": _LEGACY, "development-host": _HOSTS}
    for profile in sorted(profiles, key=_natural):
        groups[titles.get(profile.status, _FAMILIES[profile.family])].append(profile)
    return [(title, boards) for title, boards in groups.items() if boards]


def unconfirmed(profile: Profile) -> tuple[str, ...]:
    """Return the dotted paths that nobody has confirmed, each as short as it covers nothing else."""
    known = {fact.path: fact.grade == "unconfirmed" for fact in profile.facts()}
    found: dict[str, None] = {}
    for path in (path for path, doubtful in known.items() if doubtful):
        parts = path.split(".")
        above = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
        found[next(each for each in above if _all_below(each, known))] = None
    return tuple(found)


def _all_below(above: str, known: Mapping[str, bool]) -> bool:
    return all(doubtful for path, doubtful in known.items() if path == above or path.startswith(f"{above}."))


def _natural(profile: Profile) -> list[tuple[int, str]]:
    """Sort key of an id in which 8gb comes before 16gb."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", profile.id)]
