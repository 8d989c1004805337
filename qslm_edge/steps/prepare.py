"""First step: turn a recipe into a model, a profile, a task with its items, and constraints.

What cannot work is refused here, before any evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qslm_edge import __version__, reference
from qslm_edge.errors import DataError, TokenizerError, UsageError
from qslm_edge.items import Items, Split
from qslm_edge.profiles import Profile, load_profile
from qslm_edge.progress import Progress
from qslm_edge.quantize.calibrate import Statistics
from qslm_edge.quantize.levels import FLOAT16, FLOAT32, MIDRISE_BITS, Level, parse_level
from qslm_edge.quantize.scales import with_scale_bits
from qslm_edge.quantize.simulated import PAPER_LEVELS
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.recipe import Recipe
from qslm_edge.search.constraints import Constraints
from qslm_edge.search.reference import model_digest
from qslm_edge.search.run import SearchOptions
from qslm_edge.search.space import check_levels
from qslm_edge.spikegpt import Hierarchy, Module, SpikeGPT, build_hierarchy, load_checkpoint
from qslm_edge.steps.calibration import Choice, choose_quantiser, load_statistics, training_items
from qslm_edge.steps.cuts import offered_cuts, refuse_cut_levels
from qslm_edge.tasks import get_task
from qslm_edge.tasks.base import Task
from qslm_edge.tasks.tokenizer import Tokenizer, check_vocabulary, load_tokenizer
from qslm_edge.tuning.judge import REMAINS, SCALE
from qslm_edge.tuning.options import TuneOptions

__all__ = ["Plan", "allowed_level", "default_levels", "listed_levels", "prepare"]

SEARCH_WINDOWS = {"language_model": 48, "classification": None}
MIB = 2**20
DEFAULT_ROUNDS = 3
"""Settings that are tuned, at the most: the first guess, and two that learn from it."""
TUNE_TOKENS = {"cpu": 3_000_000, "cuda": 9_000_000}
"""Training tokens of each tuning: half an hour of two cores, about a minute of an H100, for the reference model."""
GROUP_SIZE = 64
FINE_LEVELS = {4: (32, 64, 128)}
"""Group sizes searched by default at a width, others use GROUP_SIZE; at 4 bits they trade bytes for quality."""
CUT_LEVELS = {4: (32, 64, 128), 2: (64, 128)}
"""The same where hidden units are cut: limits that allow that are those under which two bits count."""
TUNED_LEVELS = {4: (128,), 2: (64, 128)}
"""The same where weights are tuned, which makes up for larger groups."""


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


def prepare(recipe: Recipe, device: str | None = None) -> Plan:
    """Load and check everything that a recipe names.

    Args:
        recipe: the choices.
        device: torch device; None takes CUDA when there is one.

    Raises:
        InputError: of the kind that is wrong (profile, checkpoint, tokenizer, usage).
    """
    profile = load_profile(recipe.profile)
    task = get_task(recipe.task)
    path = Path(recipe.model) if recipe.model is not None else reference.model_path()
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    tuning = _tuning(recipe, device)
    options = SearchOptions(_levels(recipe, profile), _mu(recipe), recipe.early, recipe.method)
    if tuning is not None:
        options = replace(
            options,
            scale=SCALE[task.kind],
            remains=REMAINS[task.kind],
            max_steps=recipe.tune_rounds or DEFAULT_ROUNDS,
            early=False,
        )
    _check_data(recipe)
    model = load_checkpoint(path, recipe.embedding)
    hierarchy = with_scale_bits(build_hierarchy(model.config, task.head), _values(model))
    options = replace(options, cuts=offered_cuts(recipe, hierarchy, model.config, options.levels))
    tokenizer = load_tokenizer(_tokenizer_path(recipe, path, model.config.vocab_size))
    check_vocabulary(tokenizer, model.config.vocab_size)
    if device != "cpu":
        model = model.to(device)
    window = recipe.window or model.config.ctx_len
    choice = choose_quantiser(recipe, task, tokenizer, hierarchy, window)
    if choice.items is not None:
        choice.items.check(model.config.vocab_size, model.config.num_labels or 2)
    limit = recipe.max_degradation if recipe.max_degradation is not None else task.default_limit
    # a GPU's own memory is no limit of the process; one that the user names is kept wherever it runs
    budget = None if profile.memory.kind == "vram" else profile.memory.budget_mib * MIB
    constraints = Constraints(
        limit,
        recipe.weights_budget_bytes,
        recipe.memory_budget_bytes or budget,
        recipe.max_latency_s,
        recipe.min_decode_tokens_per_s,
        recipe.max_energy_j_per_token,
    )
    return Plan(recipe, profile, task, model, hierarchy, tokenizer, constraints, options, choice, tuning)


def _values(model: SpikeGPT) -> Callable[[Module], NDArray[np.float32]]:
    return lambda module: model.tensors[module.key].detach().cpu().numpy()


def _tuning(recipe: Recipe, device: str) -> TuneOptions | None:
    given: dict[str, Any] = {
        "tune_tokens": recipe.tune_tokens,
        "tune_rounds": recipe.tune_rounds,
        "tune_rate": recipe.tune_rate,
        "seed": recipe.seed,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if not recipe.tune:
        for name, value in given.items():
            raise UsageError(
                "says how to tune, but nothing is tuned",
                where=f"--{name.replace('_', '-')}",
                found=value,
                hint="add --tune",
            )
        return None
    if recipe.method != "budgeted":
        raise UsageError(
            "tuning goes with the budgeted search alone",
            where="--tune, --method",
            found=recipe.method,
            allowed="budgeted",
        )
    names = {"tune_tokens": "tokens", "tune_rate": "learning_rate", "seed": "seed"}
    chosen = {names[name]: value for name, value in given.items() if name in names}
    return TuneOptions(**{"tokens": TUNE_TOKENS["cpu" if device == "cpu" else "cuda"], **chosen})


def _mu(recipe: Recipe) -> float | None:
    return 1.0 if recipe.mu is None and recipe.method == "qslm" else recipe.mu


def _check_data(recipe: Recipe) -> None:
    given = recipe.search_data, recipe.report_data
    if None not in given and len({Path(str(name)).resolve() for name in given}) == 1:
        raise UsageError(
            "the same data would steer the search and judge it",
            where="--search-data, --report-data",
            found=recipe.search_data,
            hint="give two files: a verdict on data that the search saw proves nothing",
        )


def default_levels(
    profile: Profile, group_size: int | None = None, tuned: bool = False, cut: bool = False
) -> tuple[Level, ...]:
    """Precision levels of a profile: fp16 storage and every packed width that its stock runtime runs.

    Two bits are mid-rise: smaller and nearer than with zero points (docs/recipe.md).

    Args:
        profile: the board.
        group_size: of every packed level; None takes what serves.
        tuned: weights will be tuned.
        cut: hidden units may be cut.

    Raises:
        UsageError: a group size that the runtime does not run at some width.
    """
    fine = TUNED_LEVELS if tuned else CUT_LEVELS if cut else FINE_LEVELS
    levels: list[Level] = []
    for width in profile.usable_widths():
        if width.bits == 32:
            levels.append(FLOAT32)
        elif width.bits == 16:
            levels.append(FLOAT16)
        else:
            if group_size is not None and group_size not in width.block_sizes:
                raise UsageError(
                    f"group size not run by the profile's runtime at {width.bits} bits",
                    where="--group-size",
                    found=group_size,
                    allowed=", ".join(str(size) for size in width.block_sizes),
                )
            wanted = (group_size,) if group_size else fine.get(width.bits, (GROUP_SIZE,))
            sizes = [size for size in wanted if size in width.block_sizes] or [min(width.block_sizes)]
            midrise = width.bits == MIDRISE_BITS
            levels += [Level(width.bits, size, width.accuracy_level or 0, midrise=midrise) for size in sizes]
    # float32 is the baseline itself: it needs no evaluation unless nothing else is there
    kept = [level for level in levels if level != FLOAT32] or levels
    return check_levels(kept)


def _levels(recipe: Recipe, profile: Profile) -> tuple[Level, ...]:
    if recipe.method == "qslm":
        return _paper_levels(recipe)
    if recipe.levels is None:
        return default_levels(profile, recipe.group_size, recipe.tune, recipe.cut_hidden is not None)
    levels = listed_levels(recipe.levels, profile, recipe.group_size)
    refuse_cut_levels(levels)
    return levels


def listed_levels(
    texts: Iterable[str], profile: Profile | None, group_size: int | None = None
) -> tuple[Level, ...]:
    """Levels that a user wrote, largest first.

    Args:
        texts: such as 16, 8, 4g128; a bare packed width takes the group size.
        profile: refuses what its runtime does not run; None allows every level.
        group_size: of bare widths; None takes 64.

    Raises:
        UsageError: not a level, or one that the profile's runtime does not run.
    """
    levels: list[Level] = []
    for text in texts:
        bare = text.strip() in ("8", "4", "2")
        level = parse_level(f"{text.strip()}g{group_size or GROUP_SIZE}" if bare else text)
        if level.simulated or level.bits == 1:
            raise UsageError(
                "not a level to search",
                where="--levels",
                found=text,
                allowed="32, 16, 8, 4, 2, or e.g. 4g128",
            )
        levels.append(level if profile is None else allowed_level(level, profile, f"--levels {text}"))
    return check_levels(levels)


def allowed_level(level: Level, profile: Profile, where: str) -> Level:
    """The level as the profile's runtime runs it.

    Args:
        level: as the user wrote it.
        profile: the board.
        where: flag or file key, for the message.

    Raises:
        UsageError: a width, group size or accuracy level that the runtime does not run.
    """
    width = profile.width(level.bits)
    if not level.is_packed:
        return level
    if level.group_size not in width.block_sizes:
        raise UsageError(
            "group size not run by the profile's runtime",
            where=where,
            found=level.group_size,
            allowed=", ".join(str(size) for size in width.block_sizes),
        )
    if level.accuracy_level == 0:  # written with the suffix f
        if level.bits != 4 and width.accuracy_level:
            raise UsageError(
                "float activations at this width fall off the fast path", where=where, allowed="4-bit levels"
            )
        return level
    return replace(level, accuracy_level=width.accuracy_level or 0)


def _paper_levels(recipe: Recipe) -> tuple[Level, ...]:
    if recipe.levels is None:
        return tuple(Level(bits, simulated=True) for bits in PAPER_LEVELS)
    bits = []
    for text in recipe.levels:
        if not text.strip().isdecimal() or not 2 <= int(text) <= 16:
            raise UsageError(
                "not a simulated width", where="--levels", found=text, allowed="2 to 16 with --method qslm"
            )
        bits.append(int(text))
    return tuple(Level(b, simulated=True) for b in sorted(set(bits), reverse=True))


def _tokenizer_path(recipe: Recipe, model: Path, vocab_size: int) -> Path:
    if recipe.tokenizer is not None:
        return Path(recipe.tokenizer)
    folder = model if model.is_dir() else model.parent
    if (folder / "tokenizer.json").is_file():
        return folder / "tokenizer.json"
    if vocab_size == 50277:
        return reference.tokenizer_20b()
    raise TokenizerError(
        "the model has no tokenizer",
        where=folder / "tokenizer.json",
        hint="give one with --tokenizer tokenizer.json",
    )
