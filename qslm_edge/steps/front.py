"""A saved front: front.json of a run directory, and the setting that it answers a budget or a limit with.

The file names the recipe and everything its scores depend on, so that a front is never exported for another model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from qslm_edge import __version__
from qslm_edge.errors import RunError
from qslm_edge.items import Items
from qslm_edge.metrics import Kind
from qslm_edge.recipe import Recipe
from qslm_edge.runner.text import json_ready
from qslm_edge.search.front import FrontPoint, choose
from qslm_edge.search.run import SearchResult
from qslm_edge.steps.documents import read_document
from qslm_edge.steps.plan import Plan

__all__ = ["FILE", "SCHEMA", "SavedFront", "check_front", "describe_front", "read_front"]

FILE, SCHEMA = "front.json", "qslm-edge/front/1"
_NUMBERS = {"weight_bytes": int, "predicted_peak_rss_bytes": int}


@dataclass(frozen=True)
class SavedFront:
    """What front.json holds.

    Attributes:
        recipe: the choices that it was found with.
        parts: what its scores depend on, as in the journal.
        kind: language model or classification.
        data: the whole document.
        points: the settings, smallest first.
        source: the file.
    """

    recipe: Recipe
    parts: dict[str, Any]
    kind: Kind
    data: dict[str, Any]
    points: tuple[FrontPoint, ...]
    source: Path

    def answer(
        self, max_degradation: float | None, weights_budget_bytes: int | None, mu: float | None = None
    ) -> FrontPoint:
        """The setting for a limit, a budget or both.

        Raises:
            InfeasibleError: no point meets them; the message names the nearest.
        """
        return choose(
            self.points,
            self.kind,
            self.data["model"]["float32_bytes"],
            max_degradation=max_degradation,
            weights_budget_bytes=weights_budget_bytes,
            mu=mu,
        )


def describe_front(plan: Plan, items: Items, result: SearchResult) -> dict[str, Any]:
    """The front of a search as JSON-able data: what front.json holds."""
    described: dict[str, Any] = {
        "schema": SCHEMA,
        "tool_version": __version__,
        "recipe": plan.recipe.model_dump(mode="json", by_alias=True, exclude_none=True),
        "parts": plan.fingerprint_parts(items),
        "model": {"name": plan.model_name, "float32_bytes": plan.hierarchy.float32_bytes},
        "profile": {"id": plan.profile.id, "name": plan.profile.name, "digest": plan.profile.digest},
        "task": {
            "name": plan.task.name,
            "kind": plan.task.kind,
            "metric": plan.task.metric,
            "unit": plan.task.unit,
        },
        "float": asdict(result.base),
        "points": [FrontPoint.of(trial).to_dict() for trial in result.front],
    }
    ready: dict[str, Any] = json_ready(described)
    return ready


def read_front(run: Path) -> SavedFront:
    """The front of a run directory.

    Raises:
        RunError: there is none, it is damaged, or another version wrote it.
    """
    path = run / FILE
    if not path.is_file():
        raise RunError(
            "no front here", where=run, hint=f"make one: `qslm-edge search --method pareto --out {run}`"
        )
    data = read_document(path, "front", SCHEMA, hint="search again")
    if data.get("tool_version") != __version__:
        raise RunError(
            "the front was made by another version",
            where=path,
            found=data.get("tool_version"),
            allowed=__version__,
            hint="search again",
        )
    try:
        recipe = Recipe.model_validate(data["recipe"])
        points = tuple(_point(entry) for entry in data["points"])
        front = SavedFront(recipe, dict(data["parts"]), data["task"]["kind"], data, points, path)
        _check_document(data, points)
    except (LookupError, TypeError, ValueError) as error:
        found = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise RunError("damaged front", where=path, found=found, hint="search again") from None
    return front


def _point(entry: dict[str, Any]) -> FrontPoint:
    values = {field.name: entry[field.name] for field in fields(FrontPoint)}
    setting = values["setting"]
    if not isinstance(setting, dict) or not all(isinstance(level, str) for level in setting.values()):
        raise TypeError("a setting names a level for every module")
    for name, value in values.items():
        if name not in ("setting", "summary") and not isinstance(value, _NUMBERS.get(name, int | float)):
            raise TypeError(f"{name} is no number")
    return FrontPoint(**values)


def _check_document(data: dict[str, Any], points: tuple[FrontPoint, ...]) -> None:
    if not points:
        raise ValueError("no points")
    if any(a.weight_bytes >= b.weight_bytes for a, b in pairwise(points)):
        raise ValueError("points out of order")
    if data["task"]["kind"] not in ("language_model", "classification"):
        raise ValueError(f"unknown kind of task {data['task']['kind']!r}")
    for place, name in (("model", "name"), ("profile", "name"), ("task", "metric")):
        if not isinstance(data[place][name], str):
            raise TypeError(f"{place}.{name} is no text")
    if not isinstance(data["model"]["float32_bytes"], int) or data["model"]["float32_bytes"] < 1:
        raise TypeError("model.float32_bytes is no size")
    for name in ("value", "standard_error"):
        if not isinstance(data["float"][name], int | float):
            raise TypeError(f"float.{name} is no number")


def check_front(front: SavedFront, plan: Plan, items: Items) -> None:
    """Refuse a front that was measured on something else than the plan.

    Raises:
        RunError: another model, data, quantiser or version.
    """
    mine = plan.fingerprint_parts(items)
    differing = sorted(k for k in mine.keys() | front.parts.keys() if mine.get(k) != front.parts.get(k))
    if differing:
        raise RunError(
            "the front belongs to another search",
            where=front.source,
            found=f"different {', '.join(differing)}",
            hint="make it again: `qslm-edge search --method pareto`",
        )
