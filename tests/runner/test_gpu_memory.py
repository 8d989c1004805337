"""Memory of GPUs that do not exist: what counts as the context, what as the model, and every way to know nothing."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from qslm_edge.runner.gpu_memory import GpuMeter, GpuRecord, first_device, make_context, not_used, open_meter
from qslm_edge.runner.observe import Observed
from qslm_edge.runner.power.base import Unavailable
from qslm_edge.runner.power.fake import FakeNvml

PID = 4711
MIB = 2**20
HERE: Observed[str] = Observed("0000:01:00.0", "cuda")
NOWHERE: Observed[str] = Observed(None, "cuda", "libcuda.so.1 cannot be loaded")


def info(used: int, reserved: int | None = 500 * MIB) -> SimpleNamespace:
    return SimpleNamespace(used=used, reserved=reserved)


def running(*sizes: tuple[int, int | None]) -> list[SimpleNamespace]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in sizes]


def meter(version: object = 2, **answers: Any) -> GpuMeter:
    nvml = FakeNvml(**answers)
    vars(nvml)["nvmlMemory_v2"] = version
    opened = open_meter(nvml, PID)
    assert isinstance(opened, GpuMeter)
    return opened


def record(opened: GpuMeter | Unavailable, context: Observed[str] = HERE) -> dict[str, Any]:
    taken = GpuRecord(opened, lambda: context, lambda: context)
    taken.take("loaded")
    taken.take("steady")
    return taken.close()


def growing(*values: object) -> Any:
    """An answer that is another one at each call; the last one stays."""
    rest: Iterator[object] = iter(values)
    last = [values[-1]]

    def answer() -> object:
        last[0] = next(rest, last[0])
        return last[0]

    return answer


def test_the_driver_tells_the_process() -> None:
    found = record(
        meter(
            nvmlDeviceGetMemoryInfo=growing(*(info(size * MIB) for size in (1000, 1400, 1600, 1700))),
            nvmlDeviceGetComputeRunningProcesses=growing(
                [], running((1, 9), (PID, 380 * MIB)), running((PID, 580 * MIB)), running((PID, 680 * MIB))
            ),
        )
    )
    assert (found["status"], found["method"]) == ("measured", "memory of this process")
    sizes = found["context_bytes"], found["model_bytes"], found["total_bytes"]
    assert sizes == (380 * MIB, 300 * MIB, 680 * MIB)
    assert found["steady"]["reserved_bytes"] == 500 * MIB
    assert "version 2" in found["steady"]["source"]
    assert found["context_reason"] is None


@pytest.mark.parametrize("processes", [[], running((1, 9)), running((PID, None)), None])
def test_in_a_container_the_growth_of_the_device_stands_for_it(processes: object) -> None:
    """Not listed, listed without a size, or not supported at all."""
    answers = {} if processes is None else {"nvmlDeviceGetComputeRunningProcesses": processes}
    found = record(
        meter(
            nvmlDeviceGetMemoryInfo=growing(*(info(size * MIB) for size in (1000, 1400, 1600, 1700))),
            **answers,
        )
    )
    assert (found["context_bytes"], found["model_bytes"]) == (400 * MIB, 300 * MIB)
    assert (found["total_bytes"], found["method"]) == (700 * MIB, "growth of the device's used memory")
    assert "memory of the process" in found["steady"]["reason"]


def test_without_a_context_of_our_own_the_total_is_still_told() -> None:
    used = growing(*(info(size * MIB) for size in (1000, 1600, 1700)))
    found = record(meter(nvmlDeviceGetMemoryInfo=used), NOWHERE)
    assert found["total_bytes"] == 700 * MIB
    assert (found["context_bytes"], found["model_bytes"]) == (None, None)
    assert found["context_reason"] == "libcuda.so.1 cannot be loaded"


def test_memory_info_of_version_1_has_no_reserve() -> None:
    reading = meter(None, nvmlDeviceGetMemoryInfo=info(5, None)).read()
    assert (reading.used_bytes, reading.reserved_bytes) == (5, None)
    assert "version 1" in reading.source


def test_a_gpu_that_tells_nothing_is_unavailable() -> None:
    """Jetson: NVML starts and answers "Not Supported" to both."""
    found = record(meter(), NOWHERE)
    assert (found["status"], found["total_bytes"]) == ("unavailable", None)
    assert "memory of the device: Not Supported" in found["reason"]


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (FakeNvml(start_error="Insufficient Permissions"), "NVML does not start: Insufficient Permissions"),
        (FakeNvml(names=()), "NVML shows no GPU"),
    ],
)
def test_no_meter_says_why(module: FakeNvml, reason: str) -> None:
    opened = open_meter(module)
    assert isinstance(opened, Unavailable)
    assert opened.reason == reason
    assert module.open_count == 0
    found = record(opened)
    assert (found["status"], found["reason"], found["model_bytes"]) == ("unavailable", reason, None)


def test_nvml_is_closed_and_the_device_of_cuda_is_followed() -> None:
    nvml = FakeNvml(
        names=("first", "second"), nvmlDeviceGetHandleByPciBusId=1, nvmlDeviceGetMemoryInfo=info(1)
    )
    opened = open_meter(nvml, PID)
    assert isinstance(opened, GpuMeter)
    record(opened)
    assert nvml.open_count == 0
    assert vars(opened)["_handle"] == 1


def test_not_used_is_no_zero() -> None:
    found = not_used("CPUExecutionProvider")
    assert (found["status"], found["total_bytes"]) == ("not used", None)


class Cuda:
    """The driver's functions, one of which may fail."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.called = fails, list[str]()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.called.append(name)
            if name == "cuDeviceGetPCIBusId":
                arguments[0].value = b"0000:65:00.0"
            return 100 if name == self.fails else 0

        return call


def test_the_context_is_made_on_the_first_device() -> None:
    library = Cuda()
    assert make_context(library).value == "0000:65:00.0"
    assert library.called == ["cuInit", "cuDeviceGet", "cuDeviceGetPCIBusId", "cuDevicePrimaryCtxRetain"]
    library = Cuda()
    assert first_device(library).value == "0000:65:00.0"
    assert "cuDevicePrimaryCtxRetain" not in library.called  # looking makes none


@pytest.mark.parametrize(
    "fails", ["cuInit", "cuDeviceGet", "cuDeviceGetPCIBusId", "cuDevicePrimaryCtxRetain"]
)
def test_a_driver_that_refuses_is_a_reason(fails: str) -> None:
    library = Cuda(fails)
    assert make_context(library).reason == f"{fails} gives CUDA error 100"
    assert library.called[-1] == fails
