"""What quantising one matrix costs, predicted from one gradient pass of the float model.

To second order the divergence from the float model is half a quadratic form in the Fisher information:
D(m, l) = 1/2 E[(g · dy)^2], with g the gradient of log p(label) with respect to the output y of matrix m, the label
drawn from the model itself, and dy the change of y at level l (weights and rounded activations). One pass gives g for
every matrix; a cell of the table then is one product. Measured instead, by quantising one matrix after the other, the
same table needs tens of thousands of tokens a level and is mostly noise: a small change flips spikes that flip spikes,
and what that does to the loss of a text is many times its mean (docs/architecture.md has the figures).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qslm_edge.batches import Batch, batches
from qslm_edge.items import Items
from qslm_edge.metrics import Scores
from qslm_edge.quantize.levels import Level, Setting
from qslm_edge.quantize.weights import QuantisedWeights
from qslm_edge.search.evaluator import Evaluator
from qslm_edge.spikegpt.config import N_STATE
from qslm_edge.spikegpt.hierarchy import Module
from qslm_edge.spikegpt.model import SpikeGPT, block_forward, embed_tokens, final_norm, initial_state
from qslm_edge.spikegpt.recurrence import one_thread

__all__ = ["Cell", "first_tokens", "fisher_divergence"]

Cell = tuple[Module, Level]
N_ITEMS = {"language_model": 32, "classification": 128}
N_TOKENS = 128
"""First tokens of each item: many short texts say more than few long ones, and steps through time take the time."""
BATCH_FLOATS = 2**27
"""Most numbers that the graph of a batch keeps: a token needs about 50 a channel and layer, 4 an entry of the head."""
SEED = 0


def first_tokens(items: Items, n_items: int, n_tokens: int) -> Items:
    """The beginnings of some items, spread evenly.

    Args:
        items: windows are cut, sentences stay whole.
        n_items: how many.
        n_tokens: of each window.
    """
    chosen = np.unique(np.linspace(0, items.n_items - 1, min(n_items, items.n_items)).astype(np.int64))
    part = items.subset(chosen)
    if part.targets is None:
        return part
    lengths = np.minimum(part.lengths, n_tokens)
    pick = np.concatenate([np.arange(at, at + n) for at, n in zip(part.offsets[:-1], lengths, strict=True)])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return Items(part.task, part.split, part.tokens[pick], offsets, targets=part.targets[pick])


@one_thread()  # steps of short texts are small: shared between threads the pass took six times as long
def fisher_divergence(
    evaluator: Evaluator, cells: Sequence[Cell], on_done: Callable[[float], None] | None = None
) -> list[Scores]:
    """Predicted divergence of each (matrix, level) from the float model.

    Args:
        evaluator: holds model and items; its cost grows by the tokens of the gradient pass.
        cells: what to predict.
        on_done: told the share of the work that each batch was.

    Returns:
        For each cell the predicted nats of every item as its loss, over `count` predictions.
    """
    items = first_tokens(evaluator.items, N_ITEMS[evaluator.kind], N_TOKENS)
    generator = torch.Generator().manual_seed(SEED)
    nats = np.zeros((len(cells), items.n_items))
    config = evaluator.store.model.config
    token = 50 * config.n_layer * config.n_embd + 4 * config.vocab_size
    size = max(1, BATCH_FLOATS // (token * int(items.lengths.max())))
    for batch in batches(items, size):
        recorder = _Recorder(evaluator.store.model)
        evaluator.cost.tokens += int(batch.mask.sum())
        evaluator.cost.block_tokens += int(batch.mask.sum()) * evaluator.n_blocks
        with torch.enable_grad():
            outputs = list(_log_likelihoods(recorder, batch, evaluator, generator))
        for number, output in enumerate(outputs):
            recorder.clear_gradients()
            output.backward(retain_graph=number + 1 < len(outputs))  # type: ignore[no-untyped-call]
            nats[:, batch.index] += _divergences(recorder, cells, evaluator)
        if on_done is not None:
            on_done(len(batch.index) / items.n_items)
    evaluator.cost.evaluations += 1
    count = items.lengths if evaluator.kind == "language_model" else np.ones(items.n_items, np.int64)
    none = np.zeros(items.n_items, np.int64)
    return [Scores(evaluator.kind, np.arange(items.n_items), row, count.copy(), none.copy()) for row in nats]


class _Recorder:
    """Float `Weights` that keep the input and the output of every matrix product."""

    def __init__(self, model: SpikeGPT) -> None:
        self.model = model
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    def embedding(self, tokens: Tensor) -> Tensor:
        rows = self.model.weights.embedding(tokens).requires_grad_()
        return self._keep("emb", tokens, rows)

    def linear(self, module: str, x: Tensor) -> Tensor:
        return self._keep(module, x.detach(), self.model.weights.linear(module, x))

    def vector(self, key: str) -> Tensor:
        return self.model.weights.vector(key)

    def _keep(self, module: str, x: Tensor, y: Tensor) -> Tensor:
        y.retain_grad()
        self.inputs[module], self.outputs[module] = x, y
        return y

    def clear_gradients(self) -> None:
        for output in self.outputs.values():
            output.grad = None


def _log_likelihoods(
    recorder: _Recorder, batch: Batch, evaluator: Evaluator, generator: torch.Generator
) -> Iterator[Tensor]:
    """Sums whose gradients, squared, add up to the Fisher information of the batch."""
    model = evaluator.store.model
    tokens = torch.from_numpy(batch.tokens).to(model.device)
    mask = torch.from_numpy(batch.mask).to(model.device)
    x = embed_tokens(recorder, tokens)
    for layer in range(model.config.n_layer):
        state = initial_state(model.config, tokens.shape[1], model.device)[:N_STATE]
        x = block_forward(recorder, layer, x, state)
    features = final_norm(recorder, x)
    if evaluator.kind == "language_model":
        logits = recorder.linear("head", features)
        with torch.no_grad():
            shares = logits.softmax(-1).flatten(0, 1).cpu()
            drawn = torch.multinomial(shares, 1, generator=generator).view(tokens.shape).to(model.device)
        losses = F.cross_entropy(logits.flatten(0, 1), drawn.flatten(), reduction="none")
        yield (losses * mask.flatten()).sum()
        return
    pooled = (features * mask.unsqueeze(-1)).sum(0) / mask.sum(0).unsqueeze(-1)
    likely = F.linear(pooled, model.tensors["classifier.weight"]).log_softmax(-1)
    for label in range(likely.shape[1]):  # few classes: every label with its probability, none drawn
        yield (likely[:, label] * (likely[:, label].detach() / 2).exp()).sum()


@torch.no_grad()
def _divergences(
    recorder: _Recorder, cells: Sequence[Cell], evaluator: Evaluator
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """1/2 (g · dy)^2 of every cell and item of the batch, [cells, items]; padded tokens have no gradient."""
    rows = []
    for module, level in cells:
        weights = QuantisedWeights(evaluator.store, Setting(((module.name, level),)))
        x, y = recorder.inputs[module.name], recorder.outputs[module.name]
        gradient = y.grad
        if gradient is None:
            raise ValueError(f"no gradient reaches {module.name}")
        if (
            level.units is not None
        ):  # what the units that are cut did is missing in ffn.value, and counts there
            kept = torch.from_numpy(evaluator.store.kept_units(module.name, level.units)).to(y.device)
            if module.hidden == "rows":
                y, gradient = y[..., kept], gradient[..., kept]
            else:
                x = x[..., kept]
        changed = weights.embedding(x) if module.kind == "embedding" else weights.linear(module.name, x)
        pushed = (gradient * (changed - y)).sum(-1).double()
        # the labels of a text's tokens are drawn one by one, so that tokens add up in squares; a sentence has one label
        one = pushed.square().sum(0) if evaluator.kind == "language_model" else pushed.sum(0).square()
        rows.append(0.5 * one.cpu().numpy())
    return np.stack(rows)
