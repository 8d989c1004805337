"""Second moments of what enters each matrix of the float model, over calibration items.

One pass of the float model. Padding does not count. Sums are float32 like the products themselves; damping dwarfs
their rounding. Inputs are those of the float model throughout: the search mixes levels freely, so there is no one
quantised model whose inputs could be taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from qslm_edge.batches import batches
from qslm_edge.errors import DataError
from qslm_edge.items import Items
from qslm_edge.quantize.base import InputStatistics
from qslm_edge.spikegpt.hierarchy import Hierarchy
from qslm_edge.spikegpt.model import SpikeGPT

__all__ = ["Statistics", "measure_statistics"]

Statistics = Mapping[str, InputStatistics]
"""Input statistics by the name of the linear module."""
BATCH_ITEMS = 16


@torch.inference_mode()
def measure_statistics(
    model: SpikeGPT,
    hierarchy: Hierarchy,
    items: Items,
    on_batch: Callable[[float], None] = lambda _: None,
) -> dict[str, InputStatistics]:
    """Statistics of every linear module.

    Args:
        model: the float model.
        hierarchy: its modules with the head in use.
        items: calibration items; only their tokens are used.
        on_batch: told the share of the items done by each batch.

    Raises:
        DataError: inputs of a module are not finite.
    """
    linear = {module.name: module for module in hierarchy.modules if module.kind == "linear"}
    sums = {name: torch.zeros(module.columns, module.columns) for name, module in linear.items()}
    total = 0
    for batch in batches(items, BATCH_ITEMS):
        real = torch.from_numpy(batch.mask).to(model.device).flatten() > 0
        total += int(real.sum())

        def add(name: str, inputs: Tensor, real: Tensor = real) -> None:
            rows = inputs.flatten(0, 1)[real]
            sums[name] += (rows.T @ rows).cpu()

        def observe(name: str, tensor: Tensor, add: Callable[[str, Tensor], None] = add) -> None:
            if name.endswith(".input"):
                add(name.removesuffix(".input"), tensor)

        features = model.features(torch.from_numpy(batch.tokens).to(model.device), observe=observe)
        if hierarchy.head == "lm":
            add("head", features)
        on_batch(len(batch.index) / items.n_items)
    statistics: dict[str, InputStatistics] = {}
    for name, gram in sums.items():
        mean = (gram / total).numpy()
        if not np.isfinite(mean).all():
            raise DataError(
                "inputs that are not finite",
                where=name,
                hint="the checkpoint overflows on the calibration data; use --quantiser rtn, or other data",
            )
        statistics[name] = InputStatistics(mean, total)
    return statistics
