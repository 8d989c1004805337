"""Which quantiser a deployment uses, on what it is calibrated, and the statistics, kept like float scores.

GPTQ needs inputs, and inputs need training data: never the data that steers the search or judges its result. The
embedded model brings its own; another model is calibrated on what its user gives. Where there is nothing to calibrate
on and no quantiser was asked for, round-to-nearest is used, and manifest and report say why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qslm_edge import __version__
from qslm_edge.array_cache import keep_arrays, kept_arrays
from qslm_edge.errors import DataError, UsageError
from qslm_edge.items import Items
from qslm_edge.quantize.base import InputStatistics, Quantiser
from qslm_edge.quantize.calibrate import Statistics, measure_statistics
from qslm_edge.quantize.quantisers import get_quantiser
from qslm_edge.recipe import Recipe
from qslm_edge.spikegpt import Hierarchy, SpikeGPT
from qslm_edge.tasks.base import Task
from qslm_edge.tasks.tokenizer import Tokenizer

__all__ = [
    "DEFAULT_TOKENS",
    "EMBEDDED",
    "Choice",
    "check_training_data",
    "choose_quantiser",
    "load_statistics",
    "minimum_tokens",
    "training_items",
]

DEFAULT_TOKENS = 32_768
MINIMUM_SHARE = 4
"""Tokens needed for each column of the widest matrix: with fewer its statistics are mostly noise and damping."""
EMBEDDED = "embedded"
"""Value of `--calibration-data` that names the embedded training data of the task."""
KIND, KEPT_BYTES = "calibration", 2**30


@dataclass(frozen=True, eq=False)
class Choice:
    """The quantiser of a deployment.

    Attributes:
        quantiser: with its options.
        items: calibration items, None when it needs none.
        why: why this quantiser, in words.
    """

    quantiser: Quantiser
    items: Items | None
    why: str

    def fingerprint(self) -> dict[str, Any]:
        """What codes depend on besides the weights."""
        return {
            "quantiser": self.quantiser.identity,
            "quantiser_options": self.quantiser.options,
            "calibration": None if self.items is None else self.items.digest,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form for manifest and report."""
        items = self.items
        return {
            "name": self.quantiser.name,
            "version": self.quantiser.version,
            "options": self.quantiser.options,
            "why": self.why,
            "calibration": None
            if items is None
            else {
                "digest": items.digest,
                "n_items": items.n_items,
                "n_tokens": items.n_tokens,
                "source": items.source,
            },
        }


def choose_quantiser(
    recipe: Recipe, task: Task, tokenizer: Tokenizer, hierarchy: Hierarchy, window: int
) -> Choice:
    """The quantiser that a recipe asks for, or the default.

    Args:
        recipe: the choices.
        task: reads calibration data.
        tokenizer: of the model.
        hierarchy: says how much data is needed.
        window: tokens per window of a language model.

    Raises:
        UsageError: a quantiser without the data that it needs, data without a quantiser that needs it, or data that the
            search or the verdict use.
        DataError: data that cannot be read, or too little of it.
    """
    if recipe.method == "qslm":
        return _without_data(recipe, "rtn", "the paper's scheme rounds to nearest")
    name = recipe.quantiser
    cuts = recipe.cut_hidden is not None  # which units can go is measured on calibration data too
    if name is not None and not get_quantiser(name).needs_statistics and not cuts:
        return _without_data(recipe, name, "asked for")
    if recipe.model is not None and recipe.calibration_data is None:
        if name is None and recipe.calibration_tokens is None and not cuts:
            return _without_data(
                recipe, "rtn", "no calibration data; with --calibration-data the default is gptq"
            )
        raise UsageError(
            "no calibration data",
            where="--calibration-data",
            found="--cut-hidden" if cuts else f"--quantiser {name}" if name else "--calibration-tokens",
            hint="give training data of the model with --calibration-data FILE (never search or report data); "
            f"`--calibration-data {EMBEDDED}` takes the embedded {task.title} training text",
        )
    _refuse_shared(recipe)
    try:
        items = _items(recipe, task, tokenizer, window)
    except DataError as error:
        if name is None and recipe.calibration_data is None and not cuts:
            return _without_data(recipe, "rtn", f"no calibration data: {error.what}")
        raise
    _check_amount(items, hierarchy)
    return Choice(
        get_quantiser(name or "gptq"), items, "asked for" if name else "default with calibration data"
    )


def minimum_tokens(hierarchy: Hierarchy) -> int:
    """Fewest tokens that statistics of this model may rest on."""
    return MINIMUM_SHARE * max((m.columns for m in hierarchy.modules if m.kind == "linear"), default=1)


def _without_data(recipe: Recipe, name: str, why: str) -> Choice:
    for key in ("calibration_data", "calibration_tokens"):
        if getattr(recipe, key) is not None and not (recipe.tune and key == "calibration_data"):
            raise UsageError(
                f"{name} uses no calibration data",
                where=f"--{key.replace('_', '-')}",
                found=getattr(recipe, key),
                hint="leave it out, or use --quantiser gptq",
            )
    if recipe.method == "qslm" and recipe.quantiser is not None:
        raise UsageError(
            "the paper's simulation has its own quantiser", where="--quantiser", found=recipe.quantiser
        )
    return Choice(get_quantiser(name), None, why)


def _refuse_shared(recipe: Recipe) -> None:
    """The same file must not calibrate and steer or judge: the figures would be of seen data."""
    if recipe.calibration_data in (None, EMBEDDED):
        return
    own = Path(str(recipe.calibration_data)).resolve()
    for key in ("search_data", "report_data"):
        other = getattr(recipe, key)
        if other is not None and Path(other).resolve() == own:
            raise UsageError(
                "the same data would calibrate the quantiser and judge it",
                where=f"--calibration-data, --{key.replace('_', '-')}",
                found=recipe.calibration_data,
                hint="give training data for calibration",
            )


def _items(recipe: Recipe, task: Task, tokenizer: Tokenizer, window: int) -> Items:
    """Items that hold as many tokens as asked for, or all there are."""
    wanted = recipe.calibration_tokens or DEFAULT_TOKENS
    given = recipe.calibration_data
    path = None if given in (None, EMBEDDED) else Path(str(given))
    limit = -(-wanted // window) if task.kind == "language_model" else wanted
    items = task.items("train", tokenizer, window, limit, path)
    enough = int(np.searchsorted(np.cumsum(items.lengths), wanted)) + 1
    return items if enough >= items.n_items else items.subset(range(enough))


def check_training_data(recipe: Recipe, task: Task) -> None:
    """Refuse to tune without data, before any work.

    Raises:
        UsageError: a model of one's own without training data, or data that the search or the verdict use.
    """
    if recipe.model is not None and recipe.calibration_data is None:
        raise UsageError(
            "no training data to tune on",
            where="--calibration-data",
            found="--tune",
            hint="give training data of the model with --calibration-data FILE (never search or report data); "
            f"`--calibration-data {EMBEDDED}` takes the embedded {task.title} training text",
        )
    _refuse_shared(recipe)


def training_items(recipe: Recipe, task: Task, tokenizer: Tokenizer, window: int) -> Items:
    """All items of the train split, for tuning.

    Raises:
        UsageError: as `check_training_data`.
        DataError: data that cannot be read.
    """
    check_training_data(recipe, task)
    given = recipe.calibration_data
    path = None if given in (None, EMBEDDED) else Path(str(given))
    return task.items("train", tokenizer, window, None, path)


def _check_amount(items: Items, hierarchy: Hierarchy) -> None:
    needed = minimum_tokens(hierarchy)
    if items.n_tokens < needed:
        raise DataError(
            "too little calibration data",
            where=items.source,
            found=f"{items.n_tokens} tokens",
            allowed=f"{needed} or more ({MINIMUM_SHARE} for each column of the widest matrix)",
            hint="give more with --calibration-data, raise --calibration-tokens, or use --quantiser rtn",
        )


def load_statistics(
    model: SpikeGPT,
    hierarchy: Hierarchy,
    items: Items,
    digest: str,
    on_batch: Callable[[float], None] = lambda _: None,
) -> Statistics:
    """Input statistics of the float model, from the cache or measured now.

    Args:
        model: the float model.
        hierarchy: its modules with the head in use.
        items: calibration items.
        digest: of the model.
        on_batch: told the share of the items done by each batch.

    Raises:
        DataError: inputs of a module are not finite.
    """
    name = f"{digest}/{items.digest}/{hierarchy.head}/{model.device.type}/{__version__}"
    found = _read(hierarchy, name)
    if found is not None:
        on_batch(1.0)
        return found
    statistics = measure_statistics(model, hierarchy, items, on_batch)
    if sum(moments.gram.nbytes for moments in statistics.values()) <= KEPT_BYTES:
        _write(statistics, name)
    return statistics


def _read(hierarchy: Hierarchy, name: str) -> Statistics | None:
    file = kept_arrays(KIND, name)
    linear = [module for module in hierarchy.modules if module.kind == "linear"]
    if file is None or not {"n_rows", *(module.name for module in linear)} <= file.keys():
        return None
    statistics: dict[str, InputStatistics] = {}
    for module in linear:
        gram = np.asarray(file[module.name], np.float32)
        if gram.shape != (module.columns, module.columns) or not np.isfinite(gram).all():
            return None
        statistics[module.name] = InputStatistics(gram, int(file["n_rows"]))
    return statistics


def _write(statistics: Statistics, name: str) -> None:
    arrays: dict[str, Any] = {key: moments.gram for key, moments in statistics.items()}
    keep_arrays(KIND, name, {**arrays, "n_rows": np.array(next(iter(statistics.values())).n_rows)})
