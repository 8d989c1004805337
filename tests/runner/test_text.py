"""The result as lines for a terminal, with whatever may be absent; and JSON without NaN."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.runner.text import figure, json_ready, summary_lines
from tests.helpers.settings import DEFAULT_SETTINGS

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)


def make_result(**changes: Any) -> dict[str, Any]:
    result: dict[str, Any] = {
        "host": {"why": "this host is a desk"},
        "rehearsal": True,
        "placement": {"provider": "CPUExecutionProvider", "note": "first choice of the profile"},
        "run_settings": DEFAULT_SETTINGS,
        "checks": [
            {
                "name": "peak RSS",
                "verdict": "pass",
                "value": 68e6,
                "limit": 3e9,
                "unit": "bytes",
                "detail": "2 % of the limit",
            }
        ],
        "decode": {
            "latency": {"p50_s": 0.00125, "p95_s": 0.0015, "reasons": {}},
            "prefill": {"tokens_per_s": 4117.4},
            "energy": {
                "status": "measured",
                "reason": None,
                "gross_j_per_token": 0.0123,
                "net_j_per_token": 0.004,
                "net_reason": None,
                "source": {"name": "rapl"},
            },
        },
        "conditions": {"flags": ["cpu: clock 1000 MHz, below the maximum of 2000 MHz"]},
        "verdict": "pass",
    }
    return result | changes


def test_every_figure_has_its_line() -> None:
    assert summary_lines(make_result()) == [
        "rehearsal: this host is a desk",
        "provider: CPUExecutionProvider (first choice of the profile)",
        "settings: onnxruntime, 1 thread, prompts in chunks of 128 (defaults)",
        "PASS         peak RSS: 68.00 MB (limit 3000.00 MB; 2 % of the limit)",
        "decode on this host: median 1.250 ms a token, p95 1.500 ms, prefill 4117 tokens/s",
        "energy on this host: gross 12.300 mJ a token, net 4.000 mJ a token (rapl)",
        "FLAGGED      cpu: clock 1000 MHz, below the maximum of 2000 MHz",
        "verdict: pass, 1 flagged condition",
    ]


def test_on_the_board_the_figures_are_the_boards() -> None:
    lines = summary_lines(make_result(rehearsal=False))
    assert lines[0] == "board: this host is a desk"
    assert sum("on this board" in line for line in lines) == 2


def test_what_is_absent_says_why() -> None:
    decode = {
        "latency": {"p50_s": None, "p95_s": None, "reasons": {"p50_s": "no samples", "p95_s": "none"}},
        "prefill": {"tokens_per_s": None, "reason": "not asked for"},
        "energy": {
            "status": "measured",
            "reason": None,
            "gross_j_per_token": 0.5,
            "net_j_per_token": None,
            "net_reason": "below resolution",
            "source": {"name": "nvml"},
        },
    }
    lines = summary_lines(make_result(decode=decode, conditions={"flags": []}))
    assert lines[4:] == [
        (
            "decode on this host: median not measured (no samples), p95 not measured (none), "
            "prefill not measured (not asked for)"
        ),
        "energy on this host: gross 500.000 mJ a token, net not measured (below resolution) (nvml)",
        "verdict: pass",
    ]


@pytest.mark.parametrize("status", ["unavailable", "rejected"])
def test_no_energy_says_why(status: str) -> None:
    result = make_result()
    result["decode"]["energy"] = {"status": status, "reason": "permission denied"}
    assert f"energy: {status}: permission denied" in summary_lines(result)


def test_after_a_golden_mismatch_there_is_no_decode() -> None:
    check = {
        "name": "golden vectors",
        "verdict": "fail",
        "value": None,
        "limit": 0.15,
        "unit": "mean KL divergence, nats",
        "detail": "not a finite number: nan",
    }
    quiet = {"flags": [], "not_read": "not read: clocks (no clock control)"}
    lines = summary_lines(make_result(decode=None, checks=[check], verdict="fail", conditions=quiet))
    assert lines[3] == (
        "FAIL         golden vectors: not measured (limit +0.15 mean KL divergence, nats; "
        "not a finite number: nan)"
    )
    assert lines[-2:] == ["conditions: not read: clocks (no clock control)", "verdict: fail"]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "bytes", "not measured"),
        (1234567, "bytes", "1.23 MB"),
        (0.0, "", "+0"),
        (-0.5, "points", "-0.5 points"),
        (1.23456, "", "+1.235"),
        (0.0201234, "s", "20.12 ms"),
        (0.00512, "J", "5.12 mJ"),
        (51.5, "tokens/s", "51.5 tokens/s"),
        (2.0, "flags", "2 flags"),
    ],
)
def test_figures(value: float | None, unit: str, text: str) -> None:
    assert figure(value, unit) == text


@given(JSON)
def test_json_ready_is_strict_json_and_changes_nothing_else(data: Any) -> None:
    ready = json_ready(data)
    assert json.loads(json.dumps(ready, allow_nan=False)) == ready
    assert json_ready(ready) == ready


def test_only_what_is_not_finite_becomes_none() -> None:
    data = {"a": [1.5, math.nan, (math.inf, -math.inf)], "b": True, "c": 10**400, "d": "NaN"}
    assert json_ready(data) == {"a": [1.5, None, [None, None]], "b": True, "c": 10**400, "d": "NaN"}
