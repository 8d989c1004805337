"""Columns of the logs of meters: which meter wrote a header, and quantity and unit of each column.

A column or unit that is not known is refused: a wrong unit would give a wrong figure without a sign.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qslm_edge.errors import InputError

__all__ = ["FORMATS", "Format", "guess_format", "read_column"]

_CELL = re.compile(r"([a-z]+)(?:[ _]*[\[(]?[ _]*([munµμ]?[svaw])[\])]?)?")
_QUANTITIES = {
    **dict.fromkeys(("timestamp", "time", "t"), "time"),
    **dict.fromkeys(("voltage", "volts"), "voltage"),
    **dict.fromkeys(("current", "amps"), "current"),
    **dict.fromkeys(("power", "watts"), "power"),
}
_BASE = {"time": "s", "voltage": "v", "current": "a", "power": "w"}
_PREFIX = {"": 1.0, "m": 1e-3, "u": 1e-6, "µ": 1e-6, "μ": 1e-6, "n": 1e-9}
_UNITS = {"time": "s, ms or us", "voltage": "V or mV", "current": "A, mA or uA", "power": "W, mW or uW"}


@dataclass(frozen=True)
class Format:
    """What a meter writes.

    Args:
        ignored: columns that are known and not needed, as a pattern.
        bare_units: True if columns without a unit are in seconds, volts, amperes and watts.
    """

    ignored: str
    bare_units: bool = False


FORMATS: dict[str, Format] = {
    "ppk2": Format(r"bits|d[0-7](-d[0-7])?"),
    "joulescope": Format(r"charge.*|energy.*|current_range|gpi[0-9]*|gpi\[[0-9]\]", bare_units=True),
    "fnb58": Format(r"sample_in_packet|dp_v|dn_v|temp_c(_ema)?|energy_w[sh]|capacity_a[sh]", bare_units=True),
    "ptdaemon": Format(r".*"),
    "generic": Format(r"(?!)"),
}


def guess_format(header: Sequence[str]) -> str:
    """Key of the format whose meter writes such a header."""
    names = [cell.lower().lstrip("# ") for cell in header]
    if names[0] == "time" and "watts" in names:
        return "ptdaemon"
    if any(name.startswith("d0") or name == "bits" for name in names):
        return "ppk2"
    if "sample_in_packet" in names or "dp_v" in names:
        return "fnb58"
    if any(name.startswith("charge") for name in names) or "current_range" in names:
        return "joulescope"
    return "generic"


def read_column(cell: str, form: str, where: str) -> tuple[str, float] | None:
    """Quantity and factor to SI units of a column; None for one that is known and not needed."""
    name = cell.lower().lstrip("# ").strip()
    if re.fullmatch(FORMATS[form].ignored, name):
        return None
    match = _CELL.fullmatch(name)
    quantity = _QUANTITIES.get(match[1]) if match else None
    if match is None or quantity is None:
        raise InputError(
            "unknown column",
            where=where,
            found=cell[:40] or "an empty name",
            allowed="time, voltage, current and power with their units, e.g. timestamp_s,power_w",
            hint=f"name the meter by --format ({', '.join(FORMATS)}), or remove the column",
        )
    unit = match[2]
    if unit is None and FORMATS[form].bare_units:
        return quantity, 1.0
    if unit is None or unit[-1] != _BASE[quantity]:
        raise InputError("unknown unit", where=where, found=cell[:40], allowed=_UNITS[quantity])
    return quantity, _PREFIX[unit[:-1]]
