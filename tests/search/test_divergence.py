"""Divergence of distributions against other formulas, and in pieces against the whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from qslm_edge.errors import DataError
from qslm_edge.search.divergence import Compared, Divergence, DivergenceSum, compare_logits


def logits(*shape: int, seed: int, scale: float = 2.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def targets(*shape: int, vocab: int, seed: int = 9) -> Tensor:
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))


def whole(one: Tensor, two: Tensor, goal: Tensor, mask: Tensor | None = None) -> Divergence:
    collected = DivergenceSum("language_model")
    mask = torch.ones_like(goal, dtype=torch.bool) if mask is None else mask
    collected.add(np.arange(goal.shape[1]), mask, compare_logits(one, two, goal))
    return collected.result()


@given(seed=st.integers(0, 2**20), scale=st.sampled_from([0.01, 1.0, 20.0, 60.0]))
def test_kl_is_that_of_torch_distributions(seed: int, scale: float) -> None:
    one, two = logits(3, 5, seed=seed, scale=scale), logits(3, 5, seed=seed + 1, scale=scale)
    kl = compare_logits(one, two, targets(3, vocab=5)).kl
    expected = kl_divergence(Categorical(logits=one.double()), Categorical(logits=two.double()))
    torch.testing.assert_close(kl, expected, rtol=1e-9, atol=1e-12)
    assert bool((kl >= 0).all())


def test_kl_stays_finite_where_a_probability_is_no_float() -> None:
    one, two = torch.tensor([[0.0, -1000.0]]), torch.tensor([[-1000.0, 0.0]])
    assert compare_logits(one, two, torch.tensor([0])).kl.tolist() == [1000.0]


def test_equal_logits_differ_by_exactly_nothing() -> None:
    one = logits(4, 6, 11, seed=0)
    found = whole(one, one.clone(), targets(4, 6, vocab=11))
    assert (found.kl_mean_nats, found.kl_max_nats, found.rms_delta_p) == (0, 0, 0)
    assert found.top1_agreement == 1
    assert (found.comparison.delta_nll, found.comparison.delta_nll_se) == (0, 0)


def test_figures_from_single_predictions_one_by_one() -> None:
    one, two, goal = logits(40, 5, 7, seed=1), logits(40, 5, 7, seed=2), targets(40, 5, vocab=7)
    mask = torch.arange(40).unsqueeze(1) < torch.tensor([40, 33, 1, 40, 8])
    found = whole(one, two, goal, mask)
    kl: list[float] = []
    change: list[float] = []
    nll: list[float] = []
    same = 0
    for b in range(5):
        for t in range(40):
            if mask[t, b]:
                p, q = (np.exp(x[t, b].double().numpy()) for x in (one, two))
                p, q = p / p.sum(), q / q.sum()
                kl.append(sum(pv * math.log(pv / qv) for pv, qv in zip(p, q, strict=True)))
                y = int(goal[t, b])
                change.append(q[y] - p[y])
                same += int(p.argmax() == q.argmax())
                nll.append(math.log(p[y] / q[y]))
    assert found.n_predictions == len(kl) == 122
    assert found.kl_mean_nats == pytest.approx(math.fsum(kl) / 122)
    assert found.kl_p50_nats == pytest.approx(sorted(kl)[60])
    assert found.kl_p99_nats == pytest.approx(sorted(kl)[120])  # rank ceil(0.99 * 122) = 121
    assert found.kl_max_nats == pytest.approx(max(kl))
    assert found.top1_agreement == same / 122
    assert found.rms_delta_p == pytest.approx(math.sqrt(sum(c * c for c in change) / 122))
    assert found.comparison.delta_nll == pytest.approx(math.fsum(nll) / 122)
    assert found.comparison.n_items == 5


def test_batches_and_pieces_change_nothing() -> None:
    one, two, goal = logits(6, 4, 5, seed=3), logits(6, 4, 5, seed=4), targets(6, 4, vocab=5)
    mask = torch.ones(6, 4, dtype=torch.bool)
    parts = DivergenceSum("language_model")
    for index in (np.array([2, 0]), np.array([1, 3])):
        pieces = [
            compare_logits(one[rows][:, index], two[rows][:, index], goal[rows][:, index])
            for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
        ]
        parts.add(index, mask[:, index], Compared.join(pieces))
    expected = whole(one, two, goal)
    found = parts.result()
    assert found.comparison == expected.comparison
    assert found.kl_mean_nats == pytest.approx(expected.kl_mean_nats, rel=1e-12)
    assert (found.kl_max_nats, found.top1_agreement) == (expected.kl_max_nats, expected.top1_agreement)


def test_few_predictions_have_no_p99() -> None:
    found = whole(logits(3, 33, 5, seed=5), logits(3, 33, 5, seed=6), targets(3, 33, vocab=5))
    assert found.kl_p99_nats is None
    assert found.kl_p99_reason == "99 predictions, 100 needed"
    found = whole(logits(4, 25, 5, seed=5), logits(4, 25, 5, seed=6), targets(4, 25, vocab=5))
    assert found.kl_p99_nats is not None
    assert found.kl_p99_reason is None


def test_nothing_taken_in() -> None:
    with pytest.raises(DataError):
        DivergenceSum("classification").result()
