"""The choice of a source: proven, never silent, never another scope when the board is demanded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qslm_edge.errors import BundleError
from qslm_edge.runner.power import (
    KNOWN_SOURCES,
    SOURCES,
    PowerPlan,
    PowerSource,
    Reading,
    Unavailable,
    open_source,
)
from qslm_edge.runner.power.fake import FakeSource
from qslm_edge.runner.power.plan import Estimate

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "power"
PROFILE_SOURCES = (
    *("ina3221", "ina3221x", "ina238", "nvml", "rapl"),
    *("rpi-pmic", "hwmon", "battery", "powermetrics", "none"),
)
UNREAD = ("powermetrics", "none")


def gpu(_root: Path, _plan: PowerPlan) -> PowerSource | Unavailable:
    return FakeSource(lambda: 0.0, lambda _: 1.0)


def test_every_name_of_a_profile_is_known_and_has_a_reader() -> None:
    assert set(PROFILE_SOURCES) | {"csv", "tegrastats", "nvidia-smi"} == set(KNOWN_SOURCES)
    assert set(KNOWN_SOURCES) - set(UNREAD) == set(SOURCES)
    assert len(set(KNOWN_SOURCES)) == len(KNOWN_SOURCES)


@pytest.mark.parametrize("name", UNREAD)
def test_source_without_a_reader_says_so_and_what_to_do(name: str, tmp_path: Path) -> None:
    source = open_source(name, tmp_path, only_preferred=True)
    assert isinstance(source, Unavailable)
    assert source.name == name
    assert "external meter" in source.reason
    assert "--power-source csv" in source.reason


def test_a_name_that_is_no_source_lists_the_others(tmp_path: Path) -> None:
    typo = open_source("raple", tmp_path, only_preferred=True)
    assert isinstance(typo, Unavailable)
    assert typo.reason.startswith("raple is not a power source; known are ina3221, ")


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ("nvml", "csv")])
def test_every_reader_says_that_an_empty_host_lacks_it(name: str, tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path, PowerPlan(total=("X",)))
    assert isinstance(source, Unavailable)
    assert source.name == name
    assert source.absent


@pytest.mark.parametrize("name", [*SOURCES, "none", "what"])
def test_no_reader_raises_on_this_host(name: str) -> None:
    """Whatever the machine of the tests has: a source that reads, or a reason."""
    source = open_source(name, only_preferred=True)
    if isinstance(source, Unavailable):
        assert len(source.reason) > 10
    else:
        reading = source.read()
        assert (reading.power_w is None and reading.energy_j is None) == (reading.reason is not None)
        source.close()


def test_host_source_stands_in_and_says_for_what() -> None:
    source = open_source("ina3221", FIXTURES / "intel_laptop_rapl")
    assert isinstance(source, PowerSource)
    assert source.name == "rapl"
    assert [item.name for item in source.skipped] == ["ina3221", "ina3221x", "tegrastats", "ina238"]
    assert json.loads(json.dumps(source.to_dict()))["skipped"][0]["name"] == "ina3221"


def test_nothing_stands_in_when_the_board_is_demanded() -> None:
    source = open_source("ina3221", FIXTURES / "intel_laptop_rapl", only_preferred=True)
    assert isinstance(source, Unavailable)
    assert source.name == "ina3221"


def test_preferred_source_that_is_there_is_taken_alone() -> None:
    source = open_source("rapl", FIXTURES / "amd_rapl", only_preferred=True)
    assert isinstance(source, PowerSource)
    assert source.skipped == ()


def test_gpu_source_only_for_a_gpu_run_or_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "nvml", gpu)
    names = [
        getattr(open_source(preferred, FIXTURES / "amd_rapl", use_gpu=use_gpu), "name", None)
        for preferred, use_gpu in ((None, False), (None, True), ("nvml", False))
    ]
    assert names == ["rapl", "fake", "fake"]


def test_another_way_to_the_same_monitor_may_stand_in_on_the_board(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rails are the same, so the figure has the scope that the profile names."""
    plans: list[PowerPlan] = []

    def tool(_root: Path, plan: PowerPlan) -> PowerSource | Unavailable:
        plans.append(plan)
        return FakeSource(lambda: 0.0, lambda _: 1.0)

    monkeypatch.setitem(SOURCES, "tegrastats", tool)
    monkeypatch.setitem(SOURCES, "rapl", gpu)
    plan = PowerPlan("ina3221", total=("VDD_IN",))
    source = open_source("ina3221", FIXTURES / "amd_rapl", plan=plan, only_preferred=True)
    assert isinstance(source, PowerSource)
    assert [item.name for item in source.skipped] == ["ina3221", "ina3221x"]
    assert plans == [plan]


def test_the_profile_says_nothing_of_another_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[PowerPlan] = []

    def other(_root: Path, plan: PowerPlan) -> PowerSource | Unavailable:
        plans.append(plan)
        return FakeSource(lambda: 0.0, lambda _: 1.0)

    monkeypatch.setitem(SOURCES, "rapl", other)
    open_source("ina3221", FIXTURES / "cgroup_v2", plan=PowerPlan("ina3221", total=("VDD_IN",)))
    assert plans == [PowerPlan()]


def test_an_external_meter_is_taken_on_request_only(tmp_path: Path) -> None:
    assert isinstance(open_source(None, tmp_path), Unavailable)
    meter = open_source("csv", tmp_path, only_preferred=True)
    assert isinstance(meter, PowerSource)
    assert meter.deferred is not None
    assert meter.read().power_w is None


def test_reasons_are_told_where_something_can_be_done(tmp_path: Path) -> None:
    """Of what the host simply lacks the names are enough; the preferred source always says why."""
    supply = tmp_path / "sys/class/power_supply/BAT0"
    supply.mkdir(parents=True)
    (supply / "type").write_text("Battery\n")
    (supply / "status").write_text("Charging\n")
    source = open_source("ina3221", tmp_path)
    assert isinstance(source, Unavailable)
    assert source.reason == (
        "no monitor named ina3221 below /sys/class/hwmon; not on battery (/sys/class/power_supply/BAT0/status: "
        "Charging): unplug the supply; this host has none of ina3221x, tegrastats, ina238, rapl, rpi-pmic, hwmon"
    )
    assert source.to_dict() == {"name": "ina3221", "reason": source.reason}


def test_a_plan_comes_from_the_manifest() -> None:
    plan = PowerPlan.from_mapping(
        {
            "source": "rpi-pmic",
            "total": ["*"],
            "parts": ["VDD_CORE"],
            "skip": [],
            "scope": "PMIC rails",
            "estimate": {"slope": 1.1451, "offset_w": 0.5879, "tag": "calibrated-estimate"},
            "note": "needs the group video",
        }
    )
    assert plan == PowerPlan(
        "rpi-pmic", ("*",), ("VDD_CORE",), (), "PMIC rails", Estimate(1.1451, 0.5879, "calibrated-estimate")
    )
    assert plan.estimate is not None
    assert plan.estimate.board_w(10.8) == pytest.approx(12.96, abs=0.01)
    assert PowerPlan.from_mapping({}) == PowerPlan()


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"total": "VDD_IN"}, "total"),
        ({"parts": [1]}, "parts"),
        ({"scope": 3}, "scope"),
        ({"source": []}, "source"),
        ({"estimate": {"slope": 1}}, "estimate"),
        ({"estimate": "x"}, "estimate"),
    ],
)
def test_a_damaged_plan_is_one_line(data: dict[str, object], key: str) -> None:
    with pytest.raises(BundleError, match=rf"manifest\.json: profile\.power\.{key}: wrong type"):
        PowerPlan.from_mapping(data)


def test_registry_without_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(SOURCES):
        monkeypatch.delitem(SOURCES, name)
    assert isinstance(open_source(), Unavailable)


def test_reading_as_json_keeps_absent_values() -> None:
    assert Reading(1.0, reason="gone").to_dict() == {
        "time_s": 1.0,
        "reason": "gone",
        "energy_j": None,
        "power_w": None,
    }
    assert Reading(0.0, 0.0, 2.0, {"average_w": None}, fault=True).to_dict() == {
        "time_s": 0.0,
        "energy_j": 0.0,
        "power_w": 2.0,
        "extra_w": {"average_w": None},
        "fault": True,
    }
