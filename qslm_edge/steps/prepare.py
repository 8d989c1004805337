"""First step: turn a recipe into a model, a profile, a task with its items, and constraints.

What cannot work is refused here, before any evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qslm_edge import reference
from qslm_edge.errors import TokenizerError, UsageError
from qslm_edge.profiles import load_profile
from qslm_edge.quantize.scales import with_scale_bits
from qslm_edge.recipe import Recipe
from qslm_edge.search.constraints import Constraints
from qslm_edge.search.run import SearchOptions
from qslm_edge.spikegpt import Module, SpikeGPT, build_hierarchy, load_checkpoint
from qslm_edge.steps.calibration import check_training_data, choose_quantiser
from qslm_edge.steps.cuts import offered_cuts
from qslm_edge.steps.levels import wanted_levels
from qslm_edge.steps.plan import Plan
from qslm_edge.tasks import get_task
from qslm_edge.tasks.tokenizer import check_vocabulary, load_tokenizer
from qslm_edge.tuning.judge import REMAINS, SCALE
from qslm_edge.tuning.options import TuneOptions

__all__ = ["prepare"]

DEFAULT_ROUNDS = 3
"""Settings that are tuned, at the most: the first guess, and two that learn from it."""
TUNE_TOKENS = {"cpu": 3_000_000, "cuda": 9_000_000}
"""Training tokens of each tuning: half an hour of two cores, about a minute of an H100, for the reference model."""


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
    options = SearchOptions(wanted_levels(recipe, profile), _mu(recipe), recipe.early, recipe.method)
    if tuning is not None:
        check_training_data(recipe, task)
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
    budget = None if profile.memory.kind == "vram" else profile.memory.budget_bytes
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
        "tune_start": recipe.tune_start,
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
