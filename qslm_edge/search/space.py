"""The search space: the list of precision levels, and which of them a module can really take.

Levels go from largest to smallest. A module keeps float32 where nothing else is possible (columns that no group
size divides), and a binary embedding is its signs at every level, which loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from qslm_edge.errors import UsageError
from qslm_edge.quantize.levels import FLOAT32, GROUP_SIZES, SIGN, Level, Setting
from qslm_edge.spikegpt.config import SpikeGPTConfig
from qslm_edge.spikegpt.hierarchy import Hierarchy, Module

__all__ = ["LevelMap", "check_levels"]


def check_levels(levels: Iterable[Level]) -> tuple[Level, ...]:
    """Levels in falling order of bits per weight, each once.

    Raises:
        UsageError: an empty list.
    """
    unique = sorted(set(levels), key=lambda level: (-_cost(level), str(level)))
    if not unique:
        raise UsageError("no precision levels to search", where="--levels", allowed="e.g. 16,8,4")
    return tuple(unique)


def _cost(level: Level) -> float:
    """Bits per weight with scales and zero points."""
    if not level.is_packed:
        return float(level.bits)
    zero = 0 if level.midrise else level.bits
    return level.bits + (16 + zero) / (level.group_size or 1)


@dataclass(frozen=True)
class LevelMap:
    """What a requested level becomes for a module of one model."""

    config: SpikeGPTConfig

    def level(self, module: Module, wanted: Level) -> Level:
        """The level that the module takes when the search asks for `wanted`."""
        if wanted.simulated:
            return wanted
        if module.kind == "embedding" and self.config.embedding == "binary":
            return FLOAT32 if module.columns % 8 else SIGN
        if not wanted.is_packed:
            return wanted
        usable = [g for g in GROUP_SIZES if module.columns % g == 0 and g <= (wanted.group_size or 0)]
        if not usable:
            return FLOAT32
        group = max(usable)
        # activations of an embedding do not exist: rows are looked up, not multiplied
        accuracy = 0 if module.kind == "embedding" else wanted.accuracy_level
        return replace(wanted, group_size=group, accuracy_level=accuracy)

    def setting(self, hierarchy: Hierarchy, wanted: Level) -> Setting:
        """Every module at one level."""
        return Setting(tuple((module.name, self.level(module, wanted)) for module in hierarchy.modules))
