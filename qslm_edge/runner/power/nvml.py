"""NVML: energy counter (nvmlDeviceGetTotalEnergyConsumption) and power (fields 185, 186) of an NVIDIA GPU.

The counter is used where it exists (Volta and newer): it integrates in the driver. nvmlDeviceGetPowerUsage
and field 185 are 1 s averages from Ampere on (but GA100) and lag a step by 1.0 to 1.2 s, which took 7 % off
a 6 s load on an H100; field 186 is the instant value. All of them are renewed each 100 ms. Average and
instant power are recorded beside the counter and not mixed into it.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qslm_edge.runner.observe import Observed, is_live
from qslm_edge.runner.power.base import Kind, PowerPlan, PowerSource, Reading, Unavailable

__all__ = [
    "FIELD_AVERAGE",
    "FIELD_INSTANT",
    "NvmlSource",
    "ask_nvml",
    "first_visible_gpu",
    "gpu_handles",
    "open_nvml",
    "start_nvml",
]

FIELD_AVERAGE = 185
FIELD_INSTANT = 186
AVERAGE_LAG_S = 1.2
MAX_POWER_MW = 10_000_000
MAX_ENERGY_MJ = 2**63
MODES = ("counter", "instant", "average")  # in order of preference


def start_nvml(module: Any | None = None) -> Any | Unavailable:
    """Load pynvml (package nvidia-ml-py) and initialise it.

    Args:
        module: a module with the same functions, for tests; None imports pynvml.

    Returns:
        The initialised module, or Unavailable with the reason: not installed, no driver, no permission.
    """
    if module is None:
        try:
            module = importlib.import_module("pynvml")
        except ImportError:
            return Unavailable("nvml", "pynvml is not installed (pip install nvidia-ml-py)")
    try:
        module.nvmlInit()
    except module.NVMLError as error:
        return Unavailable("nvml", f"NVML does not start: {error}")
    return module


def ask_nvml(module: Any, function: str, *arguments: object) -> Observed[Any]:
    """Call one NVML function; what this GPU, driver or pynvml does not support becomes a reason."""
    found = getattr(module, function, None)
    if found is None:
        return Observed(None, function, "not in the installed pynvml")
    try:
        value = found(*arguments)
    except module.NVMLError as error:
        return Observed(None, function, str(error))
    return Observed(value, function)


def gpu_handles(module: Any) -> list[tuple[int, str, Any]]:
    """Index, name and handle of every GPU that NVML lets this process see."""
    found = []
    for index in range(int(ask_nvml(module, "nvmlDeviceGetCount").value or 0)):
        handle = ask_nvml(module, "nvmlDeviceGetHandleByIndex", index).value
        if handle is not None:
            name = ask_nvml(module, "nvmlDeviceGetName", handle).value
            text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or "unnamed GPU")
            found.append((index, text, handle))
    return found


def _milli(value: object, most: int) -> float | None:
    """A plausible positive value in thousandths, as units; a 0 is what broken counters and sensors give."""
    return value / 1000 if isinstance(value, int) and 0 < value <= most else None


class NvmlSource(PowerSource):
    """One GPU board.

    Args:
        module: initialised NVML module.
        handle: device handle.
        gpu: name of the GPU with its index.
        clock: monotonic clock in seconds.
    """

    name = "nvml"
    kind: Kind = "counter"
    scope = "GPU board, without the host"
    rate_hz = 10.0
    update_s = 0.1

    def __init__(
        self, module: Any, handle: Any, gpu: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._module, self._handle, self._clock = module, handle, clock
        self.rails = (gpu,)
        self._mode = MODES[0]

    def _field_w(self, field: int) -> float | None:
        answer = ask_nvml(self._module, "nvmlDeviceGetFieldValues", self._handle, [field]).value
        if not answer or answer[0].nvmlReturn != 0:
            return None
        return _milli(int(answer[0].value.uiVal), MAX_POWER_MW)

    def read(self) -> Reading:
        """Read the value that was proven, and both powers beside it; the time is that of the value."""
        extra = {"average_w": self._field_w(FIELD_AVERAGE), "instant_w": self._field_w(FIELD_INSTANT)}
        start_s = self._clock()
        if self._mode == "instant":
            instant_w = extra["instant_w"]
            reason = None if instant_w is not None else f"field {FIELD_INSTANT} gives no plausible value"
            return Reading(start_s, None, instant_w, extra, reason)
        counter = self._mode == "counter"
        function = "nvmlDeviceGetTotalEnergyConsumption" if counter else "nvmlDeviceGetPowerUsage"
        answer = ask_nvml(self._module, function, self._handle)
        time_s = (start_s + self._clock()) / 2
        value = _milli(answer.value, MAX_ENERGY_MJ if counter else MAX_POWER_MW)
        reason = None if value is not None else f"{function}: {answer.reason or 'no plausible value'}"
        if counter:
            return Reading(time_s, value, extra["instant_w"], extra, reason)
        return Reading(time_s, None, value, extra, reason)

    def prove(self) -> str | None:
        """Settle on counter, instant or average power by reading each; None, or why none can be read."""
        failures: list[str] = []
        for mode in MODES:
            self._mode = mode
            self.kind = "counter" if mode == "counter" else "power"
            reading = self.read()
            if (reading.energy_j if mode == "counter" else reading.power_w) is not None:
                self.notes = tuple(failures)
                if mode == "average":
                    self.lag_s = AVERAGE_LAG_S
                    self.notes += (f"average power: the first {AVERAGE_LAG_S} s of a window are left out",)
                return None
            failures.append(reading.reason or "no value")
        return "; ".join(failures)

    def close(self) -> None:
        """End this use of NVML."""
        ask_nvml(self._module, "nvmlShutdown")


def first_visible_gpu() -> int:
    """Index of the GPU that a CUDA program would use first: CUDA_VISIBLE_DEVICES if it is a number, else 0."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    return int(first) if first.isascii() and first.isdecimal() else 0


def open_nvml(
    root: Path = Path("/"),
    plan: PowerPlan | None = None,  # noqa: ARG001 - a GPU board has no rails to choose
    *,
    module: Any | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> PowerSource | Unavailable:
    """Open the GPU that a CUDA program of this process would use first, proven by a reading.

    Args:
        root: anything but "/" has no GPU, unless a module is given.
        plan: not used.
        module: a module with the functions of pynvml, for tests.
        clock: monotonic clock in seconds.

    Returns:
        The source, or Unavailable with the reason.
    """
    if module is None and not is_live(root):
        return Unavailable("nvml", "a tree of files has no GPU", absent=True)
    nvml = start_nvml(module)
    if isinstance(nvml, Unavailable):
        return nvml
    gpus = gpu_handles(nvml)
    index = first_visible_gpu()
    if index >= len(gpus):
        ask_nvml(nvml, "nvmlShutdown")
        return Unavailable(
            "nvml", "NVML shows no GPU" if not gpus else "CUDA_VISIBLE_DEVICES names no GPU here"
        )
    source = NvmlSource(nvml, gpus[index][2], f"{gpus[index][1]} (GPU {gpus[index][0]})", clock)
    failure = source.prove()
    if failure is not None:
        source.close()
        return Unavailable("nvml", f"{source.rails[0]} gives neither energy nor power: {failure}")
    if len(gpus) > 1:
        source.notes += (
            f"one of {len(gpus)} GPUs: set CUDA_DEVICE_ORDER=PCI_BUS_ID so that CUDA counts alike",
        )
    return source
