"""The model being tuned: the forward pass of spikegpt/model.py with weights on their packed grids.

Matrices of packed levels are tuned on their grid, those of float levels and all 1-D tensors (norms, mixes, decays) as
they are; a binary embedding stays its signs. Activations are rounded to int8 where the level says so, with the
gradient straight through. The tuned model is the float tensors and packed matrices that this ends with.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from qslm_edge.quantize.levels import Level, Setting
from qslm_edge.quantize.packed import PackedMatrix
from qslm_edge.quantize.weights import WeightStore, round_activations
from qslm_edge.spikegpt.config import N_STATE
from qslm_edge.spikegpt.hierarchy import Module
from qslm_edge.spikegpt.model import Weights, block_forward, embed_tokens, final_norm, initial_state
from qslm_edge.tuning.grid import PackedGrid, grid_kind
from qslm_edge.tuning.straight import straight_through

__all__ = ["Student", "features"]


def features(weights: Weights, store: WeightStore, tokens: Tensor) -> Tensor:
    """ln_out of tokens [T, B]: [T, B, C], from an empty state; differentiable where the weights are."""
    config = store.model.config
    state = initial_state(config, tokens.shape[1], tokens.device)
    x = embed_tokens(weights, tokens)
    for layer in range(config.n_layer):
        x = block_forward(weights, layer, x, state[layer * N_STATE : (layer + 1) * N_STATE])
    return final_norm(weights, x)


class Student:
    """`Weights` whose values can be tuned.

    Args:
        store: matrices of the float model, packed by the quantiser that tuning starts from.
        setting: the level of every module; it does not change.
    """

    def __init__(self, store: WeightStore, setting: Setting) -> None:
        self.store, self.levels = store, dict(setting.levels)
        tensors, modules = store.model.tensors, {module.name: module for module in store.hierarchy.modules}
        packed: dict[str, list[tuple[PackedMatrix, Tensor]]] = {}
        self.floats: dict[str, Tensor] = {}
        for name, module in modules.items():
            level = self.levels[name]
            if level.is_packed:
                matrix = store.packed(name, level)
                packed.setdefault(grid_kind(matrix), []).append((matrix, store.original(name, level)))
            elif not _is_sign(module, level, store):
                self.floats[module.key] = store.original(name, level).detach().clone().requires_grad_()
        for block in store.hierarchy.blocks:
            for key, _ in block.float_tensors:
                self.floats[key] = tensors[key].detach().clone().requires_grad_()
        self.grids = {
            kind: PackedGrid([matrix for matrix, _ in found], [weights for _, weights in found])
            for kind, found in packed.items()
        }
        self._computed: dict[str, Tensor] = {}
        self._dense: dict[str, Tensor] = {}

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every tuned tensor by a name of its own, in a fixed order."""
        for kind, grid in self.grids.items():
            yield f"{kind}.latent", grid.latent
            yield f"{kind}.log_scale", grid.log_scale
        yield from self.floats.items()

    def refresh(self) -> None:
        """Take the matrices from their grids anew: once a step, since all of its items use the same."""
        self._computed = {
            start.module.name: dense
            for grid in self.grids.values()
            for start, dense in zip(grid.starts, grid.dense(), strict=True)
        }
        self._dense = {name: dense.detach().requires_grad_() for name, dense in self._computed.items()}

    def collect(self) -> None:
        """Pass the gradients that gathered on the matrices since `refresh` on to their grids."""
        used = {name: dense.grad for name, dense in self._dense.items() if dense.grad is not None}
        torch.autograd.backward([self._computed[name] for name in used], list(used.values()))

    # ---- Weights

    def embedding(self, tokens: Tensor) -> Tensor:
        if "emb" in self._dense:
            return F.embedding(tokens, self._dense["emb"])
        if self.store.model.config.embedding == "binary":
            rows = F.embedding(tokens, self.store.model.tensors["emb.weight"])
            return (rows >= 0).to(rows.dtype)
        return F.embedding(tokens, self._stored("emb"))

    def linear(self, module: str, x: Tensor) -> Tensor:
        level = self.levels[module]
        if level.is_packed and level.accuracy_level and level.group_size:
            size = level.group_size
            x = straight_through(x, lambda values: round_activations(values, size))
        if module in self._dense:
            return F.linear(x, self._dense[module])
        return F.linear(x, self._stored(module))

    def vector(self, key: str) -> Tensor:
        return self.floats[key].reshape(-1)

    def _stored(self, module: str) -> Tensor:
        """A matrix of a float level as it will be stored, in float16 or float32."""
        values = self.floats[f"{module}.weight"]
        if self.levels[module].bits == 32:
            return values
        return straight_through(values, lambda tensor: tensor.half().float())

    # ---- the result

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """Float tensors of the tuned model by their published key; matrices of packed levels are in `packed`."""
        return {key: tensor.detach().clone() for key, tensor in self.floats.items()}

    def packed(self) -> dict[str, PackedMatrix]:
        """Packed matrices by module."""
        return {matrix.module.name: matrix for grid in self.grids.values() for matrix in grid.packed()}


def _is_sign(module: Module, level: Level, store: WeightStore) -> bool:
    """A binary embedding: its signs are the model, and nothing of it is tuned."""
    binary = module.kind == "embedding" and store.model.config.embedding == "binary"
    return binary or level.bits == 1
