"""The tiered search of QSLM: global, then block, then module.

N is the list of precision levels from largest to smallest.
1. Global: one level for all blocks, descending; at the first that violates the performance constraint go back one.
2. Block: in order of increasing sensitivity lower each block further along N while performance holds; else restore its
   last acceptable level.
3. Module: the same for every module of the attention blocks.
Memory is never the stopping test: it is violated first at high precision and improves downwards. Every evaluated
setting that meets both constraints is a candidate. Source: Putra, Wickramasinghe, Shafique 2026; the control flow
between the tiers is a reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qslm_edge.quantize.levels import Level, Setting
from qslm_edge.search.sensitivity import Sensitivity
from qslm_edge.search.space import LevelMap
from qslm_edge.search.trial import Trial
from qslm_edge.spikegpt.hierarchy import Hierarchy, Module

__all__ = ["TieredSearch"]

JudgeSetting = Callable[[Setting, str, str], Trial]


@dataclass
class TieredSearch:
    """One run of the three tiers.

    Args:
        hierarchy: blocks and modules.
        levels: N, largest first.
        space: which level a module really takes.
        judge: evaluates (setting, tier, step).
        sensitivities: the network analysis, for the order of blocks.
        announce: told each step before it is judged.
    """

    hierarchy: Hierarchy
    levels: Sequence[Level]
    space: LevelMap
    judge: JudgeSetting
    sensitivities: Sequence[Sensitivity]
    announce: Callable[[str], None] = lambda _: None

    def run(self) -> list[Trial]:
        """Walk the tiers and return every trial in order; the last accepted setting is where they ended."""
        self.trials: list[Trial] = []
        start = self._global()
        if start is None:
            return self.trials
        rank, setting = start
        if rank + 1 < len(self.levels):
            ranks = {block.name: rank for block in self.hierarchy.blocks}
            setting = self._blocks(setting, ranks)
            self._modules(setting, ranks)
        return self.trials

    def _try(self, setting: Setting, tier: str, step: str) -> Trial:
        self.announce(f"{tier}: {step}")
        trial = self.judge(setting, tier, step)
        self.trials.append(trial)
        return trial

    def _global(self) -> tuple[int, Setting] | None:
        """Rank and setting of the last level that all blocks can take together."""
        accepted: tuple[int, Setting] | None = None
        for rank, level in enumerate(self.levels):
            setting = self.space.setting(self.hierarchy, level)
            if not self._try(setting, "global", f"all blocks at {level}").performance_ok:
                break
            accepted = (rank, setting)
        return accepted

    def _lower(
        self, setting: Setting, modules: Sequence[Module], rank: int, tier: str, name: str
    ) -> tuple[Setting, int]:
        """Lower some modules along N together while performance holds; the setting and rank that held."""
        while rank + 1 < len(self.levels):
            level = self.levels[rank + 1]
            trial_setting = setting.with_levels({m.name: self.space.level(m, level) for m in modules})
            rank += 1
            if trial_setting == setting:
                continue  # these modules cannot go lower at this step: nothing to evaluate
            if not self._try(trial_setting, tier, f"{name} to {level}").performance_ok:
                return setting, rank - 1
            setting = trial_setting
        return setting, rank

    def _order(self, ranks: dict[str, int]) -> list[str]:
        """Blocks with modules in order of increasing sensitivity at the level that would be tried next."""

        def key(name: str) -> tuple[float, str]:
            level = str(self.levels[min(ranks[name] + 1, len(self.levels) - 1)])
            cells = [cell for cell in self.sensitivities if cell.block == name and cell.level == level]
            return (cells[0].delta_nll if cells else 0.0, name)

        return sorted((block.name for block in self.hierarchy.blocks if block.modules), key=key)

    def _blocks(self, setting: Setting, ranks: dict[str, int]) -> Setting:
        blocks = {block.name: block for block in self.hierarchy.blocks}
        for name in self._order(ranks):
            setting, ranks[name] = self._lower(setting, blocks[name].modules, ranks[name], "block", name)
        return setting

    def _modules(self, setting: Setting, ranks: dict[str, int]) -> Setting:
        blocks = {block.name: block for block in self.hierarchy.blocks[1:-1]}
        for name in self._order(ranks):
            if name not in blocks or ranks[name] + 1 >= len(self.levels):
                continue
            for module in blocks[name].modules:
                setting, _ = self._lower(setting, [module], ranks[name], "module", module.name)
        return setting
