"""NVML through a stand-in module: counter first, then instant, then average; nothing believed unread."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qslm_edge.runner.power.base import PowerSource, Unavailable
from qslm_edge.runner.power.fake import FakeNvml
from qslm_edge.runner.power.nvml import AVERAGE_LAG_S, ask_nvml, gpu_handles, open_nvml, start_nvml

ROOT = Path("/")


def opened(nvml: FakeNvml) -> PowerSource:
    source = open_nvml(ROOT, module=nvml, clock=lambda: 5.0)
    assert isinstance(source, PowerSource), source
    return source


def refused(nvml: FakeNvml | None, root: Path = ROOT) -> str:
    source = open_nvml(root, module=nvml)
    assert isinstance(source, Unavailable)
    return source.reason


@pytest.fixture(autouse=True)
def no_choice_of_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_counter_with_both_powers_beside_it() -> None:
    energy = iter([2_592_709, 2_604_565])
    nvml = FakeNvml(
        nvmlDeviceGetTotalEnergyConsumption=lambda: next(energy), field185=78_244, field186=119_039
    )
    source = opened(nvml)
    assert (source.kind, source.lag_s, source.rails) == ("counter", 0.0, ("Fake GPU (GPU 0)",))
    reading = source.read()
    assert reading.time_s == 5.0
    assert reading.energy_j == pytest.approx(2604.565)
    assert reading.power_w == pytest.approx(119.039)
    assert reading.extra_w == {"average_w": pytest.approx(78.244), "instant_w": pytest.approx(119.039)}
    source.close()
    assert nvml.open_count == 0


@pytest.mark.parametrize("energy", [0, -5, 2**63 + 1, None, 1.5])
def test_counter_without_a_plausible_value_is_not_taken(energy: object) -> None:
    source = opened(FakeNvml(nvmlDeviceGetTotalEnergyConsumption=energy, field186=90_000))
    assert source.kind == "power"
    assert source.read().power_w == 90.0
    assert "nvmlDeviceGetTotalEnergyConsumption: no plausible value" in source.notes


def test_average_power_is_the_last_choice_and_lags() -> None:
    source = opened(FakeNvml(nvmlDeviceGetPowerUsage=90_000))
    assert (source.kind, source.lag_s) == ("power", AVERAGE_LAG_S)
    assert source.read().power_w == 90.0
    assert any("left out" in note for note in source.notes)


def test_instant_series_is_never_filled_with_averages() -> None:
    answers: dict[str, int] = {"field186": 90_000}
    nvml = FakeNvml(nvmlDeviceGetPowerUsage=50_000, field186=lambda: answers["field186"])
    source = opened(nvml)
    answers["field186"] = 0
    reading = source.read()
    assert reading.power_w is None
    assert reading.reason == "field 186 gives no plausible value"


def test_failure_in_the_middle_is_a_reason() -> None:
    calls = iter([1000])

    def energy() -> int:
        try:
            return next(calls)
        except StopIteration:
            raise FakeNvml.NVMLError("GPU is lost") from None

    source = opened(FakeNvml(nvmlDeviceGetTotalEnergyConsumption=energy))
    reading = source.read()
    assert reading.energy_j is None
    assert reading.reason == "nvmlDeviceGetTotalEnergyConsumption: GPU is lost"


def test_gpu_that_tells_nothing_is_unavailable_and_closed() -> None:
    nvml = FakeNvml(names=("Orin (nvgpu)",))
    reason = refused(nvml)
    assert reason.startswith("Orin (nvgpu) (GPU 0) gives neither energy nor power: ")
    assert "Not Supported" in reason
    assert nvml.open_count == 0


def test_no_driver_no_gpu_no_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert refused(FakeNvml(start_error="Driver Not Loaded")) == "NVML does not start: Driver Not Loaded"
    assert refused(FakeNvml(names=())) == "NVML shows no GPU"
    assert refused(None, tmp_path) == "a tree of files has no GPU"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert refused(None) == "pynvml is not installed (pip install nvidia-ml-py)"


def test_gpu_is_the_first_that_cuda_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(names=("A", "B"), nvmlDeviceGetTotalEnergyConsumption=1)
    assert opened(nvml).rails == ("A (GPU 0)",)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    source = opened(nvml)
    assert source.rails == ("B (GPU 1)",)
    assert any("one of 2 GPUs" in note for note in source.notes)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert refused(nvml) == "CUDA_VISIBLE_DEVICES names no GPU here"


def test_asking_for_what_this_pynvml_lacks() -> None:
    class Old:
        NVMLError = RuntimeError

    assert ask_nvml(Old, "nvmlDeviceGetFieldValues").reason == "not in the installed pynvml"


def test_old_bindings_give_names_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = start_nvml(FakeNvml())
    monkeypatch.setattr(nvml, "nvmlDeviceGetName", lambda _: b"Tesla \xff")
    assert gpu_handles(nvml) == [(0, "Tesla \ufffd", 0)]
