"""Quantisation-aware tuning: move weights, scales and 1-D tensors until the packed model answers like the teacher.

The bits stay those of the setting. Adam with a warm-up and a cosine decay over batches of the train split; search
and report items are never seen. What is lost on held-out training items beyond the trained ones is reported, so that
a loss of generality shows. Seeded, and resumable from a state file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qslm_edge import __version__
from qslm_edge.batches import CHUNK_ITEMS, Batch, batches
from qslm_edge.errors import EnvironmentFault, GateError
from qslm_edge.items import Items
from qslm_edge.quantize.levels import Setting
from qslm_edge.quantize.packed import PackedMatrix
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.search.journal import fingerprint
from qslm_edge.spikegpt.recurrence import stepwise_reason
from qslm_edge.tuning.checkpoint import load_state, save_state
from qslm_edge.tuning.feed import Feed
from qslm_edge.tuning.objective import Objective
from qslm_edge.tuning.options import TuneOptions
from qslm_edge.tuning.stored import TunedModel
from qslm_edge.tuning.student import Student

__all__ = ["Tuned", "tune", "tuning_mark"]

SAVE_EVERY_S = 60.0
BETAS = (0.9, 0.98)
FLOATS_A_TOKEN = 80
"""Activations kept for the way back, per token and layer, in units of the channels; measured, rounded up."""
MICRO_BYTES = {"cpu": 2 * 2**30, "cuda": 16 * 2**30}


@dataclass(frozen=True)
class Tuned:
    """What tuning ended with.

    Attributes:
        setting: the levels, as given.
        tensors: tuned float tensors by published key.
        packed: tuned packed matrices by module.
        steps, tokens: done, those of an earlier process included.
        trained: divergence from the teacher before and after on items that were trained on, in nats.
        held_out: the same on items that were not.
        seconds: of this process.
    """

    setting: Setting
    tensors: dict[str, Tensor]
    packed: dict[str, PackedMatrix]
    steps: int
    tokens: int
    trained: tuple[float, float]
    held_out: tuple[float, float]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """What the report says of it."""
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "divergence_nats": {
                "trained": {"before": self.trained[0], "after": self.trained[1]},
                "held_out": {"before": self.held_out[0], "after": self.held_out[1]},
            },
        }


def tune(
    store: WeightStore,
    setting: Setting,
    items: Items,
    options: TuneOptions,
    *,
    model_digest: str,
    start: TunedModel | None = None,
    state: Path | None = None,
    advance: Callable[[float, str], None] = lambda _share, _text: None,
) -> Tuned:
    """Tune a model at a setting.

    Args:
        store: the float model, and the quantiser that gives the first grids.
        setting: the level of every module.
        items: of the train split.
        options: how.
        model_digest: of the float model.
        start: a tuned model, perhaps of another setting, to go on from; None begins with the float model.
        state: file to go on from and to write to; None keeps nothing.
        advance: told the share of the work that was done, and a line on it.

    Raises:
        DataError: too few items.
        RunError: the state file belongs to another run, or is damaged.
        GateError: the divergence became infinite or no number.
        EnvironmentFault: the device is out of memory.
    """
    begun = time.monotonic()
    run = _Run(store, setting, items, options, start)
    mark = tuning_mark(store, setting, items, options, model_digest, start)
    before = run.divergence(run.feed.trained_sample()), run.divergence(run.feed.held_out())
    first = (load_state(state, run.tensors(), mark) if state is not None else None) or 0
    saved = time.monotonic()
    try:
        for step, loss in run.losses(first):
            if not math.isfinite(loss):
                raise GateError(
                    "tuning diverged", where=f"step {step + 1} of {run.steps}", hint="lower --tune-rate"
                )
            advance(1 / run.steps, f"step {step + 1} of {run.steps}, divergence {loss:.3f} nats")
            if state is not None and time.monotonic() - saved > SAVE_EVERY_S:
                save_state(state, run.tensors(), run.done, mark)
                saved = time.monotonic()
    except torch.OutOfMemoryError as error:
        raise EnvironmentFault(
            "out of memory while tuning",
            found=str(error).splitlines()[0],
            hint="free memory of the device, or tune on the CPU (CUDA_VISIBLE_DEVICES= hides the GPU)",
        ) from None
    if state is not None:
        save_state(state, run.tensors(), run.steps, mark)
    after = run.divergence(run.feed.trained_sample()), run.divergence(run.feed.held_out())
    return Tuned(
        setting=setting,
        tensors=run.student.tensors(),
        packed=run.student.packed(),
        steps=run.steps,
        tokens=run.steps * run.tokens_a_step,
        trained=(before[0], after[0]),
        held_out=(before[1], after[1]),
        seconds=time.monotonic() - begun,
    )


def tuning_mark(
    store: WeightStore,
    setting: Setting,
    items: Items,
    options: TuneOptions,
    model_digest: str,
    start: TunedModel | None = None,
) -> str:
    """Fingerprint of all that the weights of a tuning run depend on."""
    return fingerprint(
        {
            "model": model_digest,
            "setting": setting.to_dict(),
            "items": items.digest,
            "head": store.hierarchy.head,
            "options": options.to_dict(),
            "device": store.model.device.type,
            "kernels": stepwise_reason(store.model.device) is None,
            "quantiser": store.quantiser.identity,
            "quantiser_options": store.quantiser.options,
            "version": __version__,
            "start": None if start is None else start.origin["mark"],
        }
    )


class _Run:
    """Student, objective and optimiser of one run.

    Attributes:
        done: steps whose update was made, or is under way on the device.
    """

    def __init__(
        self,
        store: WeightStore,
        setting: Setting,
        items: Items,
        options: TuneOptions,
        start: TunedModel | None = None,
    ) -> None:
        self.options, config = options, store.model.config
        self.student, self.objective = Student(store, setting, start), Objective(store)
        mean = float(items.lengths.mean())
        batch_items = min(CHUNK_ITEMS, max(1, round(options.batch_tokens / mean)))
        self.feed = Feed(items, batch_items, options.seed)
        self.steps = self.feed.steps(options.tokens)
        self.tokens_a_step = round(mean * batch_items)
        token_bytes = 4 * config.n_embd * config.n_layer * FLOATS_A_TOKEN
        room = MICRO_BYTES.get(store.model.device.type, MICRO_BYTES["cpu"])
        self.micro_tokens = max(int(items.lengths.max()), room // token_bytes)
        self.done = 0
        self.named = dict(self.student.parameters())
        scales = [tensor for name, tensor in self.named.items() if name.endswith(".log_scale")]
        self.others = [tensor for name, tensor in self.named.items() if not name.endswith(".log_scale")]
        self.rates = (options.learning_rate, options.scale_learning_rate)
        groups = [{"params": self.others}, {"params": scales}]
        self.optimiser = torch.optim.Adam(groups, lr=0.0, betas=BETAS)
        for tensor in self.named.values():  # made now, so that a saved state finds its places
            self.optimiser.state[tensor] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(tensor),
                "exp_avg_sq": torch.zeros_like(tensor),
            }

    def tensors(self) -> dict[str, Tensor]:
        """All that a later process needs to go on."""
        found = dict(self.named)
        for name, tensor in self.named.items():
            for key, value in self.optimiser.state[tensor].items():
                found[f"{name}/{key}"] = value
        return found

    def losses(self, first: int) -> Iterator[tuple[int, float]]:
        """Take every step from `first` on; each number with its divergence.

        A loss is read when the next step is under way: a GPU that was waited for would stand still meanwhile.
        """
        self.done, waiting = first, None
        for number in range(first, self.steps):
            found = self._step(number)
            self.done = number + 1
            if waiting is not None:
                yield number - 1, float(waiting)
            waiting = found
        if waiting is not None:
            yield self.steps - 1, float(waiting)

    def _step(self, number: int) -> Tensor:
        """One step; the mean divergence of its batch before it, on the device."""
        share = min(1.0, (number + 1) / max(1, self.options.warmup_steps))
        share *= 0.5 * (1 + math.cos(math.pi * number / self.steps))
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = share * rate
        items = self.feed.items_of(number)
        self.optimiser.zero_grad(set_to_none=True)
        self.student.refresh()
        total = torch.zeros((), device=self.others[0].device)
        for batch, share in self._parts(items):
            loss = self.objective(self.student, batch) * share
            torch.autograd.backward([loss])
            total += loss.detach()
        self.student.collect()
        torch.nn.utils.clip_grad_norm_(self.others, self.options.clip_norm)
        self.optimiser.step()
        return total

    @torch.no_grad()
    def divergence(self, items: Items) -> float:
        """Mean divergence on some items with the weights as they are."""
        self.student.refresh()
        return sum(float(self.objective(self.student, batch)) * share for batch, share in self._parts(items))

    def _parts(self, items: Items) -> Iterator[tuple[Batch, float]]:
        """Batches that fit the memory, each with its share of the predictions."""
        for batch in batches(items, items.n_items, max_tokens=self.micro_tokens):
            one_each = items.labels is not None
            share = len(batch.index) / items.n_items if one_each else float(batch.mask.sum()) / items.n_tokens
            yield batch, share
