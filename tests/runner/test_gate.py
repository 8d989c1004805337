"""The gate: each constraint, the verdict of all of them, and the exit code."""

from __future__ import annotations

import itertools
import json
import math
from typing import Literal, get_args

import pytest

from qslm_edge.metrics import Paired, Verdict
from qslm_edge.runner.gate import (
    Check,
    agreement_check,
    exit_code,
    interval_check,
    limit_check,
    overall,
    quality_check,
)

PASS: Verdict = "pass"
VERDICTS: tuple[Verdict, ...] = get_args(Literal["pass", "fail", "inconclusive"])


def check(verdict: Verdict) -> Check:
    return Check("x", verdict, 1.0, 2.0, "", "")


def paired(value: float, half_width: float) -> Paired:
    return Paired(value, value - half_width, value + half_width, half_width / 1.7, 0.0, 0.0, 64)


@pytest.mark.parametrize(
    ("value", "half_width", "limit", "verdict"),
    [
        (0.5, 0.4, 1.0, "pass"),
        (0.5, 0.5, 1.0, "pass"),  # the bound may lie on the limit
        (0.5, 0.51, 1.0, "inconclusive"),
        (1.2, 0.3, 1.0, "inconclusive"),
        (1.2, 0.2, 1.0, "inconclusive"),  # the lower bound on the limit does not fail
        (1.2, 0.19, 1.0, "fail"),
        (-3.0, 0.1, 0.0, "pass"),
        (0.0, math.inf, 1.0, "inconclusive"),  # a single item
    ],
)
def test_quality_is_judged_by_its_bounds(value: float, half_width: float, limit: float, verdict: str) -> None:
    found = quality_check("perplexity increase", paired(value, half_width), limit, "ppl")
    assert (found.verdict, found.value, found.limit, found.unit) == (verdict, value, limit, "ppl")
    assert "95 % bounds" in found.detail
    assert "64 items, paired" in found.detail


@pytest.mark.parametrize(
    ("value", "limit", "verdict"),
    [(99.0, 100, "pass"), (100.0, 100, "pass"), (100.5, 100, "fail"), (0.0, 0, "pass"), (1.0, 0, "fail")],
)
def test_a_measured_value_against_its_limit(value: float, limit: float, verdict: str) -> None:
    found = limit_check("peak RSS", value, limit, "bytes")
    assert found is not None
    assert (found.verdict, found.value, found.limit) == (verdict, value, limit)


def test_no_limit_is_no_check_and_no_value_is_no_pass() -> None:
    assert limit_check("weights", 5.0, None, "bytes") is None
    found = limit_check("peak RSS", None, 100, "bytes", "/proc/self/status: no such file")
    assert found == Check(
        "peak RSS", "inconclusive", None, 100, "bytes", "not measured: /proc/self/status: no such file"
    )
    without = limit_check("peak RSS", None, 100, "bytes")
    assert without is not None
    assert without.detail == "not measured: unavailable"


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(0.1, "pass"), (-0.1, "pass"), (0.2, "pass"), (-0.2, "pass"), (0.21, "fail"), (-0.21, "fail")],
)
def test_agreement_holds_either_way(value: float, verdict: str) -> None:
    assert agreement_check("golden", value, 0.2, "nats", "detail").verdict == verdict


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_agrees(value: float) -> None:
    found = agreement_check("golden", value, 0.2, "nats", "runtime against torch")
    assert found.verdict == "fail"
    assert found.detail == f"not a finite number: {value}; runtime against torch"


def test_the_verdict_of_every_combination() -> None:
    for size in range(4):
        for verdicts in itertools.product(VERDICTS, repeat=size):
            found = overall([check(verdict) for verdict in verdicts])
            if "fail" in verdicts:
                assert found == "fail"
            elif not verdicts or "inconclusive" in verdicts:
                assert found == "inconclusive"  # an empty gate proves nothing
            else:
                assert found == "pass"


def test_exit_codes() -> None:
    assert {verdict: exit_code(verdict) for verdict in VERDICTS} == {"pass": 0, "fail": 1, "inconclusive": 3}


def test_a_check_is_json() -> None:
    found = Check("weights", PASS, 1.5, None, "bytes", "why").to_dict()
    assert json.loads(json.dumps(found)) == {
        "name": "weights",
        "verdict": "pass",
        "value": 1.5,
        "limit": None,
        "unit": "bytes",
        "detail": "why",
        "low": None,
        "high": None,
    }


@pytest.mark.parametrize(
    ("interval", "at_least", "verdict"),
    [
        ((8.0, 9.0), False, "pass"),
        ((9.0, 10.0), False, "pass"),  # the bound may lie on the limit
        ((9.0, 10.1), False, "inconclusive"),
        ((10.1, 11.0), False, "fail"),
        ((10.0, 11.0), False, "inconclusive"),
        ((9.0, None), False, "inconclusive"),  # no upper bound: never a pass
        ((10.1, None), False, "fail"),
        ((None, None), False, "inconclusive"),
        ((10.0, 11.0), True, "pass"),
        ((9.9, 11.0), True, "inconclusive"),
        ((8.0, 9.9), True, "fail"),
        ((None, 9.9), True, "fail"),
        ((None, 11.0), True, "inconclusive"),
    ],
)
def test_a_value_with_an_error_against_its_limit(
    interval: tuple[float | None, float | None], at_least: bool, verdict: str
) -> None:
    found = interval_check("x", 9.5, interval, 10.0, "s", at_least=at_least, reason="needs 72 samples")
    assert (found.verdict, found.low, found.high) == (verdict, *interval)
    assert ("needs 72 samples" in found.detail) == (None in interval)


@pytest.mark.parametrize("interval", [(8.0, 9.0), (10.1, 11.0)])
def test_a_flagged_run_neither_passes_nor_fails(interval: tuple[float, float]) -> None:
    clean, flagged = (interval_check("x", 9.5, interval, 10.0, "s", doubts=doubts) for doubts in (0, 2))
    assert clean.verdict in ("pass", "fail")
    assert flagged.verdict == "inconclusive"
    assert flagged.detail.startswith(f"would {clean.verdict}, but the run is flagged")
    assert (flagged.value, flagged.low) == (9.5, interval[0])
