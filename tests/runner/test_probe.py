"""Proving a provider: right, wrong and refused nodes; a slow node is told, and no clock decides a test."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import pytest

from qslm_edge.runner import probe as module
from qslm_edge.runner.native_stderr import native_stderr
from qslm_edge.runner.probe import SLOW_RATIO, ProviderProbe, judge, probe_provider
from qslm_edge.runner.probe_model import COLUMNS, Form, Probe, build_probe
from qslm_edge.runner.runtime import CPU

INT8, FLOAT = Form(4, 4, 32), Form(4, 0, 32)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small matrices: values matter here, not times."""

    def build(form: Form) -> Probe:
        return build_probe(form, rows=16, columns=COLUMNS)

    monkeypatch.setattr(module, "build_probe", build)


@pytest.mark.usefixtures("small")
def test_the_cpu_runs_nodes_with_right_values() -> None:
    shares: list[float] = []
    forms = [Form(16), INT8, FLOAT, Form(8, 4, 64)]
    found = probe_provider(CPU, forms, note=lambda _title, share: shares.append(share))
    assert found.runs
    assert found.float32.relative_error is not None
    assert found.float32.relative_error < 1e-5
    assert [outcome.form for outcome in found.forms] == forms
    assert all(outcome.runs and outcome.seconds and outcome.float_ratio for outcome in found.forms)
    rounded = {outcome.form: outcome.int8_activations for outcome in found.forms}
    assert rounded == {Form(16): False, INT8: True, FLOAT: False, Form(8, 4, 64): True}
    assert sum(shares) == pytest.approx(1)


def test_a_provider_that_is_not_in_the_build_is_refused() -> None:
    found = probe_provider("NoSuchExecutionProvider")
    assert (found.runs, found.forms) == (False, ())
    assert found.float32.reason == "not in this build of onnxruntime"


def test_a_provider_that_is_listed_and_takes_no_node_is_refused() -> None:
    found = probe_provider("AzureExecutionProvider")
    assert (found.runs, found.float32.status) == (False, "refused")
    assert found.float32.reason


@pytest.mark.parametrize(
    ("text", "told", "reason"),
    [
        (
            "FAIL : assigned to the default CPU EP, but fallback to CPU EP has been explicitly disabled",
            [],
            "the node would have run on the CPU in its place",
        ),
        (
            "FAIL : fallback to CPU EP has been explicitly disabled",
            ["[E:onnxruntime] Failed to load library cuda.so with error: libx.so.13: cannot open\nmore"],
            "its library does not load: libx.so.13: cannot open",
        ),
        (
            "[ONNXRuntimeError] : 6 : /src/matmul_nbits.cc:92 MatMulNBits<T1> nbits_ == 4 was false. Only 4b.",
            [],
            "Only 4b.",
        ),
        ("NOT_IMPLEMENTED : Only 4b is supported", ["a warning"], "NOT_IMPLEMENTED : Only 4b is supported"),
    ],
)
def test_the_reason_of_a_refusal_is_what_the_library_says(text: str, told: list[str], reason: str) -> None:
    assert module._why(text, told) == reason


def test_native_messages_are_kept_from_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []

    def fail() -> None:
        os.write(2, b"from C++ \xff\n")
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"), native_stderr(told):
        fail()
    os.write(2, b"after\n")
    assert told == ["from C++ \ufffd\n"]
    assert capfd.readouterr().err == "after\n"


def test_wrong_values_are_told_whatever_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(form: Form) -> Probe:
        probe = build_probe(form, rows=16, columns=COLUMNS)
        return dataclasses.replace(probe, weights=probe.weights * (1.0 if form.bits == 32 else 1.1))

    monkeypatch.setattr(module, "build_probe", build)
    (outcome,) = probe_provider(CPU, [INT8]).forms
    assert (outcome.status, outcome.runs) == ("wrong", False)
    assert outcome.reason is not None
    assert outcome.reason.startswith("relative error 0.09")


def test_a_node_that_fails_is_a_reason_and_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(form: Form) -> Probe:
        probe = build_probe(form, rows=16, columns=COLUMNS)
        return probe if form.bits == 32 else dataclasses.replace(probe, model=b"no model")

    monkeypatch.setattr(module, "build_probe", build)
    (outcome,) = probe_provider(CPU, [INT8]).forms
    assert (outcome.status, outcome.relative_error, outcome.seconds) == ("refused", None, None)
    assert outcome.reason


@pytest.mark.parametrize(
    ("form", "error", "ratio", "status", "rounded"),
    [
        (INT8, 5.4e-3, 0.4, "fast", True),
        (INT8, 5.4e-3, SLOW_RATIO, "fast", True),
        (INT8, 5.4e-3, 25.0, "slow", True),
        (INT8, 2e-7, 0.9, "fast", False),  # a level that is accepted and ignored
        (INT8, 0.03, 0.4, "wrong", None),
        (FLOAT, 5e-7, 1.4, "fast", False),
        (FLOAT, 6e-3, 1.4, "wrong", None),
        (INT8, float("nan"), 0.4, "wrong", None),
        (INT8, float("inf"), 0.4, "wrong", None),
    ],
)
def test_how_an_error_and_a_time_are_judged(
    form: Form, error: float, ratio: float, status: str, rounded: bool | None
) -> None:
    outcome = judge(form, error, seconds=ratio * 1e-3, float_seconds=1e-3)
    assert (outcome.status, outcome.int8_activations) == (status, rounded)
    assert outcome.runs == (status in ("fast", "slow"))


def test_a_probe_is_the_same_after_json() -> None:
    def read_again(probe: ProviderProbe) -> Any:
        return ProviderProbe.from_dict(json.loads(json.dumps(probe.to_dict(), allow_nan=False)))

    forms = (judge(INT8, 5e-3, 1e-3, 2e-3), judge(INT8, float("nan"), 1e-3, 2e-3))
    whole = ProviderProbe(CPU, judge(Form(32), 2e-7, 1e-3, None), forms)
    assert read_again(whole) == whole
    failed = ProviderProbe.failed(CPU, "killed by signal 4")
    assert read_again(failed) == failed
