"""Readers of the conditions of a measurement: clocks, temperatures, throttling, power mode, load, memory.

A flat set of named values, each with its source or the reason why it is absent. A thermal zone that answers
EAGAIN, as those of gated units do, is read once more and is then absent: never 0. Nothing here changes the
machine.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qslm_edge.runner.memory import available_bytes
from qslm_edge.runner.observe import Observed, is_live, list_paths, read_int, read_text, run_command
from qslm_edge.runner.power.base import Unavailable
from qslm_edge.runner.power.nvml import ask_nvml, gpu_handles, start_nvml

__all__ = ["Conditions", "read_clocks", "read_conditions"]

Command = Callable[[Sequence[str]], Observed[str]]

CPU = "sys/devices/system/cpu"


@dataclass(frozen=True)
class Conditions:
    """Named values at one moment, e.g. `cpu.policy0.clock_hz`, `thermal.zone0.celsius`, `counter.oc1`.

    Args:
        values: each value with its source, or None with the reason. Clocks are in hertz, memory in bytes,
            temperatures in degrees Celsius, times in seconds.
    """

    values: Mapping[str, Observed[Any]]

    def get(self, name: str) -> Any | None:
        """A value, or None if it is absent or was not looked for."""
        found = self.values.get(name)
        return None if found is None else found.value

    def to_dict(self) -> dict[str, dict[str, object]]:
        """Every value with source and reason, ready for JSON."""
        return {name: item.to_dict() for name, item in self.values.items()}

    @staticmethod
    def from_dict(stored: Mapping[str, Mapping[str, Any]]) -> Conditions:
        """What `to_dict` gave."""
        return Conditions({name: Observed(**entry) for name, entry in stored.items()})


Values = dict[str, Observed[Any]]


def _absent(source: str, reason: str) -> Observed[Any]:
    return Observed(None, source, reason)


def _clocks(root: Path, values: Values) -> None:
    values["cpu.online"] = read_text(root, f"{CPU}/online")
    # A policy is the cores that share one clock; where only folders of cores exist, each is one.
    folders = list_paths(root, f"{CPU}/cpufreq/policy*") or list_paths(root, f"{CPU}/cpu[0-9]*/cpufreq")
    if not folders:
        values["cpu.governor"] = _absent(f"/{CPU}/cpufreq", "no clock control (virtual machine or container)")
    for folder in folders:
        name = folder.rsplit("/", 1)[-1] if "/policy" in folder else folder.split("/")[-2]
        values[f"cpu.{name}.governor"] = read_text(root, f"{folder}/scaling_governor")
        for key, file in (("clock_hz", "scaling_cur_freq"), ("max_clock_hz", "scaling_max_freq")):
            khz = read_int(root, f"{folder}/{file}", low=1, high=10**8)
            values[f"cpu.{name}.{key}"] = khz.map(lambda number: number * 1000)
    for folder in list_paths(root, "sys/class/devfreq/*"):
        name = folder.rsplit("/", 1)[-1]
        for key, file in (("clock_hz", "cur_freq"), ("max_clock_hz", "max_freq")):
            values[f"devfreq.{name}.{key}"] = read_int(root, f"{folder}/{file}", low=0, high=10**11)


def _thermal(root: Path, values: Values) -> None:
    folders = list_paths(root, "sys/class/thermal/thermal_zone*")
    if not folders:
        values["thermal"] = _absent("/sys/class/thermal", "no thermal zones")
    for folder in folders:
        zone = f"thermal.{folder.rsplit('_', 1)[-1]}"
        values[f"{zone}.type"] = read_text(root, f"{folder}/type")
        milli = read_int(root, f"{folder}/temp", low=-40_000, high=200_000)
        values[f"{zone}.celsius"] = milli.map(lambda number: number / 1000)
        trips: list[Observed[float]] = []
        for path in list_paths(root, f"{folder}/trip_point_*_type"):
            if read_text(root, path).value == "passive":
                trip = read_int(root, f"{path.removesuffix('_type')}_temp", low=1, high=200_000)
                trips.append(trip.map(lambda number: number / 1000))
        known = [trip for trip in trips if trip.value is not None]
        if known:
            values[f"{zone}.passive_trip_celsius"] = min(known, key=lambda trip: trip.value or 0.0)


def _counters(root: Path, values: Values) -> None:
    for kind in ("core", "package"):
        name = f"{kind}_throttle_count"
        paths = list_paths(root, f"{CPU}/cpu[0-9]*/thermal_throttle/{name}")
        found = [read_int(root, path, low=0).value for path in paths]
        known = [number for number in found if number is not None]
        if (
            known
        ):  # cores of a package repeat its counter: the sum is no number of events, but it moves with them
            values[f"counter.intel_{name}"] = Observed(sum(known), f"/{CPU}/cpu*/thermal_throttle/{name}")
    for path in list_paths(root, "sys/class/hwmon/hwmon*/name"):
        folder, monitor = path.rsplit("/", 1)[0], read_text(root, path).value
        if monitor == "soctherm_oc":
            for event in list_paths(root, f"{folder}/oc*_event_cnt"):
                key = event.rsplit("/", 1)[-1].removesuffix("_event_cnt")
                values[f"counter.{key}"] = read_int(root, event, low=0)
        patterns = {"ina3221": ("curr*_crit_alarm", "curr*_max_alarm"), "rpi_volt": ("in0_lcrit_alarm",)}
        for pattern in patterns.get(monitor or "", ()):
            for alarm in list_paths(root, f"{folder}/{pattern}"):
                key = f"{folder.rsplit('/', 1)[-1]}.{alarm.rsplit('/', 1)[-1]}"
                values[f"alarm.{key}"] = read_int(root, alarm, low=0)
    for path in list_paths(root, "sys/class/thermal/cooling_device*/type"):
        device = read_text(root, path).value or ""
        if device.endswith("-throttle-alert"):
            values[f"alarm.{device}"] = read_int(root, path.rsplit("/", 1)[0] + "/cur_state", low=0)


def _power_mode(root: Path, command: Command | None, values: Values) -> None:
    def by_tool(text: str) -> str:
        match = re.search(r"^NV Power Mode: *(\S+)$", text, re.MULTILINE)
        if match is None:
            raise ValueError("no line 'NV Power Mode'")
        return match.group(1)

    def number(text: str) -> int:
        match = re.search(r"pmode:0*([0-9]{1,4})\b", text)
        if match is None:
            raise ValueError("no 'pmode:' entry")
        return int(match.group(1))

    if command is not None:
        values["power.mode"] = command(["nvpmodel", "-q"]).map(by_tool)
        throttled = command(["vcgencmd", "get_throttled"])
        if throttled.value is not None:
            values["pi.throttled"] = throttled.map(lambda text: int(text.removeprefix("throttled="), 16))
    if command is None or values["power.mode"].value is None:
        status = read_text(root, "var/lib/nvpmodel/status").map(number)
        if status.value is None:
            values.setdefault("power.mode", _absent(status.source, f"no power modes: {status.reason}"))
            return
        # The number means something else on each board: the name stands in the configuration.
        table = read_text(root, "etc/nvpmodel.conf", strict=False)
        pattern = rf"<\s*POWER_MODEL\s+ID=0*{status.value}\s+NAME=(\S+)\s*>"
        match = re.search(pattern, table.value or "")
        values["power.mode"] = Observed(
            match.group(1) if match else None,
            f"{status.source}, {table.source}",
            None if match else f"mode {status.value} has no name: {table.reason or 'not in the table'}",
        )


def _gpus(live: bool, nvml: Any | None, values: Values) -> None:
    if nvml is None and not live:
        return
    module = start_nvml(nvml)
    if isinstance(module, Unavailable):
        values["gpu"] = _absent("NVML", module.reason)
        return
    _read_gpus(module, values)
    ask_nvml(module, "nvmlShutdown")


def _read_gpus(module: Any, values: Values) -> None:
    for index, name, handle in gpu_handles(module):
        key = f"gpu{index}"
        values[f"{key}.name"] = Observed(name, "nvmlDeviceGetName")
        values[f"{key}.throttle_reasons"] = ask_nvml(
            module, "nvmlDeviceGetCurrentClocksThrottleReasons", handle
        )
        values[f"{key}.celsius"] = ask_nvml(module, "nvmlDeviceGetTemperature", handle, 0)
        for field, function, clock in (
            ("clock_hz", "nvmlDeviceGetClockInfo", 1),  # 1 is NVML_CLOCK_SM
            ("max_clock_hz", "nvmlDeviceGetMaxClockInfo", 1),
            ("memory_clock_hz", "nvmlDeviceGetClockInfo", 2),  # 2 is NVML_CLOCK_MEM
        ):
            mhz = ask_nvml(module, function, handle, clock)
            values[f"{key}.{field}"] = mhz.map(lambda number: int(number) * 1_000_000)


def _load(root: Path, values: Values) -> None:
    load = read_text(root, "proc/loadavg")
    for position, name in enumerate(("load.1min", "load.5min", "load.15min")):

        def pick(text: str, position: int = position) -> float:
            try:
                return float(text.split()[position])
            except IndexError:
                raise ValueError(f"not a load average: {text[:40]!r}") from None

        values[name] = load.map(pick)

    def busy(text: str) -> float:
        match = re.search(r"^cpu +([0-9 ]+)$", text, re.MULTILINE)
        ticks = [int(part) for part in match.group(1).split()] if match else []
        if len(ticks) < 8:
            raise ValueError("no total line")
        # user, nice, system, irq, softirq and steal; idle and iowait are columns 3 and 4
        return sum(ticks[:3] + ticks[5:8]) / os.sysconf("SC_CLK_TCK")

    values["cpu.busy_s"] = read_text(root, "proc/stat").map(busy)
    if is_live(root):
        values["cpu.own_s"] = Observed(sum(os.times()[:4]), "os.times()")


def _memory(root: Path, values: Values) -> None:
    values["memory.available_bytes"] = available_bytes(root)
    text = read_text(root, "proc/meminfo")

    def swap(lines: str, name: str) -> int:
        match = re.search(rf"^{name}:[ \t]*([0-9]{{1,15}}) kB", lines, re.MULTILINE)
        if match is None:
            raise ValueError(f"no {name} line")
        return int(match.group(1)) * 1024

    values["swap.total_bytes"] = text.map(lambda lines: swap(lines, "SwapTotal"))
    values["swap.used_bytes"] = text.map(lambda lines: swap(lines, "SwapTotal") - swap(lines, "SwapFree"))


def read_clocks(root: Path = Path("/"), nvml: Any | None = None) -> Conditions:
    """Read what can change within a run and costs little: clocks, temperatures, throttle reasons of a GPU.

    Args:
        root: "/" on a host, a folder with the same tree in a test.
        nvml: a started module, so that no reading has to start it; None leaves GPUs out.
    """
    values: Values = {"time_s": Observed(time.monotonic(), "CLOCK_MONOTONIC")}
    _clocks(root, values)
    for folder in list_paths(root, "sys/class/thermal/thermal_zone*"):
        milli = read_int(root, f"{folder}/temp", low=-40_000, high=200_000)
        values[f"thermal.{folder.rsplit('_', 1)[-1]}.celsius"] = milli.map(lambda number: number / 1000)
    if nvml is not None:
        _read_gpus(nvml, values)
    return Conditions(values)


def read_conditions(
    root: Path = Path("/"), *, nvml: Any | None = None, command: Command | None = None
) -> Conditions:
    """Read the conditions of the moment; what the host does not have is absent with a reason.

    Args:
        root: "/" on a host, a folder with the same tree in a test: then no command or library is asked,
            unless it is given.
        nvml: a module with the functions of pynvml, for tests.
        command: runs a tool and gives its output, for tests.

    Returns:
        The values. Reading takes some milliseconds without a GPU.
    """
    live = is_live(root)
    values: Values = {"time_s": Observed(time.monotonic(), "CLOCK_MONOTONIC")}
    _clocks(root, values)
    _thermal(root, values)
    _counters(root, values)
    _power_mode(root, command or (run_command if live else None), values)
    _gpus(live, nvml, values)
    _load(root, values)
    _memory(root, values)
    return Conditions(values)
