"""Sources that the kernel shows as files: the right rails, the right unit, and a reason for everything else."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.runner.power.base import Opener, PowerPlan
from qslm_edge.runner.power.battery import open_battery
from qslm_edge.runner.power.hwmon import open_hwmon
from qslm_edge.runner.power.ina238 import open_ina238
from qslm_edge.runner.power.ina3221 import find_monitors, open_ina3221
from qslm_edge.runner.power.ina3221x import open_ina3221x
from qslm_edge.runner.power.rails import MODULE_RAILS, choose_total
from tests.helpers.power_trees import FIXTURES, opened, refused

NANO = "sys/class/hwmon/hwmon1"
AGX = PowerPlan("ina3221", MODULE_RAILS, skip=("NC", "sum of shunt voltages", "VDDQ_VDD2_1V8AO"))


@pytest.mark.parametrize(
    ("opener", "name", "plan", "power_w", "extra_w"),
    [
        (
            *(open_ina3221, "jetson_orin_nano", PowerPlan("ina3221", ("VDD_IN",)), 6.0288),
            {"VDD_CPU_GPU_CV": 1.52, "VDD_SOC": 2.0},
        ),
        (
            *(open_ina3221, "jetson_agx_orin", AGX, 10.2),
            {"VDD_GPU_SOC": 3.8, "VDD_CPU_CV": 1.9, "VIN_SYS_5V0": 4.5},
        ),
        (
            *(open_ina3221, "jetson_agx_orin", PowerPlan(), 10.2),
            {"VDD_GPU_SOC": 3.8, "VDD_CPU_CV": 1.9, "VIN_SYS_5V0": 4.5, "VDDQ_VDD2_1V8AO": 0.8},
        ),
        (
            *(open_ina238, "jetson_agx_thor", PowerPlan("ina238", ("power1_input",)), 23.75),
            {"VDD_GPU": 0.0, "VDD_CPU_SOC_MSS": 7.6, "VIN_SYS_5V0": 6.0},
        ),
        (
            *(open_ina3221x, "jetson_nano", PowerPlan("ina3221x", ("POM_5V_IN",)), 1.2),
            {"POM_5V_GPU": 0.0, "POM_5V_CPU": 0.2},
        ),
        (open_hwmon, "ina219_hat", PowerPlan(), 3.06, {}),
        (open_hwmon, "ina219_hat", PowerPlan("hwmon", ("ina219",)), 3.06, {}),
        (open_battery, "laptop_battery", PowerPlan(), 9.0, {}),
    ],
)
def test_every_board_gives_the_right_power(
    opener: Opener, name: str, plan: PowerPlan, power_w: float, extra_w: dict[str, float]
) -> None:
    source = opened(opener, FIXTURES / name, plan)
    reading = source.read()
    assert reading.power_w == pytest.approx(power_w, abs=1e-9)
    assert reading.extra_w == pytest.approx(extra_w)
    assert reading.reason is None
    assert source.kind == "power"
    assert source.scope


def test_one_monitor_under_three_paths_counts_once() -> None:
    found = find_monitors(FIXTURES / "jetson_orin_nano")
    assert found.n_monitors == 1
    assert list(found.rails) == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]


def test_monitors_are_found_by_name_whatever_their_number(board: Callable[[str], Path]) -> None:
    root = board("jetson_agx_orin")
    (root / "sys/class/hwmon/hwmon2").rename(root / "sys/class/hwmon/hwmon11")
    assert opened(open_ina3221, root, AGX).read().power_w == pytest.approx(10.2)


def test_channels_without_a_rail_are_no_rails(board: Callable[[str], Path]) -> None:
    assert "NC" not in find_monitors(FIXTURES / "jetson_agx_orin").rails
    root = board("jetson_orin_nano")
    (root / NANO / "in2_enable").write_text("0\n")
    (root / NANO / "in3_label").unlink()
    assert list(find_monitors(root).rails) == ["VDD_IN"]


def test_the_step_of_the_sensor_is_told() -> None:
    """One shunt step of 40 uV over 5 mOhm is 8 mA, at 5.024 V 40.2 mW."""
    nano = opened(open_ina3221, FIXTURES / "jetson_orin_nano")
    assert nano.resolution_w == pytest.approx(0.008 * 5.024)
    assert nano.update_s == 0.002
    assert nano.notes == ("one step of the monitor is 40.2 mW of the total",)
    agx = opened(open_ina3221, FIXTURES / "jetson_agx_orin")
    assert agx.resolution_w is None
    assert agx.notes == ("the interface does not tell its resolution",)
    assert opened(open_hwmon, FIXTURES / "ina219_hat").resolution_w == pytest.approx(0.02)


def test_steps_of_several_rails_add_up(board: Callable[[str], Path]) -> None:
    root = board("jetson_agx_orin")
    for channel in (1, 2, 3):
        (root / f"sys/class/hwmon/hwmon2/shunt{channel}_resistor").write_text("2000\n")
    step_w = opened(open_ina3221, root, AGX).resolution_w
    assert step_w == pytest.approx(0.02 * (19 + 19 + 5))  # 0.38 W on each of the 19 V rails


@pytest.mark.parametrize(
    ("found", "plan", "total"),
    [
        (("VDD_IN", "VDD_SOC"), PowerPlan(), ("VDD_IN",)),
        (("POM_5V_GPU", "POM_5V_IN"), PowerPlan(total=("POM_5V_GPU",)), ("POM_5V_IN",)),
        ((*MODULE_RAILS, "VDDQ_VDD2_1V8AO"), PowerPlan(), MODULE_RAILS),
        (
            (*MODULE_RAILS, "VDDQ_VDD2_1V8AO"),
            PowerPlan(total=(*MODULE_RAILS, "VDDQ_VDD2_1V8AO")),
            MODULE_RAILS,
        ),
        ((*MODULE_RAILS, "VDDQ_VDD2_1V8AO", "NC"), PowerPlan(total=("*",)), MODULE_RAILS),
        (("GPU", "CPU", "SYS5V"), PowerPlan(total=("GPU", "CPU")), ("GPU", "CPU")),
    ],
)
def test_the_total_of_a_board(found: tuple[str, ...], plan: PowerPlan, total: tuple[str, ...]) -> None:
    choice = choose_total(found, plan)
    assert not isinstance(choice, str)
    assert choice.total == total
    assert not set(choice.parts) & set(total)
    assert bool(choice.notes) == ("*" not in plan.total and plan.total not in ((), total))


@pytest.mark.parametrize(
    ("found", "plan", "words"),
    [
        (("GPU", "CPU"), PowerPlan(), "no rail here is known to hold the whole board; rails: GPU, CPU"),
        (("GPU", "CPU"), PowerPlan(total=("GPU", "SOC")), "rail SOC is missing; rails: GPU, CPU"),
        (("NC",), PowerPlan(total=("*",)), "rail of any name is missing"),
        (MODULE_RAILS[:2], PowerPlan(), "no rail here is known"),
    ],
)
def test_a_part_never_passes_for_the_whole(found: tuple[str, ...], plan: PowerPlan, words: str) -> None:
    choice = choose_total(found, plan)
    assert isinstance(choice, str)
    assert words in choice


@given(st.lists(st.text(max_size=20), max_size=8), st.lists(st.text(max_size=20), max_size=4))
def test_a_choice_holds_only_rails_that_are_there(found: list[str], total: list[str]) -> None:
    choice = choose_total(found, PowerPlan(total=tuple(total)))
    if not isinstance(choice, str):
        assert set(choice.total) | set(choice.parts) <= set(found)
        assert choice.total
        assert "VDDQ_VDD2_1V8AO" not in choice.total


# What can be wrong with one file: (content or None for a file that is gone, word of the reason).
DAMAGE = [
    (None, "no such file"),
    (b"", "not an integer"),
    (b"12.5\n", "not an integer"),
    (b"-999999\n", "implausible value"),
    (b"9" * 30, "not an integer"),
    (b"99999999999\n", "implausible value"),
    (b"\xff\xfe\n", "UTF-8"),
    (b"12 34\n", "not an integer"),
]
PLACES = [
    (open_ina3221, "jetson_orin_nano", f"{NANO}/curr1_input"),
    (open_ina3221, "jetson_orin_nano", f"{NANO}/in1_input"),
    (open_ina3221, "jetson_agx_orin", "sys/class/hwmon/hwmon2/curr2_input"),
    (open_ina238, "jetson_agx_thor", "sys/class/hwmon/hwmon6/power1_input"),
    (open_ina3221x, "jetson_nano", "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input"),
    (open_hwmon, "ina219_hat", "sys/class/hwmon/hwmon0/power1_input"),
]


@pytest.mark.parametrize(("content", "words"), DAMAGE)
@pytest.mark.parametrize(("opener", "name", "path"), PLACES)
def test_a_damaged_sensor_is_a_reason_and_never_a_power(
    opener: Opener, name: str, path: str, content: bytes | None, words: str, board: Callable[[str], Path]
) -> None:
    root = board(name)
    source = opened(opener, root)
    good = source.read().power_w
    whole = (root / path).read_bytes()
    if content is None:  # the driver was unloaded in the middle
        (root / path).unlink()
    else:
        (root / path).write_bytes(content)
    reading = source.read()
    assert reading.power_w is None
    assert words in str(reading.reason)
    assert path in str(reading.reason)
    if content is not None:  # without a file of power the iio driver is read by voltage and current
        assert words in refused(opener, root)
    (root / path).write_bytes(whole)
    assert source.read().power_w == good


def test_a_total_of_nothing_is_no_power(board: Callable[[str], Path]) -> None:
    root = board("jetson_orin_nano")
    for content, words in (
        ("0\n", "the total is 0 W"),
        ("-8\n", "the total is -0.04"),
        ("-48\n", "implausible"),
    ):
        (root / NANO / "curr1_input").write_text(content)
        assert words in refused(open_ina3221, root)


def test_an_idle_rail_may_read_a_little_below_nothing(board: Callable[[str], Path]) -> None:
    """Cutting it off at 0 would bend the mean of the noise upward."""
    root = board("jetson_orin_nano")
    (root / NANO / "curr3_input").write_text("-8\n")
    reading = opened(open_ina3221, root).read()
    assert reading.extra_w["VDD_SOC"] == pytest.approx(-0.04)
    assert reading.power_w == pytest.approx(6.0288)


def test_a_part_that_fails_leaves_the_total(board: Callable[[str], Path]) -> None:
    root = board("jetson_agx_thor")
    (root / "sys/class/hwmon/hwmon4/curr2_input").unlink()
    reading = opened(open_ina238, root).read()
    assert reading.power_w == 23.75
    assert reading.extra_w == {"VDD_GPU": 0.0, "VDD_CPU_SOC_MSS": None, "VIN_SYS_5V0": 6.0}


@pytest.mark.parametrize(("fails", "power_w"), [(1, 6.0288), (2, None)])
def test_eagain_is_tried_once_more(
    fails: int, power_w: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(open_ina3221, FIXTURES / "jetson_orin_nano")
    real, left = os.open, [fails]

    def busy(path: Path, flags: int) -> int:
        if path.name == "curr1_input" and left[0]:
            left[0] -= 1
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return real(path, flags)

    monkeypatch.setattr(os, "open", busy)
    reading = source.read()
    assert reading.power_w == power_w
    assert ("EAGAIN" in str(reading.reason)) == (power_w is None)


@pytest.mark.parametrize(("opener", "name", "path"), PLACES)
def test_a_refused_right_names_file_right_and_remedy(
    opener: Opener, name: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def deny(place: Path, flags: int) -> int:
        if place.as_posix().endswith(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(place, flags)

    monkeypatch.setattr(os, "open", deny)
    reason = refused(opener, FIXTURES / name)
    assert f"/{path}: permission denied" in reason
    assert "the right to read" in reason
    assert f"sudo chmod a+r /{path}" in reason


def test_a_board_that_lacks_a_rail_of_its_profile_is_told(board: Callable[[str], Path]) -> None:
    root = board("jetson_agx_orin")
    (root / "sys/class/hwmon/hwmon2/in2_label").write_text("VDD_OTHER\n")
    assert refused(open_ina3221, root, AGX).startswith(
        "rail VDD_CPU_CV is missing; rails: VDD_GPU_SOC, VDD_OTHER"
    )


def test_iio_rails_without_a_power_are_multiplied(board: Callable[[str], Path]) -> None:
    root = board("jetson_nano")
    for path in root.rglob("in_power*_input"):
        path.unlink()
    assert opened(open_ina3221x, root).read().power_w == pytest.approx(1.2)


def test_two_inputs_are_one_too_many(board: Callable[[str], Path]) -> None:
    root = board("jetson_agx_thor")
    shutil.copytree(root / "sys/class/hwmon/hwmon6", root / "sys/class/hwmon/hwmon7")
    assert "2 monitors named ina238" in refused(open_ina238, root)
