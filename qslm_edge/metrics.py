"""Perplexity and accuracy with their errors, paired differences, and verdicts. Shared by search and runner.

Items (windows or sentences) are the sampling unit. Differences are paired: the float and the quantised model answer the
same items, which makes errors about ten times smaller. Verdict, one-sided at 95 %: pass if the upper bound of the
degradation lies within the limit, fail if the lower bound lies outside, else inconclusive. Errors of perplexity use the
ratio estimator over windows (Cochran 1977, ch. 6); errors of paired proportions add 1/2 to each cell (Agresti and Min
2005), so that "no answer changed" does not claim certainty. Imports numpy only, since run.pyz packs it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qslm_edge.errors import DataError

__all__ = [
    "CONFIDENCE",
    "Estimate",
    "Kind",
    "Paired",
    "Scores",
    "Verdict",
    "judge",
    "paired",
    "predict_full",
    "quality",
    "t_quantile",
]

Kind = Literal["language_model", "classification"]
Verdict = Literal["pass", "fail", "inconclusive"]
CONFIDENCE = 0.95
MIN_ITEMS_EARLY = 16


@dataclass(frozen=True)
class Scores:
    """What a model did on some items.

    Attributes:
        kind: language_model or classification.
        index: item numbers, int64 [n].
        loss: summed negative log-likelihood of each item in nats, float64 [n].
        count: predictions per item, int64 [n] (tokens of a window; 1 for a sentence).
        correct: 1 where a sentence was classified right, int64 [n]; for windows the number of right top-1 tokens.
    """

    kind: Kind
    index: NDArray[np.int64]
    loss: NDArray[np.float64]
    count: NDArray[np.int64]
    correct: NDArray[np.int64]

    @property
    def n_items(self) -> int:
        return len(self.index)

    @property
    def n_tokens(self) -> int:
        return int(self.count.sum())

    def ordered(self) -> Scores:
        """The same scores sorted by item number."""
        order = np.argsort(self.index, kind="stable")
        return Scores(self.kind, self.index[order], self.loss[order], self.count[order], self.correct[order])

    def select(self, index: NDArray[np.int64]) -> Scores:
        """Scores of the given item numbers, in that order.

        Raises:
            DataError: when an item was not scored.
        """
        order = np.argsort(self.index, kind="stable")
        known = self.index[order]
        places = np.searchsorted(known, index)
        found = places < len(known)
        found[found] = known[places[found]] == index[found]
        if not found.all():
            raise DataError("item was not scored", found=f"item {index[~found][0]}")
        rows = order[places]
        return Scores(self.kind, self.index[rows], self.loss[rows], self.count[rows], self.correct[rows])

    @staticmethod
    def join(parts: list[Scores]) -> Scores:
        """Scores of several batches as one.

        Raises:
            DataError: when there are none.
        """
        if not parts:
            raise DataError("nothing was scored")
        return Scores(
            parts[0].kind,
            np.concatenate([part.index for part in parts]),
            np.concatenate([part.loss for part in parts]),
            np.concatenate([part.count for part in parts]),
            np.concatenate([part.correct for part in parts]),
        )


@dataclass(frozen=True)
class Estimate:
    """A metric with its standard error over items: perplexity, or accuracy in percent."""

    value: float
    standard_error: float
    n_items: int
    n_tokens: int


@dataclass(frozen=True)
class Paired:
    """Degradation of a quantised model against the float model on the same items.

    Attributes:
        degradation: perplexity increase, or accuracy drop in percentage points; negative is an improvement.
        lower, upper: one-sided 95 % bounds of it.
        standard_error: of `degradation`, to first order.
        delta_nll, delta_nll_se: mean difference of the negative log-likelihood per prediction, and its error.
        n_items: items compared.
    """

    degradation: float
    lower: float
    upper: float
    standard_error: float
    delta_nll: float
    delta_nll_se: float
    n_items: int


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t: exact for 1 and 2 degrees, then by the Cornish-Fisher expansion.

    Source: Abramowitz and Stegun 26.7.5. Error below 1e-3 at 95 % for 5 degrees of freedom and more, below 7e-3 for 3.
    """
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        return (2 * probability - 1) / math.sqrt(2 * probability * (1 - probability))
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / float(degrees) ** i for i, term in enumerate(terms))


def _ratio(numerator: NDArray[np.float64], count: NDArray[np.int64]) -> tuple[float, float]:
    """Mean per prediction and its standard error, items being the sampling unit."""
    total = float(count.sum())
    mean = float(numerator.sum()) / total
    n = len(count)
    if n < 2:
        return mean, math.inf
    residual = numerator - mean * count
    return mean, math.sqrt(n / (n - 1) * float(residual @ residual)) / total


def quality(scores: Scores) -> Estimate:
    """Perplexity, or accuracy in percent, of one model.

    Raises:
        DataError: when nothing was scored.
    """
    if scores.n_items == 0:
        raise DataError("nothing was scored")
    if scores.kind == "language_model":
        mean, error = _ratio(scores.loss, scores.count)
        value = math.exp(min(mean, 700.0))
        return Estimate(value, value * error, scores.n_items, scores.n_tokens)
    share = float(scores.correct.mean())
    error = math.sqrt(max(share * (1 - share), 0.25 / scores.n_items) / scores.n_items)
    return Estimate(100 * share, 100 * error, scores.n_items, scores.n_tokens)


def _degradation(reference: Scores, scores: Scores) -> tuple[float, float]:
    """Mean item-wise degradation and its error, before conversion: nats per token, or percentage points."""
    if scores.kind == "language_model":
        return _ratio(scores.loss - reference.loss, scores.count)
    lost = float(((reference.correct == 1) & (scores.correct == 0)).sum())
    won = float(((reference.correct == 0) & (scores.correct == 1)).sum())
    n = scores.n_items
    variance = (lost + won + 1 - (lost - won) ** 2 / (n + 2)) / (n + 2) ** 2
    return 100 * (lost - won) / n, 100 * math.sqrt(variance)


def paired(reference: Scores, scores: Scores, reference_value: float | None = None) -> Paired:
    """Compare a model with the float model on the items of `scores`.

    Args:
        reference: scores of the float model, holding at least these items.
        scores: scores of the other model.
        reference_value: perplexity of the float model that an increase is measured from; default: on these items.

    Raises:
        DataError: when nothing was scored or an item is missing in `reference`.
    """
    if scores.n_items == 0:
        raise DataError("nothing was scored")
    reference = reference.select(scores.index)
    delta, delta_se = _ratio(scores.loss - reference.loss, scores.count)
    mean, error = _degradation(reference, scores)
    t = t_quantile(CONFIDENCE, max(scores.n_items - 1, 1))
    if scores.kind == "classification":
        return Paired(mean, mean - t * error, mean + t * error, error, delta, delta_se, scores.n_items)
    base = quality(reference).value if reference_value is None else reference_value

    def increase(nats: float) -> float:
        return base * math.expm1(min(nats, 700.0))

    slope = base * math.exp(min(mean, 700.0))
    return Paired(
        increase(mean),
        increase(mean - t * error),
        increase(mean + t * error),
        slope * error,
        delta,
        delta_se,
        scores.n_items,
    )


def judge(result: Paired, limit: float) -> Verdict:
    """Pass, fail or inconclusive: the degradation against its limit, one-sided at 95 %."""
    if result.upper <= limit:
        return "pass"
    return "fail" if result.lower > limit else "inconclusive"


def predict_full(
    reference: Scores, scores: Scores, n_total: int, limit: float, reference_value: float, sigmas: float = 3.0
) -> bool | None:
    """Would all items say that the upper bound lies within the limit? None while it is not clear.

    With n of N items seen in random order, the mean over all N is normal around the mean so far with standard
    deviation s sqrt(1/n - 1/N) (simple random sampling without replacement, Cochran 1977, ch. 2). The final bound
    also moves with the final estimate of s, by a share 1/sqrt(2N) of t s, in step with the mean where differences
    are skewed. The decision is called clear when it holds for every bound within `sigmas` of these, by Student's t
    since s is an estimate itself. With few changed answers s says little: the spread then counts those that
    `sigmas` could have hidden.

    Args:
        reference: float scores, holding at least the items of `scores`.
        scores: what is known so far.
        n_total: items in the whole set.
        limit: perplexity increase or points.
        reference_value: float perplexity of the whole set.
        sigmas: how sure a prediction must be; 3 is 99.7 % two-sided.
    """
    n = scores.n_items
    if n < n_total and n < MIN_ITEMS_EARLY:
        return None
    if scores.kind == "language_model":
        limit = math.log1p(limit / reference_value) if limit > -reference_value else -math.inf
    mean, error = _degradation(reference.select(scores.index), scores)
    t = t_quantile(CONFIDENCE, max(n_total - 1, 1))
    bound = mean + t * error * math.sqrt(n / n_total)
    if n >= n_total:
        return bound <= limit
    if scores.kind == "classification":
        error = math.hypot(error, 100 * sigmas / math.sqrt(2) / (n + 2))
    spread = t_quantile(NormalDist().cdf(sigmas), n - 1) * error * math.sqrt(1 - n / n_total)
    spread *= 1 + t / math.sqrt(2 * n_total)
    if bound + spread <= limit:
        return True
    return False if bound - spread > limit else None
