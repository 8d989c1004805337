"""The integrators against recorded series, exact properties, and every rule that refuses a window."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.runner.power.base import Kind, Reading
from qslm_edge.runner.power.integrate import (
    energy_by_counter,
    energy_by_trapezoid,
    one_second_means,
    window_fault,
)

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "power"


def rows(name: str) -> list[dict[str, str]]:
    with (FIXTURES / name).open(newline="") as handle:
        return list(csv.DictReader(line for line in handle if not line.startswith("#")))


def h100(column: str) -> list[Reading]:
    return [
        Reading(float(row["t_s"]), energy_j=float(row["energy_mj"]) / 1000, power_w=float(row[column]) / 1000)
        for row in rows("nvml_timeline_20ms.csv")
    ]


def regular(n: int, *, period_s: float = 0.1, power_w: float = 10.0, start_s: float = 0.0) -> list[Reading]:
    """Readings of a constant power, as counter and as power."""
    times = [start_s + step * period_s for step in range(n)]
    return [Reading(time_s, energy_j=power_w * (time_s - start_s), power_w=power_w) for time_s in times]


@pytest.mark.parametrize("window", ["load", "steady", "idle"])
def test_h100_timeline(window: str) -> None:
    answer = json.loads((FIXTURES / "nvml_timeline.json").read_text())["answers_from_this_csv"][window]
    t0, t1 = answer["start_s"], answer["end_s"]
    found = {
        "energy_counter_w": energy_by_counter(h100("instant_mw"), t0, t1),
        "instant_trapezoid_w": energy_by_trapezoid(h100("instant_mw"), t0, t1),
        "power_usage_trapezoid_w": energy_by_trapezoid(h100("power_mw"), t0, t1),
    }
    for name, integral in found.items():
        assert integral.reason is None
        assert integral.energy_j is not None
        assert integral.energy_j / (t1 - t0) == pytest.approx(answer[name], rel=1e-3)
        assert integral.coverage > 0.98


def test_average_power_loses_energy_on_a_short_run() -> None:
    """The reason why the counter is preferred: a 1 s average misses the start of the load."""
    counter = energy_by_counter(h100("power_mw"), 4.0002, 10.0245).energy_j
    average = energy_by_trapezoid(h100("power_mw"), 4.0002, 10.0245).energy_j
    assert counter is not None
    assert average is not None
    assert 0.06 < 1 - average / counter < 0.08


def test_wrap_sequence_is_15_watts_throughout() -> None:
    readings = [
        Reading(float(row["t_s"]), energy_j=int(row["energy_uj"]) / 1e6)
        for row in rows("rapl_wraparound_sequence.csv")
    ]
    for t0, t1 in [(0.0, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.0, 0.4), (0.15, 0.35)]:
        integral = energy_by_counter(readings, t0, t1, 262143.328850)
        assert integral.energy_j is not None
        assert integral.energy_j / (t1 - t0) == pytest.approx(15.0, rel=1e-6)
    assert energy_by_counter(readings, 0.0, 0.4).reason == "the counter fell without a wrap"
    assert energy_by_counter(readings, 0.0, 0.2).energy_j == pytest.approx(3.0)


STEPS = st.lists(st.floats(min_value=0.001, max_value=0.9), min_size=4, max_size=60)
POWER = st.floats(min_value=0.0, max_value=2000.0)


def window_of(steps: list[float], low: float, high: float) -> tuple[list[float], float, float]:
    times = [math.fsum(steps[:count]) for count in range(len(steps) + 1)]
    low, high = sorted((low, high))
    return times, times[-1] * low, times[-1] * high


@given(STEPS, POWER, st.floats(0, 1), st.floats(0, 1))
def test_constant_power_gives_power_times_time(
    steps: list[float], power_w: float, low: float, high: float
) -> None:
    times, t0, t1 = window_of(steps, low, high)
    if not t1 > t0:
        return
    readings = [Reading(time_s, energy_j=power_w * time_s, power_w=power_w) for time_s in times]
    for integral in (energy_by_counter(readings, t0, t1), energy_by_trapezoid(readings, t0, t1)):
        assert integral.energy_j == pytest.approx(power_w * (t1 - t0), rel=1e-9, abs=1e-9)


@given(STEPS, st.data(), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_windows_add_up(
    steps: list[float], data: st.DataObject, low: float, high: float, share: float
) -> None:
    times, t0, t2 = window_of(steps, low, high)
    t1 = t0 + share * (t2 - t0)
    if not t0 < t1 < t2:
        return
    powers = data.draw(st.lists(POWER, min_size=len(times), max_size=len(times)))
    energy_j = 0.0
    readings = []
    for position, (time_s, power_w) in enumerate(zip(times, powers, strict=True)):
        energy_j += power_w * (time_s - times[position - 1]) if position else 0.0
        readings.append(Reading(time_s, energy_j=energy_j, power_w=power_w))
    for rule in (energy_by_counter, energy_by_trapezoid):
        parts = [rule(readings, *window).energy_j for window in ((t0, t1), (t1, t2), (t0, t2))]
        assert None not in parts
        first, second, whole = (part or 0.0 for part in parts)
        assert first + second == pytest.approx(whole, rel=1e-9, abs=1e-7)


@given(STEPS, POWER, st.floats(min_value=1500, max_value=9000), st.floats(min_value=0, max_value=1))
def test_wraps_change_nothing(steps: list[float], power_w: float, range_j: float, start: float) -> None:
    times, t0, t1 = window_of(steps, 0.1, 0.9)
    totals = [start * range_j + power_w * time_s for time_s in times]
    plain = [Reading(time_s, energy_j=total) for time_s, total in zip(times, totals, strict=True)]
    wrapped = [Reading(time_s, energy_j=total % range_j) for time_s, total in zip(times, totals, strict=True)]
    expected = energy_by_counter(plain, t0, t1).energy_j
    assert energy_by_counter(wrapped, t0, t1, range_j).energy_j == pytest.approx(expected, abs=1e-6)


def test_trapezoid_interpolates_at_the_edges() -> None:
    ramp = [Reading(float(second), power_w=10.0 * second) for second in range(5)]
    assert energy_by_trapezoid(ramp, 0.5, 3.5).energy_j == pytest.approx(5 * (3.5**2 - 0.5**2))
    assert energy_by_trapezoid(ramp, 1.2, 1.4).energy_j == pytest.approx(5 * (1.4**2 - 1.2**2))


@pytest.mark.parametrize(
    ("t0", "t1", "reason"),
    [
        (5.0, 5.0, "the window has no length"),
        (6.0, 5.0, "the window has no length"),
        (-1.0, 5.0, "no valid reading before the window"),
        (5.0, 10.0, "no valid reading after the window"),
    ],
)
def test_window_must_be_enclosed(t0: float, t1: float, reason: str) -> None:
    for rule in (energy_by_counter, energy_by_trapezoid):
        integral = rule(regular(100), t0, t1)
        assert (integral.energy_j, integral.reason) == (None, reason)


def test_no_readings_at_all() -> None:
    for rule in (energy_by_counter, energy_by_trapezoid):
        integral = rule([], 0.0, 1.0)
        assert (integral.energy_j, integral.n_samples, integral.coverage) == (None, 0, 0.0)


def test_restart_is_no_wrap_even_with_a_range() -> None:
    readings = regular(50)
    readings[30:] = [Reading(item.time_s, energy_j=(item.energy_j or 0) - 30) for item in readings[30:]]
    assert energy_by_counter(readings, 1.0, 4.0, 262143.0).reason == "the counter fell without a wrap"
    assert energy_by_counter(readings, 1.0, 2.9).energy_j == pytest.approx(19.0)


def test_huge_jump_is_no_energy() -> None:
    readings = regular(50)
    readings[30:] = [Reading(item.time_s, energy_j=(item.energy_j or 0) + 1e12) for item in readings[30:]]
    assert "the counter jumped by" in str(energy_by_counter(readings, 1.0, 4.0).reason)


def test_values_that_are_not_numbers_are_passed_over() -> None:
    readings = regular(50)
    readings[20] = Reading(2.0, energy_j=math.nan, power_w=math.inf)
    readings[21] = Reading(2.1, reason="EAGAIN")
    for rule in (energy_by_counter, energy_by_trapezoid):
        integral = rule(readings, 1.0, 4.0)
        assert integral.energy_j == pytest.approx(30.0)
        assert integral.n_samples == 29


def test_fault_in_the_window_is_its_reason() -> None:
    readings = regular(50)
    readings[20] = Reading(2.0, reason="package-0: the counter fell without a wrap", fault=True)
    for rule in (energy_by_counter, energy_by_trapezoid):
        assert rule(readings, 1.0, 4.0).reason == "package-0: the counter fell without a wrap"
        assert rule(readings, 2.5, 4.0).reason is None


def test_falling_time_stamps_are_refused() -> None:
    readings = regular(50)
    readings[20], readings[21] = readings[21], readings[20]
    for rule in (energy_by_counter, energy_by_trapezoid):
        assert rule(readings, 1.0, 4.0).reason == "the time stamps fall"


@pytest.mark.parametrize("kind", ["counter", "power"])
def test_good_window_has_no_fault(kind: Kind) -> None:
    assert window_fault(regular(100), 1.05, 9.05, kind=kind, period_s=0.1) is None


@pytest.mark.parametrize("kind", ["counter", "power"])
def test_too_few_samples_name_what_failed(kind: Kind) -> None:
    readings = [*regular(10), *(Reading(1.0 + step / 10, reason="denied") for step in range(10))]
    fault = window_fault(readings, 0.0, 1.9, kind=kind, period_s=0.1)
    assert fault == "10 samples in the window, 20 are needed (denied)"


@pytest.mark.parametrize("kind", ["counter", "power"])
def test_low_coverage(kind: Kind) -> None:
    readings = [*regular(80), Reading(10.0, energy_j=100.0, power_w=10.0)]
    fault = window_fault(readings, 0.0, 9.9, kind=kind, period_s=0.1)
    assert fault == "the samples cover 0.80 of the window, 0.9 is needed"


def test_gap_matters_to_a_power_and_not_to_a_counter() -> None:
    readings = [item for item in regular(100) if not 4.05 < item.time_s < 4.35]
    fault = window_fault(readings, 1.05, 9.05, kind="power", period_s=0.1)
    assert fault == "a gap of 0.4 s between samples, at most 0.25 s is allowed"
    assert window_fault(readings, 1.05, 9.05, kind="counter", period_s=0.1) is None


@pytest.mark.parametrize("edge_s", [1.05, 9.05])
def test_gap_at_an_edge_matters_to_a_counter(edge_s: float) -> None:
    readings = [item for item in regular(100) if abs(item.time_s - edge_s) > 0.2]
    assert "a gap of" in str(window_fault(readings, 1.05, 9.05, kind="counter", period_s=0.1))


def test_gap_at_a_wrap_matters_to_a_counter() -> None:
    readings = [
        Reading(item.time_s, energy_j=((item.energy_j or 0) + 55) % 100)
        for item in regular(100)
        if not 4.25 < item.time_s < 4.75
    ]
    assert "a gap of" in str(window_fault(readings, 1.05, 9.05, kind="counter", period_s=0.1))


def test_one_second_means_leave_out_what_is_not_valid() -> None:
    readings = regular(100, power_w=7.0)
    assert one_second_means(readings, 0.5, 4.0, "power") == pytest.approx([7.0, 7.0, 7.0])
    readings[20] = Reading(2.0, reason="fell", fault=True)
    assert one_second_means(readings, 0.55, 4.0, "counter") == pytest.approx([7.0, 7.0])
