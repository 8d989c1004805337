"""The choice of a source: proven, never silent, never another scope when the board is demanded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qslm_edge.runner.power import KNOWN_SOURCES, SOURCES, PowerSource, Reading, Unavailable, open_source
from qslm_edge.runner.power.fake import FakeSource

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "power"
PROFILE_SOURCES = (
    *("ina3221", "ina3221x", "ina238", "nvml", "rapl"),
    *("rpi-pmic", "hwmon", "battery", "csv", "powermetrics", "none"),
)


def gpu(_: Path) -> PowerSource | Unavailable:
    return FakeSource(lambda: 0.0, lambda _: 1.0)


def test_every_name_of_a_profile_is_known() -> None:
    assert set(KNOWN_SOURCES) == set(PROFILE_SOURCES)
    assert set(SOURCES) == {"nvml", "rapl"}


@pytest.mark.parametrize("name", [name for name in PROFILE_SOURCES if name not in ("nvml", "rapl", "none")])
def test_source_without_a_reader_says_so_and_what_to_do(name: str, tmp_path: Path) -> None:
    source = open_source(name, tmp_path, only_preferred=True)
    assert isinstance(source, Unavailable)
    assert source.name == name
    assert source.reason.startswith(f"{name} is not supported by this version; ")


def test_none_and_unknown_names(tmp_path: Path) -> None:
    none = open_source("none", tmp_path, only_preferred=True)
    assert isinstance(none, Unavailable)
    assert "no power read-out" in none.reason
    typo = open_source("raple", tmp_path, only_preferred=True)
    assert isinstance(typo, Unavailable)
    assert typo.reason.startswith("raple is not a power source; known are ina3221, ")


def test_host_source_stands_in_and_says_for_what() -> None:
    source = open_source("ina3221", FIXTURES / "intel_laptop_rapl")
    assert isinstance(source, PowerSource)
    assert source.name == "rapl"
    assert [item.name for item in source.skipped] == ["ina3221"]
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


def test_all_reasons_are_told_when_nothing_works(tmp_path: Path) -> None:
    source = open_source("nvml", tmp_path, use_gpu=True)
    assert isinstance(source, Unavailable)
    assert "a tree of files has no GPU" in source.reason
    assert "no RAPL zones" in source.reason
    assert source.to_dict() == {"name": "nvml", "reason": source.reason}


def test_host_of_these_tests_never_raises() -> None:
    source = open_source("ina3221", use_gpu=True)
    if isinstance(source, Unavailable):
        assert "ina3221" in source.reason
    else:
        assert source.skipped[0].name == "ina3221"
        source.close()


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
