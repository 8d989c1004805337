"""What the decoding process measures: order of its steps, raw samples, conditions at the edges, energy."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import RuntimeFault
from qslm_edge.runner import decode
from qslm_edge.runner.condition_readers import Conditions
from qslm_edge.runner.decode import PROMPT_TOKENS, WARMUP_STEPS, DecodeOptions, energy_dict, measure_decode
from qslm_edge.runner.memory import read_memory
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
    summarise_repeats,
)
from qslm_edge.runner.session import Session

Note = Callable[[str], None]
SILENT: Note = lambda _title: None  # noqa: E731
FAST = Phases(settle_s=0, idle_s=0, warmup_s=0, run_s=0, idle_after_s=0, repeats=3)


def measure(bundle: Bundle, note: Note = SILENT, **options: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"steps": 30, "prefill_tokens": 300, "power": "off"}
    chosen = DecodeOptions(**(defaults | options))
    return measure_decode(bundle, bundle.items("search"), chosen, note)


@pytest.mark.parametrize("kind", ["lm", "classifier"])
def test_every_figure_is_there(kind: str, lm_bundle: Bundle, classifier_bundle: Bundle) -> None:
    notes: list[str] = []
    result = measure(lm_bundle if kind == "lm" else classifier_bundle, notes.append)
    assert notes == ["loading", "decoding", "prefill", "timing"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result.keys() == {
        *("session", "load_s", "memory", "first_token", "latency", "latency_samples_s", "prefill"),
        *("conditions", "energy"),
    }
    samples = result["latency_samples_s"]
    assert len(samples) == result["latency"]["n"] == 30
    assert all(sample > 0 for sample in samples)
    assert result["latency"]["p50_s"] == statistics.median(samples)
    first = result["first_token"]
    assert first["prompt_tokens"] == PROMPT_TOKENS
    assert first["with_load_s"] == pytest.approx(result["load_s"] + first["seconds"])
    prefill = result["prefill"]
    assert prefill["tokens"] == 300
    assert prefill["tokens_per_s"] == pytest.approx(300 / prefill["seconds"])
    memory = result["memory"]
    assert memory["decode_peak_rss_bytes"] == memory["steady"]["peak_rss_bytes"]
    assert (
        memory["bare"]["peak_rss_bytes"]
        <= memory["decode_peak_rss_bytes"]
        <= memory["prefill_peak_rss_bytes"]
    )
    assert (result["session"]["threads"], result["session"]["spinning"]) == (1, False)


def test_tokens_are_fed_one_stream_in_order_and_wrap_round(
    lm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[tuple[int, int, int]] = []
    given: list[int] = []
    run = Session.logits

    def logits(self: Session, tokens: Any, state: Any, last: int) -> Any:
        fed.append((*tokens.shape, last))
        given.extend(tokens[:, 0].tolist())
        return run(self, tokens, state, last)

    monkeypatch.setattr(Session, "logits", logits)
    monkeypatch.setattr(decode, "PREFILL_CHUNK", 128)
    items = lm_bundle.items("search").subset([0, 1])  # 48 tokens, fewer than the steps
    measure_decode(lm_bundle, items, DecodeOptions(steps=40, prefill_tokens=300, power="off"), SILENT)
    assert {(batch, last) for _, batch, last in fed} == {(1, 1)}  # one stream, logits of the last token only
    prefill = [length for length, _, _ in fed if length > 1]
    assert prefill == [PROMPT_TOKENS, 128, 128, 44]
    assert len(fed) == 4 + WARMUP_STEPS + WARMUP_STEPS + 40
    begin = PROMPT_TOKENS + WARMUP_STEPS
    stream = given[:begin] + given[begin + 300 :]
    assert stream == np.take(items.tokens, range(len(stream)), mode="wrap").tolist()
    assert given[begin : begin + 300] == np.take(items.tokens, range(300), mode="wrap").tolist()


def test_without_prefill_there_is_no_figure(lm_bundle: Bundle) -> None:
    prefill = measure(lm_bundle, prefill_tokens=0)["prefill"]
    assert prefill == {"tokens": 0, "tokens_per_s": None, "reason": "not asked for"}


def test_conditions_are_read_at_the_edges_of_the_timed_run(
    lm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After prefill and the memory readings, before energy; and the flags compare the two."""
    order: list[str] = []
    run = Session.logits

    def logits(self: Session, tokens: Any, state: Any, last: int) -> Any:
        order.append("step" if len(tokens) == 1 else "long")
        return run(self, tokens, state, last)

    def read(_root: Path) -> Conditions:
        order.append("conditions")
        number = order.count("conditions")
        return Conditions({"counter.throttle": Observed(number, "/sys/somewhere")})

    def remember() -> Any:
        order.append("memory")
        return read_memory()

    monkeypatch.setattr(Session, "logits", logits)
    monkeypatch.setattr(decode, "read_conditions", read)
    monkeypatch.setattr(decode, "read_memory", remember)
    result = measure(lm_bundle, steps=20)
    conditions = result["conditions"]
    assert conditions["before"] == {
        "counter.throttle": {"value": 1, "source": "/sys/somewhere", "reason": None}
    }
    assert conditions["after"]["counter.throttle"]["value"] == 2
    assert conditions["flags"] == ["counter.throttle: moved from 1 to 2"]
    assert "timed decode run" in conditions["scope"]
    first, second = [i for i, what in enumerate(order) if what == "conditions"]
    assert order[first + 1 : second] == ["step"] * (WARMUP_STEPS + 20)  # nothing but the run between them
    assert order.count("memory") == 4
    assert "memory" not in order[first:]  # what conditions load does not count as the model's
    assert second == len(order) - 1


def test_a_runtime_that_is_missing_is_one_line(lm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeFault, match="onnxruntime cannot be imported"):
        measure(lm_bundle)


# ---- energy


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
    monkeypatch.setattr(decode, "open_source", fake.open)
    monkeypatch.setattr(decode, "measure_energy", fake.measure)
    monkeypatch.setitem(PRESETS, "release", FAST)
    return fake


def test_power_that_is_off_says_so(lm_bundle: Bundle, protocol: Any) -> None:
    found = measure(lm_bundle)["energy"]
    assert (found["status"], found["reason"]) == ("unavailable", "switched off (--power off)")
    assert found["gross_j_per_token"] is None
    assert protocol.asked == []


@pytest.mark.parametrize(
    ("provider", "gpu"),
    [("CPUExecutionProvider", False), ("CUDAExecutionProvider", True), ("TensorrtExecutionProvider", True)],
)
@pytest.mark.parametrize("board", [True, False])
def test_the_source_fits_the_provider_and_the_board(
    provider: str, gpu: bool, board: bool, lm_bundle: Bundle, protocol: Any
) -> None:
    protocol.results = [energy(0.5, 0.2)]
    stream = decode._Stream(Session(lm_bundle), lm_bundle.items("search").tokens.astype(np.int64))
    plan = PowerPlan("ina3221", ("VDD_IN",))
    options = DecodeOptions(
        provider=provider, power="smoke", power_source="ina3221", power_plan=plan, is_board=board
    )
    decode._energy(stream, options, SILENT)
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
    found = measure(lm_bundle, notes.append, power="smoke")["energy"]
    assert notes[-1] == "power"
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
    found = measure(lm_bundle, power="release")["energy"]
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
    found = measure(lm_bundle, power="release")["energy"]
    assert (found["status"], found["reason"], found["n_runs"]) == ("unavailable", "permission denied", 1)


@pytest.mark.parametrize("error", [RuntimeFault("onnxruntime failed"), KeyboardInterrupt()])
def test_the_source_is_closed_whatever_happens(
    error: BaseException, lm_bundle: Bundle, protocol: Any
) -> None:
    protocol.results = [error]
    with pytest.raises(type(error)):
        measure(lm_bundle, power="smoke")
    assert protocol.source.closed == 1


def test_decoding_for_some_seconds_counts_its_tokens(
    lm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = decode._Stream(Session(lm_bundle), np.arange(10))
    ticks = iter([0.0, 0.0, 0.5, 1.5, 2.5])
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    assert stream.run_for(2.0) == 3
    assert stream.position == 3
