"""What a device profile says of power: the interface, the rails that make the total, a calibration.

It reaches the runner in the manifest of a bundle, so that its types are checked here once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qslm_edge.errors import BundleError

__all__ = ["Estimate", "PowerPlan"]


@dataclass(frozen=True)
class Estimate:
    """A published calibration: power of the board = slope x power of the rails + offset_w, in watts."""

    slope: float
    offset_w: float
    tag: str = "calibrated-estimate"

    def board_w(self, rails_w: float) -> float:
        """Estimated power of the whole board in watts."""
        return self.slope * rails_w + self.offset_w


@dataclass(frozen=True)
class PowerPlan:
    """What a device profile says of power, section [power]; empty for a host without a profile.

    Args:
        source: name of the interface.
        total: rails to add; for RAPL zones in order of preference; "*" takes every rail.
        parts: rails recorded beside the total, never added.
        skip: channels that are never read.
        scope: what the total covers, in words.
        estimate: calibration from the rails to the whole board.
    """

    source: str | None = None
    total: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    scope: str | None = None
    estimate: Estimate | None = None

    @classmethod
    def from_mapping(cls, data: Mapping[str, object]) -> PowerPlan:
        """The plan in a bundle's manifest (`profile.power`); every key is optional, others are passed over.

        Raises:
            BundleError: a value of the wrong type.
        """
        estimate = data.get("estimate")
        return cls(
            source=_text(data, "source"),
            total=_texts(data, "total"),
            parts=_texts(data, "parts"),
            skip=_texts(data, "skip"),
            scope=_text(data, "scope"),
            estimate=None if estimate is None else _estimate(estimate),
        )


def _wrong(key: str, found: object, allowed: str) -> BundleError:
    return BundleError(
        "wrong type", where=f"manifest.json: profile.power.{key}", found=repr(found)[:80], allowed=allowed
    )


def _text(data: Mapping[str, object], key: str) -> str | None:
    value = data.get(key)
    if value is None or isinstance(value, str):
        return value
    raise _wrong(key, value, "text")


def _texts(data: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = data.get(key)
    if value is None:
        return ()
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise _wrong(key, value, "a list of text")


def _estimate(value: object) -> Estimate:
    if isinstance(value, Mapping):
        slope, offset_w, tag = (value.get(key) for key in ("slope", "offset_w", "tag"))
        if isinstance(slope, (int, float)) and isinstance(offset_w, (int, float)) and isinstance(tag, str):
            return Estimate(float(slope), float(offset_w), tag)
    raise _wrong("estimate", value, "slope, offset_w and tag")
