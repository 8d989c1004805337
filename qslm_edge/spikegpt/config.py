"""Sizes of a SpikeGPT and where they come from.

Every size except the embedding mode can be read from the tensors (RWKV-4 blocks with two LIF layers), so that
a bare state dict needs only the rule for the mode: an explicit choice wins, vocabulary 77 (enwik8) means
binary, 50277 (GPT-NeoX-20B tokenizer) means dense, as in the published inference code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from qslm_edge.errors import CheckpointError

__all__ = ["DEFAULT_CTX_LEN", "Embedding", "SpikeGPTConfig", "decide_embedding", "state_shape"]

Embedding = Literal["dense", "binary"]
DEFAULT_CTX_LEN = 512
N_STATE = 7
"""State tensors per layer: att_x, ffn_x, a, b, p, v1, v2."""

_LIMITS = {"n_layer": 256, "n_embd": 16_384, "ffn_dim": 65_536, "vocab_size": 1_048_576}
MAX_LABELS = 128
"""Labels travel as signed bytes."""
_LIF = {"tau": 2.0, "v_threshold": 1.0, "v_reset": 0.0, "decay_input": True}
_TRAINING_ONLY = frozenset(
    {"surrogate", "surrogate_function", "alpha", "detach_reset", "backend", "step_mode"}
)
"""Entries of a neuron that a forward pass does not depend on."""


@dataclass(frozen=True)
class SpikeGPTConfig:
    """Shape of a SpikeGPT.

    Attributes:
        n_layer: number of attention blocks L.
        n_embd: channels C.
        ffn_dim: hidden units F of the SRFFN (4C in the published models).
        vocab_size: rows V of the embedding.
        embedding: dense rows, or rows passed through Heaviside (0 maps to 1).
        ctx_len: window length for evaluation, in tokens.
        num_labels: outputs of the classifier head, None without one.
        has_lm_head: whether `head.weight` exists.
        labels: class names in order, empty when unknown.
    """

    n_layer: int
    n_embd: int
    ffn_dim: int
    vocab_size: int
    embedding: Embedding
    ctx_len: int = DEFAULT_CTX_LEN
    num_labels: int | None = None
    has_lm_head: bool = True
    labels: tuple[str, ...] = ()

    def check(self, where: object = None) -> None:
        """Raise CheckpointError when a size is impossible: no file may make us allocate at will."""
        for name, limit in _LIMITS.items():
            value = getattr(self, name)
            if not 1 <= value <= limit:
                raise CheckpointError(
                    "impossible size", where=where, found=f"{name} = {value}", allowed=f"1 to {limit}"
                )
        if self.num_labels is not None and not 2 <= self.num_labels <= MAX_LABELS:
            raise CheckpointError(
                "impossible size",
                where=where,
                found=f"num_labels = {self.num_labels}",
                allowed=f"2 to {MAX_LABELS}",
            )
        if not self.has_lm_head and self.num_labels is None:
            raise CheckpointError("no head: neither head.weight nor classifier.weight is there", where=where)


def state_shape(config: SpikeGPTConfig, batch: int) -> tuple[int, int, int]:
    """Shape [7 L, B, C] of the stacked recurrent state, in the order of N_STATE for each layer."""
    return (N_STATE * config.n_layer, batch, config.n_embd)


def decide_embedding(explicit: str | None, declared: str | None, vocab_size: int, where: object) -> Embedding:
    """Choose the embedding mode: flag, then config.json, then the rule by vocabulary size.

    Raises:
        CheckpointError: when nothing decides, or the value is not a mode.
    """
    for origin, value in (("--embedding", explicit), ("config.json embedding", declared)):
        if value is None:
            continue
        if value not in ("dense", "binary"):
            raise CheckpointError(
                "unknown embedding mode", where=origin, found=value, allowed="dense, binary"
            )
        return cast(Embedding, value)
    if vocab_size == 77:
        return "binary"
    if vocab_size == 50277:
        return "dense"
    raise CheckpointError(
        "the embedding mode is not stored in a bare state dict and cannot be told from the vocabulary",
        where=where,
        found=f"vocabulary {vocab_size}",
        hint="add --embedding dense or --embedding binary (binary: trained with Heaviside on the embedding)",
    )


def declared_values(raw: Mapping[str, Any], where: object) -> tuple[str | None, int, tuple[str, ...]]:
    """Read what the tensors do not tell from config.json: embedding mode, context length, class names.

    Raises:
        CheckpointError: for another model type, or neuron constants that this implementation does not have.
    """
    model_type = raw.get("model_type", "spikegpt")
    if model_type != "spikegpt":
        raise CheckpointError(
            "not a SpikeGPT", where=where, found=f"model_type = {model_type!r}", allowed="spikegpt"
        )
    lif = raw.get("lif") or {}
    if not isinstance(lif, Mapping):
        raise CheckpointError("lif must be a table", where=where, found=repr(lif))
    for key, value in lif.items():
        if key not in _TRAINING_ONLY and (key not in _LIF or value != _LIF[key]):
            raise CheckpointError(
                "neuron constant not supported",
                where=where,
                found=f"lif.{key} = {value}",
                allowed=_LIF.get(key, ", ".join(_LIF)),
            )
    eps = raw.get("layer_norm_eps", 1e-5)
    if not isinstance(eps, int | float) or not math.isclose(eps, 1e-5):
        raise CheckpointError("LayerNorm epsilon not supported", where=where, found=eps, allowed=1e-5)
    ctx_len = raw.get("ctx_len", DEFAULT_CTX_LEN)
    if not isinstance(ctx_len, int) or not 2 <= ctx_len <= 65_536:
        raise CheckpointError(
            "impossible context length", where=where, found=f"ctx_len = {ctx_len!r}", allowed="2 to 65536"
        )
    embedding = raw.get("embedding")
    names = raw.get("id2label") or {}
    if not isinstance(names, Mapping) or not all(str(key).isdecimal() for key in names):
        raise CheckpointError("id2label must map class numbers to names", where=where, found=repr(names)[:80])
    labels = tuple(str(names[key]) for key in sorted(names, key=int))
    return (embedding if embedding is None else str(embedding), ctx_len, labels)
