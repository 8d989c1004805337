"""Reading in the background: samples while something runs, none after it, and what is kept of them."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from qslm_edge.runner import clock_watch
from qslm_edge.runner.clock_watch import ClockWatch, stored_samples, to_samples
from qslm_edge.runner.condition_readers import Conditions, read_clocks
from qslm_edge.runner.observe import Observed
from qslm_edge.runner.power.fake import FakeNvml

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "power"


def reading(hz: int) -> Conditions:
    return Conditions({"cpu.policy0.clock_hz": Observed(hz, "test")})


def test_it_reads_until_the_end_and_not_after() -> None:
    third = threading.Event()
    taken: list[int] = []

    def read() -> Conditions:
        taken.append(len(taken))
        if len(taken) == 3:
            third.set()
        return reading(len(taken))

    with ClockWatch(read=read, period_s=0.001) as watch:
        assert third.wait(30)
    count = len(taken)
    assert [sample.get("cpu.policy0.clock_hz") for sample in watch.samples] == list(range(1, count + 1))
    assert "clock-watch" not in [thread.name for thread in threading.enumerate()]


def test_a_run_shorter_than_the_period_has_no_sample() -> None:
    with ClockWatch(read=lambda: pytest.fail("must not read"), period_s=1000) as watch:
        pass
    assert watch.samples == []


def test_the_thread_ends_when_the_run_fails() -> None:
    with pytest.raises(KeyboardInterrupt), ClockWatch(read=lambda: reading(1), period_s=0.001):
        raise KeyboardInterrupt
    assert "clock-watch" not in [thread.name for thread in threading.enumerate()]


def test_nvml_is_started_once_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()

    def start() -> FakeNvml:
        nvml.nvmlInit()
        return nvml

    monkeypatch.setattr(clock_watch, "start_nvml", start)
    with ClockWatch(use_gpu=True, period_s=1000):
        assert nvml.open_count == 1
    assert nvml.open_count == 0


def test_samples_are_kept_as_json() -> None:
    samples = [reading(1), Conditions({"gpu0.throttle_reasons": Observed(None, "x", "Not Supported")})]
    stored = json.loads(json.dumps(stored_samples(samples)))
    assert stored == [{"cpu.policy0.clock_hz": 1}, {"gpu0.throttle_reasons": None}]
    assert stored_samples(to_samples(stored)) == stored


def test_what_is_read_of_a_board() -> None:
    found = read_clocks(FIXTURES / "jetson_orin_nano")
    assert found.get("cpu.cpu0.clock_hz") == 729_600_000
    assert found.get("thermal.zone1.celsius") == 50.25
    assert not [name for name in found.values if name.startswith(("counter.", "alarm.", "load."))]


def test_a_gpu_is_read_through_the_started_module(tmp_path: Path) -> None:
    found = read_clocks(tmp_path, FakeNvml(nvmlDeviceGetClockInfo=1500))
    assert found.get("gpu0.clock_hz") == 1_500_000_000
