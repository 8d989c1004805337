"""The table behind the knapsack: what each matrix is predicted to cost at each level.

Cells are kept in the journal, so that they are computed once per run directory and serve every budget and limit. Sums
of cells stand in for the measured sensitivity of blocks where a search has no need of that. Hidden units that are cut
change much more than rounding does, and the second order falls short of it: what it says of the cut alone is scaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from qslm_edge.metrics import Estimate, Scores
from qslm_edge.quantize.accounting import block_bytes, matrix_bytes
from qslm_edge.quantize.levels import Level
from qslm_edge.search.evaluator import Evaluator
from qslm_edge.search.fisher import Cell, fisher_divergence
from qslm_edge.search.journal import Journal, fingerprint
from qslm_edge.search.sensitivity import Sensitivity
from qslm_edge.search.space import LevelMap

__all__ = ["Predict", "Prediction", "block_sensitivity", "left_by_tuning", "predict_modules"]

Predict = Callable[[Evaluator, Sequence[Cell], Callable[[float], None] | None], list[Scores]]
PURPOSE = "fisher"
CUT_UNDERRATED = 1.25
"""Times F / units left: what a cut really costs against its prediction, over what quantising does. On the reference
model that was 1.5, 1.7, 1.9, 2.5 and 4.1 with an eighth, a quarter, three eighths, half and three quarters cut."""


@dataclass(frozen=True)
class Prediction:
    """One cell of the table.

    Attributes:
        module: name of the matrix.
        level: the level that it really takes, as text.
        nats: predicted divergence from the float model, per prediction.
        standard_error: of it, over items.
        weight_bytes: bytes of the matrix at that level.
        n_items: items it was predicted on.
        source: "predicted", or "exact" where the level changes no value.
    """

    module: str
    level: str
    nats: float
    standard_error: float
    weight_bytes: int
    n_items: int
    source: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def predict_modules(
    evaluator: Evaluator,
    levels: Sequence[Level],
    space: LevelMap,
    journal: Journal,
    predict: Predict = fisher_divergence,
    on_done: Callable[[float], None] | None = None,
) -> list[Prediction]:
    """Predict every matrix at every level that it can take; what the journal holds is not computed again.

    Args:
        evaluator: holds model and search items.
        levels: precision levels, largest first.
        space: which level a module really takes.
        journal: where cells are kept.
        predict: gives the scores of cells.
        on_done: told the share of the work done.

    Returns:
        Cells in hierarchy order, each module's in the order of levels, no level twice.
    """
    wanted: list[Cell] = [
        (module, level)
        for module in evaluator.hierarchy.modules
        for level in dict.fromkeys(space.level(module, level) for level in space.wanted(levels))
    ]
    alone = {(m, level): (m, Level(32, units=level.units)) for m, level in wanted if level.units is not None}
    all_cells = dict.fromkeys([*wanted, *alone.values()])
    lossy = [cell for cell in all_cells if not evaluator.store.is_lossless(cell[0].name, cell[1])]
    known = {cell: journal.get(PURPOSE, _key(cell), shared=True) for cell in lossy}
    missing = [cell for cell in lossy if known[cell] is None]
    for cell, scores in zip(missing, predict(evaluator, missing, on_done) if missing else (), strict=True):
        journal.put(PURPOSE, _key(cell), {cell[0].name: str(cell[1])}, scores)
        known[cell] = scores
    return [_prediction(cell, known.get(cell), known.get(alone.get(cell, cell))) for cell in wanted]


def _key(cell: Cell) -> str:
    return fingerprint({cell[0].name: str(cell[1])})


def _prediction(cell: Cell, scores: Scores | None, of_cut: Scores | None) -> Prediction:
    """One cell from its scores and those of its cut alone, which are asked for only where there is one."""
    module, level = cell
    size = matrix_bytes(module, level)
    if scores is None:
        return Prediction(module.name, str(level), 0.0, 0.0, size, 0, "exact")
    count = scores.count.astype(np.float64)
    mean = float(scores.loss.sum() / count.sum())
    n = scores.n_items
    residual = scores.loss - mean * count
    error = math.sqrt(n / max(n - 1, 1) * float(residual @ residual)) / float(count.sum())
    if level.units is not None and of_cut is not None:
        short = CUT_UNDERRATED * (module.n_hidden or 0) / level.units - 1
        mean += max(short, 0.0) * float(of_cut.loss.sum() / of_cut.count.sum())
    return Prediction(module.name, str(level), mean, error, size, n, "predicted")


def left_by_tuning(table: Sequence[Prediction], remains: Mapping[str, float]) -> list[Prediction]:
    """The cells with what tuning is expected to leave of their cost.

    Args:
        table: as `predict_modules` gives it: without tuning.
        remains: share by part of the model (emb, att, ffn, head); a part that is not named keeps its cost.
    """
    return [
        replace(cell, nats=share * cell.nats, standard_error=share * cell.standard_error)
        for cell in table
        for share in (remains.get(_part(cell.module), 1.0),)
    ]


def _part(module: str) -> str:
    """emb, att, ffn or head of a module's name."""
    return module.split(".")[2] if module.startswith("blocks.") else module


def block_sensitivity(
    table: Sequence[Prediction],
    evaluator: Evaluator,
    levels: Sequence[Level],
    space: LevelMap,
    base: Estimate,
) -> list[Sensitivity]:
    """The cells of a block's modules, added up.

    Args:
        table: as `predict_modules` gives it.
        evaluator: holds the hierarchy.
        levels, space: as they were for the table.
        base: float metric, to turn nats into perplexity; points of accuracy cannot be predicted so.
    """
    found = {(cell.module, cell.level): cell for cell in table}
    float_setting, rows = evaluator.float_setting(), []
    for block in evaluator.hierarchy.blocks:
        for level in levels if block.modules else ():
            chosen = {module.name: space.level(module, level) for module in block.modules}
            cells = [found[name, str(taken)] for name, taken in chosen.items()]
            nats = sum(cell.nats for cell in cells)
            error = math.hypot(*(cell.standard_error for cell in cells))
            lossless = all(cell.source == "exact" for cell in cells)
            slope = base.value * math.exp(nats) if evaluator.kind == "language_model" else math.nan
            rows.append(
                Sensitivity(
                    block=block.name,
                    level=str(level),
                    degradation=0.0 if lossless else slope - base.value,
                    standard_error=0.0 if lossless else slope * error,
                    delta_nll=nats,
                    weight_bytes=block_bytes(block, float_setting.with_levels(chosen)),
                    n_items=max(cell.n_items for cell in cells),
                    source="exact" if lossless else "predicted",
                )
            )
    return rows
