"""Memory of an NVIDIA GPU: what the process takes, and the CUDA context apart from the model.

Per process NVML tells it where the driver can (not in most containers, under MIG or WSL); else the device's used
memory, less what was used before, stands for it. Memory info of version 2 is asked for, since version 1 counts
the driver's reserve as used (503 MB without any process on an H100).
The context is told apart by making it first: the primary context of the driver is the one that onnxruntime
uses too, so what appears before any session is the context, and what comes later is the model's.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from qslm_edge.runner.observe import Observed
from qslm_edge.runner.power.base import Unavailable
from qslm_edge.runner.power.nvml import ask_nvml, gpu_handles, start_nvml

__all__ = [
    "GpuMemoryReading",
    "GpuMeter",
    "GpuRecord",
    "first_device",
    "make_context",
    "not_used",
    "open_meter",
]

BUS_ID_BYTES = 32


@dataclass(frozen=True)
class GpuMemoryReading:
    """Memory of one GPU at one moment; a value that the driver does not give is None.

    Args:
        used_bytes: used by all processes of the device, the driver's reserve left out where it is told.
        reserved_bytes: reserve of driver and firmware; None where only version 1 is known.
        process_bytes: used by this process.
        source: functions that were asked.
        reason: what is missing and why; None when nothing is.
    """

    used_bytes: int | None
    reserved_bytes: int | None
    process_bytes: int | None
    source: str
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


def _cuda(library: Any | None, source: str, last: str) -> Observed[str]:
    """Call the driver up to one function; the PCI bus id of the first CUDA device, or what failed."""
    if library is None:
        try:
            library = ctypes.CDLL("libcuda.so.1")
        except OSError:
            return Observed(None, source, "libcuda.so.1 cannot be loaded")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    bus_id = ctypes.create_string_buffer(BUS_ID_BYTES)
    steps: list[tuple[str, Callable[[], int]]] = [
        ("cuInit", lambda: library.cuInit(0)),
        ("cuDeviceGet", lambda: library.cuDeviceGet(ctypes.byref(device), 0)),
        ("cuDeviceGetPCIBusId", lambda: library.cuDeviceGetPCIBusId(bus_id, BUS_ID_BYTES, device)),
        ("cuDevicePrimaryCtxRetain", lambda: library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)),
    ]
    for name, call in steps:
        code = int(call())
        if code:
            return Observed(None, source, f"{name} gives CUDA error {code}")
        if name == last:
            break
    return Observed(bus_id.value.decode("ascii", "replace"), source)


def first_device(library: Any | None = None) -> Observed[str]:
    """PCI bus id of the device that CUDA counts first, or why it is not known; makes no context.

    Args:
        library: stands in for libcuda in tests.
    """
    return _cuda(library, "cuDeviceGetPCIBusId", "cuDeviceGetPCIBusId")


def make_context(library: Any | None = None) -> Observed[str]:
    """Make the driver's primary context of that device, and keep it until the process ends.

    Args:
        library: stands in for libcuda in tests.

    Returns:
        The PCI bus id of the device, or why there is no context.
    """
    return _cuda(library, "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRetain")


class GpuMeter:
    """Reads the memory of one GPU.

    Args:
        module: initialised NVML module.
        handle: of the device; the one of the context is looked up once it is known.
        pid: process whose memory is told.
    """

    def __init__(self, module: Any, handle: Any, pid: int) -> None:
        self._module, self._handle, self._pid = module, handle, pid

    def read(self) -> GpuMemoryReading:
        """The reading of now. Never raises for what the driver does."""
        version = getattr(self._module, "nvmlMemory_v2", None)
        name = "nvmlDeviceGetMemoryInfo"
        info = Observed[Any](None, name, "no version 2 in this pynvml")
        if version is not None:
            info = ask_nvml(self._module, name, self._handle, version)
        second = info.value is not None
        if not second:
            info = ask_nvml(self._module, name, self._handle)
        name = "nvmlDeviceGetComputeRunningProcesses"
        running = ask_nvml(self._module, name, self._handle)
        mine = [item.usedGpuMemory for item in running.value or [] if item.pid == self._pid]
        reasons = [] if info.value is not None else [f"memory of the device: {info.reason}"]
        if not mine or mine[0] is None:
            text = running.reason or "the driver does not list this process (container, MIG or WSL)"
            reasons.append(f"memory of the process: {text}")
        return GpuMemoryReading(
            used_bytes=None if info.value is None else int(info.value.used),
            reserved_bytes=int(info.value.reserved) if second and info.value is not None else None,
            process_bytes=int(mine[0]) if mine and mine[0] is not None else None,
            source=f"{info.source} (version {2 if second else 1}), {name}",
            reason="; ".join(reasons) or None,
        )

    def follow(self, bus_id: str) -> None:
        """Read the device with this PCI bus id from now on, if NVML knows it."""
        found = ask_nvml(self._module, "nvmlDeviceGetHandleByPciBusId", bus_id)
        self._handle = self._handle if found.value is None else found.value

    def close(self) -> None:
        """End this use of NVML."""
        ask_nvml(self._module, "nvmlShutdown")


def open_meter(module: Any | None = None, pid: int | None = None) -> GpuMeter | Unavailable:
    """A meter of the first GPU, or why there is none.

    Args:
        module: a module with the functions of pynvml, for tests.
        pid: the process; None is this one.
    """
    nvml = start_nvml(module)
    if isinstance(nvml, Unavailable):
        return nvml
    gpus = gpu_handles(nvml)
    if not gpus:
        ask_nvml(nvml, "nvmlShutdown")
        return Unavailable("nvml", "NVML shows no GPU")
    return GpuMeter(nvml, gpus[0][2], os.getpid() if pid is None else pid)


def not_used(provider: str) -> dict[str, Any]:
    """What the result says of GPU memory where the model ran elsewhere."""
    return _result("not used", f"the bundle ran with {provider}")


def _result(status: str, reason: str | None, **found: Any) -> dict[str, Any]:
    names = ("before", "context", "loaded", "steady", "context_bytes", "model_bytes", "total_bytes")
    return {
        "status": status,
        "reason": reason,
        **dict.fromkeys((*names, "method", "context_reason")),
        **found,
    }


class GpuRecord:
    """Readings of a measurement in their order: before, with the context alone, loaded, steady.

    Args:
        meter: what reads, or why nothing can be read.
        bus_id: tells the PCI bus id of the device that CUDA counts first.
        context: makes the context on it.
    """

    def __init__(
        self,
        meter: GpuMeter | Unavailable,
        bus_id: Callable[[], Observed[str]] = first_device,
        context: Callable[[], Observed[str]] = make_context,
    ) -> None:
        self._meter, self._readings = meter, dict[str, GpuMemoryReading]()
        self._context: Observed[str] = Observed(None, "", "not made")
        if isinstance(meter, GpuMeter):
            found = bus_id()  # NVML and CUDA may count devices in another order
            if found.value is not None:
                meter.follow(found.value)
            self._readings["before"] = meter.read()
            self._context = context()
            if self._context.value is not None:
                self._readings["context"] = meter.read()

    def take(self, name: str) -> None:
        """Read once more under a name."""
        if isinstance(self._meter, GpuMeter):
            self._readings[name] = self._meter.read()

    def close(self) -> dict[str, Any]:
        """End, and say what was found."""
        if isinstance(self._meter, Unavailable):
            return _result("unavailable", self._meter.reason)
        self._meter.close()
        return summarise(
            {name: item.to_dict() for name, item in self._readings.items()}, self._context.reason
        )


def summarise(readings: dict[str, dict[str, Any]], context_reason: str | None) -> dict[str, Any]:
    """Context, model and total from the readings; None with a reason where a reading is missing."""
    before, context, steady = (readings.get(name) for name in ("before", "context", "steady"))

    def total(reading: dict[str, Any] | None) -> int | None:
        """Of the process at a moment: told by the driver, or the growth of the device's use."""
        if reading is None:
            return None
        if reading["process_bytes"] is not None:
            return int(reading["process_bytes"])
        if before is None or before["used_bytes"] is None or reading["used_bytes"] is None:
            return None
        return max(0, int(reading["used_bytes"]) - int(before["used_bytes"]))

    context_bytes, total_bytes = total(context), total(steady)
    known = steady is not None and steady["process_bytes"] is not None
    model = None if context_bytes is None or total_bytes is None else total_bytes - context_bytes
    reason = None if total_bytes is not None else (steady or before or {}).get("reason") or "not read"
    return _result(
        "unavailable" if total_bytes is None else "measured",
        reason,
        **readings,
        context_bytes=context_bytes,
        context_reason=None if context_bytes is not None else context_reason or "no reading",
        model_bytes=model,
        total_bytes=total_bytes,
        method="memory of this process" if known else "growth of the device's used memory",
    )
