"""Byte sizes as users write them: MB = 10^6, MiB = 2^20."""

from __future__ import annotations

import re
from decimal import Decimal

from qslm_edge.errors import UsageError

__all__ = ["parse_bytes"]

MAX_BYTES = 10**18
_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_bytes(text: str, flag: str) -> int:
    """Bytes from `400MB`, `1.5 GiB` or a plain number, rounded to whole bytes.

    Raises:
        UsageError: no number, unknown unit, less than a byte, or more than an exabyte.
    """
    match = re.fullmatch(r"\s*([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*([A-Za-z]*)\s*", text)
    unit = (match[2].lower() or "b") if match else ""
    size = round(Decimal(match[1]) * _UNITS[unit]) if match and unit in _UNITS else 0
    if not 0 < size <= MAX_BYTES:
        raise UsageError(
            "not a size",
            where=flag,
            found=repr(text),
            allowed="a positive number with B, kB, MB, GB, KiB, MiB or GiB",
        )
    return size
