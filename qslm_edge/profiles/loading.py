"""Find, read and check device profiles, with one line for whatever is wrong in a file.

A name is the id of a shipped profile or one of its aliases; anything that ends in ``.toml`` or contains a
path separator is a file. Profile files come from users, so their size is limited and every fault in them,
from a broken quote to a budget above the board's memory, becomes a ``ProfileError`` that names file, dotted
key, what was found and what is allowed. Of several faults an unknown key is told first: it usually explains
the missing ones.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from qslm_edge import device_profiles
from qslm_edge.errors import ProfileError
from qslm_edge.profiles.profile import Profile
from qslm_edge.profiles.values import PRINTABLE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["MAX_FILE_BYTES", "check_profile", "list_profiles", "load_profile", "read_profile", "submodel"]

MAX_FILE_BYTES = 256 * 1024

_WRONG_TYPES = {
    "bool_type": "true or false",
    "dict_type": "a table",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "model_type": "a table",
    "string_type": "text in quotes",
    "tuple_type": "a list",
}


def load_profile(name_or_path: str) -> Profile:
    """Return a profile by id, alias or path.

    Args:
        name_or_path: a shipped id or alias, or a file (ends in ``.toml`` or contains a path separator).

    Raises:
        ProfileError: nothing of that name, or a file that is not a valid profile.
    """
    if name_or_path.endswith(".toml") or any(
        mark and mark in name_or_path for mark in ("/", os.sep, os.altsep)
    ):
        return read_profile(Path(name_or_path))
    if name_or_path in device_profiles.names():
        return _shipped(name_or_path)
    profiles = list_profiles()
    for profile in profiles:
        if name_or_path in profile.aliases:
            return profile
    guess = _guess(name_or_path, profiles)
    raise ProfileError(
        "unknown board",
        found=_shown(name_or_path),
        hint=f"{guess}`qslm-edge profiles list` shows the boards; a file of your own needs a path, "
        "e.g. ./my-board.toml",
    )


def _guess(name: str, profiles: list[Profile]) -> str:
    """Ask what an unknown name may mean: every size of a board named without its memory, else the nearest."""
    plain = name.lower().replace("_", "-").replace(" ", "-")
    known = {each: profile.id for profile in profiles for each in (profile.id, *profile.aliases)}
    sizes: dict[str, str] = {}
    for each, board in known.items():
        if plain and re.fullmatch(rf"{re.escape(plain)}-[0-9]+gb", each):
            sizes.setdefault(board, each)
    if plain not in known and len(sizes) > 1:
        *firsts, last = (f"'{each}'" for each in sorted(sizes.values(), key=lambda each: (len(each), each)))
        return f"did you mean {', '.join(firsts)} or {last}? "
    near = get_close_matches(plain, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'? " if near else ""


def list_profiles() -> list[Profile]:
    """Return the shipped profiles, sorted by id.

    Raises:
        ProfileError: one of them is not valid, or two share a name.
    """
    profiles = [_shipped(name) for name in device_profiles.names()]
    owner: dict[str, str] = {}
    for profile in profiles:
        for name in (profile.id, *profile.aliases):
            if name in owner:
                raise ProfileError(
                    "two shipped profiles share a name",
                    where=f"{profile.id}.toml: aliases",
                    found=f"{name}, also in {owner[name]}",
                )
            owner[name] = f"{profile.id}.toml"
    return profiles


def read_profile(path: Path) -> Profile:
    """Read and check one profile file.

    Raises:
        ProfileError: the file is missing, unreadable, too large, not TOML, or not a valid profile.
    """
    return check_profile(_read_toml(path), path)


def check_profile(data: Mapping[str, Any], path: Path) -> Profile:
    """Check the data of a profile.

    Args:
        data: what the TOML file holds.
        path: the file, for the error line.

    Raises:
        ProfileError: the first fault.
    """
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        raise _explain(path, error) from None


def _shipped(name: str) -> Profile:
    path = device_profiles.path(name)
    profile = read_profile(path)
    if profile.id != name:
        raise ProfileError(
            "the id is not the name of the file", where=f"{path}: id", found=profile.id, allowed=name
        )
    return profile


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        hint = "`qslm-edge profiles list` shows the boards that need no file"
        raise ProfileError("no such profile file", where=path, hint=hint) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ProfileError(f"cannot read the profile: {reason}", where=path) from None
    if len(raw) > MAX_FILE_BYTES:
        raise ProfileError("too large for a profile", where=path, allowed=f"at most {MAX_FILE_BYTES} bytes")
    try:
        data: dict[str, Any] = tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ProfileError(
            "not UTF-8 text", where=path, found=f"byte {raw[error.start]:#04x} at {error.start}"
        ) from None
    except ValueError as error:  # TOMLDecodeError, and Python's limit on the digits of a number
        raise ProfileError("not valid TOML", where=path, found=_clean(str(error))) from None
    except RecursionError:
        raise ProfileError("nested too deeply for a profile", where=path) from None
    return data


def _explain(path: Path, error: ValidationError) -> ProfileError:
    details = error.errors(include_url=False)
    first = min(details, key=lambda detail: detail["type"] != "extra_forbidden")
    loc = [part for part in first["loc"] if part != "[key]"]
    kind, context = first["type"], first.get("ctx", {})
    where = f"{path}: {_dotted(loc)}"
    if kind == "profile":
        key = _dotted([*loc, context["key"]]) if context["key"] else _dotted(loc)
        return ProfileError(
            _clean(context["what"]),
            where=f"{path}: {key}",
            found=None if context["found"] is None else _shown(context["found"]),
            allowed=context["allowed"],
        )
    if kind == "extra_forbidden":
        keys = _keys(_model_at(loc[:-1]))
        near = get_close_matches(str(loc[-1]), keys, n=1, cutoff=0.5)
        if near:
            return ProfileError(
                "unknown key", where=where, hint=f"did you mean '{near[0]}' ({keys[near[0]]})?"
            )
        return ProfileError("unknown key", where=where, allowed=", ".join(keys))
    field = _field_at(loc)
    allowed = field.description if field is not None else None
    if kind == "missing":
        return ProfileError("missing key", where=where, allowed=allowed)
    what = "wrong type" if kind in _WRONG_TYPES else "not an allowed value"
    if kind in _WRONG_TYPES:
        allowed = f"{_WRONG_TYPES[kind]}: {allowed}"
    elif "expected" in context:
        allowed = str(context["expected"])
    elif context.get("pattern") == PRINTABLE:
        allowed = f"{allowed}, without control characters"
    else:
        allowed = f"{allowed}{_range(first)}"
    return ProfileError(what, where=where, found=_shown(first["input"]), allowed=allowed)


def _dotted(loc: list[Any]) -> str:
    """Write a location as a dotted key; entries of a list are counted from 1, as a reader does."""
    text = ""
    for part in loc:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{_clean(str(part))}"
    return text.removeprefix(".") or "the file"


def _field_at(loc: list[Any]) -> FieldInfo | None:
    """Return the innermost field on the way to a location."""
    model: type[BaseModel] | None = Profile
    field: FieldInfo | None = None
    for part in loc:
        if isinstance(part, str) and model is not None and part in (fields := _fields(model)):
            field = fields[part]
            model = submodel(field.annotation)
    return field


def _model_at(loc: list[Any]) -> type[BaseModel]:
    field = _field_at(loc)
    return (submodel(field.annotation) if field is not None else None) or Profile


def _fields(model: type[BaseModel]) -> Mapping[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _keys(model: type[BaseModel]) -> dict[str, str]:
    return {name: field.description or "" for name, field in _fields(model).items()}


def submodel(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field's type holds, if any."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := submodel(part)) is not None), None)


def _range(detail: ErrorDetails) -> str:
    names = {
        "ge": "from",
        "gt": "above",
        "le": "up to",
        "lt": "below",
        "max_length": "at most",
        "min_length": "at least",
    }
    limits = [f"{names[key]} {value}" for key, value in detail.get("ctx", {}).items() if key in names]
    return f" ({', '.join(limits)})" if limits else ""


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)
    text = _clean(text)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return f"'{text}'" if isinstance(value, str) else text


def _clean(text: str) -> str:
    return "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape").decode("ascii") for mark in text
    )
