"""Where and how a bundle runs on this machine: provider or engine, and the settings in force.

Never another provider in silence: what was planned, what is there and what runs stand beside each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qslm_edge import __version__
from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import RuntimeFault, UsageError
from qslm_edge.runner.machine import Machine
from qslm_edge.runner.run_settings import (
    RUN_SETTINGS,
    Asked,
    Circumstances,
    InForce,
    check_writable,
    settings_in_force,
    write_run_settings,
)
from qslm_edge.runner.runtime import CPU, uses_gpu
from qslm_edge.runner.sessions import check_engine
from qslm_edge.runner.sessions.base import ONNXRUNTIME, SessionOptions
from qslm_edge.runner.tune_settings import tune

__all__ = ["Placed", "Tuner", "choose_provider", "place_bundle"]


@dataclass(frozen=True)
class Tuner:
    """That settings are to be measured first.

    Attributes:
        allow_fallback: as the user allows.
        on_progress: told (title, share) of each process.
    """

    allow_fallback: bool
    on_progress: Callable[[str, float], None]


@dataclass(frozen=True)
class Placed:
    """What runs a bundle.

    Attributes:
        provider: of onnxruntime; CPU where an engine of the runner's own takes its place.
        placement: what the report says of it.
        in_force: the settings, and where they come from.
    """

    provider: str
    placement: dict[str, Any]
    in_force: InForce

    def session(self, allow_fallback: bool) -> SessionOptions:
        """The options of its session."""
        return self.in_force.settings.session(self.provider, allow_fallback)


def place_bundle(
    bundle: Bundle, runtime: Any, machine: Machine, asked: Asked, tuner: Tuner | None = None
) -> Placed:
    """Choose provider and settings for a bundle on this machine.

    Args:
        bundle: what is to run.
        runtime: the onnxruntime module.
        machine: this host itself, also where a recorded tree plays the board.
        asked: what the user's flags say.
        tuner: measures the settings and keeps them beside the bundle; None takes those that are there.

    Raises:
        UsageError: an engine or a provider that does not exist, or both at once.
        RuntimeFault: the asked provider is not in this onnxruntime.
        BundleError: run-settings.json is damaged.
        OutputError: the measured settings cannot be kept.
    """
    engine = asked.engine or ONNXRUNTIME
    check_engine(engine)

    def choose(engine: str) -> tuple[str, dict[str, Any]]:
        return choose_provider(
            list(bundle.manifest["runtime"]["providers"]),
            available=runtime.get_available_providers(),
            known=runtime.get_all_providers(),
            asked=asked.provider,
            engine=engine,
        )

    provider, placement = choose(engine)
    now = Circumstances.of(bundle, str(runtime.__version__), provider, machine)
    if tuner is not None:
        check_writable(bundle)
        chosen, measurements = tune(
            bundle, provider, asked, allow_fallback=tuner.allow_fallback, on_progress=tuner.on_progress
        )
        write_run_settings(bundle, now, chosen, measurements, __version__)
    in_force = settings_in_force(bundle, now, asked)
    if in_force.settings.engine != engine:
        provider, placement = choose(in_force.settings.engine)
        placement["note"] = f"engine chosen by {RUN_SETTINGS}"
    return Placed(provider, placement, in_force)


def choose_provider(
    planned: list[str],
    *,
    available: list[str],
    known: list[str],
    asked: str | None,
    engine: str = ONNXRUNTIME,
) -> tuple[str, dict[str, Any]]:
    """Which provider runs the bundle, and what is said about it. Never another one in silence.

    Args:
        planned: providers of the profile in order of preference.
        available: those of this onnxruntime build.
        known: every name that onnxruntime has.
        asked: the user's choice.
        engine: one of the runner's own takes the place of a provider.

    Returns:
        The provider, and what the report says of it; `as_planned` is False when the CPU stands in for an
        accelerator.

    Raises:
        UsageError: the user asked for a name that does not exist, or for a provider and another engine.
        RuntimeFault: the asked provider is not in this onnxruntime.
    """
    if engine != ONNXRUNTIME:
        if asked is not None:
            raise UsageError(
                "a provider belongs to onnxruntime",
                where=f"--provider {asked}",
                hint=f"leave it out with --engine {engine}",
            )
        return CPU, {
            "planned": planned,
            "available": available,
            "provider": engine,
            # the same processor as planned: the plan names the board's chip, the engine only what drives it
            "as_planned": uses_gpu(engine) == uses_gpu(planned[0]),
            "note": "engine asked for by the user",
        }
    if asked is not None:
        if asked not in known:
            raise UsageError(
                "unknown execution provider", where="--provider", found=asked, allowed=", ".join(available)
            )
        if asked not in available:
            raise _missing(asked, available, "install a build that has it, or leave --provider out")
        chosen, note = asked, "asked for by the user"
    else:
        chosen = next((name for name in planned if name in available), CPU)
        note = "first choice of the profile"
        if chosen != planned[0]:
            # on the board too: a rehearsal says so, and never gives the board's speed or power
            how = "rehearsed on the CPU" if chosen == CPU else f"{chosen} is the profile's next choice"
            note = f"{planned[0]} is not in this onnxruntime: {how}"
    return chosen, {
        "planned": planned,
        "available": available,
        "provider": chosen,
        "as_planned": chosen == planned[0] or (chosen in planned and chosen != CPU),
        "note": note,
    }


def _missing(provider: str, available: list[str], hint: str) -> RuntimeFault:
    return RuntimeFault(
        "onnxruntime lacks the execution provider", found=", ".join(available), allowed=provider, hint=hint
    )
