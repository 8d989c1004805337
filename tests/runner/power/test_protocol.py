"""The protocol on virtual time: exact energies, the baseline, and every way to get no figure."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.runner.power import (
    PRESETS,
    EnergyResult,
    Phases,
    PowerSource,
    Reading,
    Sampler,
    Unavailable,
    measure_energy,
    summarise_repeats,
)
from qslm_edge.runner.power.base import Kind
from qslm_edge.runner.power.fake import FakeSource, VirtualTime
from tests.helpers.virtual_run import IDLE_W, RUN_W, SMOKE, START_S, busy, load, measure


class Counting(PowerSource):
    """Gives the number of its reading as energy and signals after some of them."""

    name = "counting"
    kind: Kind = "counter"
    scope = "nothing real"

    def __init__(self, enough: int) -> None:
        self.count, self.enough, self.done = 0, enough, threading.Event()

    def read(self) -> Reading:
        self.count += 1
        if self.count >= self.enough:
            self.done.set()
        return Reading(time.monotonic(), energy_j=float(self.count))


@pytest.mark.parametrize("kind", ["counter", "power"])
@pytest.mark.parametrize("preset", ["smoke", "release"])
def test_known_powers_give_known_energies(kind: Kind, preset: str) -> None:
    phases = PRESETS[preset]
    result = measure(kind=kind, phases=phases)
    tokens = round(50 * phases.run_s)
    tolerance = 0.1 / min(phases.run_s, phases.idle_s)  # the trapezoid slants the edges over one period
    assert (result.status, result.reason, result.tokens) == ("measured", None, tokens)
    assert result.method == ("counter" if kind == "counter" else "trapezoid")
    assert result.duration_s == pytest.approx(phases.run_s)
    assert result.energy_j == pytest.approx(RUN_W * phases.run_s, rel=tolerance)
    assert result.gross_j_per_token == pytest.approx(RUN_W / 50, rel=tolerance)
    assert result.net_j_per_token == pytest.approx((RUN_W - IDLE_W) / 50, rel=2 * tolerance)
    assert result.mean_w == pytest.approx(RUN_W, rel=tolerance)
    assert result.peak_w == pytest.approx(RUN_W)
    assert result.idle_w == pytest.approx(IDLE_W, rel=tolerance)
    assert result.idle_after_w == pytest.approx(IDLE_W, rel=0.02)
    assert (result.drift, result.drift_reason) == (False, None)
    assert result.edge_error_j == pytest.approx(0.001 * RUN_W, rel=tolerance)
    assert result.n_samples is not None
    assert abs(result.n_samples - 10 * phases.run_s) <= 1


def test_windows_follow_each_other_in_the_order_of_the_protocol() -> None:
    phases = measure().phases
    assert list(phases) == ["settle", "idle_loaded", "warm_up", "run", "idle_after"]
    edges = list(phases.values())
    assert all(earlier[1] == later[0] for earlier, later in pairwise(edges))
    assert edges[-1][1] == pytest.approx(
        START_S + SMOKE.settle_s + SMOKE.idle_s + SMOKE.warmup_s + SMOKE.run_s + SMOKE.idle_after_s
    )


def test_presets_keep_the_rules_of_the_protocol() -> None:
    assert PRESETS["smoke"].run_s == 10
    release = PRESETS["release"]
    assert (release.settle_s, release.idle_s, release.idle_after_s) == (10, 30, 10)
    assert release.run_s >= 60
    assert release.repeats >= 3
    assert all(phases.warmup_s >= 3 for phases in PRESETS.values())


def test_counter_of_the_source_may_wrap() -> None:
    result = measure(range_j=50.0)
    assert result.energy_j == pytest.approx(RUN_W * SMOKE.run_s, rel=1e-6)


def test_result_is_json_with_and_without_readings() -> None:
    result = measure()
    whole = json.loads(json.dumps(result.to_dict()))
    assert len(whole["samples"]) == len(result.samples) > 100
    assert whole["source"]["scope"] == "nothing real"
    assert json.loads(json.dumps(result.to_dict(with_samples=False)))["samples"] is None
    assert set(whole) == {item.name for item in dataclasses.fields(EnergyResult)}


def test_unavailable_source_runs_nothing() -> None:
    def never(_: float) -> int:
        raise AssertionError("the workload ran")

    result = measure_energy(Unavailable("rapl", "permission denied"), never, **SMOKE.lengths())
    assert (result.status, result.reason) == ("unavailable", "permission denied")
    assert result.energy_j is None
    assert result.gross_j_per_token is None
    assert json.loads(json.dumps(result.to_dict()))["source"]["name"] == "rapl"


def lost(start_s: float, end_s: float) -> Callable[[Reading], Reading]:
    """Readings between the two moments fail."""
    return lambda reading: (
        Reading(reading.time_s, reason="lost") if start_s < reading.time_s < end_s else reading
    )


def test_missing_readings_inside_a_run_matter_to_a_power_only() -> None:
    gap = lost(busy()[1] + 2, busy()[1] + 2.5)
    assert measure(edit=gap).status == "measured"
    rejected = measure(edit=gap, kind="power")
    assert rejected.status == "rejected"
    assert "a gap of" in str(rejected.reason)
    assert rejected.energy_j is None
    assert rejected.tokens == 500
    assert rejected.samples


def test_source_that_stops_reading_is_rejected() -> None:
    result = measure(edit=lost(busy()[1] - 0.01, 1e9))
    assert result.status == "rejected"
    assert result.reason == "0 samples in the window, 20 are needed (lost)"


def test_too_slow_a_source_is_rejected() -> None:
    result = measure(rate_hz=1.0)
    assert (result.status, result.rate_hz) == ("rejected", 1.0)
    assert "samples in the window, 20 are needed" in str(result.reason)


def test_counter_restart_is_rejected() -> None:
    middle_s = busy()[1] + 5

    def restart(reading: Reading) -> Reading:
        if reading.time_s < middle_s or reading.energy_j is None:
            return reading
        return dataclasses.replace(reading, energy_j=reading.energy_j - 60)

    assert measure(edit=restart).reason == "the counter fell without a wrap"


def test_counter_that_stands_still_is_rejected_and_not_zero() -> None:
    result = measure(lambda _: 0.0)
    assert result.status == "rejected"
    assert "does not move" in str(result.reason)
    assert result.gross_j_per_token is None


def test_run_without_tokens_is_rejected() -> None:
    result = measure(tokens_per_s=0.0)
    assert (result.status, result.reason) == ("rejected", "the run gave 0 tokens")


def test_number_of_tokens_must_be_exact() -> None:
    virtual = VirtualTime()
    source = FakeSource(virtual.clock, lambda _: 1.0)
    lengths = SMOKE.lengths()
    with pytest.raises(TypeError):
        measure_energy(
            source,
            lambda seconds: seconds / 2,  # type: ignore[arg-type, return-value]
            **lengths,
            clock=virtual.clock,
            sleep=virtual.sleep,
            recorder=virtual.recorder,
        )


def test_failing_workload_passes_through_and_ends_the_sampling() -> None:
    virtual = VirtualTime()
    source = Counting(enough=1)

    def fail(_: float) -> int:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        measure_energy(
            source,
            fail,
            **SMOKE.lengths(),
            clock=virtual.clock,
            sleep=virtual.sleep,
            recorder=virtual.recorder,
        )
    count = source.count
    assert count > 10 * SMOKE.idle_s
    virtual.sleep(10)
    assert source.count == count


def test_net_energy_within_the_idle_noise_is_no_number() -> None:
    start_s = busy()[0]

    def noisy(time_s: float) -> float:
        if time_s >= start_s:
            return 3.2
        return 3.0 + (0.5 if int(time_s) % 2 else -0.5)

    result = measure(noisy)
    assert result.status == "measured"
    assert result.gross_j_per_token == pytest.approx(3.2 / 50)
    assert result.net_energy_j is not None
    assert result.net_j_per_token is None
    assert str(result.net_reason).startswith("below resolution: ")


def test_run_that_draws_less_than_idle_has_no_net_energy() -> None:
    result = measure(load(idle_w=9.0, after_w=9.0))
    assert result.net_j_per_token is None
    assert str(result.net_reason).startswith("below resolution: -")


def test_short_idle_phase_gives_gross_energy_only() -> None:
    phases = dataclasses.replace(SMOKE, idle_s=2.5)
    result = measure(phases=phases)
    assert result.gross_j_per_token is not None
    assert (result.idle_noise_w, result.net_j_per_token) == (None, None)
    assert "shorter than 3 s" in str(result.net_reason)


def test_idle_phase_without_readings_gives_gross_energy_only() -> None:
    result = measure(edit=lost(0, busy()[0]))
    assert result.status == "measured"
    assert (result.idle_w, result.net_j_per_token, result.drift) == (None, None, None)
    assert "no idle power before the run: " in str(result.net_reason)
    assert result.net_reason == result.drift_reason


@pytest.mark.parametrize(("after_w", "drift"), [(3.1, True), (2.9, True), (3.0, False)])
def test_drift_of_the_baseline(after_w: float, drift: bool) -> None:
    """The idle power here has no noise, so that any change exceeds three deviations."""
    assert measure(load(after_w=after_w)).drift is drift


def test_drift_of_five_percent_counts_against_noise() -> None:
    def noisy(after_w: float) -> Callable[[float], float]:
        quiet = load(after_w=after_w)
        return lambda time_s: quiet(time_s) + (0.2 if int(time_s) % 2 else -0.2)

    # The noise of 0.22 W allows 0.66 W, 5 % of 3 W are 0.15 W: the smaller one decides.
    assert measure(noisy(3.3)).drift is True
    assert measure(noisy(3.05)).drift is False


def test_no_idle_phase_after_the_run_leaves_the_drift_open() -> None:
    result = measure(phases=dataclasses.replace(SMOKE, idle_after_s=0.5))
    assert result.drift is None
    assert "no idle power after the run" in str(result.drift_reason)


def test_lagging_average_leaves_out_the_start_of_each_window() -> None:
    """A moving average over 1 s of the true power, as some GPUs give it."""

    def average(time_s: float, phases: Phases) -> float:
        true_w = load(phases)
        return sum(true_w(time_s - step / 100) for step in range(100)) / 100

    short = dataclasses.replace(SMOKE, warmup_s=0.0)
    plain, lagging = (
        measure(lambda time_s: average(time_s, short), kind="power", phases=short, lag_s=lag_s)
        for lag_s in (0.0, 1.2)
    )
    assert plain.energy_j is not None
    assert plain.energy_j < RUN_W * short.run_s * 0.98
    assert lagging.mean_w == pytest.approx(RUN_W, rel=0.01)
    assert lagging.energy_j == pytest.approx(RUN_W * short.run_s, rel=0.01)
    assert lagging.idle_after_w == pytest.approx(IDLE_W, rel=0.02)


def test_peak_of_a_counter_is_a_mean_and_says_so() -> None:
    start_s = busy()[1]

    def spike(time_s: float) -> float:
        return load()(time_s) + (10.0 if start_s + 3 <= time_s < start_s + 3.5 else 0.0)

    counter = measure(spike)
    assert counter.peak_w == pytest.approx(13.0, rel=0.01)
    assert counter.peak_method == "highest 1 s mean"
    power = measure(spike, kind="power")
    assert power.peak_w == pytest.approx(18.0)
    assert power.peak_method == "highest power reading"


@given(
    st.floats(min_value=0.1, max_value=500),
    st.floats(min_value=1.01, max_value=20),
    st.integers(min_value=1, max_value=400),
)
def test_gross_less_net_is_the_idle_share(idle_w: float, factor: float, tokens_per_s: int) -> None:
    start_s, _, end_s = busy()
    result = measure(
        lambda time_s: idle_w * (factor if start_s <= time_s < end_s else 1.0), tokens_per_s=tokens_per_s
    )
    assert result.gross_j_per_token is not None
    assert result.net_j_per_token is not None
    share = result.gross_j_per_token - result.net_j_per_token
    assert share == pytest.approx(idle_w / tokens_per_s, rel=1e-6)


def test_sampler_thread_reads_until_stopped() -> None:
    source = Counting(enough=5)
    sampler = Sampler(source, rate_hz=1000.0)
    sampler.start()
    assert source.done.wait(timeout=60)
    readings = sampler.stop()
    count = source.count
    assert len(readings) == count >= 5
    assert [item.energy_j for item in readings] == [float(number) for number in range(1, count + 1)]
    times = [item.time_s for item in readings]
    assert times == sorted(times)
    assert "power-sampler" not in {thread.name for thread in threading.enumerate()}


def test_repeats_have_a_students_interval() -> None:
    summary = summarise_repeats([1.0, 2.0, 3.0])
    half = 4.303 * 1.0 / 3**0.5
    assert (summary.n, summary.mean) == (3, 2.0)
    assert (summary.ci95_low, summary.ci95_high) == pytest.approx((2 - half, 2 + half))
    assert summary.reason is None


@pytest.mark.parametrize(
    ("values", "n", "mean", "reason"),
    [
        ([], 0, None, "an interval needs 2 repeats or more"),
        ([5.0], 1, 5.0, "an interval needs 2 repeats or more"),
        ([None, None], 0, None, "2 of 2 repeats gave no figure; an interval needs 2 repeats or more"),
        ([1.0, None, 1.0], 2, 1.0, "1 of 3 repeats gave no figure"),
    ],
)
def test_repeats_without_figures(values: list[float | None], n: int, mean: float | None, reason: str) -> None:
    summary = summarise_repeats(values)
    assert (summary.n, summary.mean, summary.reason) == (n, mean, reason)


def test_many_repeats_stay_on_the_safe_side() -> None:
    summary = summarise_repeats([0.0, 1.0] * 10)
    assert summary.ci95_high is not None
    assert summary.ci95_high > 0.5 + 1.96 * 0.513 / 20**0.5
