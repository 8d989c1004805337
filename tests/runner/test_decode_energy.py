"""The energy process: which source, how repeats join, conditions of the windows, and that nothing stays open."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import RuntimeFault
from qslm_edge.runner import decode_energy
from qslm_edge.runner.condition_readers import Conditions
from qslm_edge.runner.decode_energy import measure_decode_energy, no_energy
from qslm_edge.runner.observe import Observed
from qslm_edge.runner.power import (
    PRESETS,
    EnergyResult,
    ExternalMeter,
    Phases,
    PowerPlan,
    PowerSource,
    Reading,
    Unavailable,
    energy_dict,
    summarise_repeats,
)
from qslm_edge.runner.sessions.base import SessionOptions
from qslm_edge.runner.stream import DecodeOptions

SILENT: Callable[[str], None] = lambda _title: None  # noqa: E731
FAST = Phases(settle_s=0, idle_s=0, warmup_s=0, run_s=0, idle_after_s=0, repeats=3)


def measure(bundle: Bundle, note: Callable[[str], None] = SILENT, **options: Any) -> dict[str, Any]:
    return measure_decode_energy(bundle, bundle.items("search"), DecodeOptions(**options), note)


class OneSource(PowerSource):
    """A source that counts how often it was closed."""

    name, kind, scope = "fake", "counter", "nothing real"

    def __init__(self) -> None:
        self.closed = 0

    def read(self) -> Reading:
        return Reading(0.0, energy_j=0.0)

    def close(self) -> None:
        self.closed += 1


def energy(gross: float | None, net: float | None, **changes: Any) -> EnergyResult:
    values: dict[str, Any] = {
        "status": "measured",
        "reason": None,
        "source": {"name": "fake"},
        "method": "counter",
        "tokens": 100,
        "duration_s": 10.0,
        "n_samples": 50,
        "energy_j": 100 * (gross or 0),
        "gross_j_per_token": gross,
        "net_j_per_token": net,
        "net_reason": None if net is not None else "below resolution",
        "mean_w": 10 * (gross or 0),
        "peak_w": 5.0,
        "idle_w": 1.0,
        "drift": False,
        "samples": (Reading(1.0, energy_j=2.0), Reading(2.0, energy_j=3.0)),
    }
    return EnergyResult(**(values | changes))


@pytest.fixture
def protocol(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts results in the place of the protocol, and a source in the place of the host's."""

    class Protocol:
        source: Any = OneSource()
        results: list[Any] = []  # noqa: RUF012
        asked: list[dict[str, Any]] = []  # noqa: RUF012
        measured: list[dict[str, Any]] = []  # noqa: RUF012
        runs = 0

        def open(self, preferred: str | None, **how: Any) -> Any:
            self.asked.append({"preferred": preferred, **how})
            return self.source

        def measure(self, source: Any, run: Callable[[float], int], **how: Any) -> EnergyResult:
            self.measured.append({"source": source, **how})
            if isinstance(source, Unavailable):
                return EnergyResult("unavailable", source.reason, source.to_dict())
            assert run(0.01) >= 1  # the stream decodes
            self.runs += 1
            found = self.results[self.runs - 1]
            if isinstance(found, BaseException):
                raise found
            return found  # type: ignore[no-any-return]

    fake = Protocol()
    fake.source, fake.results, fake.asked, fake.measured = OneSource(), [], [], []
    monkeypatch.setattr(decode_energy, "open_source", fake.open)
    monkeypatch.setattr(decode_energy, "measure_energy", fake.measure)
    monkeypatch.setitem(PRESETS, "release", FAST)
    return fake


def test_what_was_not_measured_says_why() -> None:
    found = no_energy("switched off (--power off)")
    assert (found["status"], found["reason"]) == ("unavailable", "switched off (--power off)")
    assert found["gross_j_per_token"] is None
    assert found["conditions"] is None


@pytest.mark.parametrize(
    ("provider", "gpu"),
    [("CPUExecutionProvider", False), ("CUDAExecutionProvider", True), ("TensorrtExecutionProvider", True)],
)
@pytest.mark.parametrize("board", [True, False])
def test_the_source_fits_the_provider_and_the_board(
    provider: str, gpu: bool, board: bool, lm_bundle: Bundle, protocol: Any
) -> None:
    protocol.results = [energy(0.5, 0.2)]
    plan = PowerPlan("ina3221", ("VDD_IN",))
    options = DecodeOptions(
        session=SessionOptions(provider=provider), power_source="ina3221", power_plan=plan, is_board=board
    )
    decode_energy._power_source(options)
    assert protocol.asked == [{"preferred": "ina3221", "plan": plan, "use_gpu": gpu, "only_preferred": board}]


def test_nothing_stands_in_for_the_source_that_the_user_named(lm_bundle: Bundle, protocol: Any) -> None:
    protocol.results = [energy(0.5, 0.2)]
    measure(lm_bundle, power="smoke", power_source="nvml", only_source=True)
    assert [(asked["preferred"], asked["only_preferred"]) for asked in protocol.asked] == [("nvml", True)]


def test_the_marker_is_made_once_and_for_a_meter_where_nothing_reads(
    lm_bundle: Bundle, protocol: Any
) -> None:
    protocol.source, protocol.results = Unavailable("rapl", "permission denied"), [energy(0.5, 0.2)] * 3
    measure(lm_bundle, power="release", power_marker=True)
    assert [how["marker"] for how in protocol.measured] == [True, False, False]
    meters = [how["source"] for how in protocol.measured]
    assert all(isinstance(source, ExternalMeter) for source in meters)
    assert meters[0].deferred.startswith("permission denied; an external meter measures this run")


def test_one_run_is_told_as_it_is_with_its_readings_once(lm_bundle: Bundle, protocol: Any) -> None:
    protocol.results = [energy(0.5, 0.2)]
    notes: list[str] = []
    found = measure(lm_bundle, notes.append, power="smoke")
    assert notes == ["power"]
    assert protocol.source.closed == 1
    assert found["n_runs"] == 1
    run = energy(0.5, 0.2).to_dict()
    assert found["runs"] == [json.loads(json.dumps(run))]
    assert "samples" not in found
    assert {key: found[key] for key in run if key != "samples"} == {
        key: value for key, value in json.loads(json.dumps(run)).items() if key != "samples"
    }


def test_repeats_are_summarised(lm_bundle: Bundle, protocol: Any) -> None:
    protocol.results = [
        energy(0.5, 0.2),
        energy(0.6, 0.3, peak_w=9.0, drift=True),
        energy(0.7, 0.1, tokens=200, duration_s=20.0),
    ]
    found = measure(lm_bundle, power="release")
    assert protocol.runs == 3
    assert protocol.source.closed == 1
    assert (found["status"], found["n_runs"]) == ("measured", 3)
    assert found["gross_j_per_token"] == pytest.approx(0.6)
    assert found["net_j_per_token"] == pytest.approx(0.2)
    assert found["mean_w"] == pytest.approx(6)
    assert (found["tokens"], found["duration_s"], found["n_samples"]) == (400, 40.0, 150)
    assert (found["peak_w"], found["drift"]) == (9.0, True)
    assert found["repeats"]["gross_j_per_token"] == summarise_repeats([0.5, 0.6, 0.7]).to_dict()
    assert found["repeats"]["net_j_per_token"]["ci95_low"] < 0.2
    assert [run["gross_j_per_token"] for run in found["runs"]] == [0.5, 0.6, 0.7]
    assert all(len(run["samples"]) == 2 for run in found["runs"])


def test_a_repeat_without_a_valid_window_leaves_no_figure() -> None:
    rejected = energy(None, None, status="rejected", reason="a gap of 3 s", energy_j=None, mean_w=None)
    found = energy_dict([energy(0.5, 0.2), rejected, energy(0.7, 0.1)])
    assert (found["status"], found["reason"]) == ("rejected", "a gap of 3 s")
    assert found["gross_j_per_token"] is None
    assert found["net_j_per_token"] is None
    assert found["repeats"]["gross_j_per_token"]["n"] == 2
    assert len(found["runs"]) == 3


def test_one_net_energy_below_resolution_leaves_no_mean() -> None:
    found = energy_dict([energy(0.5, 0.2), energy(0.6, None), energy(0.7, 0.1)])
    assert found["status"] == "measured"
    assert found["gross_j_per_token"] == pytest.approx(0.6)
    assert (found["net_j_per_token"], found["net_reason"]) == (None, "below resolution")


def test_no_source_is_asked_once_only(lm_bundle: Bundle, protocol: Any) -> None:
    protocol.source = Unavailable("rapl", "permission denied")
    found = measure(lm_bundle, power="release")
    assert (found["status"], found["reason"], found["n_runs"]) == ("unavailable", "permission denied", 1)


@pytest.mark.parametrize("error", [RuntimeFault("onnxruntime failed"), KeyboardInterrupt()])
def test_the_source_is_closed_whatever_happens(
    error: BaseException, lm_bundle: Bundle, protocol: Any
) -> None:
    protocol.results = [error]
    with pytest.raises(type(error)):
        measure(lm_bundle, power="smoke")
    assert protocol.source.closed == 1


def test_clocks_are_read_in_the_windows_that_count(
    lm_bundle: Bundle, protocol: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The protocol calls the workload for marker, warm-up and window."""
    watched: list[int] = []

    class Watch:
        samples = [Conditions({"cpu.policy0.clock_hz": Observed(10**9, "test")})]  # noqa: RUF012

        def __init__(self, *, use_gpu: bool) -> None:
            assert use_gpu is False

        def __enter__(self) -> Watch:
            watched.append(len(watched))
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def twice(_source: Any, run: Callable[[float], int], **_lengths: float) -> EnergyResult:
        before = len(watched)
        for other_s in (0.002, 0.001, 0.001):
            run(other_s)
        assert len(watched) == before
        run(FAST.run_s)
        assert len(watched) == before + 1
        return energy(0.5, 0.2)

    monkeypatch.setattr(decode_energy, "ClockWatch", Watch)
    monkeypatch.setattr(decode_energy, "measure_energy", twice)
    conditions = measure(lm_bundle, power="release")["conditions"]
    assert conditions["clocks"] == [[{"cpu.policy0.clock_hz": 10**9}]] * 3
    assert "windows that count" in conditions["scope"]
    assert conditions["before"]["time_s"]["value"] < conditions["after"]["time_s"]["value"]


def test_without_a_source_nothing_is_loaded(
    lm_bundle: Bundle, protocol: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol.source = Unavailable("ina3221", "not supported")
    monkeypatch.setattr(decode_energy, "load", lambda *_: pytest.fail("must not load"))
    found = measure(lm_bundle, power="release")
    assert (found["source"]["name"], found["status"], found["conditions"]) == ("ina3221", "unavailable", None)
