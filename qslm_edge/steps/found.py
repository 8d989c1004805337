"""The result of a search on disk: search.json, and what a later export reads back from a run directory.

search.json holds the recipe that it was found with, so that a directory whose recipe changed since is never
exported with the answer to another question.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qslm_edge import __version__
from qslm_edge.errors import RunError
from qslm_edge.items import Items
from qslm_edge.metrics import Scores
from qslm_edge.quantize.cuts import describe_cuts
from qslm_edge.quantize.levels import Setting
from qslm_edge.recipe import Recipe, read_recipe
from qslm_edge.runner.text import json_ready
from qslm_edge.search.evaluator import Evaluator
from qslm_edge.search.journal import Journal, fingerprint
from qslm_edge.search.run import SearchResult
from qslm_edge.search.trial import Judge
from qslm_edge.steps.documents import read_document
from qslm_edge.steps.find import analyse
from qslm_edge.steps.plan import Plan
from qslm_edge.tuning.judge import TunedJudge, tuned_path
from qslm_edge.tuning.stored import TunedModel, load_tuned

__all__ = ["FILE", "SCHEMA", "Found", "describe_search", "journaled_scores", "read_found", "tuned_model"]

FILE, SCHEMA = "search.json", "qslm-edge/search/1"
_REPORT_SCHEMA = "qslm-edge/report/1"
_PACKED = "packed codes, scales, zero points and all float tensors, as the exporter writes them"
_PAPER = "parameters × bits, scales and zero points not counted (the paper's accounting)"


@dataclass(frozen=True)
class Found:
    """What a run directory holds.

    Attributes:
        recipe: the choices it was found with.
        setting: the chosen level of every module, as text.
        source: file that it was read from.
        tuned: fingerprint of the tuned model of that setting; None where weights are not tuned.
    """

    recipe: Recipe
    setting: dict[str, str]
    source: Path
    tuned: str | None = None


def describe_search(
    plan: Plan, items: Items, result: SearchResult, evaluator: Evaluator, tuned: TunedModel | None
) -> dict[str, Any]:
    """A finished search as JSON-able data: what search.json holds.

    Args:
        plan: model, board, task, constraints.
        items: the search items.
        result: what was found.
        evaluator: that scored it.
        tuned: the tuned model of the chosen setting, where weights are tuned.
    """
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "tool_version": __version__,
        "deployable": plan.recipe.method != "qslm",
        "accounting": _PAPER if plan.recipe.method == "qslm" else _PACKED,
        "recipe": _plain(plan.recipe),
        "model": analyse(plan),
        "profile": {"id": plan.profile.id, "name": plan.profile.name, "digest": plan.profile.digest},
        "task": {"name": plan.task.name, "metric": plan.task.metric, "unit": plan.task.unit},
        "constraints": asdict(plan.constraints),
        "quantiser": plan.choice.to_dict(),
        "cuts": describe_cuts(plan.hierarchy, result.chosen.setting),
        "tuning": None if tuned is None else tuned.origin,
        "items": {"source": items.source, "digest": items.digest, "n_items": items.n_items},
        **result.to_dict(plan.hierarchy.float32_bytes, plan.options, evaluator.kind),
    }
    ready: dict[str, Any] = json_ready(found)
    return ready


def read_found(run: Path) -> Found:
    """The recipe and the chosen setting of a run directory.

    Args:
        run: directory that `search` or `deploy` finished in.

    Raises:
        RunError: nothing is there, it is damaged, or it was found with another recipe than recipe.toml.
    """
    if not run.is_dir():
        raise RunError("no such run directory", where=run, hint="give the --out directory of a search")
    places = [(run / FILE, SCHEMA), (run / "report.json", _REPORT_SCHEMA)]
    known = [(path, _read(path, schema)) for path, schema in places if path.is_file()]
    if not known or not (run / "recipe.toml").is_file():
        raise RunError(
            "no finished search here", where=run, hint=f"run `qslm-edge search --out {run}` to its end first"
        )
    recipe = read_recipe(run / "recipe.toml")
    for path, data in known:
        if data["recipe"] == _plain(recipe):
            return Found(recipe, _setting(data, path), path, _tuned_mark(data, path))
    raise RunError(
        "the result was found with another recipe than recipe.toml",
        where=known[0][0],
        found=f"different {', '.join(_differing(known[0][1]['recipe'], _plain(recipe)))}",
        hint=f"finish it: `qslm-edge search --recipe {run / 'recipe.toml'} --out {run}`",
    )


def tuned_model(plan: Plan, setting: Setting, mark: str | None, run: Path) -> TunedModel | None:
    """The tuned model that a search of `run` chose, wherever it was tuned; None where weights are not tuned.

    Args:
        plan: of the run.
        setting: what the search chose.
        mark: fingerprint of the model that it wrote down.
        run: its directory.

    Raises:
        RunError: there is none, it is damaged, or it is another.
    """
    if mark is None:
        return None
    path = tuned_path(run, mark)
    tuned = load_tuned(path, plan.store(), plan.digest)
    if tuned.origin.get("mark") != mark or tuned.setting != setting:
        raise RunError(
            "not the tuned model that the search chose",
            where=path,
            found=tuned.origin.get("mark"),
            allowed=mark,
            hint="search again",
        )
    return tuned


def journaled_scores(
    plan: Plan, items: Items, setting: Setting, run: Path, tuned: TunedModel | None = None
) -> Scores | None:
    """Scores of a setting on the search items as the search of `run` measured them.

    Args:
        plan: of the run.
        items: the search items.
        setting: what was scored.
        run: its directory.
        tuned: the tuned model that was scored, where weights are tuned.

    Returns:
        None without a journal, or where the model was tuned on a device of another kind: what a GPU scored is
        measured anew on a CPU, whose sums are not the same.

    Raises:
        RunError: the journal belongs to another model, data or quantiser, or is damaged.
    """
    path = run / "journal.jsonl"
    mark = None if tuned is None else tuned.origin["mark"]
    if not path.is_file() or (mark is not None and mark != plan.tuning_mark(setting)):
        return None
    journal = Journal(path, plan.task.kind, plan.fingerprint_parts(items))
    if mark is None:
        return journal.get(Judge.purpose, fingerprint(setting.to_dict()))
    return journal.get(TunedJudge.purpose, mark)


def _plain(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", by_alias=True, exclude_none=True)


def _differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def _read(path: Path, schema: str) -> dict[str, Any]:
    data = read_document(path, "result", schema, hint="search again")
    if not isinstance(data.get("recipe"), dict):
        raise RunError("key is missing or of the wrong type", where=path, found="recipe", hint="search again")
    return data


def _setting(data: dict[str, Any], path: Path) -> dict[str, str]:
    chosen = (
        data["setting"] if data["schema"] == _REPORT_SCHEMA else (data.get("chosen") or {}).get("setting")
    )
    if not isinstance(chosen, dict) or not all(isinstance(level, str) for level in chosen.values()):
        raise RunError("the chosen setting is missing or of the wrong type", where=path, hint="search again")
    return chosen


def _tuned_mark(data: dict[str, Any], path: Path) -> str | None:
    tuning = data.get("tuning")
    if tuning is None:
        return None
    mark = tuning.get("mark") if isinstance(tuning, dict) else None
    if not isinstance(mark, str) or not re.fullmatch(r"[0-9a-f]{64}", mark):
        raise RunError("the fingerprint of the tuned model is missing", where=path, hint="search again")
    return mark
