"""Sensitivity: the degradation when one block alone is quantised, for every block and level.

QSLM's network analysis ranks blocks by it. One table per model, items and quantiser; saved, and reused by later
searches whatever their limits. It uses the first items only: ranking needs less than deciding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qslm_edge.metrics import Scores, paired, quality
from qslm_edge.quantize.accounting import block_bytes
from qslm_edge.quantize.levels import Level, Setting
from qslm_edge.search.evaluator import Evaluator
from qslm_edge.search.journal import Journal, fingerprint
from qslm_edge.search.space import LevelMap

__all__ = ["Sensitivity", "measure_sensitivity"]


@dataclass(frozen=True)
class Sensitivity:
    """One cell of the table.

    Attributes:
        block: name of the block quantised alone.
        level: the level, as text.
        degradation: perplexity increase or accuracy points lost against float.
        standard_error: of it.
        delta_nll: mean difference of the negative log-likelihood: the finer measure, used for ranking.
        weight_bytes: bytes of the block at that level.
        n_items: items it was measured on.
        source: "measured", or "exact" where the level changes no value.
    """

    block: str
    level: str
    degradation: float
    standard_error: float
    delta_nll: float
    weight_bytes: int
    n_items: int
    source: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_sensitivity(
    evaluator: Evaluator,
    reference: Scores,
    levels: Sequence[Level],
    space: LevelMap,
    journal: Journal,
    n_items: int,
    on_done: Callable[[float], None] | None = None,
) -> list[Sensitivity]:
    """Quantise one block at a time at each level and compare with the float model.

    Args:
        evaluator: scores settings on the search items.
        reference: float scores of the search items.
        levels: precision levels, largest first.
        space: which level a module really takes.
        journal: where evaluations are kept.
        n_items: how many of the first search items to use.
        on_done: told the share of the table that is finished.

    Returns:
        One cell per block with modules and level, in hierarchy order.
    """
    table: list[Sensitivity] = []
    float_setting = evaluator.float_setting()
    base = quality(reference).value
    first = reference.select(reference.index[:n_items])
    blocks = [block for block in evaluator.hierarchy.blocks if block.modules]
    for block in blocks:
        for level in levels:
            changes = {module.name: space.level(module, level) for module in block.modules}
            setting = float_setting.with_levels(changes)
            lossless = all(evaluator.store.is_lossless(name, chosen) for name, chosen in changes.items())
            if lossless:
                scores, source = first, "exact"
            else:
                scores, source = _scores(evaluator, setting, journal, n_items), "measured"
            result = paired(reference, scores, base)
            table.append(
                Sensitivity(
                    block=block.name,
                    level=str(level),
                    degradation=0.0 if lossless else result.degradation,
                    standard_error=0.0 if lossless else result.standard_error,
                    delta_nll=0.0 if lossless else result.delta_nll,
                    weight_bytes=block_bytes(block, setting),
                    n_items=scores.n_items,
                    source=source,
                )
            )
            if on_done is not None:
                on_done(1 / (len(blocks) * len(levels)))
    return table


def _scores(evaluator: Evaluator, setting: Setting, journal: Journal, n_items: int) -> Scores:
    key = fingerprint(setting.to_dict())
    found = journal.get("sensitivity", key)
    if found is None or found.n_items < min(n_items, evaluator.items.n_items):
        found = evaluator.evaluate(setting, stop=lambda scores: scores.n_items >= n_items)
        journal.put("sensitivity", key, setting.to_dict(), found)
    return found
