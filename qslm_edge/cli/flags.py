"""What the given flags mean: a recipe, limits, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qslm_edge.errors import OutputError, UsageError
from qslm_edge.units import parse_bytes

__all__ = [
    "check_group_size",
    "check_output",
    "check_power",
    "check_power_source",
    "limit_from_flags",
    "own_limits",
    "recipe_from_flags",
    "split_levels",
]


def check_output(output: Path | None) -> None:
    """Refuse a place for the result before minutes are spent on it.

    Raises:
        OutputError: a directory, or in none.
    """
    if output is None:
        return
    if output.is_dir():
        raise OutputError("a directory is in the way", where=output, hint="give a file name to --output")
    if not output.parent.is_dir():
        raise OutputError("no such directory", where=output.parent, hint="make it first")


def recipe_from_flags(recipe_file: Path | None, **flags: Any) -> Any:
    """A recipe from a file and the flags that override it.

    Raises:
        UsageError: no profile, contradicting limits, or a value out of range.
    """
    from qslm_edge.recipe import make_recipe, read_recipe

    values = (
        {} if recipe_file is None else read_recipe(recipe_file).model_dump(by_alias=True, exclude_none=True)
    )
    given = {key: value for key, value in flags.items() if value is not None}
    check_group_size(given.get("group_size"))
    task = given.get("task", values.get("task", "wikitext2"))
    if task != values.get("task", task):
        values.pop("max_degradation", None)  # of another metric
    values.update(_limits(given, task))
    values.update(given)
    if isinstance(values.get("levels"), str):
        values["levels"] = split_levels(values["levels"])
    if "profile" not in values:
        raise UsageError(
            "no board chosen",
            where="--profile",
            hint="e.g. --profile jetson-orin; see `qslm-edge profiles list`",
        )
    try:
        return make_recipe(**values)
    except UsageError as error:
        key = str(error.where).removeprefix("recipe: ")
        if key not in given:
            raise
        flag = f"--{key.replace('_', '-')}"
        raise UsageError(error.what, where=flag, found=error.found, allowed=error.allowed) from None


def _limits(given: dict[str, Any], task: str) -> dict[str, Any]:
    """Take the limit flags out of `given` and return them under their names in the recipe."""
    from qslm_edge.tasks import get_task

    found: dict[str, Any] = {}
    limit = limit_from_flags(
        get_task(task).kind, given.pop("max_ppl_increase", None), given.pop("max_accuracy_drop", None)
    )
    if limit is not None:
        found["max_degradation"] = limit
    for key in ("memory_budget", "weights_budget"):
        text = given.pop(key, None)
        if text is not None:
            found[f"{key}_bytes"] = parse_bytes(text, f"--{key.replace('_', '-')}")
    return found | own_limits(
        given.pop("max_latency", None), given.pop("min_decode_speed", None), given.pop("max_energy", None)
    )


def own_limits(
    max_latency: str | None, min_decode_speed: str | None, max_energy: str | None
) -> dict[str, Any]:
    """Limits of speed and energy under their names in the recipe, those that are given.

    Raises:
        UsageError: no positive quantity of the right unit.
    """
    from qslm_edge.runner.limits import parse_joules, parse_seconds, parse_speed

    found: dict[str, Any] = {}
    if max_latency is not None:
        found["max_latency_s"] = parse_seconds(max_latency, "--max-latency")
    if min_decode_speed is not None:
        found["min_decode_tokens_per_s"] = parse_speed(min_decode_speed, "--min-decode-speed")
    if max_energy is not None:
        found["max_energy_j_per_token"] = parse_joules(max_energy, "--max-energy")
    return found


def split_levels(text: str | None) -> tuple[str, ...] | None:
    """The levels of `--levels 8,4g128`, None where the flag is absent."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def check_group_size(size: int | None) -> None:
    """Raise UsageError for a group size that no packed level has."""
    if size not in (None, 32, 64, 128):
        raise UsageError(
            "not a group size of a packed level", where="--group-size", found=size, allowed="32, 64, 128"
        )


def limit_from_flags(
    kind: str, max_ppl_increase: float | None, max_accuracy_drop: float | None
) -> float | None:
    """The limit that belongs to a task.

    Args:
        kind: language_model or classification.
        max_ppl_increase, max_accuracy_drop: the flags as given.

    Raises:
        UsageError: the flag belongs to the other kind of task.
    """
    accuracy = kind == "classification"
    right, wrong = (
        (max_accuracy_drop, max_ppl_increase) if accuracy else (max_ppl_increase, max_accuracy_drop)
    )
    if wrong is not None:
        raise UsageError(
            "the limit does not belong to the task",
            where="--max-ppl-increase" if accuracy else "--max-accuracy-drop",
            found=f"a {'classification' if accuracy else 'language-model'} task",
            allowed="--max-accuracy-drop" if accuracy else "--max-ppl-increase",
        )
    return right


def check_power(power: str) -> None:
    """Raise UsageError for an unknown power preset."""
    if power not in ("smoke", "release", "off"):
        raise UsageError(
            "unknown power measurement", where="--power", found=power, allowed="smoke, release, off"
        )


def check_power_source(power: str, source: str | None, marker: bool) -> None:
    """Raise UsageError for a power source that this version cannot read, or for flags that contradict."""
    from qslm_edge.runner.power import SOURCES
    from qslm_edge.runner.power.external import check_power_flags

    if source is not None and source not in SOURCES:
        raise UsageError(
            "unknown power source", where="--power-source", found=source, allowed=", ".join(sorted(SOURCES))
        )
    check_power_flags(power, source, marker)
