"""Whether this host is the board that a profile describes.

A profile is recognised by what it says of its board, never by what it hopes for: a profile that names nothing to look
for matches no host, and a run on another host is called a rehearsal. Sizes of one board often have one name, so a
range of memory tells them apart; alone it knows no board.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from qslm_edge.runner.machine import ARCHES, Machine

__all__ = ["MATCH_KEYS", "matches"]

MATCH_KEYS = ("device_tree_model", "gpu_name", "cpu_model", "arch", "features")
MEMORY_KEYS = ("min_memory_mib", "max_memory_mib")
MIB = 2**20


def matches(match: Mapping[str, object], machine: Machine) -> tuple[bool, str]:
    """Decide whether a host is the board of a profile.

    Args:
        match: conditions of the profile, all of which must hold: `device_tree_model`, `gpu_name` and
            `cpu_model` (lists of texts, one of which must stand in the name as whole words, capitals aside),
            `arch` (text), `features` (list, all of which every core must have), `min_memory_mib` and
            `max_memory_mib` (MiB of the memory that the kernel manages; told apart by them only where that can be
            read). None and empty values are not conditions. Without a condition, or with one that this version
            does not know or cannot read, no host matches.
        machine: the host, from `identify`.

    Returns:
        The decision, and its reason: what holds, or "this host is X, not a board with Y".
    """
    given = {key: value for key, value in match.items() if value not in (None, "", [], ())}
    if not given.keys() - set(MEMORY_KEYS):
        return False, f"this host is {machine.label}; the profile says nothing by which to know its board"
    met: list[str] = []
    unmet: list[str] = []
    limits = {key: value for key in MEMORY_KEYS if type(value := given.get(key)) is int}
    conditions = [_holds(key, value, machine) for key, value in given.items() if key not in limits]
    if limits:
        conditions.append(_memory_holds(limits, machine))
    for holds, words in conditions:
        (met if holds else unmet).append(words)
    if unmet:
        return False, f"this host is {machine.label}, not a board with {' and '.join(unmet)}"
    return True, f"this host is {machine.label}, with {' and '.join(met)}"


def _holds(key: str, value: object, machine: Machine) -> tuple[bool, str]:
    """Whether one condition holds, and the condition in words."""
    wanted = _texts(value)
    if key not in MATCH_KEYS or wanted is None:
        return False, f"{key} {value!r}, which this version cannot check"
    if key == "arch":
        arches = [ARCHES.get(text.lower(), text.lower()) for text in wanted]
        return machine.arch in arches, f"arch {' or '.join(arches)}"
    if key == "features":
        missing = [text for text in wanted if text not in machine.features]
        return not missing, f"features {' '.join(missing or wanted)}"
    names = {
        "device_tree_model": (machine.device_tree_model or "",),
        "gpu_name": machine.gpu_names,
        "cpu_model": (machine.cpu_model or "",),
    }
    hit = any(_stands_in(text, name) for text in wanted for name in names[key])
    return hit, f"{key} containing {' or '.join(repr(text) for text in wanted)}"


def _memory_holds(limits: Mapping[str, int], machine: Machine) -> tuple[bool, str]:
    """Whether the memory lies in a range, and the range in words; where it cannot be read, names alone decide."""
    least, most = (limits.get(key) for key in MEMORY_KEYS)
    if least is not None and most is not None:
        words = f"{least} to {most} MiB"
    else:
        words = f"at least {least} MiB" if most is None else f"at most {most} MiB"
    if machine.total_memory_bytes is None:
        reason = machine.reasons.get("total_memory_bytes", "not told")
        return True, f"memory that could not be compared with {words} ({reason})"
    found_mib = machine.total_memory_bytes / MIB
    holds = (least is None or found_mib >= least) and (most is None or found_mib <= most)
    return holds, f"{words} of memory (it has {found_mib:.0f})"


def _texts(value: object) -> list[str] | None:
    if isinstance(value, str):
        return [value] if value else None
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, str) and item for item in value):
        return list(value)
    return None


def _stands_in(words: str, name: str) -> bool:
    """Whether whole words stand in a name, capitals aside: an L4 is no L40S, a Raspberry Pi 5 no 500."""
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", name, re.IGNORECASE) is not None
