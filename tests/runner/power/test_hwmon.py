"""Generic hwmon and the battery: what may be read at all, and what it means."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qslm_edge.runner.power.base import PowerPlan, PowerSource, Reading, Unavailable
from qslm_edge.runner.power.battery import open_battery
from qslm_edge.runner.power.hwmon import find_channels, open_hwmon
from tests.helpers.power_trees import opened, refused


def chip(root: Path, number: int, name: str, **files: object) -> Path:
    folder = root / f"sys/class/hwmon/hwmon{number}"
    folder.mkdir(parents=True)
    for file, value in {"name": name, **files}.items():
        (folder / file).write_text(f"{value}\n")
    return folder


def test_the_best_file_of_a_channel_is_taken(tmp_path: Path) -> None:
    chip(
        tmp_path, 0, "meter", power1_average=5, power1_input=4, energy2_input=7, power2_input=3, power3_cap=1
    )
    chip(tmp_path, 1, "coretemp", temp1_input=50000)
    assert [channel.name for channel in find_channels(tmp_path)] == [
        "meter/energy2_input",
        "meter/power1_input",
    ]


def test_an_energy_counter_counts(tmp_path: Path) -> None:
    folder = chip(tmp_path, 0, "board", energy1_input=5_000_000)
    source = opened(open_hwmon, tmp_path)
    assert (source.kind, source.rails) == ("counter", ("board/energy1_input",))
    assert source.read().energy_j == 5.0
    (folder / "energy1_input").write_text("0\n")
    assert "implausible value 0" in str(source.read().reason)


def test_what_to_read_must_be_clear(tmp_path: Path) -> None:
    chip(tmp_path, 0, "amdgpu", power1_average=9_000_000)
    assert "what to read is not clear among amdgpu/power1_average" in refused(open_hwmon, tmp_path)
    chip(tmp_path, 1, "ina226", power1_input=4_000_000)
    assert opened(open_hwmon, tmp_path).rails == ("ina226/power1_input",)  # a GPU does not see the processor
    chip(tmp_path, 2, "ina226", power1_input=2_000_000, power1_label="5V rail")
    assert "not clear" in refused(open_hwmon, tmp_path)
    assert "ina226 is more than one channel" in refused(open_hwmon, tmp_path, PowerPlan(total=("ina226",)))
    assert "12V is no channel" in refused(open_hwmon, tmp_path, PowerPlan(total=("12V",)))
    named = opened(open_hwmon, tmp_path, PowerPlan("hwmon", ("5V rail", "amdgpu"), scope="two rails"))
    assert named.read().power_w == 11.0
    assert named.scope == "two rails"
    assert any("average" in note for note in named.notes)


def test_a_battery_in_hwmon_is_left_to_its_own_reader(tmp_path: Path) -> None:
    """While it charges, its power is not what the machine takes."""
    chip(tmp_path, 0, "BAT0", power1_input=9_000_000)
    chip(tmp_path, 1, "ucsi_source_psy", power1_input=15_000_000)
    for name in ("BAT0", "ucsi-source-psy"):
        (tmp_path / "sys/class/power_supply" / name).mkdir(parents=True)
    assert find_channels(tmp_path) == []


def test_counters_are_not_added(tmp_path: Path) -> None:
    chip(tmp_path, 0, "amd_energy", energy1_input=1, energy2_input=2)
    reason = refused(open_hwmon, tmp_path, PowerPlan(total=("energy1_input", "energy2_input")))
    assert "energy counters are not added" in reason


# ---- battery


@pytest.mark.parametrize(
    ("changes", "power_w", "words"),
    [
        ({"status": "Charging"}, None, "not on battery (/sys/class/power_supply/BAT0/status: Charging)"),
        ({"status": "Full"}, None, "not on battery"),
        ({"status": None}, None, "no such file"),
        ({"power_now": "-9000000"}, 9.0, ""),
        ({"power_now": "0"}, None, "discharges at 0 W"),
        ({"power_now": "99999999999"}, None, "implausible"),
        ({"power_now": "x"}, None, "not an integer"),
        ({"power_now": None, "current_now": "-800000"}, 9.2, ""),
        ({"power_now": None}, None, "current_now: no such file"),
        ({"power_now": None, "current_now": "800000", "voltage_now": "0"}, None, "implausible value 0"),
        ({"scope": "Device"}, None, "no battery"),
        ({"type": "Mains"}, None, "no battery"),
    ],
)
def test_a_battery_speaks_only_while_it_discharges(
    changes: dict[str, str | None], power_w: float | None, words: str, board: Callable[[str], Path]
) -> None:
    root = board("laptop_battery")
    for name, value in changes.items():
        path = root / "sys/class/power_supply/BAT0" / name
        if value is None:
            path.unlink()
        else:
            path.write_text(f"{value}\n")
    source = open_battery(root)
    if power_w is None:
        assert isinstance(source, Unavailable)
        assert words in source.reason
    else:
        assert isinstance(source, PowerSource)
        assert source.read().power_w == pytest.approx(power_w)


def test_two_batteries_add_up_and_the_plug_ends_it(board: Callable[[str], Path]) -> None:
    root = board("laptop_battery")
    supplies = root / "sys/class/power_supply"
    shutil.copytree(supplies / "BAT0", supplies / "BAT1")
    source = opened(open_battery, root)
    assert source.read().power_w == 18.0
    (supplies / "BAT1/status").write_text("Not charging\n")
    assert source.read().power_w == 9.0
    (supplies / "BAT1/status").write_text("Charging\n")
    reading: Reading = source.read()
    assert reading.power_w is None
    assert "unplug" in str(reading.reason)
