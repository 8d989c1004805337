"""Tuning: which ways are compared, which one is chosen, and that verify measures, keeps and uses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.bundle.reader import Bundle, open_bundle
from qslm_edge.errors import OutputError, RuntimeFault
from qslm_edge.runner import tune_settings
from qslm_edge.runner.run_settings import RUN_SETTINGS, Asked, RunSettings
from qslm_edge.runner.runtime import CPU
from qslm_edge.runner.tune_settings import ROUNDS, candidates, choose, tune
from qslm_edge.runner.verify import VerifyOptions, verify_bundle
from tests.helpers.bundle_fixtures import CopyBundle

ONE, TWO, SPIN = RunSettings(), RunSettings(threads=2), RunSettings(threads=2, spinning=True)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner with engines of its own, for both kinds of processor."""
    monkeypatch.setattr(tune_settings, "ENGINES", ("onnxruntime", "native", "native-cuda"))


def told(ways: list[RunSettings]) -> list[tuple[str, int, bool]]:
    return [(way.engine, way.threads, way.spinning) for way in ways]


# ---- what is compared


@pytest.mark.parametrize(("cores", "threads"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_threads_go_up_to_the_cores(cores: int, threads: list[int]) -> None:
    ways = candidates(CPU, Asked(engine="onnxruntime"), cores)
    assert sorted({way.threads for way in ways}) == threads
    assert ways[0] == ONE
    assert not any(way.spinning for way in ways if way.threads == 1)


def test_engines_of_the_same_processor_are_compared(engines: None) -> None:
    assert {way.engine for way in candidates(CPU, Asked(), 2)} == {"onnxruntime", "native"}
    ways = candidates("CUDAExecutionProvider", Asked(), 2)
    assert told(ways) == [("onnxruntime", 1, False), ("native-cuda", 1, False)]


def test_flags_fix_what_they_name(engines: None) -> None:
    assert told(candidates(CPU, Asked(engine="native", threads=2), 4)) == [
        ("native", 2, False),
        ("native", 2, True),
    ]
    assert told(candidates(CPU, Asked(provider=CPU, spinning=False), 2)) == [
        ("onnxruntime", 1, False),
        ("onnxruntime", 2, False),
    ]


# ---- what is chosen


def test_the_faster_one_wins_only_if_it_always_was() -> None:
    assert choose({ONE: [1.0, 1.0, 1.0], TWO: [0.6, 0.7, 0.6]}) == TWO
    assert choose({ONE: [1.0, 1.0, 1.0], TWO: [0.6, 1.1, 0.6]}) == ONE
    assert choose({ONE: [1.0, 1.0, 1.0], TWO: [0.98, 0.98, 0.99]}) == ONE  # a tie
    assert choose({ONE: [1.0, 1.0, 1.0], TWO: [0.8, 0.8, 0.8], SPIN: [0.79, 0.79, 0.79]}) == TWO


def test_rounds_are_paired() -> None:
    assert choose({ONE: [1.0, 5.0, 2.0], TWO: [0.9, 4.5, 1.8]}) == TWO


@given(st.lists(st.lists(st.floats(1e-4, 10), min_size=3, max_size=3), min_size=1, max_size=5))
def test_the_choice_is_one_that_nothing_simpler_ties(times: list[list[float]]) -> None:
    ways = [RunSettings(threads=1 + i) for i in range(len(times))]
    best = choose(dict(zip(ways, times, strict=True)))
    if best != ways[0]:
        assert max(a / b for a, b in zip(times[ways.index(best)], times[0], strict=True)) < 1


# ---- the measuring


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Processes that answer that two threads and chunks of 64 are fastest; the calls made."""
    calls: list[list[str]] = []

    def answer(arguments: list[str], _on_progress: Any) -> dict[str, Any]:
        calls.append(arguments)
        if arguments[0] == "_chunks":
            return {"token_s": {"32": 2.0, "64": 1.0, "128": 0.999}}
        if "--engine=native" in arguments:
            raise RuntimeFault("no compiler")
        return {"token_s": 0.5 if "--threads=2" in arguments else 1.0, "steps": 32}

    monkeypatch.setattr(tune_settings, "run_child", answer)
    monkeypatch.setattr(tune_settings, "usable_cores", lambda: 2)
    return calls


def test_every_way_is_measured_in_turns_and_the_best_is_told(
    engines: None, answered: list[list[str]], lm_bundle: Bundle
) -> None:
    shares: list[float] = []
    chosen, found = tune(lm_bundle, CPU, Asked(), on_progress=lambda _title, share: shares.append(share))
    assert chosen == RunSettings(threads=2, prefill_chunk=64)
    assert json.loads(json.dumps(found)) == found
    native = [row for row in found["decode"] if row["engine"] == "native"]
    assert all(row["token_s"] == [] and "no compiler" in row["reason"] for row in native)
    portable = [row for row in found["decode"] if row["engine"] == "onnxruntime"]
    assert all(len(row["token_s"]) == ROUNDS and row["reason"] is None for row in portable)
    assert [row["chunk"] for row in found["prefill"]] == [32, 64, 128]
    assert sum(call[0] == "_chunks" for call in answered) == ROUNDS
    assert 0 < sum(shares) <= 1 + 1e-9


def test_a_bundle_that_cannot_run_is_its_own_error(
    lm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> dict[str, Any]:
        raise RuntimeFault("refused")

    monkeypatch.setattr(tune_settings, "run_child", fail)
    with pytest.raises(RuntimeFault, match="refused"):
        tune(lm_bundle, CPU, Asked(), on_progress=lambda *_: None)


def test_verify_measures_keeps_and_uses_the_settings(
    lm_bundle: Bundle, copy_bundle: CopyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes really run; only the times are made up, since no clock may decide a test."""
    monkeypatch.setattr(tune_settings, "usable_cores", lambda: 2)
    monkeypatch.setattr(tune_settings, "ROUNDS", 1)
    monkeypatch.setattr(tune_settings, "ENGINES", ("onnxruntime",))
    monkeypatch.setattr(tune_settings, "choose", lambda measured: list(measured)[1])
    path = copy_bundle(lm_bundle)
    options = VerifyOptions(power="off", steps=6)
    before = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
    result = verify_bundle(path, VerifyOptions(power="off", steps=6, tune=True))
    settings = result["run_settings"]
    assert (settings["threads"], settings["prefill_chunk"]) == (2, 64)
    assert result["decode"]["session"]["threads"] == 2
    assert result["decode"]["prefill"]["chunk"] == 64
    measured = settings["tuning"]["measurements"]
    assert all(time > 0 for row in measured["decode"] + measured["prefill"] for time in row["token_s"])
    assert {file.name for file in path.iterdir() if file.is_file()} == {*before, RUN_SETTINGS}
    assert all((path / name).read_bytes() == data for name, data in before.items())
    again = verify_bundle(path, options)
    assert again["run_settings"] == settings
    assert again["decode"]["session"]["threads"] == 2
    open_bundle(path)


def test_a_place_that_cannot_keep_settings_is_refused_before_measuring(
    lm_bundle: Bundle, answered: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(OutputError, match="run settings cannot be kept"):
        verify_bundle(lm_bundle.path, VerifyOptions(tune=True))
    assert answered == []


def test_an_interruption_leaves_nothing(
    lm_bundle: Bundle, copy_bundle: CopyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy_bundle(lm_bundle)
    interrupt: Callable[..., dict[str, Any]] = _interrupted
    monkeypatch.setattr(tune_settings, "run_child", interrupt)
    with pytest.raises(KeyboardInterrupt):
        verify_bundle(path, VerifyOptions(tune=True))
    assert not (path / RUN_SETTINGS).exists()


def _interrupted(*_: Any) -> dict[str, Any]:
    raise KeyboardInterrupt


def test_damaged_settings_are_replaced_by_tuning(
    lm_bundle: Bundle, copy_bundle: CopyBundle, answered: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_settings, "ENGINES", ("onnxruntime",))
    path: Path = copy_bundle(lm_bundle)
    (path / RUN_SETTINGS).write_text("{", "utf-8")
    result = verify_bundle(path, VerifyOptions(power="off", steps=4, tune=True))
    assert result["run_settings"]["threads"] == 2
    assert result["run_settings"]["note"] is None
