"""Limits: what a user may write, and whose limit is in force."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.errors import BundleError, UsageError
from qslm_edge.runner.limits import Limits, limits_in_force, parse_joules, parse_seconds, parse_speed


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_seconds, "20ms", 0.02),
        (parse_seconds, " 0.5 s ", 0.5),
        (parse_seconds, "800us", 0.0008),
        (parse_seconds, "800µs", 0.0008),
        (parse_seconds, "20MS", 0.02),
        (parse_joules, "5mJ", 0.005),
        (parse_joules, "0.5 J", 0.5),
        (parse_joules, "5MJ", 0.005),  # capitals are not told apart: nobody limits a token to megajoules
        (parse_joules, "800uJ", 0.0008),
        (parse_speed, "50", 50.0),
        (parse_speed, "50 tokens/s", 50.0),
        (parse_speed, "12.5 tok/s", 12.5),
    ],
)
def test_quantities(parse: Callable[[str, str], float], text: str, value: float) -> None:
    assert parse(text, "--flag") == value


@pytest.mark.parametrize("parse", [parse_seconds, parse_joules, parse_speed])
@pytest.mark.parametrize(
    "text", ["", "0ms", "0J", "0", "-5", "1e3", "nan", "20 hours", "5 W", "1" * 20, "٣ms", "5ms5"]
)
def test_what_is_no_quantity_is_one_line(parse: Callable[[str, str], float], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, "--flag")
    line = caught.value.line()
    assert line.startswith("--flag: not a quantity of this kind; found ")
    assert "e.g. " in line


@pytest.mark.parametrize("parse", [parse_seconds, parse_joules])
def test_a_bare_number_says_no_unit(parse: Callable[[str, str], float]) -> None:
    with pytest.raises(UsageError, match="e.g."):
        parse("20", "--flag")


@given(st.integers(1, 10**9))
def test_milliseconds_are_thousandths(number: int) -> None:
    assert parse_seconds(f"{number}ms", "x") == number / 1000


def test_the_users_limit_replaces_the_bundles() -> None:
    constraints = {"max_degradation": 1.0, "memory_budget_bytes": 100, "max_latency_s": 0.02}
    found = limits_in_force(constraints, Limits(max_degradation=0.0, max_latency_s=0.01))
    assert found == Limits(max_degradation=0.0, memory_budget_bytes=100, max_latency_s=0.01)
    assert found.of_speed_or_energy is True


def test_an_older_bundle_has_no_limits_of_speed_and_energy() -> None:
    found = limits_in_force({"max_degradation": 1.0, "weights_budget_bytes": None}, Limits())
    assert found == Limits(max_degradation=1.0)
    assert found.of_speed_or_energy is False


@pytest.mark.parametrize("value", ["1", 0, -1, True, float("nan"), float("inf"), [], {}])
def test_a_hostile_limit_is_refused(value: object) -> None:
    with pytest.raises(BundleError, match="constraints.max_energy_j_per_token: not a limit"):
        limits_in_force({"max_energy_j_per_token": value}, Limits(), "manifest.json")


def test_a_degradation_may_be_any_number() -> None:
    assert limits_in_force({"max_degradation": -300.0}, Limits()).max_degradation == -300.0
