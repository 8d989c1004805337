"""The kinds of core of a processor, each with its number and its highest clock.

A big.LITTLE board has several kinds. The name of a core comes from /proc/cpuinfo, its highest clock from
cpufreq; a virtual machine or container often has no cpufreq, and then the kinds have no clock.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qslm_edge.runner.machine import ARM_CORES
from qslm_edge.runner.observe import read_int, read_text

__all__ = ["CoreKind", "read_cores"]

CPU = "sys/devices/system/cpu"


@dataclass(frozen=True)
class CoreKind:
    """Cores of one kind.

    Attributes:
        count: how many the system shows (hardware threads count as cores).
        model: name, e.g. "Cortex-A76".
        max_hz: highest clock in hertz, None when it cannot be read.
    """

    count: int
    model: str
    max_hz: int | None

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


def read_cores(root: Path = Path("/")) -> tuple[CoreKind, ...]:
    """Kinds of core in the order of their numbers; empty where /proc/cpuinfo names none.

    Args:
        root: "/" on a host, a folder with the same tree in a test.
    """
    text = read_text(root, "proc/cpuinfo", strict=False).value or ""
    kinds: Counter[tuple[str, int | None]] = Counter()
    for number, name in _names(text):
        clock = read_int(root, f"{CPU}/cpu{number}/cpufreq/cpuinfo_max_freq", low=1, high=10**8)
        kinds[name, None if clock.value is None else clock.value * 1000] += 1
    return tuple(CoreKind(count, name, max_hz) for (name, max_hz), count in kinds.items())


def _names(cpuinfo: str) -> list[tuple[int, str]]:
    """Number and name of each core."""
    found = []
    for section in re.split(r"\n[ \t]*\n", cpuinfo):
        fields = dict(re.findall(r"^([^\t:\n]+?)[ \t]*:[ \t]*(.*?)[ \t]*$", section, re.MULTILINE))
        number = fields.get("processor", "")
        name = _arm_name(fields) or fields.get("model name")
        if re.fullmatch(r"[0-9]{1,4}", number) and name:
            found.append((int(number), name))
    return found


def _arm_name(fields: dict[str, str]) -> str | None:
    maker, part = fields.get("CPU implementer"), fields.get("CPU part")
    if maker is None or part is None:
        return None
    try:
        name = ARM_CORES.get((int(maker, 16), int(part, 16)))
    except ValueError:
        name = None
    return name or f"ARM implementer {maker} part {part}"
