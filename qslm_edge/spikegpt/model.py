"""SpikeGPT in torch: whole windows through the matrices at once, only the recurrences step through time.

Computation is time-major [T, B, C]. Every matrix product and the embedding go through a `Weights` object, so that a
quantised model is the same code with other weights. `observe` receives named intermediate tensors for parity checks,
spike rates and statistics. Source: SpikeGPT (Zhu et al. 2023) and its published code, src/model.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from qslm_edge.spikegpt.config import N_STATE, SpikeGPTConfig, state_shape
from qslm_edge.spikegpt.recurrence import P_INIT, lif, wkv

__all__ = ["FloatWeights", "Observe", "SpikeGPT", "Weights", "block_forward", "embed_tokens", "initial_state"]

Observe = Callable[[str, Tensor], None]
LN_EPS = 1e-5


class Weights(Protocol):
    """Where a forward pass takes its weights from."""

    def embedding(self, tokens: Tensor) -> Tensor:
        """Rows of the embedding table, Heaviside applied where the model is binary; tokens [...] -> [..., C]."""
        ...

    def linear(self, module: str, x: Tensor) -> Tensor:
        """Product of x [..., K] with the matrix of `module` [N, K]: [..., N]."""
        ...

    def vector(self, key: str) -> Tensor:
        """A 1-D (or [1, 1, C]) tensor by its key, flat."""
        ...


class FloatWeights:
    """The weights of a checkpoint as they are, in float32."""

    def __init__(self, tensors: Mapping[str, Tensor], config: SpikeGPTConfig) -> None:
        self.tensors, self.config = tensors, config

    def embedding(self, tokens: Tensor) -> Tensor:
        rows = F.embedding(tokens, self.tensors["emb.weight"])
        return (rows >= 0).to(rows.dtype) if self.config.embedding == "binary" else rows

    def linear(self, module: str, x: Tensor) -> Tensor:
        return F.linear(x, self.tensors[f"{module}.weight"])

    def vector(self, key: str) -> Tensor:
        return self.tensors[key].reshape(-1)


def initial_state(config: SpikeGPTConfig, batch: int, device: torch.device | str = "cpu") -> Tensor:
    """State of a stream that has seen nothing: zeros, and p at minus infinity (as a float32 that never overflows)."""
    state = torch.zeros(state_shape(config, batch), device=device)
    state[4::N_STATE] = P_INIT
    return state


def _layer_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    weight = weights.vector(f"{name}.weight")
    return F.layer_norm(x, (weight.shape[0],), weight, weights.vector(f"{name}.bias"), LN_EPS)


def embed_tokens(weights: Weights, tokens: Tensor) -> Tensor:
    """Input block: embedding and ln0; tokens [T, B] -> residual stream [T, B, C]."""
    return _layer_norm(weights, "blocks.0.ln0", weights.embedding(tokens))


def _earlier(h: Tensor, last: Tensor) -> Tensor:
    """h one token later, `last` [B, C] in front."""
    return torch.cat([last.unsqueeze(0), h[:-1]])


def _mixed(h: Tensor, earlier: Tensor, mix: Tensor) -> Tensor:
    """h*m + hp*(1-m), rounded in this order; one buffer less than the plain expression."""
    return (h * mix).add_(earlier * (1 - mix))


def block_forward(
    weights: Weights, layer: int, x: Tensor, state: Tensor, observe: Observe | None = None
) -> Tensor:
    """One attention block: SRWKV and SRFFN, each ending in a LIF whose spikes enter the residual stream.

    Args:
        weights: where matrices and vectors come from.
        layer: index of the block.
        x: residual stream [T, B, C]; not changed.
        state: this layer's state [7, B, C]; updated in place.
        observe: receives (name, tensor) for module inputs, module outputs, membrane potentials before the reset
            (`.potential`) and spikes.

    Returns:
        The residual stream after the block, [T, B, C].
    """
    att, ffn = f"blocks.{layer}.att", f"blocks.{layer}.ffn"

    def product(module: str, inputs: Tensor) -> Tensor:
        outputs = weights.linear(module, inputs)
        if observe is not None:
            observe(f"{module}.input", inputs)
            observe(f"{module}.output", outputs)
        return outputs

    def fire(part: str, current: Tensor, membrane: Tensor) -> Tensor:
        if observe is None:
            return lif(current, membrane)
        potentials = torch.empty_like(current)
        spikes = lif(current, membrane, potentials)
        observe(f"{part}.potential", potentials)
        observe(f"{part}.spikes", spikes)
        return spikes

    h = _layer_norm(weights, f"blocks.{layer}.ln1", x)
    earlier = _earlier(h, state[0])
    key = product(f"{att}.key", _mixed(h, earlier, weights.vector(f"{att}.time_mix_k")))
    value = product(f"{att}.value", _mixed(h, earlier, weights.vector(f"{att}.time_mix_v")))
    gate = torch.sigmoid(
        product(f"{att}.receptance", _mixed(h, earlier, weights.vector(f"{att}.time_mix_r")))
    )
    state[0] = h[-1].detach()
    y = wkv(key, value, weights.vector(f"{att}.time_decay"), weights.vector(f"{att}.time_first"), state[2:5])
    x = x + fire(att, product(f"{att}.output", gate * y), state[5])

    h = _layer_norm(weights, f"blocks.{layer}.ln2", x)
    earlier = _earlier(h, state[1])
    hidden = product(f"{ffn}.key", _mixed(h, earlier, weights.vector(f"{ffn}.time_mix_k")))
    gate = torch.sigmoid(
        product(f"{ffn}.receptance", _mixed(h, earlier, weights.vector(f"{ffn}.time_mix_r")))
    )
    state[1] = h[-1].detach()
    return x + fire(ffn, gate * product(f"{ffn}.value", torch.relu(hidden).square()), state[6])


def final_norm(weights: Weights, x: Tensor) -> Tensor:
    """ln_out of the output block; [T, B, C] -> [T, B, C]."""
    return _layer_norm(weights, "ln_out", x)


class SpikeGPT:
    """A float SpikeGPT: `model(idx)` gives logits.

    Attributes:
        config: sizes.
        tensors: float32 tensors by their published key.
    """

    def __init__(self, config: SpikeGPTConfig, tensors: dict[str, Tensor]) -> None:
        self.config, self.tensors = config, tensors
        self.weights: Weights = FloatWeights(tensors, config)

    @property
    def device(self) -> torch.device:
        return self.tensors["emb.weight"].device

    def to(self, device: torch.device | str) -> SpikeGPT:
        """The same model with its tensors on another device."""
        return SpikeGPT(self.config, {key: tensor.to(device) for key, tensor in self.tensors.items()})

    @torch.inference_mode()
    def features(self, tokens: Tensor, state: Tensor | None = None, observe: Observe | None = None) -> Tensor:
        """LN_out(x) for tokens [T, B] int64: [T, B, C]. `state` [7L, B, C] is updated in place when given."""
        if state is None:
            state = initial_state(self.config, tokens.shape[1], self.device)
        x = embed_tokens(self.weights, tokens)
        for layer in range(self.config.n_layer):
            x = block_forward(self.weights, layer, x, state[layer * N_STATE : (layer + 1) * N_STATE], observe)
        return final_norm(self.weights, x)

    @torch.inference_mode()
    def __call__(self, idx: Tensor, state: Tensor | None = None, observe: Observe | None = None) -> Tensor:
        """Next-token logits.

        Args:
            idx: token ids [B, T], int64.
            state: [7L, B, C] to carry between calls, updated in place; None starts afresh.
            observe: receives (name, tensor [T, B, ...]) of intermediate values.

        Returns:
            Logits [B, T, V], float32.
        """
        features = self.features(idx.t().contiguous(), state, observe)
        return self.weights.linear("head", features).transpose(0, 1)

    @torch.inference_mode()
    def classify(self, idx: Tensor, mask: Tensor | None = None) -> Tensor:
        """Class scores [B, num_labels]: mean over the real tokens of LN_out(x), times classifier.weight.

        Args:
            idx: token ids [B, T], padded at the end.
            mask: [B, T] 1 on real tokens; None when there is no padding.
        """
        features = self.features(idx.t().contiguous())
        weight = torch.ones(idx.shape, device=idx.device) if mask is None else mask.to(features.dtype)
        pooled = torch.einsum("tbc,bt->bc", features, weight) / weight.sum(1, keepdim=True)
        return F.linear(pooled, self.tensors["classifier.weight"])
