"""How far the output distributions of a quantised model lie from those of its float model.

With p of the float and q of the quantised model at one prediction: KL = sum over v of p(v) (ln p(v) - ln q(v)), in
nats; the top-1 answers agree when argmax p = argmax q; the right answer's probability changes by q(y) - p(y). All in
float64 from the same logits that the losses come from. The set of figures is that of llama.cpp's perplexity tool,
for classes as for tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qslm_edge.metrics import Kind, Paired, Scores, paired

__all__ = ["Compared", "Divergence", "DivergenceSum", "compare_logits"]

MIN_FOR_P99 = 100
"""Fewer predictions have no 99th percentile of their own."""


@dataclass(frozen=True)
class Divergence:
    """Distributions of the quantised against the float model.

    Attributes:
        n_predictions: tokens predicted, or sentences classified.
        kl_mean_nats, kl_p50_nats, kl_p99_nats, kl_max_nats: KL(float || quantised) over the predictions; percentiles
            by the nearest rank. p99 is None with a reason below 100 predictions.
        kl_p99_reason: why there is none.
        top1_agreement: share of predictions with the same most likely answer.
        rms_delta_p: root mean square change of the right answer's probability, 0 to 1.
        comparison: loss (and accuracy) paired on these items, with standard errors.
    """

    n_predictions: int
    kl_mean_nats: float
    kl_p50_nats: float
    kl_p99_nats: float | None
    kl_p99_reason: str | None
    kl_max_nats: float
    top1_agreement: float
    rms_delta_p: float
    comparison: Paired

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form for the report."""
        return asdict(self)


class Compared(NamedTuple):
    """Single predictions of both models, each tensor of the shape of the targets; floats are float64."""

    kl: Tensor
    reference_nll: Tensor
    nll: Tensor
    same_top: Tensor
    reference_right: Tensor
    right: Tensor

    @staticmethod
    def join(parts: Sequence[Compared]) -> Compared:
        """Several parts one after the other along the first axis."""
        return Compared(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def compare_logits(reference: Tensor, other: Tensor, targets: Tensor) -> Compared:
    """Compare logits of two models on the same predictions.

    Args:
        reference, other: [..., V].
        targets: right answers [...], int64.
    """
    log_p, log_q = reference.double().log_softmax(-1), other.double().log_softmax(-1)
    goal = targets.unsqueeze(-1)
    # rounding alone can take a sum that is never negative below 0
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).clamp_(min=0)
    top, other_top = log_p.argmax(-1), log_q.argmax(-1)
    return Compared(
        kl,
        -log_p.gather(-1, goal).squeeze(-1),
        -log_q.gather(-1, goal).squeeze(-1),
        top == other_top,
        top == targets,
        other_top == targets,
    )


class DivergenceSum:
    """Collects predictions batch by batch: a few numbers each, never the logits.

    Args:
        kind: what the items are.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._kl: list[NDArray[np.float64]] = []
        self._delta_p: list[NDArray[np.float64]] = []
        self._same = 0
        self._reference: list[Scores] = []
        self._other: list[Scores] = []

    def add(self, index: NDArray[np.int64], mask: Tensor, compared: Compared) -> None:
        """Take in a batch.

        Args:
            index: item numbers [B].
            mask: true where a prediction is real, bool [T, B].
            compared: of shape [T, B].
        """
        self._kl.append(compared.kl[mask].cpu().numpy())
        change = torch.exp(-compared.nll[mask]) - torch.exp(-compared.reference_nll[mask])
        self._delta_p.append(change.cpu().numpy())
        self._same += int(compared.same_top[mask].sum())
        count = mask.sum(0).cpu().numpy().astype(np.int64)
        for parts, nll, right in (
            (self._reference, compared.reference_nll, compared.reference_right),
            (self._other, compared.nll, compared.right),
        ):
            loss = torch.where(mask, nll, 0.0).sum(0).cpu().numpy()
            parts.append(Scores(self.kind, index, loss, count, (right & mask).sum(0).cpu().numpy()))

    def result(self) -> Divergence:
        """Figures over everything taken in.

        Raises:
            DataError: nothing was.
        """
        comparison = paired(Scores.join(self._reference), Scores.join(self._other))
        kl, change = np.concatenate(self._kl), np.concatenate(self._delta_p)
        enough = len(kl) >= MIN_FOR_P99
        return Divergence(
            n_predictions=len(kl),
            kl_mean_nats=float(kl.mean()),
            kl_p50_nats=_rank(kl, 0.5),
            kl_p99_nats=_rank(kl, 0.99) if enough else None,
            kl_p99_reason=None if enough else f"{len(kl)} predictions, {MIN_FOR_P99} needed",
            kl_max_nats=float(kl.max()),
            top1_agreement=self._same / len(kl),
            rms_delta_p=float(np.sqrt(np.mean(change**2))),
            comparison=comparison,
        )


def _rank(values: NDArray[np.float64], share: float) -> float:
    """Percentile by the nearest rank."""
    return float(np.quantile(values, share, method="inverted_cdf"))
