"""A quantised model as the torch model sees it: the same forward pass with other weights and rounded activations.

Each (matrix, level) is quantised once and kept packed; dequantised tensors are kept while they fit a byte limit. At
accuracy level 4 the runtime rounds activations to int8 per row and group; the same rounding is applied here, since
threshold units amplify what would otherwise look small.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from qslm_edge.allocator import lasting
from qslm_edge.errors import UsageError
from qslm_edge.quantize.base import InputStatistics, Quantiser
from qslm_edge.quantize.calibrate import Statistics
from qslm_edge.quantize.cuts import cut_columns, rank_units
from qslm_edge.quantize.levels import SIGN, Level, Setting
from qslm_edge.quantize.packed import PackedMatrix, pack_matrix
from qslm_edge.quantize.rtn import Rtn
from qslm_edge.quantize.simulated import simulate_per_tensor
from qslm_edge.spikegpt.hierarchy import Hierarchy, Module
from qslm_edge.spikegpt.model import SpikeGPT

__all__ = ["QuantisedWeights", "WeightStore", "round_activations"]

SMALLEST_PEAK = 128 / torch.finfo(torch.float32).max


def round_activations(x: Tensor, group_size: int) -> Tensor:
    """Round x [..., K] to int8 per row and group of columns, as MatMulNBits does at accuracy level 4.

    scale = max|x| / 127; codes = round half to even(x * (127 / max|x|)); a group of zeros stays zero, as does one so
    small that 127 / max|x| is no float.
    """
    groups = x.reshape(*x.shape[:-1], -1, group_size)
    peak = torch.maximum(groups.amax(-1, keepdim=True), -groups.amin(-1, keepdim=True))
    codes = (groups * torch.where(peak > SMALLEST_PEAK, 127.0 / peak, 0.0)).round_()
    return codes.mul_(peak / 127.0).flatten(-2)


class WeightStore:
    """Matrices of one model at any level, each quantised once.

    Args:
        model: the float model.
        hierarchy: its blocks and modules with the head in use.
        cache_bytes: limit for dequantised tensors kept in memory.
        quantiser: chooses the codes of packed levels.
        statistics: gives the input statistics of the linear modules; asked for once, when a quantiser or a cut needs
            them.
    """

    def __init__(
        self,
        model: SpikeGPT,
        hierarchy: Hierarchy,
        cache_bytes: int = 512 * 2**20,
        *,
        quantiser: Quantiser | None = None,
        statistics: Callable[[], Statistics] = dict,
    ) -> None:
        self.model, self.hierarchy = model, hierarchy
        self.quantiser = quantiser or Rtn()
        self._measure = statistics
        self.modules: dict[str, Module] = {module.name: module for module in hierarchy.modules}
        self._packed: dict[tuple[str, Level], PackedMatrix] = {}
        self._rankings: dict[str, NDArray[np.int64]] = {}
        self._cut: tuple[tuple[str, int], Tensor] | None = None
        self._dense: OrderedDict[tuple[str, Level], Tensor] = OrderedDict()
        # values that do not all fit are gone before they are asked for again: then the largest matrix is enough
        whole = 4 * sum(module.n_params for module in hierarchy.modules)
        largest = 4 * max(module.n_params for module in hierarchy.modules)
        self._dense_bytes = 0
        self._cache_bytes = cache_bytes if whole <= cache_bytes else min(cache_bytes, largest)

    @cached_property
    def _statistics(self) -> Statistics:
        return self._measure()

    def kept_units(self, name: str, n_units: int) -> NDArray[np.int64]:
        """Numbers of the hidden units that a cut to `n_units` leaves, rising; key and value of a layer agree.

        Args:
            name: either matrix of the SRFFN.
            n_units: how many stay.

        Raises:
            UsageError: there is no calibration data to tell which.
        """
        value = f"{name.rpartition('.')[0]}.value"
        if value not in self._rankings:
            weights = self.model.tensors[self.modules[value].key].detach().cpu().numpy()
            self._rankings[value] = rank_units(weights, self._inputs(value))
        return np.sort(self._rankings[value][:n_units])

    def _inputs(self, value: str) -> InputStatistics:
        found = self._statistics.get(value)
        if found is None:
            raise UsageError(
                "hidden units cannot be cut without calibration data",
                where=value,
                hint="add --calibration-data",
            )
        return found

    def original(self, name: str, level: Level) -> Tensor:
        """The float32 matrix that a level stores: the model's, or what a cut leaves of it."""
        module = self.modules[name]
        tensor = self.model.tensors[module.key]
        if level.units is None or tuple(tensor.shape) != (module.rows, module.columns):
            return tensor  # whole, or of a tuned model, which was cut before
        kept = self.kept_units(name, level.units)
        if module.hidden == "rows":
            return tensor[torch.from_numpy(kept).to(tensor.device)]
        if self._cut is None or self._cut[0] != (name, level.units):
            columns = cut_columns(tensor.detach().cpu().numpy(), kept, self._inputs(name))
            self._cut = (name, level.units), torch.from_numpy(columns).to(tensor.device)
        return self._cut[1]

    def _moments(self, name: str, level: Level) -> InputStatistics | None:
        """What the quantiser is told of the inputs of a matrix."""
        if not (level.is_packed and self.quantiser.needs_statistics):
            return None
        found = self._statistics.get(name)
        if found is None or level.units is None or self.modules[name].hidden != "columns":
            return found
        kept = self.kept_units(name, level.units)
        return InputStatistics(found.gram[np.ix_(kept, kept)], found.n_rows)

    def packed(self, name: str, level: Level) -> PackedMatrix:
        """The stored form of a matrix. Packed and sign forms are kept, float forms are made anew."""
        found = self._packed.get((name, level))
        if found is None:
            module = self.modules[name].with_hidden(level.units)
            if level.units is not None and module.hidden == "rows" and level.is_packed:
                return self.packed(name, level.whole).take_rows(self.kept_units(name, level.units), level)
            weights = self.original(name, level).detach().cpu().numpy()
            found = pack_matrix(module, weights, level, self.quantiser, self._moments(name, level))
            if not level.is_float:
                found = found.lasting()
                self._packed[name, level] = found
        return found

    def tuned(self, model: SpikeGPT, packed: Mapping[str, PackedMatrix]) -> WeightStore:
        """A store of another model of the same shape, some of whose matrices are packed already.

        Args:
            model: float tensors; for matrices that are packed, the values that they stand for.
            packed: by module; used at their own level.
        """
        store = WeightStore(model, self.hierarchy, self._cache_bytes, quantiser=self.quantiser)
        store._packed = {(name, matrix.level): matrix for name, matrix in packed.items()}
        return store

    def dense(self, name: str, level: Level) -> Tensor:
        """The float32 values of a matrix at a level, on the model's device."""
        if level.bits == 32 and not level.simulated:
            return self.original(name, level)
        original = self.model.tensors[self.modules[name].key]
        found = self._dense.get((name, level))
        if found is not None:
            self._dense.move_to_end((name, level))
            return found
        if level.simulated:
            values = simulate_per_tensor(original.detach().cpu().numpy(), level.bits)
        else:
            values = self.packed(name, level).dequantise()
        dense = lasting(torch.from_numpy(np.ascontiguousarray(values)).to(original.device))
        self._dense[name, level] = dense
        self._dense_bytes += 4 * dense.numel()
        while self._dense_bytes > self._cache_bytes and len(self._dense) > 1:
            _, dropped = self._dense.popitem(last=False)
            self._dense_bytes -= 4 * dropped.numel()
        return dense

    def scales(self, name: str, level: Level) -> Tensor:
        """The float32 scales [N, G] of a packed matrix, on the model's device."""
        scales = self.packed(name, level).scales
        if scales is None:
            raise ValueError(f"{name}: no scales at {level}")
        device = self.model.tensors[self.modules[name].key].device
        return torch.from_numpy(scales.astype(np.float32, copy=False)).to(device)

    def prepare(self, setting: Setting) -> None:
        """Quantise and dequantise what a setting needs, as far as it fits the cache.

        Doing it amid a forward pass would leave the work buffers of both between each other in the heap.
        """
        room = self._cache_bytes
        for name, level in setting.levels:
            room -= 4 * self.modules[name].n_params
            if room < 0:
                break
            self.dense(name, level)

    def is_lossless(self, name: str, level: Level) -> bool:
        """Whether this level changes nothing: equal values, float activations."""
        if level.units is not None:
            return False
        if level.bits == 32 and not level.simulated:
            return True
        if level == SIGN:
            return True  # a binary embedding is its signs
        if level.is_packed and level.accuracy_level and self.modules[name].kind == "linear":
            return False
        return torch.equal(self.dense(name, level), self.model.tensors[self.modules[name].key])


class QuantisedWeights:
    """`Weights` of a model under a setting."""

    def __init__(self, store: WeightStore, setting: Setting) -> None:
        self.store = store
        self.levels = dict(setting.levels)
        self.binary = store.model.config.embedding == "binary"

    def embedding(self, tokens: Tensor) -> Tensor:
        level = self.levels["emb"]
        rows = F.embedding(tokens, self.store.dense("emb", level))
        if self.binary and level.bits != 1:
            return (rows >= 0).to(rows.dtype)
        return rows

    def linear(self, module: str, x: Tensor) -> Tensor:
        level = self.levels[module]
        if not (level.is_packed and level.accuracy_level and level.group_size):
            return F.linear(x, self.store.dense(module, level))
        rounded = round_activations(x, level.group_size)
        y = F.linear(rounded, self.store.dense(module, level))
        if not level.midrise:
            return y
        # the runtime adds half a scale times the block sums of x itself, not of x as rounded
        rest = (x - rounded).reshape(*x.shape[:-1], -1, level.group_size).sum(-1)
        return y.add_(F.linear(rest, self.store.scales(module, level)), alpha=0.5)

    def vector(self, key: str) -> Tensor:
        return self.store.model.tensors[key].reshape(-1)
