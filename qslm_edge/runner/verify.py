"""Verifying a bundle where it lies: is it whole, does it compute the same, does it meet its limits?

One process checks the digests and the host, a second scores, and memory, latency, prefill and energy are
measured in a fresh process each. Every figure says where it comes from. On a host that is not the board of the
profile it is a rehearsal: metric, bytes and memory count, speed and power belong to this host and are labelled
so. Nothing here changes the machine: no clock, no governor, no power mode.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qslm_edge import __version__
from qslm_edge.bundle.reader import MANIFEST, Bundle, open_bundle
from qslm_edge.errors import BundleError, RuntimeFault, UsageError
from qslm_edge.runner.child import run_child
from qslm_edge.runner.clock_watch import to_samples
from qslm_edge.runner.condition_readers import Conditions
from qslm_edge.runner.conditions import compare, mode_flags, not_read, read_conditions
from qslm_edge.runner.decode_energy import no_energy
from qslm_edge.runner.gate import exit_code, overall
from qslm_edge.runner.judge import checks_of
from qslm_edge.runner.limits import Limits, limits_in_force
from qslm_edge.runner.machine import identify, matches
from qslm_edge.runner.observe import is_live
from qslm_edge.runner.runtime import CPU, import_onnxruntime, uses_gpu
from qslm_edge.runner.sessions import check_engine
from qslm_edge.runner.sessions.base import ONNXRUNTIME, SessionOptions
from qslm_edge.runner.simulated import mark_result
from qslm_edge.runner.text import json_ready
from qslm_edge.runner.versions import read_versions

__all__ = ["VerifyOptions", "all_flags", "choose_provider", "verify_bundle"]

SCHEMA = "qslm-edge/verify/1"
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class VerifyOptions:
    """How to verify.

    Attributes:
        provider: execution provider; None takes the first of the profile that this host has.
        threads: threads for decoding; scoring uses all cores.
        steps: decode steps to time; None times as many as fill some seconds.
        power: "smoke", "release" or "off".
        limits: those that are given replace the bundle's.
        power_source: interface to read, instead of the profile's; no other stands in for it.
        power_marker: make a marker pulse for an external meter.
        engine: "onnxruntime", or one of the runner's own.
        spinning: let waiting threads spin.
        allow_fallback: accept nodes that the provider leaves to the CPU.
        root: "/"; a folder with a recorded tree plays the board in a test. Then nothing is the board's, and
            what would be a pass is called "simulated".
    """

    provider: str | None = None
    threads: int = 1
    steps: int | None = None
    power: str = "smoke"
    limits: Limits = field(default_factory=Limits)
    power_source: str | None = None
    power_marker: bool = False
    engine: str = ONNXRUNTIME
    spinning: bool = False
    allow_fallback: bool = False
    root: Path = Path("/")


def verify_bundle(
    path: Path, options: VerifyOptions, on_progress: Progress = lambda _title, _share: None
) -> dict[str, Any]:
    """Verify a bundle.

    Args:
        path: bundle directory.
        options: how.
        on_progress: told (title, share) of each step.

    Returns:
        The result as documented in docs/report.md (`verification`), with "verdict" and "exit_code".

    Raises:
        BundleError: incomplete or tampered with, or changed while it was verified.
        RuntimeFault: runtime missing, too old, without the provider, or failing.
    """
    on_progress("checking files", 0.0)
    bundle = open_bundle(path)
    manifest, digest = bundle.manifest, bundle.digest
    limits = limits_in_force(manifest["constraints"], options.limits, bundle.file(MANIFEST))
    check_engine(options.engine)
    runtime = import_onnxruntime(manifest["runtime"]["onnxruntime_min"])
    machine = identify(options.root)
    is_board, why = matches(manifest["profile"]["match"], machine)
    provider, placement = choose_provider(
        list(manifest["runtime"]["providers"]),
        available=runtime.get_available_providers(),
        known=runtime.get_all_providers(),
        asked=options.provider,
        engine=options.engine,
    )
    before = read_conditions(options.root)
    run = _Runs(bundle, options, provider, is_board, on_progress)
    scored = run.score(limits.memory_budget_bytes)
    decoded = run.decode() if scored["golden"]["ok"] else None
    profile, weights = manifest["profile"], manifest["weights"]
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "tool_version": __version__,
        "bundle": {
            "digest": digest,
            "files": bundle.file_bytes,
            "bytes": sum(bundle.file_bytes.values()),
            "weights_bytes": weights["bytes"],
        },
        "task": {key: manifest["task"][key] for key in ("name", "kind", "metric", "unit", "direction")},
        "profile": {
            "id": profile["id"],
            "memory_kind": profile.get("memory_kind"),
            "budget_mib": profile.get("budget_mib"),
            "power_modes": _mode_names(profile),
        },
        "limits": limits.to_dict(),
        "host": {"machine": machine.to_dict(), "is_board": is_board, "why": why},
        "versions": read_versions(str(runtime.__version__)),
        "rehearsal": not (is_board and placement["as_planned"]),
        "placement": placement,
        "scoring": scored,
        "decode": decoded,
        "conditions": _conditions(before, decoded, options.root),
    }
    result["conditions"]["flags"] = all_flags(result)
    _check_again(bundle, digest)
    checks = checks_of(result)
    verdict = overall(checks)
    result |= {
        "verdict": verdict,
        "exit_code": exit_code(verdict),
        "checks": [check.to_dict() for check in checks],
    }
    ready: dict[str, Any] = json_ready(result if is_live(options.root) else mark_result(result))
    return {key: ready[key] for key in _ORDER}


_ORDER = (
    *("schema", "tool_version", "verdict", "exit_code", "bundle", "task", "profile", "limits", "host"),
    *("versions", "rehearsal", "placement", "checks", "scoring", "decode", "conditions"),
)


class _Runs:
    """The measuring processes of one verification, one after the other."""

    def __init__(
        self, bundle: Bundle, options: VerifyOptions, provider: str, is_board: bool, on_progress: Progress
    ) -> None:
        self._bundle = str(bundle.path.resolve())
        self._session = SessionOptions(
            options.engine, provider, options.threads, options.spinning, options.allow_fallback
        )
        self._options, self._on_progress = options, on_progress
        source = options.power_source or bundle.manifest["profile"]["power"].get("source")
        self._root = [] if is_live(options.root) else [f"--root={options.root.resolve()}"]
        self._power = [f"--power={options.power}", *([f"--power-source={source}"] if source else [])]
        self._power += ["--only-power-source"] if options.power_source else []
        self._power += ["--power-marker"] if options.power_marker else []
        self._power += ["--is-board"] if is_board else []

    def score(self, budget_bytes: int | None) -> dict[str, Any]:
        """Golden vectors and items, on all cores."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
        budget = [f"--memory-budget-bytes={budget_bytes}"] if budget_bytes else []
        session = replace(self._session, threads=cores).to_arguments()
        return run_child(["_score", self._bundle, *session, *budget], self._on_progress)

    def decode(self) -> dict[str, Any]:
        """Memory, latency, prefill and energy, each in a fresh process, joined as `decode` of the result."""
        steps = [] if self._options.steps is None else [f"--steps={self._options.steps}"]
        memory = self._measure("_memory")
        latency = self._measure("_latency", *steps)
        prefill = self._measure("_prefill")
        energy = no_energy("switched off (--power off)")
        if self._options.power != "off":
            energy = self._measure("_energy", *self._power)
        memory["memory"]["prefill_peak_rss_bytes"] = prefill["memory"]["peak_rss_bytes"]
        memory["memory"]["prefill"] = prefill["memory"]
        return {**memory, **latency, "prefill": prefill["prefill"], "energy": energy}

    def _measure(self, command: str, *more: str) -> dict[str, Any]:
        session = self._session.to_arguments()
        return run_child([command, self._bundle, *session, *self._root, *more], self._on_progress)


def _check_again(bundle: Bundle, digest: str) -> None:
    """What was measured is what was checked: the digests once more.

    Raises:
        BundleError: the bundle changed in between.
    """
    bundle.check_files()
    if bundle.digest != digest:
        raise BundleError(
            "the bundle changed while it was verified",
            where=bundle.file(MANIFEST),
            found=bundle.digest[:16],
            allowed=digest[:16],
            hint="verify again while nothing writes into it",
        )


def _mode_names(profile: dict[str, Any]) -> list[str]:
    """Names of the modes that a tool on the board sets and shows; power limits of a card are no modes."""
    modes = profile.get("power_modes") or []
    return [str(mode["name"]) for mode in modes if mode.get("tool") == "nvpmodel"]


def _conditions(before: Conditions, decoded: dict[str, Any] | None, root: Path) -> dict[str, Any]:
    """Those of the timed run; by this process, when nothing was decoded."""
    if decoded is not None:
        found: dict[str, Any] = decoded.pop("conditions")
    else:
        after = read_conditions(root)
        found = {
            "before": before.to_dict(),
            "after": after.to_dict(),
            "clocks": [],
            "flags": compare(before, after),
            "scope": "around the scoring process; decoding did not run, so clocks are not those of a load",
        }
    samples = [to_samples(run) for run in found["clocks"]]
    return {**found, "not_read": not_read(Conditions.from_dict(found["before"]), samples)}


def all_flags(result: dict[str, Any]) -> list[str]:
    """Every flag of a verification: of the timed run, its latency, and the energy runs.

    Args:
        result: with conditions, decode and profile; flags that stand in `conditions` are not looked at, so that
            they can be derived again.
    """
    conditions, decode = result["conditions"], result["decode"]
    before = Conditions.from_dict(conditions["before"])
    flags = mode_flags(before, result["profile"]["power_modes"]) + _run_flags(conditions)
    if decode is not None:
        energy = decode["energy"]
        flags += decode["latency"]["flags"]
        if energy["conditions"] is not None:
            flags += [f"energy runs: {flag}" for flag in _run_flags(energy["conditions"])]
        if energy["drift"]:
            flags.append("energy runs: the idle power after the run is not that before it")
    return flags


def _run_flags(run: dict[str, Any]) -> list[str]:
    samples = [to_samples(clocks) for clocks in run["clocks"]]
    return compare(Conditions.from_dict(run["before"]), Conditions.from_dict(run["after"]), samples)


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
