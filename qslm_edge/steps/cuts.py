"""Which cuts of hidden units a recipe lets the search try."""

from __future__ import annotations

from collections.abc import Sequence

from qslm_edge.errors import UsageError
from qslm_edge.quantize.levels import Level
from qslm_edge.recipe import Recipe
from qslm_edge.search.space import LevelMap, cut_sizes
from qslm_edge.spikegpt import Hierarchy, SpikeGPTConfig

__all__ = ["offered_cuts", "refuse_cut_levels"]


def offered_cuts(
    recipe: Recipe, hierarchy: Hierarchy, config: SpikeGPTConfig, levels: Sequence[Level]
) -> tuple[int, ...]:
    """Hidden units that an SRFFN may be cut to, falling; every layer of a model has the same. Empty: no cuts.

    Raises:
        UsageError: a search that does not choose cuts, or a share below one group.
    """
    if recipe.cut_hidden is None:
        return ()
    if recipe.method not in ("budgeted", "pareto"):
        raise UsageError(
            "cuts go with a search over predicted costs",
            where="--cut-hidden, --method",
            found=recipe.method,
            allowed="budgeted, pareto",
        )
    value = next(module for module in hierarchy.modules if module.hidden == "columns")
    space = LevelMap(config)
    return cut_sizes(value, recipe.cut_hidden, [space.level(value, level) for level in levels])


def refuse_cut_levels(levels: Sequence[Level]) -> None:
    """A search finds itself where to cut.

    Raises:
        UsageError: a level that names hidden units.
    """
    for level in levels:
        if level.units is not None:
            raise UsageError(
                "a level of a cut matrix",
                where="--levels",
                found=level,
                hint=f"--levels {level.whole} --cut-hidden SHARE lets the search find where to cut",
            )
