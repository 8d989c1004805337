"""Parity of an exported graph with the quantised torch model: piece by piece, then the whole.

Piece by piece: the torch model runs block by block with the graph's own values put in, so that every piece
(each matrix product, what feeds it, each spike train, input and output block, the state) is compared on the
graph's own input, and a spike that flips somewhere cannot hide where a fault is. Whole: logits (or features),
spikes and perplexity on the golden tokens, free-running on both sides; these are reported and not judged,
since a threshold model amplifies rounding.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qslm_edge.exporters.base import ExportJob
from qslm_edge.quantize.weights import QuantisedWeights
from qslm_edge.runner.runtime import CPU, import_onnxruntime
from qslm_edge.spikegpt.config import N_STATE
from qslm_edge.spikegpt.model import SpikeGPT, block_forward, embed_tokens, final_norm, initial_state

__all__ = ["MODULE_TOLERANCE", "PIECE_TOLERANCE", "Parity", "check_parity"]

Array = NDArray[Any]
MODULE_TOLERANCE = 1e-4
"""Relative RMS difference of one matrix product in its worst row, so that a fault in one row is not averaged
away. Kernels differ in the last bits only; where activations are rounded to int8, tokens that have a code within
TIE of a half are left out, since it may rightly be rounded the other way."""
TIE = 5e-5
PIECE_TOLERANCE = {"values": 1e-4, "spikes": 1e-3, "membranes": 1e-2}
"""Relative RMS difference of values that no matrix makes; share of spikes, and of membranes after the last
token, that differ on the graph's own input."""
MEMBRANE_STEP = 1e-3
MEMBRANES = slice(5, 7)


@dataclass(frozen=True)
class Parity:
    """How far the exported graph is from the quantised torch model.

    Attributes:
        modules: relative RMS difference of every matrix product in its worst row, on the graph's own input.
        pieces: the same for everything else: inputs of the matrices, input block, pooled features, state; for
            spikes and membranes the share that differs.
        worst_module, worst_piece: the largest of each against its tolerance, by name.
        spike_flip_rate: share of spike decisions that differ, both sides running freely.
        firing_rate_torch, firing_rate_graph: mean firing rate of all layers on either side.
        max_abs_output: largest difference of a logit (or sum of features), both sides running freely.
        perplexity_torch, perplexity_graph: of the golden tokens, both sides running freely; None for a
            classifier.
        n_tokens: tokens compared.
        fault: what is beyond its tolerance, None when nothing is.
    """

    modules: dict[str, float]
    pieces: dict[str, float]
    worst_module: str
    worst_piece: str
    spike_flip_rate: float
    firing_rate_torch: float
    firing_rate_graph: float
    max_abs_output: float
    perplexity_torch: float | None
    perplexity_graph: float | None
    n_tokens: int
    fault: str | None

    @property
    def ok(self) -> bool:
        return self.fault is None

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "ok": self.ok,
            "tolerance": {"modules": MODULE_TOLERANCE, "pieces": dict(PIECE_TOLERANCE)},
            "method": "each piece on the graph's own input; codes at a tie left out",
        }


@torch.inference_mode()
def check_parity(job: ExportJob, tapped: Path, tokens: NDArray[np.int64]) -> Parity:
    """Compare a tapped graph with the quantised model.

    Args:
        job: model and setting.
        tapped: graph that also gives every module's input and output, spikes, and the input block's output.
        tokens: [T, B].
    """
    is_lm = job.store.hierarchy.head == "lm"
    weights = QuantisedWeights(job.store, job.setting)
    graph = _run_graph(job, tapped, tokens)
    modules, pieces = _compare(job, weights, graph, tokens)

    free: dict[str, Array] = {}
    model = SpikeGPT(job.store.model.config, job.store.model.tensors)
    model.weights = weights
    features = model.features(
        torch.from_numpy(tokens).to(model.device),
        observe=lambda name, tensor: free.update({name: tensor.cpu().numpy()}),
    )
    output = weights.linear("head", features) if is_lm else features.sum(0)
    expected, got = output.cpu().numpy(), graph["logits" if is_lm else "pooled"]
    spikes = [name for name in free if name.endswith(".spikes")]
    worst_module = max(modules, key=lambda name: _excess(modules[name], MODULE_TOLERANCE))
    worst_piece = max(pieces, key=lambda name: _excess(pieces[name], _piece_tolerance(name)))
    return Parity(
        modules=modules,
        pieces=pieces,
        worst_module=worst_module,
        worst_piece=worst_piece,
        spike_flip_rate=float(np.mean([np.mean(free[name] != graph[name]) for name in spikes])),
        firing_rate_torch=float(np.mean([free[name].mean() for name in spikes])),
        firing_rate_graph=float(np.mean([graph[name].mean() for name in spikes])),
        max_abs_output=float(np.abs(expected - got).max()),
        perplexity_torch=_perplexity(expected, tokens) if is_lm else None,
        perplexity_graph=_perplexity(got, tokens) if is_lm else None,
        n_tokens=int(tokens.size),
        fault=_fault(modules[worst_module], MODULE_TOLERANCE, worst_module)
        or _fault(pieces[worst_piece], _piece_tolerance(worst_piece), worst_piece),
    )


def _run_graph(job: ExportJob, tapped: Path, tokens: NDArray[np.int64]) -> dict[str, Array]:
    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    # on ARM hosts these kernels round activations and scales in their own way: not what is checked here
    options.add_session_config_entry("mlas.disable_kleidiai", "1")
    session = runtime.InferenceSession(str(tapped), options, providers=[CPU])
    state = initial_state(job.store.model.config, tokens.shape[1])
    feed: dict[str, Array] = {"tokens": tokens, "state": state.numpy()}
    if job.store.hierarchy.head == "lm":
        feed["last"] = np.array([len(tokens)], np.int64)
    else:
        feed["mask"] = np.ones(tokens.shape, np.float32)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def _piece_tolerance(name: str) -> float:
    kind = name.rpartition(".")[2]
    return PIECE_TOLERANCE.get(kind, PIECE_TOLERANCE["values"])


def _excess(value: float, tolerance: float) -> float:
    return value / tolerance if math.isfinite(value) else math.inf


def _fault(value: float, tolerance: float, name: str) -> str | None:
    if value <= tolerance:  # NaN is a fault
        return None
    return f"{name}: difference {value:.2g}, allowed {tolerance:g}"


def _compare(
    job: ExportJob, weights: QuantisedWeights, graph: dict[str, Array], tokens: NDArray[np.int64]
) -> tuple[dict[str, float], dict[str, float]]:
    """Differences of matrix products and of everything else, each on the graph's own input."""
    config, device = job.store.model.config, job.store.model.device
    forced = _Forced(weights, graph, _input_names(job))
    pieces = forced.pieces
    state = initial_state(config, tokens.shape[1], device)
    pieces["blocks.0.ln0"] = _difference(
        embed_tokens(weights, torch.from_numpy(tokens).to(device)), graph["blocks.0.ln0"]
    )
    x = forced.take("blocks.0.ln0")
    for layer in range(config.n_layer):
        rows = slice(layer * N_STATE, (layer + 1) * N_STATE)
        block_forward(forced, layer, x, state[rows], observe=forced.observe)
        for part in (f"blocks.{layer}.att", f"blocks.{layer}.ffn"):
            x = x + forced.take(f"{part}.spikes")
        wanted, got = state[rows], graph["state_out"][rows]
        pieces[f"blocks.{layer}.state"] = max(_difference(wanted[i], got[i]) for i in range(MEMBRANES.start))
        drift = np.abs(wanted[MEMBRANES].cpu().numpy() - got[MEMBRANES])
        pieces[f"blocks.{layer}.membranes"] = float(np.mean(~(drift <= MEMBRANE_STEP)))
    pieces["ln_out"] = _difference(final_norm(weights, x), graph["ln_out"])
    if job.store.hierarchy.head == "lm":
        forced.compare("head", "ln_out", "logits")
    else:
        pieces["pooled"] = _difference(forced.take("ln_out").sum(0), graph["pooled"])
    return forced.modules, pieces


class _Forced:
    """`Weights` that compare every product with the graph's and then go on with the graph's values."""

    def __init__(self, weights: QuantisedWeights, graph: dict[str, Array], inputs: dict[str, str]) -> None:
        self.weights, self.graph, self.inputs = weights, graph, inputs
        self.modules: dict[str, float] = {}
        self.pieces: dict[str, float] = {}

    def take(self, name: str) -> Tensor:
        """A value of the graph, on the model's device."""
        return torch.from_numpy(self.graph[name]).to(self.weights.store.model.device)

    def embedding(self, tokens: Tensor) -> Tensor:
        return self.weights.embedding(tokens)

    def vector(self, key: str) -> Tensor:
        return self.weights.vector(key)

    def linear(self, module: str, x: Tensor) -> Tensor:
        source = self.inputs[module]
        self.pieces[source] = _difference(x, self.graph[source])
        self.compare(module, source, f"{module}.output")
        return self.take(f"{module}.output")

    def compare(self, module: str, source: str, output: str) -> None:
        """Compare one matrix product on the graph's own input."""
        x, level = self.take(source), self.weights.levels[module]
        clear = None
        if level.is_packed and level.accuracy_level and level.group_size:
            clear = _without_ties(self.graph[source], level.group_size)
        self.modules[module] = _difference(self.weights.linear(module, x), self.graph[output], clear)

    def observe(self, name: str, tensor: Tensor) -> None:
        """Compare spikes, which the torch model made of the graph's own currents."""
        if name.endswith(".spikes"):
            self.pieces[name] = float(np.mean(tensor.cpu().numpy() != self.graph[name]))


def _without_ties(x: Array, group_size: int) -> NDArray[np.bool_]:
    """Tokens none of whose int8 codes lies so near a half that another kernel may round it the other way."""
    groups = x.reshape(*x.shape[:-1], -1, group_size)
    peak = np.abs(groups).max(-1, keepdims=True)
    codes = groups * (np.float32(127) / np.where(peak > 0, peak, np.float32(1)))
    from_half = np.abs(np.abs(codes - np.floor(codes)) - 0.5)
    clear: NDArray[np.bool_] = from_half.min((-1, -2)) > TIE
    return clear


def _difference(expected: Tensor, got: Array, clear: NDArray[np.bool_] | None = None) -> float:
    """RMS of the difference in the worst channel (last axis), relative to the RMS of what is expected.

    Args:
        expected, got: [..., N].
        clear: tokens [...] to compare; when there are none, all are and the median token stands for them.
    """
    wanted = expected.cpu().numpy().astype(np.float64)
    scale = float(np.sqrt(np.mean(wanted**2))) or 1.0
    squares = (wanted - got.astype(np.float64)) ** 2
    rows = squares.reshape(-1, squares.shape[-1])
    if clear is not None and not clear.any():
        return float(np.sqrt(np.median(rows, 0).max())) / scale
    if clear is not None:
        rows = rows[clear.reshape(-1)]
    return float(np.sqrt(rows.mean(0).max())) / scale


def _perplexity(logits: Array, tokens: NDArray[np.int64]) -> float:
    """Perplexity of each next golden token given those before it; logits [T, B, V]."""
    x = torch.from_numpy(logits[:-1]).double().log_softmax(-1)
    nll = -x.gather(-1, torch.from_numpy(tokens[1:]).unsqueeze(-1))
    return math.exp(min(float(nll.mean()), 700.0))


def _input_names(job: ExportJob) -> dict[str, str]:
    """Graph value that feeds each linear module of the attention blocks."""
    mixed = {"key": "xk", "value": "xv", "receptance": "xr"}
    names: dict[str, str] = {}
    for module in job.store.hierarchy.modules:
        part, _, leaf = module.name.rpartition(".")
        if module.kind == "embedding" or not part:
            continue
        if leaf == "output":
            names[module.name] = f"{part}.gated"
        elif part.endswith(".ffn") and leaf == "value":
            names[module.name] = f"{part}.squared"
        else:
            names[module.name] = f"{part}.{mixed[leaf]}"
    return names
