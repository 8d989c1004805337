"""Timing: raw samples, order of the steps, conditions at the edges of the run and within, prefill apart."""

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
from qslm_edge.errors import EnvironmentFault, RuntimeFault
from qslm_edge.runner import decode
from qslm_edge.runner.condition_readers import Conditions
from qslm_edge.runner.decode import MAX_STEPS, MIN_STEPS, measure_latency, measure_prefill, prefill_result
from qslm_edge.runner.observe import Observed
from qslm_edge.runner.sessions.portable import PortableSession
from qslm_edge.runner.stream import PROMPT_TOKENS, WARMUP_STEPS, DecodeOptions, Stream

Note = Callable[[str], None]
SILENT: Note = lambda _title: None  # noqa: E731


def measure(bundle: Bundle, note: Note = SILENT, **options: Any) -> dict[str, Any]:
    chosen = DecodeOptions(**({"steps": 30} | options))
    return measure_latency(bundle, bundle.items("search"), chosen, note)


@pytest.mark.parametrize("kind", ["lm", "classifier"])
def test_every_figure_is_there(kind: str, lm_bundle: Bundle, classifier_bundle: Bundle) -> None:
    notes: list[str] = []
    result = measure(lm_bundle if kind == "lm" else classifier_bundle, notes.append)
    assert notes == ["latency"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result.keys() == {"load_s", "first_token", "latency", "latency_samples_s", "conditions"}
    samples = result["latency_samples_s"]
    assert len(samples) == result["latency"]["n"] == 30
    assert all(sample > 0 for sample in samples)
    assert result["latency"]["p50_s"] == statistics.median(samples)
    first = result["first_token"]
    assert first["prompt_tokens"] == PROMPT_TOKENS
    assert first["with_load_s"] == pytest.approx(result["load_s"] + first["seconds"])


def fed_by(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, act: Callable[[Any], object]) -> Any:
    """Shapes of every call, and every token in order, on items that are fewer than the steps."""
    shapes: list[tuple[int, int, int]] = []
    given: list[int] = []
    run = PortableSession.logits

    def logits(self: PortableSession, tokens: Any, state: Any, last: int) -> Any:
        shapes.append((*tokens.shape, last))
        given.extend(tokens[:, 0].tolist())
        return run(self, tokens, state, last)

    monkeypatch.setattr(PortableSession, "logits", logits)
    items = bundle.items("search").subset([0, 1])  # 48 tokens
    act(items)
    assert {(batch, last) for _, batch, last in shapes} == {(1, 1)}  # one stream, logits of the last only
    return [length for length, _, _ in shapes], given, items.tokens


def test_tokens_are_fed_one_stream_in_order_and_wrap_round(
    lm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = DecodeOptions(steps=40)
    lengths, given, tokens = fed_by(
        lm_bundle, monkeypatch, lambda items: measure_latency(lm_bundle, items, options, SILENT)
    )
    assert lengths == [PROMPT_TOKENS, *[1] * (2 * WARMUP_STEPS + 40)]
    assert given == np.take(tokens, range(len(given)), mode="wrap").tolist()


def test_prefill_runs_in_chunks_after_one_that_does_not_count(
    lm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[dict[str, Any]] = []
    options = DecodeOptions(prefill_tokens=300)
    lengths, given, tokens = fed_by(
        lm_bundle,
        monkeypatch,
        lambda items: results.append(measure_prefill(lm_bundle, items, options, SILENT)),
    )
    assert lengths == [128, 128, 128, 44]
    assert given[128:] == np.take(tokens, range(300), mode="wrap").tolist()
    prefill = results[0]["prefill"]
    assert prefill["tokens"] == 300
    assert len(prefill["chunk_samples_s"]) == 3
    assert prefill["tokens_per_s"] == pytest.approx(300 / sum(prefill["chunk_samples_s"]))
    assert results[0]["memory"]["peak_rss_bytes"] > 10**6


def test_a_prefill_that_took_no_time_is_no_speed() -> None:
    found = prefill_result(128, 64, [0.0])
    assert found["tokens_per_s"] is None
    assert "too coarse" in found["reason"]


@pytest.mark.parametrize(
    ("done", "total_s", "steps", "goes_on"),
    [
        (29, 1e9, 30, True),
        (30, 0.0, 30, False),
        (MIN_STEPS - 1, 100.0, None, True),
        (MIN_STEPS, 3.9, None, True),
        (MIN_STEPS, 4.0, None, False),
        (MAX_STEPS, 0.1, None, False),
    ],
)
def test_how_long_a_run_goes_on(done: int, total_s: float, steps: int | None, goes_on: bool) -> None:
    assert decode._goes_on(done, total_s, steps) is goes_on


def test_conditions_are_read_at_the_edges_of_the_timed_run_and_within(
    lm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    run = PortableSession.logits
    low = {"cpu.policy0.clock_hz": 10**9, "cpu.policy0.max_clock_hz": 2 * 10**9}

    def logits(self: PortableSession, tokens: Any, state: Any, last: int) -> Any:
        order.append("step" if len(tokens) == 1 else "long")
        return run(self, tokens, state, last)

    def read(_root: Path) -> Conditions:
        order.append("conditions")
        number = order.count("conditions")
        return Conditions({"counter.throttle": Observed(number, "/sys/somewhere")})

    class Watch:
        def __init__(self, *, use_gpu: bool) -> None:
            assert use_gpu is False
            reading = Conditions({name: Observed(value, "test") for name, value in low.items()})
            self.samples = [reading] * 3

        def __enter__(self) -> Watch:
            order.append("watch")
            return self

        def __exit__(self, *_: object) -> None:
            order.append("end")

    monkeypatch.setattr(PortableSession, "logits", logits)
    monkeypatch.setattr(decode, "read_conditions", read)
    monkeypatch.setattr(decode, "ClockWatch", Watch)
    conditions = measure(lm_bundle, steps=20)["conditions"]
    assert conditions["before"] == {
        "counter.throttle": {"value": 1, "source": "/sys/somewhere", "reason": None}
    }
    assert conditions["after"]["counter.throttle"]["value"] == 2
    assert conditions["clocks"] == [[low] * 3]
    assert conditions["flags"] == [
        "counter.throttle: moved from 1 to 2",
        "cpu.policy0: clock 1000 MHz, below the maximum of 2000 MHz in 3 consecutive readings",
    ]
    assert "timed decode run" in conditions["scope"]
    run_order = order[order.index("conditions") :]
    steps = ["step"] * (WARMUP_STEPS + 20)
    assert run_order == ["conditions", "watch", *steps, "conditions", "end"]


@pytest.mark.parametrize("measuring", [measure_latency, measure_prefill])
def test_a_clock_that_jumps_back_stops_the_measurement(
    measuring: Any, lm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    falling = iter(range(10**6, 0, -1))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(falling)))
    with pytest.raises(EnvironmentFault, match="a duration is out of range.*clock of this machine"):
        measuring(lm_bundle, lm_bundle.items("search"), DecodeOptions(steps=5), SILENT)


def test_a_runtime_that_is_missing_is_one_line(lm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeFault, match="onnxruntime cannot be imported"):
        measure(lm_bundle)


def test_decoding_for_some_seconds_counts_its_tokens(
    lm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(PortableSession(lm_bundle), np.arange(10))
    ticks = iter([0.0, 0.0, 0.5, 1.5, 2.5])
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    assert stream.run_for(2.0) == 3
    assert stream.position == 3
