"""The recipe: every choice of a deployment in one file, which is saved with the result and runs again.

Flags compile to it. Absent values mean "the default of the profile or task", which the report spells out.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qslm_edge.errors import OutputError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Recipe", "read_recipe", "write_recipe"]

SCHEMA: Final = "qslm-edge/recipe/1"
Positive = Annotated[int, Field(ge=1, strict=True)]
Above = Annotated[float, Field(gt=0, le=1e12)]


class Recipe(BaseModel):
    """What to deploy, for which board, under which limits."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    recipe_schema: Literal["qslm-edge/recipe/1"] = Field(
        SCHEMA, alias="schema", description="Format of this file."
    )
    profile: str = Field(description="Device profile: a name, an alias, or a path to a TOML file.")
    task: str = Field("wikitext2", description="Task: wikitext2 (perplexity) or sst2 (accuracy).")
    model: str | None = Field(None, description="Checkpoint; absent means the embedded reference model.")
    embedding: Literal["dense", "binary"] | None = Field(None, description="Embedding mode of a bare .pth.")
    tokenizer: str | None = Field(None, description="tokenizer.json; absent means the one beside the model.")
    search_data: str | None = Field(None, description="Own data that steers the search.")
    report_data: str | None = Field(None, description="Own data for the verdict.")
    window: Positive | None = Field(
        None, le=65_536, description="Tokens a window; absent means the model's context length."
    )
    search_windows: Positive | None = Field(
        None, description="Items that steer the search; absent means the task's default."
    )
    report_windows: Positive | None = Field(None, description="Items for the verdict; absent means all.")
    method: Literal["budgeted", "pareto", "tiered", "qslm"] = Field(
        "budgeted",
        description="budgeted: knapsack over predicted costs; pareto: its front; tiered: the paper's tiers over packed "
        "widths; qslm: the paper's simulation.",
    )
    levels: tuple[str, ...] | None = Field(
        None, description="Precision levels, e.g. 8, 4g64; absent means the profile's."
    )
    group_size: Literal[32, 64, 128] | None = Field(
        None, description="Group size of levels given as bare widths."
    )
    quantiser: Literal["rtn", "hqq", "gptq"] | None = Field(
        None, description="Quantiser of packed levels; absent: gptq with calibration data, else rtn."
    )
    calibration_data: str | None = Field(
        None,
        description="Training data of the model for gptq; `embedded`, or absent with the embedded model, takes ours.",
    )
    calibration_tokens: Positive | None = Field(
        None, le=100_000_000, description="Tokens to calibrate on; absent: 32768."
    )
    max_degradation: float | None = Field(
        None, ge=0, le=1e6, description="Perplexity increase or accuracy points allowed."
    )
    weights_budget_bytes: Positive | None = Field(None, description="Limit of the packed weights, in bytes.")
    memory_budget_bytes: Positive | None = Field(
        None, description="Limit of the process peak, in bytes; absent: the profile's."
    )
    max_latency_s: Above | None = Field(
        None, description="Limit of the 95th percentile of the latency of a decoded token, in seconds."
    )
    min_decode_tokens_per_s: Above | None = Field(
        None, description="Least decoding speed over the whole timed run, in tokens a second."
    )
    max_energy_j_per_token: Above | None = Field(
        None, description="Limit of the energy of a decoded token, idle part included, in joules."
    )
    cut_hidden: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Largest share of a layer's hidden units that the search may cut; absent: none.",
    )
    tune: bool = Field(
        False, description="Tune the weights of every setting on training data before it is judged."
    )
    tune_tokens: Positive | None = Field(None, description="Training tokens of each tuning.")
    tune_rounds: Positive | None = Field(None, le=20, description="Settings that are tuned, at the most.")
    tune_rate: float | None = Field(None, gt=0, le=1, description="Learning rate of tuning.")
    tune_start: str | None = Field(None, description="Tuned model that tuning goes on from; the float model.")
    seed: int | None = Field(
        None, ge=0, le=2**31, strict=True, description="Seed of tuning: order of the data."
    )
    mu: float | None = Field(
        None, ge=0, description="Select by Eq. 1 with this priority of memory; absent: smallest feasible."
    )
    early: bool = Field(True, description="Stop an evaluation whose decision is clear.")
    reuse: bool = Field(True, description="Reuse the residual stream before the first changed block.")


def make_recipe(**values: Any) -> Recipe:
    """A recipe from flags; values that are None take the default.

    Raises:
        UsageError: a value out of range, in one line.
    """
    try:
        return Recipe.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise _explain(error, "recipe") from None


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        UsageError: missing, not TOML, unknown key, or value out of range.
    """
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError("the recipe cannot be read", where=path, found=error) from None
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise _explain(error, str(path)) from None


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe file, all at once.

    Raises:
        OutputError: the place cannot be written.
    """
    data = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(tomli_w.dumps(data), "utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OutputError("the recipe cannot be written", where=path, found=error.strerror) from None


def _explain(error: ValidationError, where: str) -> UsageError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "?"
    if first["type"] == "missing":
        return UsageError("missing", where=f"{where}: {key}", hint="docs/recipe.md lists the keys")
    allowed = None
    if first["type"] == "extra_forbidden":
        allowed = ", ".join(field.alias or name for name, field in Recipe.model_fields.items())
    return UsageError(first["msg"], where=f"{where}: {key}", found=first.get("input"), allowed=allowed)
