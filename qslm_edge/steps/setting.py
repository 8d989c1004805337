"""A setting that a user gives: one level for every module, a JSON file {module: level}, or a tuned model.

Whatever the profile's runtime does not run, or a matrix cannot take, is refused here, before any work;
nothing is replaced in silence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from qslm_edge.errors import UsageError
from qslm_edge.quantize.levels import SIGN, Level, Setting, parse_level
from qslm_edge.search.space import LevelMap
from qslm_edge.spikegpt import Module
from qslm_edge.steps.levels import allowed_level, listed_levels
from qslm_edge.steps.plan import Plan
from qslm_edge.tuning.stored import TunedModel, load_tuned

__all__ = ["given_setting", "given_tuned", "setting_from_levels"]

_MAX_FILE_BYTES = 2**24
_FORMS = "a level such as 8, 4g128 or 16, or a JSON file {module: level}"


def given_setting(text: str, plan: Plan) -> Setting:
    """The setting of `--setting`.

    Args:
        text: a level for all modules, or the path of a JSON file.
        plan: model and profile.

    Raises:
        UsageError: neither a level nor such a file; modules unknown or missing; a level that the profile's
            runtime does not run or a matrix cannot take.
    """
    path = Path(text)
    if path.suffix == ".json" or path.is_file():
        return setting_from_levels(_read(path), plan, str(path))
    try:
        (level,) = listed_levels([text], plan.profile)
    except UsageError as error:
        raise UsageError(
            error.what, where="--setting", found=error.found, allowed=error.allowed or _FORMS, hint=error.hint
        ) from None
    return _with_data(LevelMap(plan.model.config).setting(plan.hierarchy, level), plan, "--setting")


def given_tuned(text: str, plan: Plan) -> TunedModel:
    """The tuned model of `--setting`, made on whatever machine, with its setting.

    Args:
        text: path of a file that tuning left.
        plan: model and profile.

    Raises:
        RunError: missing, damaged, or of another float model.
        UsageError: it was tuned at levels that the profile's runtime does not run.
    """
    tuned = load_tuned(Path(text), plan.store(), plan.digest)
    runs = setting_from_levels(tuned.setting.to_dict(), plan, text)
    other = [name for name, level in runs.levels if level != tuned.setting[name]]
    if other:
        raise UsageError(
            "tuned for another runtime's activations",
            where=f"{text}: {other[0]}",
            found=tuned.setting[other[0]],
            allowed=f"{runs[other[0]]} on profile {plan.profile.id}",
            hint="tune for this profile",
        )
    return tuned


def setting_from_levels(levels: Mapping[str, Any], plan: Plan, where: str) -> Setting:
    """The setting that names a level for every module.

    Args:
        levels: text of a level by module name.
        plan: model and profile.
        where: file, for messages.

    Raises:
        UsageError: as `given_setting`.
    """
    names = [module.name for module in plan.hierarchy.modules]
    for name in levels:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else "see `qslm-edge inspect --json` for the names"
            raise UsageError("no such module in the model", where=where, found=name, hint=hint)
    if missing := [name for name in names if name not in levels]:
        found = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise UsageError(
            "modules without a level", where=where, found=found, allowed="a level for every module"
        )
    space = LevelMap(plan.model.config)
    chosen = tuple(
        (module.name, _module_level(module, levels[module.name], plan, space, f"{where}: {module.name}"))
        for module in plan.hierarchy.modules
    )
    return _with_data(_paired(Setting(chosen), plan, where), plan, where)


def _paired(setting: Setting, plan: Plan, where: str) -> Setting:
    """The setting, if key and value of every SRFFN keep the same hidden units."""
    for module in plan.hierarchy.modules:
        if module.hidden == "rows":
            value = f"{module.name.rpartition('.')[0]}.value"
            if setting[module.name].units != setting[value].units:
                raise UsageError(
                    "key and value of an SRFFN must keep the same hidden units",
                    where=f"{where}: {module.name}, {value}",
                    found=f"{setting[module.name]}, {setting[value]}",
                )
    return setting


def _with_data(setting: Setting, plan: Plan, where: str) -> Setting:
    """The setting, if there is calibration data to tell which hidden units a cut leaves."""
    if plan.choice.items is None and any(level.units is not None for _, level in setting.levels):
        raise UsageError(
            "hidden units cannot be cut without calibration data",
            where=where,
            hint="give training data with --calibration-data, for --quantiser gptq",
        )
    return setting


def _module_level(module: Module, text: Any, plan: Plan, space: LevelMap, where: str) -> Level:
    if not isinstance(text, str):
        raise UsageError("not a precision level", where=where, found=repr(text), allowed='text, e.g. "4g64"')
    wanted = parse_level(f"{text}g64" if text in ("8", "4", "2") else text)
    if wanted.simulated:
        raise UsageError(
            "a simulated level cannot be exported",
            where=where,
            found=text,
            hint="search without --method qslm for a setting that can",
        )
    if wanted == SIGN:
        if module.kind != "embedding" or plan.model.config.embedding != "binary":
            raise UsageError("one bit is for a binary embedding only", where=where, found=text)
        return SIGN
    # an embedding is looked up: its level is written with the suffix f whatever the runtime computes with
    is_table = module.kind == "embedding" and wanted.is_packed
    asked = replace(wanted, accuracy_level=4) if is_table else wanted
    if wanted.units is not None and module.hidden is None:
        raise UsageError("only key and value of an SRFFN have hidden units to cut", where=where, found=text)
    level = space.level(module, allowed_level(asked, plan.profile, where))
    if (level.bits, level.group_size) != (wanted.bits, wanted.group_size):
        columns = module.with_hidden(wanted.units).columns
        raise UsageError(
            f"this matrix of {columns} columns cannot take the level",
            where=where,
            found=text,
            allowed=level,
        )
    return level


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise UsageError("file too large", where=path, allowed=f"{_MAX_FILE_BYTES} bytes")
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError("the setting cannot be read", where=path, found=reason, allowed=_FORMS) from None
    if not isinstance(data, dict):
        raise UsageError("must hold a JSON object", where=path, found=type(data).__name__, allowed=_FORMS)
    return data
