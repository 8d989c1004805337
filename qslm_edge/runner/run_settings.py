"""How a bundle is run on this machine: what the user's flags say, else run-settings.json, else the defaults.

`verify --tune` measures the choices that change no result but the time, and keeps the best in run-settings.json
beside the bundle's files. That file belongs to one machine: the manifest does not name it, and where machine,
onnxruntime or bundle are others than those it was measured with, it is ignored and that is told. Whoever can
write into the bundle can write this file, so it is checked like all input: it can choose among what the runner
offers and nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import BundleError, OutputError
from qslm_edge.runner.machine import Machine
from qslm_edge.runner.sessions import ENGINES
from qslm_edge.runner.sessions.base import DEFAULT, ONNXRUNTIME, SessionOptions

__all__ = [
    "RUN_SETTINGS",
    "Asked",
    "Circumstances",
    "InForce",
    "RunSettings",
    "check_writable",
    "settings_in_force",
    "settings_words",
    "write_run_settings",
]

RUN_SETTINGS, SCHEMA = "run-settings.json", "qslm-edge/run-settings/1"
MAX_BYTES = 2**20
MAX_THREADS, MAX_CHUNK = 1024, 4096
_MACHINE = ("arch", "cpu_model", "cores_usable", "device_tree_model", "gpu_names")
"""What makes a machine another one: not its host name, and not what updates of its system change."""
_SOURCE_WORDS = {"default": "defaults", "flag": "flags"}
_HINT = "delete the file, or measure anew with verify --tune"


@dataclass(frozen=True)
class RunSettings:
    """The choices; none of them changes what is computed by more than rounding.

    Attributes:
        engine: "onnxruntime", or one of the runner's own.
        threads: that compute.
        spinning: let waiting threads spin.
        prefill_chunk: tokens of a prompt that run together.
    """

    engine: str = DEFAULT.engine
    threads: int = DEFAULT.threads
    spinning: bool = DEFAULT.spinning
    prefill_chunk: int = DEFAULT.prefill_chunk

    def session(self, provider: str, allow_fallback: bool = False) -> SessionOptions:
        """As the options of a session."""
        return SessionOptions(**asdict(self), provider=provider, allow_fallback=allow_fallback)


@dataclass(frozen=True)
class Asked:
    """What the user's flags say; None is nothing.

    Attributes:
        provider, engine, threads, spinning: as given.
    """

    provider: str | None = None
    engine: str | None = None
    threads: int | None = None
    spinning: bool | None = None


@dataclass(frozen=True)
class Circumstances:
    """With what run settings were measured, or are to be used.

    Attributes:
        bundle: digest.
        onnxruntime: version.
        provider: of onnxruntime that the profile, or the user, chose.
        machine: the parts of its description that make it another one.
    """

    bundle: str
    onnxruntime: str
    provider: str
    machine: dict[str, Any]

    @classmethod
    def of(cls, bundle: Bundle, onnxruntime: str, provider: str, machine: Machine) -> Circumstances:
        """Those of now."""
        described = machine.to_dict()
        return cls(bundle.digest, onnxruntime, provider, {key: _listed(described[key]) for key in _MACHINE})

    def difference(self, stored: dict[str, Any]) -> str | None:
        """The first part that another document was measured without, in words."""
        for name in ("bundle", "onnxruntime", "provider"):
            if stored[name] != getattr(self, name):
                return f"another {name} ({stored[name][:40]})"
        for key, value in self.machine.items():
            if stored["machine"].get(key) != value:
                return f"another machine ({key} {str(stored['machine'].get(key))[:60]})"
        return None


@dataclass(frozen=True)
class InForce:
    """The settings that a run uses.

    Attributes:
        settings: the values.
        sources: where each comes from: "flag", "run-settings.json" or "default".
        note: why run-settings.json is there and not used; else None.
        tuning: the document of run-settings.json where it is used.
    """

    settings: RunSettings
    sources: dict[str, str]
    note: str | None
    tuning: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """For a result, ready for JSON."""
        return {**asdict(self.settings), "sources": self.sources, "note": self.note, "tuning": self.tuning}


def settings_words(found: Mapping[str, Any]) -> str:
    """The `run_settings` of a result in a line, with where they come from."""
    many = "s" if found["threads"] > 1 else ""
    spinning = ", spinning" if found["spinning"] else ""
    sources = dict.fromkeys(found["sources"].values())
    text = (
        f"{found['engine']}, {found['threads']} thread{many}{spinning}, prompts in chunks of "
        f"{found['prefill_chunk']} ({' and '.join(_SOURCE_WORDS.get(name, name) for name in sources)})"
    )
    return text if found["note"] is None else f"{text}; {found['note']}"


def settings_in_force(bundle: Bundle, now: Circumstances, asked: Asked) -> InForce:
    """What the flags say, else run-settings.json where it is of this machine, else the defaults.

    Raises:
        BundleError: run-settings.json is damaged.
    """
    stored = _read(bundle.file(RUN_SETTINGS))
    note = None if stored is None else _why_not(stored, now, asked)
    used = None if note is not None else stored
    base = RunSettings() if used is None else RunSettings(**used["chosen"])
    given = {
        name: value
        for name in ("engine", "threads", "spinning")
        if (value := getattr(asked, name)) is not None
    }
    origin = "default" if used is None else RUN_SETTINGS
    sources = {item.name: "flag" if item.name in given else origin for item in fields(RunSettings)}
    said = None if note is None else f"{RUN_SETTINGS} is ignored: {note}"
    return InForce(replace(base, **given), sources, said, used)


def _why_not(stored: dict[str, Any], now: Circumstances, asked: Asked) -> str | None:
    """Why settings that are there do not count here."""
    engine = stored["chosen"]["engine"]
    if (different := now.difference(stored)) is not None:
        return f"measured with {different}"
    if engine not in ENGINES:
        return f"engine {engine[:40]} is not in this runner"
    if asked.engine is not None and asked.engine != engine:
        return f"measured for the engine {engine}"
    if asked.provider is not None and engine != ONNXRUNTIME:
        return f"they name the engine {engine}, and --provider is given"
    return None


def check_writable(bundle: Bundle) -> None:
    """Refuse a bundle whose settings could not be kept, before anything is measured.

    Raises:
        OutputError: its directory cannot be written.
    """
    if not os.access(bundle.path, os.W_OK):
        raise OutputError(
            "run settings cannot be kept",
            where=bundle.path,
            found="a directory that cannot be written",
            hint="copy the bundle to a place of your own, or give the settings as flags",
        )


def write_run_settings(
    bundle: Bundle, now: Circumstances, chosen: RunSettings, measurements: dict[str, Any], tool_version: str
) -> None:
    """Keep settings with what they were measured with, replacing older ones.

    Raises:
        OutputError: the directory cannot be written.
    """
    document = {"schema": SCHEMA, "tool_version": tool_version, **asdict(now)}
    document |= {"chosen": asdict(chosen), "measurements": measurements}
    path = bundle.file(RUN_SETTINGS)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", "utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError("run settings cannot be kept", where=path, found=error.strerror) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def _read(path: Path) -> dict[str, Any] | None:
    """The checked document; None where there is no file.

    Raises:
        BundleError: it is not what `write_run_settings` writes.
    """
    if not os.path.lexists(path):
        return None
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise ValueError(f"not a file of up to {MAX_BYTES} bytes")
        document = json.loads(path.read_text("utf-8"), parse_constant=_refuse_constant)
        _check(document)
    except (OSError, ValueError, RecursionError) as error:
        found = error.strerror if isinstance(error, OSError) else str(error) or type(error).__name__
        raise BundleError("damaged run settings", where=path, found=str(found)[:200], hint=_HINT) from None
    checked: dict[str, Any] = document
    return checked


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _check(document: Any) -> None:
    """Refuse what is not a document of this schema; messages name the key."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"not a document of schema {SCHEMA}")
    for key in ("bundle", "onnxruntime", "provider", "tool_version"):
        if not isinstance(document.get(key), str):
            raise ValueError(f"{key} is no text")
    for key in ("machine", "measurements", "chosen"):
        if not isinstance(document.get(key), dict):
            raise ValueError(f"{key} is no object")
    chosen = document["chosen"]
    if set(chosen) != {item.name for item in fields(RunSettings)}:
        raise ValueError("chosen has other keys")
    if not isinstance(chosen["engine"], str) or not isinstance(chosen["spinning"], bool):
        raise ValueError("chosen.engine is no text, or chosen.spinning neither true nor false")
    for key, limit in (("threads", MAX_THREADS), ("prefill_chunk", MAX_CHUNK)):
        if type(chosen[key]) is not int or not 1 <= chosen[key] <= limit:  # a bool is an int to Python
            raise ValueError(f"chosen.{key} is no whole number from 1 to {limit}")


def _listed(value: object) -> object:
    """A tuple as the list that JSON makes of it."""
    return list(value) if isinstance(value, tuple) else value
