"""Conditions read from board trees, and the flags that two readings raise."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qslm_edge.runner.conditions import (
    Conditions,
    compare,
    mode_flags,
    not_read,
    read_conditions,
    sustained_low_clocks,
)
from qslm_edge.runner.observe import Observed
from qslm_edge.runner.power.fake import FakeNvml

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "power"
JETSON = FIXTURES / "jetson_orin_nano"


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def made(**values: Any) -> Conditions:
    """Conditions by hand; a double underscore stands for the dot."""
    return Conditions({name.replace("__", "."): Observed(value, "test") for name, value in values.items()})


def test_jetson() -> None:
    found = read_conditions(JETSON)
    assert found.get("thermal.zone1.type") == "gpu-thermal"
    assert found.get("thermal.zone1.celsius") == 50.25
    assert found.get("cpu.cpu0.governor") == "schedutil"
    assert found.get("cpu.cpu0.clock_hz") == 729_600_000
    assert found.get("cpu.cpu0.max_clock_hz") == 1_344_000_000
    assert [found.get(f"counter.oc{number}") for number in (1, 2, 3)] == [0, 0, 0]
    assert found.get("alarm.hwmon1.curr2_crit_alarm") == 0


def test_gated_zones_are_none_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree lists the zones that answer EAGAIN on a board; here opening them does."""
    listed = (JETSON / "EAGAIN.txt").read_text().splitlines()
    gated = {JETSON / line for line in listed if not line.startswith("#")}
    real, attempts = os.open, []

    def gate(path: Path, flags: int) -> int:
        if path in gated:
            attempts.append(path)
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return real(path, flags)

    monkeypatch.setattr(os, "open", gate)
    found = read_conditions(JETSON)
    for zone in ("zone2", "zone3", "zone4"):
        item = found.values[f"thermal.{zone}.celsius"]
        assert item.value is None
        assert item.reason == "temporarily unavailable (EAGAIN) at two attempts"
    assert len(attempts) == 2 * len(gated) == 6
    assert found.get("thermal.zone0.celsius") == 51.0


def test_raspberry_pi() -> None:
    found = read_conditions(FIXTURES / "raspberry_pi5")
    assert found.get("thermal.zone0.celsius") == 55.0
    assert found.get("alarm.hwmon1.in0_lcrit_alarm") == 0
    assert found.values["cpu.cpu0.max_clock_hz"].reason == "no such file"


def test_empty_root_says_why_of_everything(tmp_path: Path) -> None:
    found = read_conditions(tmp_path)
    absent = {name: item for name, item in found.values.items() if name != "time_s"}
    assert {"cpu.governor", "thermal", "power.mode", "load.1min", "memory.available_bytes"} <= set(absent)
    assert all(item.value is None and item.reason for item in absent.values())


def test_this_host_is_readable_and_json() -> None:
    found = read_conditions()
    assert json.loads(json.dumps(found.to_dict())).keys() == found.values.keys()
    assert all(item.value is not None or item.reason for item in found.values.values())


@pytest.mark.parametrize("temp", ["-300000", "999999999", "warm", "", "\x00"])
def test_impossible_temperatures_are_none(tmp_path: Path, temp: str) -> None:
    zone = "sys/class/thermal/thermal_zone0"
    write(tmp_path, {f"{zone}/type": "x", f"{zone}/temp": temp})
    item = read_conditions(tmp_path).values["thermal.zone0.celsius"]
    assert item.value is None
    assert item.reason


def test_policies_trips_devfreq_and_intel_counters(tmp_path: Path) -> None:
    cpu, zone = "sys/devices/system/cpu", "sys/class/thermal/thermal_zone0"
    write(
        tmp_path,
        {
            f"{cpu}/online": "0-3\n",
            f"{cpu}/cpufreq/policy0/scaling_governor": "performance\n",
            f"{cpu}/cpufreq/policy0/scaling_cur_freq": "3400000\n",
            f"{cpu}/cpufreq/policy0/scaling_max_freq": "3400000\n",
            f"{cpu}/cpu0/cpufreq/scaling_governor": "the same policy once more\n",
            f"{cpu}/cpu0/thermal_throttle/core_throttle_count": "3\n",
            f"{cpu}/cpu1/thermal_throttle/core_throttle_count": "4\n",
            f"{zone}/type": "x86_pkg_temp\n",
            f"{zone}/temp": "95000\n",
            f"{zone}/trip_point_0_type": "critical\n",
            f"{zone}/trip_point_0_temp": "90000\n",
            f"{zone}/trip_point_1_type": "passive\n",
            f"{zone}/trip_point_1_temp": "95000\n",
            f"{zone}/trip_point_2_type": "passive\n",
            f"{zone}/trip_point_2_temp": "-274000\n",
            "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
            "sys/class/devfreq/17000000.gpu/max_freq": "918000000\n",
            "sys/class/thermal/cooling_device3/type": "cpu-throttle-alert\n",
            "sys/class/thermal/cooling_device3/cur_state": "1\n",
        },
    )
    found = read_conditions(tmp_path)
    assert found.get("cpu.online") == "0-3"
    assert found.get("cpu.policy0.clock_hz") == 3_400_000_000
    assert "cpu.cpu0.governor" not in found.values
    assert found.get("counter.intel_core_throttle_count") == 7
    assert found.get("thermal.zone0.passive_trip_celsius") == 95.0
    assert compare(found, found) == [
        "alarm.cpu-throttle-alert: 1 before the run",
        "thermal.zone0 (x86_pkg_temp): 95 C before the run, at or above its passive trip of 95 C",
        "alarm.cpu-throttle-alert: 1 at its end",
        "thermal.zone0 (x86_pkg_temp): 95 C at its end, at or above its passive trip of 95 C",
        "devfreq.17000000.gpu: clock 306 MHz, below the maximum of 918 MHz at the end of the run",
    ]


def test_power_mode_by_tool(tmp_path: Path) -> None:
    def tool(argv: Sequence[str]) -> Observed[str]:
        answers = {"nvpmodel": "NV Power Mode: MAXN_SUPER\n2", "vcgencmd": "throttled=0x50000"}
        return Observed(answers[argv[0]], argv[0])

    found = read_conditions(tmp_path, command=tool)
    assert found.get("power.mode") == "MAXN_SUPER"
    assert found.get("pi.throttled") == 0x50000


@pytest.mark.parametrize(
    ("status", "mode"), [("pmode:0001 fmode:cool", "25W"), ("pmode:0007", None), ("nothing", None)]
)
def test_power_mode_by_file(tmp_path: Path, status: str, mode: str | None) -> None:
    table = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n"
    write(tmp_path, {"var/lib/nvpmodel/status": status, "etc/nvpmodel.conf": table})
    item = read_conditions(tmp_path).values["power.mode"]
    assert item.value == mode
    assert (item.reason is None) == (mode is not None)


def test_gpu(tmp_path: Path) -> None:
    nvml = FakeNvml(
        nvmlDeviceGetCurrentClocksThrottleReasons=0x4,
        nvmlDeviceGetClockInfo=1500,
        nvmlDeviceGetMaxClockInfo=1980,
    )
    found = read_conditions(tmp_path, nvml=nvml)
    assert found.get("gpu0.clock_hz") == 1_500_000_000
    assert found.values["gpu0.celsius"] == Observed(None, "nvmlDeviceGetTemperature", "Not Supported")
    assert nvml.open_count == 0
    assert compare(found, found) == [
        "gpu0: clock 1500 MHz, below the maximum of 1980 MHz at the end of the run"
    ]


def test_gpu_that_does_not_start(tmp_path: Path) -> None:
    found = read_conditions(tmp_path, nvml=FakeNvml(start_error="Driver Not Loaded"))
    assert found.values["gpu"].reason == "NVML does not start: Driver Not Loaded"


def test_load_and_swap(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/loadavg": "0.50 0.25 x 1/100 4711\n",
            "proc/stat": "cpu  100 0 50 1000 7 0 50 0 0 0\ncpu0 1 2\n",
            "proc/meminfo": "MemAvailable: 8 kB\nSwapTotal: 100 kB\nSwapFree: 60 kB\n",
        },
    )
    found = read_conditions(tmp_path)
    assert (found.get("load.1min"), found.get("load.5min"), found.get("load.15min")) == (0.5, 0.25, None)
    assert found.get("cpu.busy_s") == pytest.approx(2.0)  # 200 ticks of 10 ms
    assert found.get("swap.used_bytes") == 40 * 1024


def test_quiet_run_raises_no_flag() -> None:
    values: dict[str, Any] = {
        "cpu__policy0__governor": "performance",
        "cpu__policy0__clock_hz": 2_390_000_000,
        "cpu__policy0__max_clock_hz": 2_400_000_000,
        "counter__oc1": 3,
        "pi__throttled": 0x50000,
        "swap__used_bytes": 0,
        "gpu0__throttle_reasons": 0x4,
    }
    before = made(**values, time_s=0.0, cpu__busy_s=10.0, cpu__own_s=1.0)
    after = made(**values, time_s=10.0, cpu__busy_s=49.0, cpu__own_s=39.0)
    assert compare(before, after) == []


@pytest.mark.parametrize(
    ("before", "after", "flag"),
    [
        ({"counter__oc2": 1}, {"counter__oc2": 2}, "counter.oc2: moved from 1 to 2"),
        ({"counter__oc2": 1}, {}, "counter.oc2: read before the run but not after it (gone)"),
        (
            {"cpu__policy0__governor": "performance"},
            {"cpu__policy0__governor": "powersave"},
            "cpu.policy0.governor: changed from performance to powersave",
        ),
        ({"power__mode": "25W"}, {"power__mode": "15W"}, "power.mode: changed from 25W to 15W"),
        ({"cpu__online": "0-5"}, {"cpu__online": "0-3"}, "cpu.online: changed from 0-5 to 0-3"),
        ({}, {"alarm__x": 1}, "alarm.x: 1 at its end"),
        (
            {},
            {"gpu0__throttle_reasons": 0x44},
            "gpu0.throttle_reasons: hardware thermal at its end",
        ),
        ({"pi__throttled": 0}, {"pi__throttled": 0x2}, "pi.throttled: capped clock at its end"),
        ({"pi__throttled": 0}, {"pi__throttled": 0x40000}, "pi.throttled: throttled during the run"),
        (
            {},
            {"cpu__policy0__clock_hz": 1_000_000_000, "cpu__policy0__max_clock_hz": 2_400_000_000},
            "cpu.policy0: clock 1000 MHz, below the maximum of 2400 MHz at the end of the run",
        ),
        ({"swap__used_bytes": 0}, {"swap__used_bytes": 2**23}, "swap.used_bytes: grew by 8 MiB"),
        (
            {"time_s": 0.0, "cpu__busy_s": 0.0, "cpu__own_s": 0.0},
            {"time_s": 10.0, "cpu__busy_s": 15.0, "cpu__own_s": 10.0},
            "other load: 0.50 cores on average",
        ),
        ({"load__1min": 1.5}, {"load__1min": 2.0}, "load.1min: 1.5 before the run"),
    ],
)
def test_each_flag(before: dict[str, Any], after: dict[str, Any], flag: str) -> None:
    assert compare(made(**before), made(**after)) == [flag]


def test_what_could_not_be_read_raises_no_flag() -> None:
    assert compare(made(counter__oc1=None, cpu__online=None), made(counter__oc1=5, cpu__online="0")) == []


def test_an_idle_gpu_may_lower_its_clock() -> None:
    values = {"gpu0__clock_hz": 210_000_000, "gpu0__max_clock_hz": 1_980_000_000}
    assert compare(made(), made(**values, gpu0__throttle_reasons=0x1)) == []


def test_low_clock_counts_after_three_readings_in_a_row() -> None:
    high = made(cpu__policy0__clock_hz=2_400_000_000, cpu__policy0__max_clock_hz=2_400_000_000)
    low = made(cpu__policy0__clock_hz=1_000_000_000, cpu__policy0__max_clock_hz=2_400_000_000)
    assert sustained_low_clocks([low, low, high, low, low]) == []
    assert sustained_low_clocks([high, low, low, low]) == [
        "cpu.policy0: clock 1000 MHz, below the maximum of 2400 MHz in 3 consecutive readings"
    ]


HIGH = {"cpu__policy0__clock_hz": 2_400_000_000, "cpu__policy0__max_clock_hz": 2_400_000_000}
LOW = HIGH | {"cpu__policy0__clock_hz": 1_000_000_000}


def test_clocks_of_the_run_judge_in_place_of_the_one_at_its_end() -> None:
    """A governor that lowers the clock as the load ends is no fault; one that did so in the run is."""
    quiet = [made(**HIGH)] * 3
    assert compare(made(), made(**LOW), [quiet]) == []
    assert compare(made(), made(**HIGH), [[made(**LOW)] * 3]) == [
        "cpu.policy0: clock 1000 MHz, below the maximum of 2400 MHz in 3 consecutive readings"
    ]
    # too short for three readings: the one at the end is all there is
    assert "at the end of the run" in compare(made(), made(**LOW), [[made(**HIGH)] * 2])[0]


def test_readings_of_two_repeats_are_not_consecutive() -> None:
    two, three = [made(**LOW)] * 2, [made(**HIGH)] * 3
    assert compare(made(), made(**HIGH), [three, two, two]) == []


def test_heat_and_throttling_within_the_run_are_flagged_once() -> None:
    before = made(thermal__zone0__passive_trip_celsius=85.0, thermal__zone0__celsius=50.0)
    run = [
        made(thermal__zone0__celsius=c, gpu0__throttle_reasons=r) for c, r in ((60, 0), (86, 0x20), (70, 0))
    ]
    found = compare(before, before, [run])
    assert found == [
        "thermal.zone0 (in the run): 86 C, at or above its passive trip of 85 C",
        "gpu0.throttle_reasons: software thermal during the run",
    ]
    hot = made(thermal__zone0__celsius=90.0, thermal__zone0__passive_trip_celsius=85.0)
    assert [flag for flag in compare(hot, hot, [run]) if flag.startswith("thermal.zone0 (in")] == []


@pytest.mark.parametrize(
    ("mode", "planned", "flags"),
    [
        ("25W", ["15W", "25W"], 0),
        ("7W", ["15W", "25W"], 1),
        (None, ["15W", "25W"], 0),
        ("7W", [], 0),
    ],
)
def test_the_power_mode_is_one_of_the_profile(mode: str | None, planned: list[str], flags: int) -> None:
    found = mode_flags(made(power__mode=mode), planned)
    assert len(found) == flags
    assert all("7W is not a mode of the profile (15W, 25W)" in flag for flag in found)


def test_a_container_without_sysfs_says_that_nobody_watched(tmp_path: Path) -> None:
    text = not_read(read_conditions(tmp_path))
    assert text is not None
    assert "clocks (no clock control (virtual machine or container))" in text
    assert "temperatures (no thermal zones)" in text
    assert "throttle counters (none on this system)" in text


def test_permission_denied_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Path, flags: int) -> int:
        if str(path).endswith(("_cur_freq", "/temp", "_event_cnt")):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    text = not_read(read_conditions(JETSON))
    assert text == (
        "not read: clocks (permission denied); temperatures (permission denied); "
        "throttle counters (permission denied)"
    )


def test_a_board_that_was_watched_leaves_nothing_to_say() -> None:
    found = read_conditions(JETSON)
    assert not_read(found, [[found] * 3]) is None
    assert not_read(found, [[found] * 2]) == "not read: clocks during the run (it was shorter than 3 s)"


def test_conditions_survive_json() -> None:
    found = read_conditions(JETSON)
    assert Conditions.from_dict(json.loads(json.dumps(found.to_dict()))) == found
