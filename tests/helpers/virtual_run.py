"""Runs of the energy protocol on virtual time, with a load that is known."""

from __future__ import annotations

from collections.abc import Callable

from qslm_edge.runner.power import PRESETS, EnergyResult, Phases, Reading, measure_energy
from qslm_edge.runner.power.base import Kind
from qslm_edge.runner.power.fake import FakeSource, VirtualTime

IDLE_W, RUN_W = 3.0, 8.0
SMOKE = PRESETS["smoke"]
START_S = 1000.0


def busy(phases: Phases = SMOKE) -> tuple[float, float, float]:
    """Start of the warm-up, start and end of the run on the virtual clock."""
    warm_s = START_S + phases.settle_s + phases.idle_s
    return warm_s, warm_s + phases.warmup_s, warm_s + phases.warmup_s + phases.run_s


def load(phases: Phases = SMOKE, idle_w: float = IDLE_W, after_w: float = IDLE_W) -> Callable[[float], float]:
    """True power over time: idle, busy from the warm-up on, then idle again."""
    start_s, _, end_s = busy(phases)
    return lambda time_s: idle_w if time_s < start_s else RUN_W if time_s < end_s else after_w


def measure(
    power_w: Callable[[float], float] | None = None,
    *,
    kind: Kind = "counter",
    phases: Phases = SMOKE,
    tokens_per_s: float = 50.0,
    range_j: float | None = None,
    rate_hz: float | None = None,
    lag_s: float = 0.0,
    resolution_w: float | None = None,
    update_s: float | None = 0.001,
    edit: Callable[[Reading], Reading] = lambda reading: reading,
) -> EnergyResult:
    """The result of one run, by default of the load above at 50 tokens a second."""
    virtual = VirtualTime(START_S)
    source = FakeSource(virtual.clock, power_w or load(phases), kind=kind, range_j=range_j, edit=edit)
    source.lag_s, source.resolution_w = lag_s, resolution_w
    source.update_s = update_s
    return measure_energy(
        source,
        virtual.run(tokens_per_s),
        **phases.lengths(),
        rate_hz=rate_hz,
        clock=virtual.clock,
        sleep=virtual.sleep,
        recorder=virtual.recorder,
    )
