"""Logs of external meters: Nordic PPK2, Joulescope, FNIRSI FNB58, PTDaemon, and the plain `timestamp_s,power_w`.

A row that cannot be read is left out, and the gap rule of the integrator
judges what is left. Nothing is scaled, smoothed or filled.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qslm_edge.errors import InputError
from qslm_edge.runner.power.meter_columns import guess_format, read_column

__all__ = ["MeterLog", "read_log"]

MAX_LOG_BYTES = 512 * 2**20
MAX_LINE = 4096
MAX_POWER_W = 10_000.0
MAX_STAMP_S = 1e11
MAX_FALL_S = 0.25  # loggers that read packets stamp them a little out of order
EPOCH_S = (1e9, 4e9)  # 2001 to 2096: such a stamp is wall-clock time, a smaller one counts from the start
PTD_TIME = "%m-%d-%Y %H:%M:%S.%f"


@dataclass(frozen=True)
class MeterLog:
    """Power over time as a meter saw it.

    Args:
        name: file name.
        sha256: of the file.
        form: key in FORMATS.
        time_s: stamps in seconds, never falling.
        power_w: power at each of them.
        is_epoch: True if stamps count from 1970 by a wall clock, False if from the start of the log.
        n_left_out: rows that could not be read.
        notes: what a reader of the figure must know.
    """

    name: str
    sha256: str
    form: str
    time_s: NDArray[np.float64]
    power_w: NDArray[np.float64]
    is_epoch: bool
    n_left_out: int
    notes: tuple[str, ...]

    @property
    def period_s(self) -> float:
        """Median time between two readings."""
        return float(np.median(np.diff(self.time_s)))


def _digest(path: Path) -> str:
    """sha256 of the file, after its size."""
    try:
        size = path.stat().st_size
        if size > MAX_LOG_BYTES:
            raise InputError(
                "the log is too large",
                where=path,
                found=f"{size / 2**20:.0f} MiB",
                allowed=f"{MAX_LOG_BYTES // 2**20} MiB",
                hint="export it at a lower rate, or only the part of the run",
            )
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while part := file.read(2**20):
                digest.update(part)
    except OSError as error:
        raise InputError("the log cannot be read", where=path, found=error.strerror) from None
    return digest.hexdigest()


def _lines(path: Path) -> Iterator[str]:
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                number += 1
                yield line
    except OSError as error:
        raise InputError("the log cannot be read", where=path, found=error.strerror) from None
    except UnicodeDecodeError:
        raise InputError(
            "the log is not UTF-8 text",
            where=path,
            found=f"other bytes after line {number}",
            hint="export it as CSV",
        ) from None


def _split(line: str) -> list[str]:
    """Cells of a line: separated by semicolons (then commas are decimal), commas, tabs or blanks."""
    separator = next((mark for mark in ";," if mark in line), None)
    cells = (line.replace(",", ".") if separator == ";" else line).split(separator)
    return [cell.strip().strip('"') for cell in cells]


@dataclass(frozen=True)
class _Plan:
    """Where in a row the time and the power stand."""

    time: tuple[int, float]
    power: tuple[int, float] | None
    voltage: tuple[int, float] | None
    current: tuple[int, float] | None
    supply_v: float | None

    def row(self, cells: Sequence[str]) -> tuple[float, float]:
        """Time in seconds and power in watts; ValueError or IndexError for a row that cannot be read."""
        time_s = _stamp(cells[self.time[0]]) * self.time[1]
        if self.power is not None:
            power_w = _number(cells, self.power)
        elif self.current is not None:
            volts = _number(cells, self.voltage) if self.voltage is not None else self.supply_v or math.nan
            power_w = volts * _number(cells, self.current)
        else:
            power_w = math.nan
        if not abs(power_w) <= MAX_POWER_W or not abs(time_s) <= MAX_STAMP_S:
            raise ValueError("not a plausible number")
        return time_s, power_w


def _number(cells: Sequence[str], column: tuple[int, float]) -> float:
    return float(cells[column[0]]) * column[1]


def _stamp(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return datetime.fromisoformat(cell.replace("Z", "+00:00")).timestamp()


def _plan(header: Sequence[str], form: str, where: str, supply_v: float | None) -> _Plan:
    found: dict[str, tuple[int, float]] = {}
    for number, cell in enumerate(header):
        column = read_column(cell, form, where)
        if column is None:
            continue
        if column[0] in found:
            raise InputError(f"two columns of {column[0]}", where=where, found=cell[:40])
        found[column[0]] = (number, column[1])
    power, voltage, current = (found.get(name) for name in ("power", "voltage", "current"))
    if "time" not in found:
        raise InputError("no column of time", where=where, found=", ".join(header)[:80])
    if power is None and current is None:
        raise InputError("no column of power, nor one of current", where=where, found=", ".join(header)[:80])
    if power is None and voltage is None and supply_v is None:
        raise InputError(
            "the log has a current and no voltage", where=where, hint="give the voltage set by --supply-v"
        )
    if supply_v is not None and (power is not None or voltage is not None):
        raise InputError("--supply-v is for a log without voltage", where=where, found=", ".join(header)[:80])
    return _Plan(found["time"], power, voltage, current, supply_v)


def _ptd_row(line: str) -> tuple[float, float]:
    """Time,<stamp>,Watts,<number>,...: names and values take turns. The stamp is the local time of the meter's host."""
    cells = _split(line)
    pairs = dict(zip(cells[::2], cells[1::2], strict=False))
    time_s = datetime.strptime(pairs["Time"], PTD_TIME).timestamp()  # noqa: DTZ007 - the log names no zone
    power_w = float(pairs["Watts"])
    if not abs(power_w) <= MAX_POWER_W:
        raise ValueError("not a plausible number")
    return time_s, power_w


def _rows(
    lines: Iterable[str], form: str, path: Path, supply_v: float | None
) -> Iterator[tuple[int, tuple[float, float] | None]]:
    """Number of each line of data, and its time and power; None for one that cannot be read."""
    plan: _Plan | None = None
    header: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or (plan is not None and line.startswith("#")):
            continue
        if form != "ptdaemon" and plan is None:
            header = _split(line)
            plan = _plan(header, form, f"{path}, line {number}", supply_v)
            continue
        try:
            if len(line) > MAX_LINE:
                yield number, None
            elif plan is None:
                yield number, _ptd_row(line)
            else:
                cells = _split(line)
                if cells == header:  # a logger that was started again
                    continue
                yield number, plan.row(cells) if len(cells) == len(header) else None
        except (ValueError, LookupError, OverflowError, OSError):
            yield number, None


def read_log(path: Path, form: str = "auto", supply_v: float | None = None) -> MeterLog:
    """Read the log of a meter.

    Args:
        path: the file.
        form: key in FORMATS, or "auto" to tell it by the header.
        supply_v: voltage of the supply, for a meter that measures current alone.

    Raises:
        InputError: not readable, an unknown column or unit, no voltage, a clock that was set back.
    """
    digest = _digest(path)
    first = next((line for line in _lines(path) if line.strip()), None)
    if first is None:
        raise InputError("the log is empty", where=path)
    if form == "auto":
        form = guess_format(_split(first[:MAX_LINE]))
    times, powers = array("d"), array("d")
    left_out: list[int] = []
    last = 0
    for number, row in _rows(_lines(path), form, path, supply_v):
        last = number
        if row is None:
            left_out.append(number)
        else:
            times.append(row[0])
            powers.append(row[1])
    if len(times) < 2:
        found = f"{len(times)} readings, {len(left_out)} lines that cannot be read"
        raise InputError("the log holds no power over time", where=path, found=found, allowed=f"{form} rows")
    notes = []
    if left_out == [last]:
        notes.append(f"line {last}, the last, is cut short and left out")
    elif left_out:
        notes.append(
            f"{len(left_out)} lines cannot be read and are left out, the first is line {left_out[0]}"
        )
    time_s, power_w = np.array(times), np.array(powers)
    fall_s = float(-np.diff(time_s).min())
    if fall_s > MAX_FALL_S:
        place = int(np.argmin(np.diff(time_s))) + 2
        raise InputError(
            "the clock of the log goes back",
            where=path,
            found=f"{fall_s:.3g} s before reading {place}",
            hint="the clock was set, or two logs stand in one file: give the part of the run alone",
        )
    if fall_s > 0:
        order = np.argsort(time_s, kind="stable")
        time_s, power_w = time_s[order], power_w[order]
        notes.append(f"stamps out of order by up to {fall_s:.3g} s were sorted")
    if form == "ptdaemon":
        notes.append("stamps are read as local time of this machine")
    if supply_v is not None:
        notes.append(f"power is current x {supply_v:g} V, as given: the supply was not measured")
    is_epoch = EPOCH_S[0] <= float(time_s[0]) <= EPOCH_S[1]
    return MeterLog(path.name, digest, form, time_s, power_w, is_epoch, len(left_out), tuple(notes))
