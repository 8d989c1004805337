"""Precision levels: how one matrix is stored, and how its activations are rounded on the device.

A level is a width with what belongs to it: 32 and 16 bits are float storage (computed in float32), 8, 4 and 2 bits are
packed affine codes in groups along the columns, 1 bit is the sign table of a binary embedding. Text form: `32`, `16`,
`8g64`, `4g128`; with float activations at a packed width, `4g64f`; with mid-rise values, `2g64m`; simulated per-tensor
levels `q6`. The two matrices of an SRFFN that keep 768 hidden units only are at `4g64@768`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from qslm_edge.errors import UsageError

__all__ = ["FLOAT16", "FLOAT32", "SIGN", "Level", "Setting", "parse_level"]

PACKED_BITS = (8, 4, 2)
MIDRISE_BITS = 2
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Level:
    """One precision level.

    Attributes:
        bits: 32, 16, 8, 4, 2, or 1 (sign of a binary embedding).
        group_size: columns that share a scale and a zero point; None for float and sign levels.
        accuracy_level: as ONNX Runtime's MatMulNBits: 4 = activations rounded to int8 per row and group, 0 = float
            activations. Has no meaning for the embedding.
        midrise: the values of a group lie symmetrically about zero, s {-1.5, -0.5, 0.5, 1.5}, without a zero point.
            For 2 bits, where a value spent on zero is a quarter of all.
        simulated: per-tensor simulated quantisation of any width (the paper's scheme): never exported.
        units: hidden units of the SRFFN that are left of its matrix, the others being cut; None: all. Key and value
            of a layer keep the same.
    """

    bits: int
    group_size: int | None = None
    accuracy_level: int = 0
    simulated: bool = False
    midrise: bool = False
    units: int | None = None

    @property
    def is_packed(self) -> bool:
        return self.bits in PACKED_BITS and not self.simulated

    @property
    def is_float(self) -> bool:
        return self.bits >= 16 and not self.simulated

    @property
    def whole(self) -> Level:
        """The same without a cut."""
        return replace(self, units=None)

    def __str__(self) -> str:
        if self.simulated:
            return f"q{self.bits}"
        left = "" if self.units is None else f"@{self.units}"
        if not self.is_packed:
            return f"{self.bits}{left}"
        ends = ("m" if self.midrise else "") + ("f" if self.accuracy_level == 0 else "")
        return f"{self.bits}g{self.group_size}{ends}{left}"


FLOAT32, FLOAT16, SIGN = Level(32), Level(16), Level(1)
_PATTERN = re.compile(r"(32|16|8|4|2|1)(?:g(32|64|128)(m?)(f?))?(?:@([1-9][0-9]{0,5}))?")


def parse_level(text: str, where: str | None = None) -> Level:
    """Level from its text form.

    Args:
        text: such as 4g64.
        where: it stands, for the message.

    Raises:
        UsageError: for anything that `str(level)` cannot give.
    """
    if simulated := re.fullmatch(r"q([2-9]|1[0-6])", text.strip()):
        return Level(int(simulated[1]), simulated=True)
    match = _PATTERN.fullmatch(text.strip())
    if (
        match is None
        or (match[2] is None) == (int(match[1]) in PACKED_BITS)
        or (match[3] and int(match[1]) != MIDRISE_BITS)
        or (match[5] and int(match[1]) == 1)
    ):
        raise UsageError(
            "not a precision level",
            where=where,
            found=repr(text),
            allowed="32, 16, <8|4|2>g<32|64|128>, e.g. 4g64, mid-rise 2g64m, or simulated q16 to q2; with cut "
            "hidden units e.g. 4g64@768",
        )
    units = int(match[5]) if match[5] else None
    if match[2] is None:
        return Level(int(match[1]), units=units)
    return Level(int(match[1]), int(match[2]), 0 if match[4] else 4, midrise=bool(match[3]), units=units)


@dataclass(frozen=True)
class Setting:
    """A level for every module, in hierarchy order: what the search looks for and the exporter writes."""

    levels: tuple[tuple[str, Level], ...]

    @classmethod
    def uniform(cls, names: Iterable[str], level: Level) -> Setting:
        return cls(tuple((name, level) for name in names))

    @classmethod
    def from_dict(cls, data: Mapping[str, str]) -> Setting:
        return cls(tuple((name, parse_level(text)) for name, text in data.items()))

    def to_dict(self) -> dict[str, str]:
        return {name: str(level) for name, level in self.levels}

    def __getitem__(self, module: str) -> Level:
        for name, level in self.levels:
            if name == module:
                return level
        raise KeyError(module)

    def with_levels(self, changes: Mapping[str, Level]) -> Setting:
        """The same setting with some modules at other levels."""
        return Setting(tuple((name, changes.get(name, level)) for name, level in self.levels))

    def describe(self) -> str:
        """Shortest fair description: the one level, or how many modules have each.

        An embedding multiplies nothing, so how activations are rounded is not said of it. Cuts follow on their own:
        how many layers keep how many hidden units.
        """
        counts: dict[str, int] = {}
        bits: dict[str, int] = {}
        products = {str(level.whole) for name, level in self.levels if name != "emb"}
        for name, level in self.levels:
            label = str(level.whole)
            if name == "emb" and label not in products:
                label = label.removesuffix("f")
            counts[label] = counts.get(label, 0) + 1
            bits[label] = level.bits
        ordered = sorted(counts.items(), key=lambda item: -bits[item[0]])
        levels = ordered[0][0] if len(ordered) == 1 else ", ".join(f"{n} × {level}" for level, n in ordered)
        cut = [level.units for name, level in self.levels if name.endswith("ffn.value") and level.units]
        sizes = [f"{cut.count(size)} × {size}" for size in sorted(set(cut), reverse=True)]
        return f"{levels}; SRFFN cut to {', '.join(sizes)}" if sizes else levels
