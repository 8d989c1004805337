"""Uncertainty, resolution, and what is told for external meters."""

from __future__ import annotations

import dataclasses

import pytest

from qslm_edge.runner.power import ExternalMeter, Reading, measure_energy
from qslm_edge.runner.power.fake import FakeSource, VirtualTime
from qslm_edge.runner.power.plan import Estimate
from tests.helpers.virtual_run import RUN_W, SMOKE, START_S, busy, load, measure


def wavy(time_s: float) -> float:
    """The load with a noise of 0.11 W in the means of 1 s."""
    return load()(time_s) + (0.1 if int(time_s) % 2 else -0.1)


def test_the_uncertainty_adds_edges_resolution_and_idle_noise_in_squares() -> None:
    result = measure(wavy, kind="power", resolution_w=0.04, update_s=0.1)
    tokens, seconds = 500, SMOKE.run_s
    assert result.mean_w is not None
    assert (result.idle_noise_w or 0) > 0.1
    assert result.edge_error_j == pytest.approx(0.1 * result.mean_w)
    assert result.resolution_error_j == pytest.approx(0.02 * seconds)
    assert result.idle_error_j == pytest.approx(2 * (result.idle_noise_w or 0) / 6**0.5 * seconds)
    edge_j, step_j, idle_j = result.edge_error_j, result.resolution_error_j, result.idle_error_j
    assert None not in (edge_j, step_j, idle_j)
    gross_j = ((edge_j or 0) ** 2 + (step_j or 0) ** 2) ** 0.5
    assert result.gross_uncertainty_j_per_token == pytest.approx(gross_j / tokens)
    net_j = (gross_j**2 + (step_j or 0) ** 2 + (idle_j or 0) ** 2) ** 0.5
    assert result.net_uncertainty_j_per_token == pytest.approx(net_j / tokens)
    assert (result.uncertainty_reason, result.alignment_error_j) == (None, None)


def test_a_step_that_is_not_known_is_named_and_not_taken_for_nothing() -> None:
    result = measure(wavy, kind="power")
    assert result.resolution_error_j is None
    assert result.uncertainty_reason == "not known and left out: resolution of the interface"
    assert result.gross_uncertainty_j_per_token is not None


def test_a_counter_has_no_step_beside_its_update() -> None:
    result = measure(wavy)
    assert result.resolution_error_j == 0.0
    assert result.uncertainty_reason is None


def test_an_update_that_is_not_told_is_seen_in_the_readings() -> None:
    """The value here is renewed every 0.5 s."""
    held = measure(lambda time_s: wavy(time_s) + int(2 * time_s) % 3, kind="power", update_s=None)
    assert held.mean_w is not None
    assert held.edge_error_j == pytest.approx(0.5 * held.mean_w, rel=0.3)
    still = measure(kind="power", update_s=None)
    assert (still.edge_error_j, still.gross_uncertainty_j_per_token) == (None, None)
    assert still.uncertainty_reason == (
        "not known and left out: update of the interface, resolution of the interface"
    )


@pytest.mark.parametrize(("resolution_w", "known"), [(4.9, True), (5.1, False)])
def test_net_power_below_one_step_is_no_number(resolution_w: float, known: bool) -> None:
    """A coarse sensor that stands still has no noise; its step is what it cannot see."""
    result = measure(kind="power", resolution_w=resolution_w)
    assert (result.net_j_per_token is not None) is known
    assert (result.net_uncertainty_j_per_token is not None) is known
    if not known:
        assert "while one step of the interface is worth 51 J" in str(result.net_reason)


# ---- external meters


def test_edges_stand_on_both_clocks_and_the_marker_comes_first() -> None:
    virtual = VirtualTime(START_S)
    source = FakeSource(virtual.clock, lambda _: 5.0)
    result = measure_energy(
        source,
        virtual.run(50),
        **SMOKE.lengths(),
        marker=True,
        clock=virtual.clock,
        wall_clock=lambda: virtual.clock() + 1e9,
        sleep=virtual.sleep,
        recorder=virtual.recorder,
    )
    assert result.marker == ((1000, 1002), (1004, 1006), (1009, 1011))
    assert result.phases["settle"][0] == 1013
    assert result.tokens == 500
    for name, edges in result.phases.items():
        assert [wall_s - 1e9 for wall_s in result.wall_phases[name]] == pytest.approx(edges)
    assert measure().marker == ()


def test_for_an_external_meter_the_phases_pass_without_readings() -> None:
    virtual = VirtualTime(START_S)
    result = measure_energy(
        ExternalMeter("permission denied"),
        virtual.run(50),
        **SMOKE.lengths(),
        clock=virtual.clock,
        sleep=virtual.sleep,
        recorder=virtual.recorder,
    )
    assert (result.status, result.tokens, result.duration_s) == ("unavailable", 500, SMOKE.run_s)
    assert str(result.reason).startswith("permission denied; an external meter measures this run")
    assert (
        result.phases.keys()
        == result.wall_phases.keys()
        == {"settle", "idle_loaded", "warm_up", "run", "idle_after"}
    )
    assert (result.energy_j, result.samples) == (None, ())


def test_the_estimate_of_the_board_never_enters_the_figure() -> None:
    virtual = VirtualTime(START_S)
    source = FakeSource(virtual.clock, load(), kind="power")
    source.estimate = Estimate(1.1451, 0.5879)
    result = measure_energy(
        source,
        virtual.run(50),
        **SMOKE.lengths(),
        clock=virtual.clock,
        sleep=virtual.sleep,
        recorder=virtual.recorder,
    )
    assert result.gross_j_per_token == pytest.approx(RUN_W / 50, rel=0.01)
    assert result.board_j_per_token == pytest.approx((1.1451 * RUN_W + 0.5879) / 50, rel=0.01)
    assert result.source["estimate"] == {"slope": 1.1451, "offset_w": 0.5879, "tag": "calibrated-estimate"}


def test_a_clock_that_jumps_back_is_no_energy() -> None:
    def jump(reading: Reading) -> Reading:
        back_s = 3.0 if reading.time_s > busy()[1] + 4 else 0.0
        return dataclasses.replace(reading, time_s=reading.time_s - back_s)

    for result in (measure(edit=jump), measure(edit=jump, kind="power")):
        assert (result.status, result.energy_j) == ("rejected", None)
