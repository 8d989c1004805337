"""What the steps after the first work on: model, profile, task with its items, limits and options, all checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qslm_edge import __version__, reference
from qslm_edge.errors import DataError
from qslm_edge.items import Items, Split
from qslm_edge.profiles import Profile
from qslm_edge.progress import Progress
from qslm_edge.quantize.calibrate import Statistics
from qslm_edge.quantize.levels import Setting
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.recipe import Recipe
from qslm_edge.search.constraints import Constraints
from qslm_edge.search.reference import model_digest
from qslm_edge.search.run import SearchOptions
from qslm_edge.spikegpt import Hierarchy, SpikeGPT
from qslm_edge.steps.calibration import Choice, load_statistics, training_items
from qslm_edge.tasks.base import Task
from qslm_edge.tasks.tokenizer import Tokenizer
from qslm_edge.tuning.options import TuneOptions
from qslm_edge.tuning.stored import TunedModel, load_tuned
from qslm_edge.tuning.tuner import tuning_mark

__all__ = ["Plan"]

SEARCH_WINDOWS = {"language_model": 48, "classification": None}


@dataclass(frozen=True)
class Plan:
    """Everything the later steps need.

    Attributes:
        recipe: the choices as given.
        profile: the board.
        task: metric and data.
        model: the float model.
        hierarchy: blocks and modules with the head in use.
        tokenizer: the model's tokenizer.
        constraints: limits in force, defaults filled in.
        options: levels and selection.
        choice: the quantiser, and what it is calibrated on.
        tuning: how weights are tuned; None leaves them.
    """

    recipe: Recipe
    profile: Profile
    task: Task
    model: SpikeGPT
    hierarchy: Hierarchy
    tokenizer: Tokenizer
    constraints: Constraints
    options: SearchOptions
    choice: Choice
    tuning: TuneOptions | None = None

    @cached_property
    def digest(self) -> str:
        return model_digest(self.model)

    @property
    def window(self) -> int:
        return self.recipe.window or self.model.config.ctx_len

    def items(self, split: Split) -> Items:
        """Items of a split; test data never appears under `search`."""
        recipe = self.recipe
        if split == "search":
            limit = recipe.search_windows or SEARCH_WINDOWS[self.task.kind]
            data = recipe.search_data
        else:
            limit, data = recipe.report_windows, recipe.report_data
        items = self.task.items(
            split, self.tokenizer, self.window, limit, None if data is None else Path(data)
        )
        items.check(self.model.config.vocab_size, self.model.config.num_labels or 2)
        if split == "search" and items.n_items < 2:
            raise DataError(
                "a search needs two items or more: a single one has no error",
                where=items.source,
                hint="raise --search-windows, give more --search-data, or shorten --window",
            )
        return items

    @cached_property
    def training_items(self) -> Items:
        """Items that weights are tuned on."""
        items = training_items(self.recipe, self.task, self.tokenizer, self.window)
        items.check(self.model.config.vocab_size, self.model.config.num_labels or 2)
        return items

    def calibrate(self, progress: Progress) -> None:
        """Fill `statistics` now, with progress; without this the store does when it first needs them."""
        kept = vars(self)  # where cached_property keeps its values
        if self.choice.items is not None and "statistics" not in kept:
            progress.stage("calibration", 1.0)
            kept["statistics"] = self._statistics(progress.advance)

    @cached_property
    def statistics(self) -> Statistics:
        """Input statistics of the linear modules; empty for a quantiser that needs none."""
        return self._statistics(lambda _: None)

    def _statistics(self, on_batch: Callable[[float], None]) -> Statistics:
        if self.choice.items is None:
            return {}
        return load_statistics(self.model, self.hierarchy, self.choice.items, self.digest, on_batch)

    @cached_property
    def _store(self) -> WeightStore:
        return WeightStore(
            self.model, self.hierarchy, quantiser=self.choice.quantiser, statistics=lambda: self.statistics
        )

    def store(self) -> WeightStore:
        """The matrices at any level, each quantised once for all steps."""
        return self._store

    @cached_property
    def tuning_start(self) -> TunedModel | None:
        """The tuned model that tuning goes on from; None where it begins with the float model.

        Raises:
            RunError: missing, damaged, or of another float model.
        """
        path = self.recipe.tune_start
        return None if path is None else load_tuned(Path(path), self.store(), self.digest)

    def tuning_mark(self, setting: Setting) -> str:
        """Fingerprint of the tuned model of a setting; a plan that tunes has one."""
        options = self.tuning or TuneOptions()
        return tuning_mark(
            self.store(), setting, self.training_items, options, self.digest, self.tuning_start
        )

    def fingerprint_parts(self, items: Items) -> dict[str, Any]:
        """What a score depends on, for the journal."""
        return {
            "model": self.digest,
            "items": items.digest,
            "head": self.hierarchy.head,
            **self.choice.fingerprint(),
            "version": __version__,
            "device": self.model.device.type,
        }

    @property
    def model_name(self) -> str:
        return reference.MODEL_NAME if self.recipe.model is None else Path(self.recipe.model).name
