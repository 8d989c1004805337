"""Operations of a model for one token, by the names of NeuroBench (Yik et al. 2025), in two conventions.

A matrix W [N, K] that reads x does N K synaptic operations (`dense`). Effective are those of a weight and an input that
are both not 0: sum over k of [x_k != 0] nnz(W[:, k]). Inputs count as the device multiplies them: rounded to int8 where
the level does so. Only matrix products count, as in NeuroBench: no lookups, norms, mixing or recurrences.

as built:     effective operations are accumulates (ACs) where every input of the matrix is -1, 0 or 1, else
              multiply-accumulates (MACs). The matrices of SpikeGPT read floats: all are MACs. This is the honest one.
spike-driven: the residual stream counts as the spikes that were added to it last. A matrix that reads it does
              r nnz(W) ACs, r being their firing rate, and no MACs. Matrices inside a part (att.output, ffn.value),
              and those of layer 0 that read a dense embedding, count as built. A reconstruction of how papers on
              spiking transformers count (SOPs = firing rate x operations); a stream of sums, normalised and mixed,
              is not binary, so no device can do with this.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qslm_edge.quantize.accounting import weight_bytes
from qslm_edge.quantize.levels import Setting
from qslm_edge.quantize.weights import WeightStore, round_activations
from qslm_edge.search.spikes import PARTS, Neurons, Part, count_nonzero

__all__ = ["LayerSparsity", "OperationCount", "Operations", "Synaptic", "membrane_updates"]

CLASSIFIER = "classifier"


@dataclass(frozen=True)
class Synaptic:
    """Synaptic operations a token by one convention: multiply-accumulates and accumulates."""

    effective_macs: float
    effective_acs: float


@dataclass(frozen=True)
class LayerSparsity:
    """Share of zeros in what a layer's activation functions give.

    Attributes:
        layer: its number.
        att_spikes, ffn_spikes: of the two LIF layers: 1 - firing rate.
        ffn_hidden: of relu(.)^2 inside the SRFFN, before any rounding.
    """

    layer: int
    att_spikes: float
    ffn_hidden: float
    ffn_spikes: float


@dataclass(frozen=True)
class Operations:
    """What a model does for a token, and what it holds.

    Attributes:
        dense: synaptic operations a token, zeros included.
        as_built, spike_driven: effective ones by the two conventions.
        membrane_updates: membrane potentials a token changes; a first token changes all.
        activation_sparsity: share of zeros in spikes and relu(.)^2 of all layers.
        activation_sparsity_by_layer: the same a layer.
        connection_sparsity: share of zeros in the matrices that are multiplied, as stored; the embedding is a table.
        footprint_bytes: all weights, packed as they are stored (parameters x bits where the level is simulated).
    """

    dense: float
    as_built: Synaptic
    spike_driven: Synaptic
    membrane_updates: float
    activation_sparsity: float
    activation_sparsity_by_layer: tuple[LayerSparsity, ...]
    connection_sparsity: float
    footprint_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form for the report."""
        return asdict(self)


def membrane_updates(neurons: Neurons, mask: Tensor) -> int:
    """Potentials that a token leaves (after the reset) other than it found them; the first token counts all.

    Args:
        neurons: of a whole sequence from its start, [T, B, C].
        mask: true on real tokens, bool [T, B].
    """
    after = neurons.potentials * (1 - neurons.spikes)
    changed = torch.ones_like(after, dtype=torch.bool)
    changed[1:] = after[1:] != after[:-1]
    return count_nonzero(changed & mask.unsqueeze(-1))


@dataclass
class _Zeros:
    nonzero: int = 0
    total: int = 0

    @property
    def share(self) -> float:
        return 1 - self.nonzero / self.total


@dataclass
class _Inputs:
    """Inputs of one matrix so far: vectors, non-zero entries by column, and whether all entries are -1, 0 or 1."""

    nonzero: NDArray[np.int64]
    vectors: int = 0
    binary: bool = True


class OperationCount:
    """Counts one model's operations while it runs.

    Args:
        store: its matrices.
        setting: its levels.
    """

    def __init__(self, store: WeightStore, setting: Setting) -> None:
        self.store, self.setting = store, setting
        self.n_tokens = 0
        self._inputs: dict[str, _Inputs] = {}
        self._spikes: dict[tuple[int, Part], _Zeros] = defaultdict(_Zeros)
        self._hidden: dict[int, _Zeros] = defaultdict(_Zeros)
        self._embedding = _Zeros()
        self._updates = 0

    def add_embedding(self, rows: Tensor, mask: Tensor) -> None:
        """Take in the rows that a batch of tokens looked up, [T, B, C]; counts the tokens too."""
        self.n_tokens += int(mask.sum())
        _add(self._embedding, _real(rows, mask))

    def add_input(self, module: str, x: Tensor, mask: Tensor) -> None:
        """Take in what a matrix reads.

        Args:
            module: which matrix.
            x: [T, B, K], before any rounding.
            mask: true where an input is real, bool [T, B].
        """
        rows = _real(x, mask)
        if module.endswith(".ffn.value"):
            _add(self._hidden[int(module.split(".")[1])], rows)
        level = None if module == CLASSIFIER else self.setting[module]
        if level is not None and level.is_packed and level.accuracy_level and level.group_size:
            rows = round_activations(rows, level.group_size)
        found = self._inputs.get(module)
        if found is None:
            found = self._inputs[module] = _Inputs(np.zeros(x.shape[-1], np.int64))
        found.nonzero += np.count_nonzero((rows != 0).cpu().numpy(), axis=0)
        found.vectors += len(rows)
        found.binary = found.binary and _is_binary(rows[:1]) and _is_binary(rows)

    def add_neurons(self, layer: int, part: Part, neurons: Neurons, mask: Tensor) -> None:
        """Take in the LIF neurons of one part of a layer, from the start of every sequence."""
        _add(self._spikes[layer, part], _real(neurons.spikes, mask))
        self._updates += membrane_updates(neurons, mask)

    def result(self) -> Operations:
        """Means over the tokens taken in, which must be at least one."""
        dense = macs = acs = stream_acs = stream_macs = 0.0
        zeros = _Zeros()
        for module, found in self._inputs.items():
            matrix = self._matrix(module)
            _add(zeros, matrix)
            used = np.count_nonzero((matrix != 0).cpu().numpy(), axis=0)
            effective = int(found.nonzero @ used)
            dense += found.vectors * matrix.numel()
            built = (0, effective) if found.binary else (effective, 0)
            macs, acs = macs + built[0], acs + built[1]
            rate = self._stream_rate(module)
            read = built if rate is None else (0, rate * found.vectors * int(used.sum()))
            stream_macs, stream_acs = stream_macs + read[0], stream_acs + read[1]
        n = self.n_tokens
        activations = [*self._spikes.values(), *self._hidden.values()]
        return Operations(
            dense=dense / n,
            as_built=Synaptic(macs / n, acs / n),
            spike_driven=Synaptic(stream_macs / n, stream_acs / n),
            membrane_updates=self._updates / n,
            activation_sparsity=_Zeros(
                sum(part.nonzero for part in activations), sum(part.total for part in activations)
            ).share,
            activation_sparsity_by_layer=tuple(
                LayerSparsity(
                    layer, self._spikes[layer, "att"].share, hidden.share, self._spikes[layer, "ffn"].share
                )
                for layer, hidden in self._hidden.items()
            ),
            connection_sparsity=zeros.share,
            footprint_bytes=weight_bytes(self.store.hierarchy, self.setting),
        )

    def _matrix(self, module: str) -> Tensor:
        if module == CLASSIFIER:
            return self.store.model.tensors[f"{CLASSIFIER}.weight"]
        return self.store.dense(module, self.setting[module])

    def _stream_rate(self, module: str) -> float | None:
        """Firing rate of what was last added to the residual stream that a matrix reads; None where it reads none.

        The classifier reads a mean over tokens, which no convention takes for spikes.
        """
        config = self.store.model.config
        if module == "head":
            return 1 - self._spikes[config.n_layer - 1, "ffn"].share
        if module == CLASSIFIER or module.endswith((".att.output", ".ffn.value")):
            return None
        _, layer, part, _ = module.split(".")
        if part == PARTS[1]:
            return 1 - self._spikes[int(layer), "att"].share
        if int(layer):
            return 1 - self._spikes[int(layer) - 1, "ffn"].share
        return 1 - self._embedding.share if config.embedding == "binary" else None


def _real(x: Tensor, mask: Tensor) -> Tensor:
    """Rows [n, K] of the real tokens; without padding a view."""
    return x.flatten(0, 1) if mask.all() else x[mask]


def _is_binary(rows: Tensor) -> bool:
    return bool(((rows == 0) | (rows.abs() == 1)).all())


def _add(zeros: _Zeros, values: Tensor) -> None:
    zeros.nonzero += count_nonzero(values)
    zeros.total += values.numel()
