"""The search space: the list of precision levels, and which of them a module can really take.

Levels go from largest to smallest. A module keeps float32 where nothing else is possible (columns that no group
size divides), and a binary embedding is its signs at every level, which loses nothing. Where cuts are allowed, the two
matrices of an SRFFN can take every level at every number of hidden units as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from qslm_edge.errors import UsageError
from qslm_edge.quantize.levels import FLOAT32, GROUP_SIZES, SIGN, Level, Setting
from qslm_edge.spikegpt.config import SpikeGPTConfig
from qslm_edge.spikegpt.hierarchy import Hierarchy, Module

__all__ = ["LevelMap", "check_levels", "cut_sizes"]

CUT_SIZES = 6
"""Cuts that are offered at the most: each makes as many cells of the table as there are levels."""
SMALLEST_STEP = min(GROUP_SIZES)


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


def cut_sizes(value: Module, share: float, levels: Iterable[Level]) -> tuple[int, ...]:
    """Numbers of hidden units, falling, that an SRFFN may be cut to.

    Multiples of the largest group, so that a cut matrix can take every level that the whole one can.

    Args:
        value: ffn.value, whole.
        share: of the hidden units that may be cut at the most, above 0 and below 1.
        levels: as `value` takes them.

    Raises:
        UsageError: the share is less than one group, or leaves none.
    """
    step = max((level.group_size or SMALLEST_STEP for level in levels), default=SMALLEST_STEP)
    fewest = max(1, math.ceil(value.columns * (1 - share) / step)) * step
    sizes = list(range(fewest, value.columns, step))
    if not sizes:
        raise UsageError(
            "the share is too small to cut a group of hidden units",
            where="--cut-hidden",
            found=f"{share:g} of {value.columns} units",
            allowed=f"{step / value.columns:g} or more" if value.columns > step else None,
            hint=f"groups hold {step}: allow smaller ones with --levels, e.g. 4g{SMALLEST_STEP}",
        )
    return tuple(reversed(sizes[:: math.ceil(len(sizes) / CUT_SIZES)]))


@dataclass(frozen=True)
class LevelMap:
    """What a requested level becomes for a module of one model.

    Attributes:
        config: sizes.
        cuts: hidden units that an SRFFN may be cut to, falling.
    """

    config: SpikeGPTConfig
    cuts: tuple[int, ...] = ()

    def wanted(self, levels: Iterable[Level]) -> tuple[Level, ...]:
        """The levels, then the levels with every cut."""
        whole = tuple(levels)
        return whole + tuple(replace(level, units=n_units) for n_units in self.cuts for level in whole)

    def level(self, module: Module, wanted: Level) -> Level:
        """The level that the module takes when the search asks for `wanted`.

        Raises:
            UsageError: a cut to more hidden units than there are.
        """
        if module.hidden is None or wanted.units == module.n_hidden:
            wanted = wanted.whole
        if wanted.units is not None and wanted.units > (module.n_hidden or 0):
            raise UsageError(
                "more hidden units than the model has",
                where=module.name,
                found=wanted,
                allowed=f"{module.n_hidden} or fewer",
            )
        module = module.with_hidden(wanted.units)
        if wanted.simulated:
            return wanted
        if module.kind == "embedding" and self.config.embedding == "binary":
            return FLOAT32 if module.columns % 8 else SIGN
        if not wanted.is_packed:
            return wanted
        usable = [g for g in GROUP_SIZES if module.columns % g == 0 and g <= (wanted.group_size or 0)]
        if not usable:
            return replace(FLOAT32, units=wanted.units)
        group = max(usable)
        # activations of an embedding do not exist: rows are looked up, not multiplied
        accuracy = 0 if module.kind == "embedding" else wanted.accuracy_level
        return replace(wanted, group_size=group, accuracy_level=accuracy)

    def setting(self, hierarchy: Hierarchy, wanted: Level) -> Setting:
        """Every module at one level."""
        return Setting(tuple((module.name, self.level(module, wanted)) for module in hierarchy.modules))
