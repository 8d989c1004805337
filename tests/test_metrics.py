"""Metrics on constructed data, coverage of their bounds by simulation, and decisions on parts of a set."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qslm_edge.errors import DataError
from qslm_edge.metrics import (
    Kind,
    Paired,
    Scores,
    judge,
    paired,
    predict_full,
    quality,
    t_quantile,
)

Array = NDArray[Any]


def windows(loss: Any, count: int | Any = 100) -> Scores:
    """Scores of a language model from summed losses."""
    losses = np.asarray(loss, np.float64)
    n = len(losses)
    counts = np.broadcast_to(np.asarray(count, np.int64), n).copy()
    return Scores("language_model", np.arange(n), losses, counts, np.zeros(n, np.int64))


def sentences(correct: Any) -> Scores:
    """Scores of a classifier from right and wrong answers."""
    right = np.asarray(correct, np.int64)
    n = len(right)
    return Scores("classification", np.arange(n), np.where(right, 0.1, 2.0), np.ones(n, np.int64), right)


def part(scores: Scores, items: Any) -> Scores:
    return scores.select(np.asarray(items, np.int64))


# Point values.


def test_perplexity_weighs_windows_by_their_tokens() -> None:
    estimate = quality(windows([200.0, 30.0], [100, 10]))
    assert estimate.value == pytest.approx(math.exp(230 / 110))
    assert (estimate.n_items, estimate.n_tokens) == (2, 110)
    assert quality(windows([math.log(7.0) * 50] * 4, 50)).value == pytest.approx(7.0)


def test_accuracy_in_percent() -> None:
    estimate = quality(sentences([1, 1, 1, 0]))
    assert estimate.value == 75.0
    assert estimate.standard_error == pytest.approx(100 * math.sqrt(0.75 * 0.25 / 4))
    assert quality(sentences([1] * 100)).standard_error == pytest.approx(5.0 / 10)  # never certain


def test_standard_error_of_equal_windows_is_the_textbook_one() -> None:
    loss = np.random.default_rng(0).normal(300, 20, 40)
    estimate = quality(windows(loss))
    expected = (loss / 100).std(ddof=1) / math.sqrt(40) * estimate.value
    assert estimate.standard_error == pytest.approx(expected)


def test_standard_error_of_a_ratio_holds_for_unequal_windows() -> None:
    rng = np.random.default_rng(1)
    estimates, errors = [], []
    for _ in range(400):
        count = rng.integers(50, 500, 30)
        loss = count * (3 + rng.normal(0, 0.3, 30))
        estimate = quality(windows(loss, count))
        estimates.append(math.log(estimate.value))
        errors.append(estimate.standard_error / estimate.value)
    assert np.mean(errors) == pytest.approx(float(np.std(estimates)), rel=0.1)


def test_one_item_has_no_error_and_none_is_refused() -> None:
    assert quality(windows([250.0])).standard_error == math.inf
    for empty in (windows([]), sentences([])):
        with pytest.raises(DataError, match="nothing was scored"):
            quality(empty)
        with pytest.raises(DataError, match="nothing was scored"):
            paired(windows([1.0]), empty)
    with pytest.raises(DataError, match="nothing was scored"):
        Scores.join([])


def test_an_enormous_loss_does_not_overflow() -> None:
    reference, broken = windows([300.0, 310.0, 320.0]), windows([1e7, 1e7, 1.1e7])
    assert math.isfinite(quality(broken).value)
    result = paired(reference, broken)
    assert result.degradation > 1e300
    assert judge(result, 1.0) == "fail"


# Scores.


def shuffled(scores: Scores, seed: int = 0) -> Scores:
    return part(scores, np.random.default_rng(seed).permutation(scores.n_items))


def test_ordering_and_selecting_move_all_fields_together() -> None:
    whole = Scores(
        "classification", np.arange(5), np.arange(5.0) * 1.5, np.arange(5) + 10, np.array([0, 1, 0, 1, 1])
    )
    mixed = shuffled(whole)
    assert mixed.index.tolist() != whole.index.tolist()
    for scores, index in ((mixed.ordered(), range(5)), (mixed.select(np.array([4, 1])), (4, 1))):
        assert scores.index.tolist() == list(index)
        for i, item in enumerate(index):
            assert scores.loss[i] == item * 1.5
            assert scores.count[i] == item + 10
            assert scores.correct[i] == whole.correct[item]
    with pytest.raises(DataError, match="item was not scored; found item 5"):
        mixed.select(np.array([2, 5]))


def test_joining_keeps_the_order_of_the_parts() -> None:
    whole = windows([1.0, 2.0, 3.0, 4.0], [1, 2, 3, 4])
    joined = Scores.join([part(whole, [2, 0]), part(whole, [3])])
    assert joined.index.tolist() == [2, 0, 3]
    assert joined.loss.tolist() == [3.0, 1.0, 4.0]
    assert joined.n_tokens == 8
    assert joined.kind == "language_model"


# Student's t.


@pytest.mark.parametrize(
    ("probability", "degrees", "value", "error"),
    [
        (0.95, 1, 6.313752, 1e-6),
        (0.95, 2, 2.919986, 1e-6),
        (0.975, 1, 12.706205, 1e-5),
        (0.975, 2, 4.302653, 1e-6),
        (0.95, 3, 2.353363, 7e-3),
        (0.95, 4, 2.131847, 3e-3),
        (0.95, 5, 2.015048, 1e-3),
        (0.95, 10, 1.812461, 1e-4),
        (0.95, 30, 1.697261, 1e-5),
        (0.95, 120, 1.657651, 1e-6),
        (0.975, 10, 2.228139, 1e-3),
        (0.99, 20, 2.527977, 1e-3),
        (0.95, 10**6, 1.644854, 1e-5),
        (0.05, 10, -1.812461, 1e-4),
        (0.5, 7, 0.0, 1e-12),
    ],
)
def test_quantiles_of_student(probability: float, degrees: int, value: float, error: float) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(value, abs=error)


def test_quantiles_fall_with_the_degrees() -> None:
    values = [t_quantile(0.95, degrees) for degrees in range(1, 200)]
    assert values == sorted(values, reverse=True)


# Paired differences.


def test_increase_of_perplexity_by_hand() -> None:
    reference, scores = windows([300.0, 320.0, 310.0]), windows([301.0, 322.0, 313.0])
    result = paired(reference, scores)
    base = math.exp(930 / 300)
    assert result.delta_nll == pytest.approx(0.02)
    assert result.degradation == pytest.approx(base * (math.exp(0.02) - 1))
    assert result.degradation == pytest.approx(quality(scores).value - quality(reference).value)
    error = np.std([0.01, 0.02, 0.03], ddof=1) / math.sqrt(3)
    assert result.delta_nll_se == pytest.approx(error)
    t = 2.919986
    assert result.upper == pytest.approx(base * math.expm1(0.02 + t * error), rel=1e-5)
    assert result.lower == pytest.approx(base * math.expm1(0.02 - t * error), rel=1e-5)
    assert result.standard_error == pytest.approx(base * math.exp(0.02) * error)
    assert result.n_items == 3


def test_an_increase_may_be_measured_from_another_base() -> None:
    reference, scores = windows([300.0, 320.0, 310.0]), windows([301.0, 322.0, 313.0])
    usual, scaled = paired(reference, scores), paired(reference, scores, 44.0)
    assert scaled.degradation == pytest.approx(44 * math.expm1(0.02))
    ratio = scaled.degradation / usual.degradation
    assert scaled.upper == pytest.approx(usual.upper * ratio)
    assert scaled.delta_nll == usual.delta_nll


def test_pairing_is_by_item_number() -> None:
    rng = np.random.default_rng(2)
    reference = windows(rng.normal(300, 50, 30))
    scores = windows(reference.loss + rng.normal(1, 0.2, 30))
    straight = paired(reference, scores)
    crossed = paired(shuffled(reference, 1), shuffled(scores, 2))
    assert crossed.degradation == pytest.approx(straight.degradation)
    assert crossed.upper == pytest.approx(straight.upper)
    some = paired(reference, part(scores, [3, 17, 5, 8]))
    assert some.delta_nll == pytest.approx(float((scores.loss - reference.loss)[[3, 17, 5, 8]].mean()) / 100)


def test_the_same_model_degrades_by_nothing() -> None:
    reference = windows(np.random.default_rng(3).normal(300, 50, 30))
    same = paired(reference, reference)
    assert (same.degradation, same.lower, same.upper) == (0, 0, 0)
    assert judge(same, 0.0) == "pass"


def test_a_drop_of_accuracy_by_hand() -> None:
    reference = sentences([1] * 80 + [0] * 20)
    scores = sentences([1] * 74 + [0] * 6 + [1] * 2 + [0] * 18)
    result = paired(reference, scores)
    assert result.degradation == pytest.approx(4.0)
    # Agresti and Min: half an item is added to each of the four cells
    variance = (6 + 2 + 1 - (6 - 2) ** 2 / 102) / 102**2
    assert result.standard_error == pytest.approx(100 * math.sqrt(variance))
    t = t_quantile(0.95, 99)
    assert result.upper == pytest.approx(4 + t * result.standard_error)
    assert result.lower == pytest.approx(4 - t * result.standard_error)


def test_swapping_the_models_turns_the_sign() -> None:
    rng = np.random.default_rng(4)
    a, b = sentences(rng.integers(0, 2, 200)), sentences(rng.integers(0, 2, 200))
    there, back = paired(a, b), paired(b, a)
    assert back.degradation == -there.degradation
    assert back.upper == pytest.approx(-there.lower)


def test_no_changed_answer_is_not_certainty() -> None:
    reference = sentences([1] * 700 + [0] * 172)
    result = paired(reference, reference)
    assert result.degradation == 0
    assert 0.1 < result.upper < 0.3
    assert judge(result, 0.0) == "inconclusive"
    assert judge(result, 0.5) == "pass"
    assert paired(sentences([1, 0]), sentences([1, 0])).upper > 100  # two sentences prove nothing


@pytest.mark.parametrize(
    ("lower", "upper", "limit", "verdict"),
    [
        (0.1, 0.9, 1.0, "pass"),
        (0.1, 1.0, 1.0, "pass"),
        (0.1, 1.1, 1.0, "inconclusive"),
        (1.0, 1.1, 1.0, "inconclusive"),
        (1.01, 1.1, 1.0, "fail"),
        (-2.0, -1.0, 0.0, "pass"),
        (-1.0, math.inf, 1e6, "inconclusive"),
    ],
)
def test_verdicts(lower: float, upper: float, limit: float, verdict: str) -> None:
    assert judge(Paired(0.5, lower, upper, 0.1, 0.0, 0.0, 10), limit) == verdict


def bounds(kind: Kind, n: int, rng: np.random.Generator) -> tuple[Paired, float]:
    """One random comparison and the true degradation behind it."""
    if kind == "language_model":
        count = rng.integers(60, 140, n)
        reference = windows(count * rng.normal(3.0, 0.4, n), count)
        scores = replace(reference, loss=reference.loss + count * rng.normal(0.04, 0.03, n))
        return paired(reference, scores, 20.0), 20.0 * math.expm1(0.04)
    right = rng.random(n) < 0.8
    after = np.where(rng.random(n) < np.where(right, 0.06, 0.10), ~right, right)
    return paired(sentences(right), sentences(after)), 100 * (0.8 * 0.06 - 0.2 * 0.10)


@pytest.mark.parametrize(
    ("kind", "n", "runs"),
    [
        ("language_model", 2, 1500),
        ("language_model", 4, 1500),
        ("language_model", 40, 1500),
        ("classification", 100, 2000),
        ("classification", 872, 800),
    ],
)
def test_one_sided_bounds_cover_the_truth_95_times_in_100(kind: Kind, n: int, runs: int) -> None:
    rng = np.random.default_rng(n)
    below = above = 0
    for _ in range(runs):
        result, truth = bounds(kind, n, rng)
        below += result.upper < truth
        above += result.lower > truth
    noise = 3 * math.sqrt(0.05 * 0.95 / runs)
    for misses in (below, above):
        assert 0.05 - noise - 0.015 < misses / runs < 0.05 + noise + 0.005


# Decisions on a part of the items.


def test_the_full_set_decides_as_the_bound_does() -> None:
    rng = np.random.default_rng(6)
    for kind in ("language_model", "classification"):
        for _ in range(40):
            if kind == "language_model":
                reference = windows(rng.normal(300, 30, 40))
                scores = windows(reference.loss + rng.normal(3, 4, 40))
            else:
                reference, scores = sentences(rng.integers(0, 2, 40)), sentences(rng.integers(0, 2, 40))
            base = quality(reference).value
            upper = paired(reference, scores, base).upper
            assert predict_full(reference, scores, 40, upper + 1e-6, base) is True
            assert predict_full(reference, scores, 40, upper - 1e-6, base) is False


def test_too_few_items_decide_nothing() -> None:
    reference = windows(np.full(64, 300.0))
    awful = windows(np.full(64, 400.0) + np.arange(64))
    base = quality(reference).value
    assert predict_full(reference, part(awful, range(15)), 64, 1.0, base) is None
    assert predict_full(reference, part(awful, range(16)), 64, 1.0, base) is False
    assert predict_full(reference, part(reference, range(16)), 64, 1.0, base) is True
    assert predict_full(part(reference, range(9)), part(awful, range(9)), 9, 1.0, base) is False


def test_more_sigmas_wait_longer() -> None:
    rng = np.random.default_rng(7)
    reference = windows(rng.normal(300, 30, 64))
    scores = windows(reference.loss + rng.normal(3, 4, 64))
    base = quality(reference).value
    upper = paired(reference, scores, base).upper
    for limit in np.linspace(0.2 * upper, 2 * upper, 40):
        few, many = (
            predict_full(reference, part(scores, range(32)), 64, float(limit), base, sigmas)
            for sigmas in (1.0, 5.0)
        )
        assert many is None or many == few


def test_no_changed_answer_so_far_is_not_certain() -> None:
    reference = sentences([1] * 872)
    assert predict_full(reference, part(reference, range(64)), 872, 1.0, 0.0) is None
    assert predict_full(reference, part(reference, range(800)), 872, 1.0, 0.0) is True
    assert predict_full(reference, part(reference, range(800)), 872, 0.0, 0.0) is not True


def test_a_limit_that_no_perplexity_meets() -> None:
    reference = windows(np.random.default_rng(0).normal(300, 5, 32))
    assert predict_full(reference, reference, 32, -1e9, 20.0) is False


def population(name: str, rng: np.random.Generator) -> tuple[Scores, Scores]:
    """A float and a quantised model on a whole set."""
    if name == "flips":
        right = rng.random(200) < 0.83
        return sentences(right), sentences(np.where(rng.random(200) < 0.1, ~right, right))
    if name == "rare flips":
        right = rng.random(200) < 0.83
        return sentences(right), sentences(np.where(rng.random(200) < 0.02, ~right, right))
    reference = windows(rng.normal(1500, 100, 64), 512)
    skew = 0.0 if name == "normal" else 0.5
    difference = 10 + 8 * (rng.normal(0, 1, 64) + skew * (rng.exponential(1, 64) - 1))
    return reference, windows(reference.loss + difference, 512)


@pytest.mark.parametrize("name", ["normal", "skewed", "flips", "rare flips"])
def test_early_decisions_contradict_the_full_one_no_more_often_than_three_sigma(name: str) -> None:
    """In the worst case, a limit that the full set just meets or just misses, at every look."""
    rng = np.random.default_rng(11)
    looks = (16, 32, 48) if name in ("normal", "skewed") else (32, 100, 160)
    runs = 2000
    wrong, clear = dict.fromkeys(looks, 0), 0
    for run in range(runs):
        if run % 20 == 0:
            reference, scores = population(name, rng)
            base = quality(reference).value if scores.kind == "language_model" else 0.0
            bound = paired(reference, scores, base or None).upper
        limit = bound + (1e-9 if run % 2 else -1e-9)
        order = rng.permutation(scores.n_items)
        for n in looks:
            seen = predict_full(reference, part(scores, order[:n]), scores.n_items, limit, base)
            clear += seen is not None
            wrong[n] += seen is not None and seen != (bound <= limit)
    allowed = 0.0027 + 3 * math.sqrt(0.0027 / runs)
    assert all(count / runs <= allowed for count in wrong.values()), wrong
    # the claim is not kept by never deciding: a limit at a distance is recognised
    far = [4 * bound + 4, -4 * bound - 4]
    decisions = [
        predict_full(reference, part(scores, order[: looks[1]]), scores.n_items, f, base) for f in far
    ]
    assert decisions == [True, False]
