"""What tuning minimises: the divergence of the model's answers from those of the float teacher.

Language model: Kullback-Leibler divergence of the next-token distribution, mean over tokens, in nats (Hinton et al.
2015, temperature 1). Classification: the same of the class distribution, and the squared distance of the pooled
features over that of the teacher's mean, since two classes alone say little of a sentence.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qslm_edge.batches import Batch
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.spikegpt.model import FloatWeights, Weights
from qslm_edge.tuning.student import features

__all__ = ["Objective"]

TOKENS_AT_ONCE = 4096
"""Predictions whose distributions are compared at once: more would only need more memory."""


class Objective:
    """Compares weights with the float teacher on batches.

    Args:
        store: the float model and its hierarchy.
    """

    def __init__(self, store: WeightStore) -> None:
        self.store, self.config = store, store.model.config
        self.teacher = FloatWeights(store.model.tensors, self.config)

    def __call__(self, student: Weights, batch: Batch) -> Tensor:
        """Mean divergence over the predictions of a batch; with gradients where `student` has them."""
        device = self.store.model.device
        tokens = torch.from_numpy(batch.tokens).to(device)
        with torch.no_grad():
            wanted = features(self.teacher, self.store, tokens)
        got = features(student, self.store, tokens)
        if self.store.hierarchy.head == "lm":
            return self._next_tokens(student, got, wanted, batch)
        return self._classes(student, got, wanted, torch.from_numpy(batch.mask).to(device))

    def _next_tokens(self, student: Weights, got: Tensor, wanted: Tensor, batch: Batch) -> Tensor:
        got, wanted = got.flatten(0, 1), wanted.flatten(0, 1)
        kept = batch.mask.ravel() > 0
        if not kept.all():  # chosen here, not on the device: that would have to be waited for
            places = torch.from_numpy(np.flatnonzero(kept)).to(got.device)
            got, wanted = got[places], wanted[places]
        total = got.new_zeros(())
        parts = torch.split(got, TOKENS_AT_ONCE), torch.split(wanted, TOKENS_AT_ONCE)
        for mine, theirs in zip(*parts, strict=True):
            with torch.no_grad():
                target = F.log_softmax(self.teacher.linear("head", theirs), -1)
            answer = F.log_softmax(student.linear("head", mine), -1)
            total = total + F.kl_div(answer, target, log_target=True, reduction="sum")
        return total / len(got)

    def _classes(self, student: Weights, got: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
        weight = (mask / mask.sum(0)).unsqueeze(-1)
        mine, theirs = (got * weight).sum(0), (wanted * weight).sum(0)
        head = "classifier.weight"
        target = F.log_softmax(F.linear(theirs, self.store.model.tensors[head]), -1)
        answer = F.log_softmax(F.linear(mine, student.vector(head).view(-1, self.config.n_embd)), -1)
        divergence = F.kl_div(answer, target, log_target=True, reduction="batchmean")
        return divergence + F.mse_loss(mine, theirs) / theirs.square().mean()
