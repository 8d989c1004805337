"""The limits that a bundle must meet, and reading them from a manifest or as a user writes them.

A limit is None where there is none. What the user gives replaces what the bundle says. Quantities carry their
unit, since 20 could be seconds or milliseconds: a bare number is refused but for tokens/s.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from qslm_edge.errors import BundleError, UsageError

__all__ = ["Limits", "limits_in_force", "parse_joules", "parse_seconds", "parse_speed"]

_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_JOULES = {"j": 1.0, "mj": 1e-3, "uj": 1e-6, "µj": 1e-6}
_SPEEDS = {"": 1.0, "tokens/s": 1.0, "tok/s": 1.0, "t/s": 1.0}
_MAX = 1e12


@dataclass(frozen=True)
class Limits:
    """What is allowed; None is no limit.

    Attributes:
        max_degradation: perplexity increase, or accuracy drop in percentage points.
        weights_budget_bytes: packed weights.
        memory_budget_bytes: peak of a process that decodes.
        max_latency_s: 95th percentile of the latency of a decoded token.
        min_decode_tokens_per_s: decoding speed over the whole timed run.
        max_energy_j_per_token: energy of a decoded token, idle part included (gross).
    """

    max_degradation: float | None = None
    weights_budget_bytes: int | None = None
    memory_budget_bytes: int | None = None
    max_latency_s: float | None = None
    min_decode_tokens_per_s: float | None = None
    max_energy_j_per_token: float | None = None

    @property
    def of_speed_or_energy(self) -> bool:
        """Whether any limit is on a figure that belongs to one machine."""
        own = (self.max_latency_s, self.min_decode_tokens_per_s, self.max_energy_j_per_token)
        return any(limit is not None for limit in own)

    def to_dict(self) -> dict[str, Any]:
        """All limits, ready for JSON."""
        return asdict(self)


def limits_in_force(constraints: Mapping[str, Any], asked: Limits, where: object = None) -> Limits:
    """The limits of a bundle, each replaced by that of the user where there is one.

    Args:
        constraints: section of the manifest; keys of speed and energy are absent in older bundles.
        asked: the user's.
        where: named in the error.

    Raises:
        BundleError: a limit that is no finite number, or no positive one where only such make sense.
    """
    found: dict[str, Any] = {}
    for item in fields(Limits):
        own = getattr(asked, item.name)
        value = constraints.get(item.name) if own is None else own
        if value is not None and not _sound(item.name, value):
            raise BundleError(
                "not a limit",
                where=f"{where}: constraints.{item.name}",
                found=value,
                allowed="a number above 0",
            )
        found[item.name] = value
    return Limits(**found)


def _sound(name: str, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    return name == "max_degradation" or value > 0


def parse_seconds(text: str, flag: str) -> float:
    """Seconds from `20ms`, `0.5 s` or `800us`.

    Raises:
        UsageError: no number, no or another unit, 0, or absurd.
    """
    return _parse(text, flag, _SECONDS, "a positive time with s, ms or us, e.g. 20ms")


def parse_joules(text: str, flag: str) -> float:
    """Joules from `5mJ`, `0.5 J` or `800uJ`.

    Raises:
        UsageError: no number, no or another unit, 0, or absurd.
    """
    return _parse(text, flag, _JOULES, "a positive energy with J, mJ or uJ, e.g. 5mJ")


def parse_speed(text: str, flag: str) -> float:
    """Tokens per second from `50` or `50 tokens/s`.

    Raises:
        UsageError: no number, another unit, 0, or absurd.
    """
    return _parse(text, flag, _SPEEDS, "a positive number of tokens/s, e.g. 50")


def _parse(text: str, flag: str, units: Mapping[str, float], allowed: str) -> float:
    match = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*([A-Za-zµ/]*)\s*", text)
    factor = units.get(match[2].lower()) if match else None
    # a division by 1000 is exact where a product with 1e-3 is not: 20ms is 0.02
    value = 0.0 if match is None or factor is None else float(match[1]) / round(1 / factor)
    if not 0 < value <= _MAX:
        raise UsageError("not a quantity of this kind", where=flag, found=repr(text), allowed=allowed)
    return value
