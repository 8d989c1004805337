"""Which checks a verification has, and what decides each: on a rehearsal, on the board, with flags."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from qslm_edge.bundle.reader import Bundle
from qslm_edge.runner.gate import Check, overall
from qslm_edge.runner.judge import checks_of, energy_interval
from qslm_edge.runner.verify import VerifyOptions, all_flags, verify_bundle

Result = dict[str, Any]
OWN = ("latency", "decode speed", "energy a token")


@pytest.fixture(scope="module")
def measured(lm_bundle: Bundle) -> Result:
    return verify_bundle(lm_bundle.path, VerifyOptions(power="off", steps=120))


@pytest.fixture
def result(measured: Result) -> Result:
    """A rehearsal without flags; figures as a test wants them."""
    found = copy.deepcopy(measured)
    found["conditions"]["flags"] = []
    found["rehearsal"], found["host"]["is_board"] = True, False
    latency = found["decode"]["latency"]
    latency.update(p95_s=0.010, p95_ci95_low_s=0.009, p95_ci95_high_s=0.012)
    latency.update(tokens_per_s_total=100.0, tokens_per_s_ci95_low=95.0, tokens_per_s_ci95_high=104.0)
    run = {"gross_uncertainty_j_per_token": 0.000042, "gross_j_per_token": 0.0042}
    repeats = {"n": 3, "ci95_low": 0.0040, "ci95_high": 0.0044}
    found["decode"]["energy"].update(
        status="measured",
        reason=None,
        gross_j_per_token=0.0042,
        runs=[run],
        repeats={"gross_j_per_token": repeats},
    )
    return found


@pytest.fixture
def board(result: Result) -> Result:
    """The same on the board."""
    result["rehearsal"], result["host"]["is_board"] = False, True
    return result


def judged(result: Result, **limits: Any) -> dict[str, Check]:
    result["limits"].update(limits)
    return {check.name: check for check in checks_of(result)}


def own_limits(latency: float = 0.02, speed: float = 50.0, energy: float = 0.005) -> Result:
    return {
        "max_latency_s": latency,
        "min_decode_tokens_per_s": speed,
        "max_energy_j_per_token": energy,
    }


# ---- metric, bytes, memory


def test_a_limit_of_zero_is_a_limit(result: Result) -> None:
    assert judged(result, max_degradation=0.0)["perplexity increase"].limit == 0.0


def test_the_weights_have_a_limit_when_there_is_one(result: Result) -> None:
    weights = result["bundle"]["weights_bytes"]
    assert "weights" not in judged(result)
    for budget, verdict in ((weights, "pass"), (weights - 1, "fail")):
        check = judged(result, weights_budget_bytes=budget)["weights"]
        assert (check.verdict, check.value, check.limit) == (verdict, weights, budget)


def test_no_memory_limit_is_no_check(result: Result) -> None:
    assert "peak RSS" not in judged(result, memory_budget_bytes=None)
    assert judged(result, memory_budget_bytes=1)["peak RSS"].verdict == "fail"


def test_a_peak_that_cannot_be_read_is_inconclusive(result: Result) -> None:
    result["decode"]["memory"]["decode_peak_rss_bytes"] = None
    result["decode"]["memory"]["steady"]["reason"] = "no VmHWM"
    check = judged(result)["peak RSS"]
    assert (check.verdict, check.detail) == ("inconclusive", "not measured: no VmHWM")


def test_disagreement_with_the_search_fails_the_gate(result: Result) -> None:
    search = result["scoring"]["splits"]["search"]["against_search"]
    for value, verdict in ((search["allowed"], "pass"), (1.01 * search["allowed"], "fail"), (-0.5, "fail")):
        search["value"] = value
        assert judged(result)["agreement with the search"].verdict == verdict


def test_a_golden_value_that_is_no_number_fails(result: Result) -> None:
    result["scoring"]["golden"]["value"] = None  # NaN, as JSON keeps it
    assert judged(result)["golden vectors"].verdict == "fail"


def test_one_item_without_an_error_is_inconclusive(result: Result) -> None:
    result["scoring"]["splits"]["report"]["comparison"].update(lower=None, upper=None, standard_error=None)
    assert judged(result)["perplexity increase"].verdict == "inconclusive"


def test_the_cpu_in_place_of_a_gpu_says_what_its_memory_leaves_out(result: Result) -> None:
    result["placement"]["planned"] = ["CUDAExecutionProvider"]
    assert "CUDAExecutionProvider takes on the board is not in it" in judged(result)["peak RSS"].detail


@pytest.mark.parametrize(("drop", "verdict"), [(50, "pass"), (101, "fail"), (None, "inconclusive")])
def test_a_gpu_in_a_shared_pool_is_judged_by_the_pool(result: Result, drop: int | None, verdict: str) -> None:
    """Its allocations are in no process's resident set, which alone would pass."""
    result["profile"]["memory_kind"] = "unified"
    result["decode"]["memory"]["gpu"]["status"] = "unavailable"
    result["decode"]["memory"]["available"].update(drop_bytes=drop, reason=None if drop else "no /proc")
    result["decode"]["memory"]["decode_peak_rss_bytes"] = 10
    checks = judged(result, memory_budget_bytes=100)
    assert (checks["peak RSS"].verdict, checks["unified memory"].verdict) == ("pass", verdict)


@pytest.mark.parametrize(("total", "verdict"), [(2**20, "pass"), (2**21, "fail"), (None, "inconclusive")])
def test_a_card_is_judged_by_its_own_memory(result: Result, total: int | None, verdict: str) -> None:
    result["profile"].update(memory_kind="vram", budget_mib=1)
    result["decode"]["memory"]["gpu"].update(status="measured", total_bytes=total, reason="not told")
    assert judged(result)["GPU memory"].verdict == verdict


# ---- speed and energy


def test_without_limits_there_is_no_such_check(board: Result) -> None:
    assert not {*OWN, "conditions"} & judged(board).keys()


@pytest.mark.parametrize("limits", [own_limits(), own_limits(0.001, 1000.0, 0.0001)])
def test_on_a_rehearsal_no_figure_of_this_host_passes_or_fails(result: Result, limits: Result) -> None:
    checks = judged(result, **limits)
    for name, here in zip(OWN, ("10 ms", "100 tokens/s", "4.2 mJ"), strict=True):
        check = checks[name]
        assert (check.verdict, check.value, check.low, check.high) == ("inconclusive", None, None, None)
        assert check.detail == f"this host is not the board (here {here})"
    assert "conditions" not in checks
    assert overall(list(checks.values())) == "inconclusive"


def test_on_the_board_with_another_provider_it_is_a_rehearsal_too(result: Result) -> None:
    result["host"]["is_board"] = True
    detail = judged(result, **own_limits())["latency"].detail
    assert detail.startswith("the provider is not the one that the profile plans for")


@pytest.mark.parametrize(
    ("limits", "verdicts"),
    [
        (own_limits(), ("pass", "pass", "pass")),
        (own_limits(0.011, 97.0, 0.0043), ("inconclusive", "inconclusive", "inconclusive")),
        (own_limits(0.008, 110.0, 0.0030), ("fail", "fail", "fail")),
    ],
)
def test_on_the_board_the_whole_interval_decides(
    board: Result, limits: Result, verdicts: tuple[str, ...]
) -> None:
    checks = judged(board, **limits)
    assert tuple(checks[name].verdict for name in OWN) == verdicts
    assert (checks["conditions"].verdict, checks["conditions"].value) == ("pass", 0.0)
    assert (checks["latency"].value, checks["latency"].unit) == (0.010, "s")


def test_a_flag_on_the_board_leaves_speed_and_energy_open(board: Result) -> None:
    board["conditions"]["flags"] = ["counter.oc2: moved from 1 to 2", "other load: 1.0 cores on average"]
    for limits in (own_limits(), own_limits(0.008, 110.0, 0.0030)):
        checks = judged(board, **limits)
        assert {checks[name].verdict for name in (*OWN, "conditions")} == {"inconclusive"}
        assert checks["conditions"].detail.startswith("counter.oc2: moved from 1 to 2 and 1 more")
        assert checks["peak RSS"].verdict == "pass"
        assert overall(list(checks.values())) == "inconclusive"


def test_a_flag_without_such_a_limit_changes_no_verdict(board: Result) -> None:
    board["conditions"]["flags"] = ["counter.oc2: moved from 1 to 2"]
    assert "conditions" not in judged(board)


def test_what_nobody_watched_is_said_beside_the_conditions(board: Result) -> None:
    board["conditions"]["not_read"] = "not read: clocks (no clock control)"
    assert judged(board, **own_limits())["conditions"].detail == "not read: clocks (no clock control)"


def test_too_few_steps_for_an_interval_are_inconclusive(board: Result) -> None:
    latency = board["decode"]["latency"]
    latency.update(p95_ci95_high_s=None)
    latency["reasons"]["p95_ci95_high_s"] = "needs 72 samples, there are 40"
    check = judged(board, **own_limits())["latency"]
    assert check.verdict == "inconclusive"
    assert "needs 72 samples, there are 40" in check.detail
    latency.update(p95_s=None)
    latency["reasons"]["p95_s"] = "needs 20 samples, there are 4"
    check = judged(board, **own_limits())["latency"]
    assert (check.value, check.detail) == (None, "not measured: needs 20 samples, there are 4")


@pytest.mark.parametrize("status", ["unavailable", "rejected"])
def test_an_energy_that_was_not_measured_never_passes(board: Result, status: str) -> None:
    board["decode"]["energy"].update(status=status, reason="a gap of 3 s", gross_j_per_token=None)
    check = judged(board, **own_limits())["energy a token"]
    assert (check.verdict, check.value) == ("inconclusive", None)
    assert check.detail == f"not measured: {status}: a gap of 3 s"


@pytest.mark.parametrize(
    ("repeats", "error", "expected"),
    [
        ((0.9, 1.1), 0.01, (0.89, 1.11)),
        ((0.9, 1.1), None, (0.9, 1.1)),
        ((None, None), 0.01, (0.99, 1.01)),
        ((None, None), None, (None, None)),
    ],
)
def test_interval_of_the_energy(
    repeats: tuple[float | None, float | None],
    error: float | None,
    expected: tuple[float | None, float | None],
) -> None:
    interval = {"n": 3, "ci95_low": repeats[0], "ci95_high": repeats[1]}
    runs = [{"gross_uncertainty_j_per_token": error and error * 7, "gross_j_per_token": 7.0}]
    low, high, words = energy_interval(
        {"gross_j_per_token": 1.0, "runs": runs, "repeats": {"gross_j_per_token": interval}}
    )
    assert (low, high) == (
        (None, None) if None in expected else (pytest.approx(expected[0]), pytest.approx(expected[1]))
    )
    assert words


# ---- flags of all runs


def test_flags_of_latency_energy_and_power_mode_are_joined(board: Result) -> None:
    still = {"value": 1, "source": "x", "reason": None}
    moved = {"value": 2, "source": "x", "reason": None}
    mode = {"value": "15W", "source": "nvpmodel -q", "reason": None}
    board["profile"]["power_modes"] = ["25W", "MAXN_SUPER"]
    board["conditions"].update(before={"power.mode": mode}, after={"power.mode": mode}, clocks=[])
    board["decode"]["latency"]["flags"] = ["latency: 9.0 % of the steps"]
    board["decode"]["energy"]["drift"] = True
    board["decode"]["energy"]["conditions"] = {
        "before": {"counter.oc1": still},
        "after": {"counter.oc1": moved},
        "clocks": [],
    }
    assert all_flags(board) == [
        "power.mode: 15W is not a mode of the profile (25W, MAXN_SUPER)",
        "latency: 9.0 % of the steps",
        "energy runs: counter.oc1: moved from 1 to 2",
        "energy runs: the idle power after the run is not that before it",
    ]
