"""Facts of a profile by dotted path, and how well each is known.

Grades: ``measured`` by this project, ``sourced`` from a public source, ``unconfirmed`` (check on the board
before a decision rests on it), and ``chosen`` for what is no fact but a decision, such as the memory
budget. A grade stands under a dotted path and covers what lies below it; the longest path wins and "*" is
the rest. A measured or sourced fact must name where it comes from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

from qslm_edge.profiles.values import problem

if TYPE_CHECKING:
    from qslm_edge.profiles.profile import Profile

__all__ = ["GRADES", "Fact", "Grade", "check_paths", "fact_values", "longest_path", "worst"]

Grade = Literal["chosen", "measured", "sourced", "unconfirmed"]
GRADES: tuple[Grade, ...] = ("chosen", "measured", "sourced", "unconfirmed")
"""From best to worst; ``chosen`` cannot be wrong, only unsuitable."""


@dataclass(frozen=True)
class Fact:
    """One fact: where it stands, what it says, how well it is known and from where."""

    path: str
    value: Any
    grade: Grade
    sources: tuple[str, ...]


def fact_values(profile: Profile) -> dict[str, Any]:
    """Return every stated fact by its dotted path. Identity, notes, advice and absent values are no facts.

    Widths stand under ``widths.<provider>.<bits>``, modes under ``power_modes.<name>``, idle power under
    ``idle_w.<number>`` counted from 1.
    """
    data = profile.model_dump(mode="json")
    found: dict[str, Any] = {}
    for section in ("memory", "cpu", "accelerator", "runtime"):
        _flatten(section, data[section], found)
    for width in data["widths"]:
        path = f"widths.{width['provider']}.{width['bits']}"
        found[path] = {key: value for key, value in width.items() if key not in ("provider", "bits")}
    _flatten("power", data["power"], found)
    for mode in data["power_modes"]:
        found[f"power_modes.{mode['name']}"] = {key: mode[key] for key in ("id", "tool", "note")}
    for number, idle in enumerate(data["idle_w"], start=1):
        found[f"idle_w.{number}"] = idle
    _flatten("match", data["match"], found)
    return found


def longest_path(dotted: str, known: Iterable[str]) -> str | None:
    """Return the longest of the known paths that equals the dotted path or lies above it."""
    above = [path for path in known if dotted == path or dotted.startswith(f"{path}.")]
    return max(above, key=len, default=None)


def worst(grades: Iterable[Grade]) -> Grade:
    """Return the worst of some grades."""
    return max(grades, key=GRADES.index)


def check_paths(facts: Mapping[str, Any], grades: Mapping[str, Grade], sources: Mapping[str, Any]) -> None:
    """Check that grades and sources name facts, and that each measured or sourced fact has a source.

    Raises:
        PydanticCustomError: the first key that is wrong.
    """
    if "*" not in grades:
        raise problem("grades", "no grade for the rest", allowed="a key '*'")
    known = _with_parents(facts)
    for table, keys in (("grades", grades), ("sources", sources)):
        for key in keys:
            if key != "*" and key not in known:
                near = get_close_matches(key, known, n=1)
                allowed = f"e.g. '{near[0]}'" if near else "dotted keys of this profile, or '*'"
                raise problem(f"{table}.{key}", "names no fact of this profile", allowed=allowed)
    for path in facts:
        grade = grades[longest_path(path, grades) or "*"]
        if grade in ("measured", "sourced") and longest_path(path, sources) is None and "*" not in sources:
            raise problem(
                "sources", f"no source for {path}", found=f"grade {grade}", allowed="a key that covers it"
            )


def _flatten(path: str, value: Any, found: dict[str, Any]) -> None:
    if isinstance(value, dict) and not path.endswith(".estimate"):
        for key, below in value.items():
            if key not in ("note", "install"):
                _flatten(f"{path}.{key}", below, found)
    elif value is not None and value != []:
        found[path] = value


def _with_parents(paths: Iterable[str]) -> list[str]:
    every: dict[str, None] = {}
    for path in paths:
        parts = path.split(".")
        for length in range(1, len(parts) + 1):
            every[".".join(parts[:length])] = None
    return list(every)
