"""Writes the profile of the machine it runs on: look, draft, check, write, read again."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from qslm_edge.errors import OutputError
from qslm_edge.profiles.drafting import Draft, draft_profile
from qslm_edge.profiles.loading import check_profile, read_profile
from qslm_edge.profiles.profile import Profile
from qslm_edge.profiles.survey import Survey

__all__ = ["Detected", "check_output", "draft_and_check", "to_toml", "write_profile"]

_HEADER = """# Written by `qslm-edge profiles detect`.
# Every key is specified in docs/profile.md. Check budget, name and power before a decision rests on them.

"""


@dataclass(frozen=True)
class Detected:
    """A profile of a machine.

    Attributes:
        profile: checked.
        draft: its data, and what was left out.
    """

    profile: Profile
    draft: Draft


def draft_and_check(
    survey: Survey, path: Path, *, name: str | None = None, budget_bytes: int | None = None
) -> Detected:
    """Draft the profile of a survey and check it like any other.

    Args:
        survey: what was found.
        path: where it will be written, for the error line.
        name: name for people.
        budget_bytes: peak memory that a process may take.

    Raises:
        EnvironmentFault: the machine, or its runtime, can run no bundle.
        ProfileError: what the user gave does not fit, such as a budget above the memory.
    """
    draft = draft_profile(survey, name=name, budget_bytes=budget_bytes)
    return Detected(check_profile(draft.data, path), draft)


def check_output(path: Path, *, force: bool) -> None:
    """Refuse a place before seconds are spent on it.

    Raises:
        OutputError: a directory, a missing or read-only folder, or a file that stands there already.
    """
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise OutputError(
            "the profile cannot be written there",
            where=path,
            allowed="a file in a directory that is writable",
        )
    if path.exists() and not force:
        raise OutputError(
            "a file stands there already",
            where=path,
            hint="give another name with --out, or replace it with --force",
        )


def to_toml(data: dict[str, Any]) -> str:
    """The text of a profile file."""
    return _HEADER + tomli_w.dumps(data)


def write_profile(
    detected: Detected, path: Path, replace: Callable[[Path, Path], object] = os.replace
) -> None:
    """Write a profile, all at once, after it was read again with the same facts.

    Args:
        detected: what to write.
        path: the file.
        replace: the last step, for tests.

    Raises:
        OutputError: the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(to_toml(detected.draft.data), "utf-8")
        if read_profile(temporary) != detected.profile:
            raise OutputError("the profile reads differently from what was written", where=path)
        replace(temporary, path)
    except OSError as error:
        raise OutputError("the profile cannot be written", where=path, found=error.strerror) from None
    finally:
        with suppress(OSError):
            temporary.unlink()
