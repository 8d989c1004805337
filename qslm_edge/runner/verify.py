"""Verifying a bundle where it lies: is it whole, does it compute the same, does it meet its limits?

One process checks the digests and the host, a second scores, and memory, latency, prefill and energy are
measured in a fresh process each. Every figure says where it comes from. On a host that is not the board of the
profile it is a rehearsal: metric, bytes and memory count, speed and power belong to this host and are labelled
so. Nothing here changes the machine: no clock, no governor, no power mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qslm_edge import __version__
from qslm_edge.bundle.reader import MANIFEST, Bundle, open_bundle
from qslm_edge.errors import BundleError
from qslm_edge.runner.child import run_child
from qslm_edge.runner.clock_watch import to_samples
from qslm_edge.runner.condition_readers import Conditions
from qslm_edge.runner.conditions import compare, mode_flags, not_read, read_conditions
from qslm_edge.runner.decode_energy import no_energy
from qslm_edge.runner.gate import exit_code, overall
from qslm_edge.runner.judge import checks_of
from qslm_edge.runner.limits import Limits, limits_in_force
from qslm_edge.runner.machine import identify
from qslm_edge.runner.matching import matches
from qslm_edge.runner.memory_need import check_memory
from qslm_edge.runner.observe import is_live
from qslm_edge.runner.placement import Tuner, choose_provider, place_bundle
from qslm_edge.runner.run_settings import Asked
from qslm_edge.runner.runtime import import_onnxruntime
from qslm_edge.runner.sessions.base import SessionOptions
from qslm_edge.runner.simulated import mark_result
from qslm_edge.runner.text import json_ready
from qslm_edge.runner.tune_settings import usable_cores
from qslm_edge.runner.versions import read_versions

__all__ = ["VerifyOptions", "all_flags", "choose_provider", "verify_bundle"]

SCHEMA = "qslm-edge/verify/1"
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class VerifyOptions:
    """How to verify.

    Attributes:
        provider: execution provider; None takes the first of the profile that this host has.
        threads: threads for decoding; scoring uses all cores. None, as of `engine` and `spinning`: what
            run-settings.json says, else the default.
        steps: decode steps to time; None times as many as fill some seconds.
        power: "smoke", "release" or "off".
        limits: those that are given replace the bundle's.
        power_source: interface to read, instead of the profile's; no other stands in for it.
        power_marker: make a marker pulse for an external meter.
        engine: "onnxruntime", or one of the runner's own.
        spinning: let waiting threads spin.
        allow_fallback: accept nodes that the provider leaves to the CPU.
        tune: measure which settings run fastest here, and keep them beside the bundle, before anything else.
        root: "/"; a folder with a recorded tree plays the board in a test. Then nothing is the board's, and
            what would be a pass is called "simulated".
    """

    provider: str | None = None
    threads: int | None = None
    steps: int | None = None
    power: str = "smoke"
    limits: Limits = field(default_factory=Limits)
    power_source: str | None = None
    power_marker: bool = False
    engine: str | None = None
    spinning: bool | None = None
    allow_fallback: bool = False
    tune: bool = False
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
    asked = Asked(options.provider, options.engine, options.threads, options.spinning)
    runtime = import_onnxruntime(manifest["runtime"]["onnxruntime_min"])
    machine = identify(options.root)
    is_board, why = matches(manifest["profile"]["match"], machine)
    tuner = Tuner(options.allow_fallback, on_progress) if options.tune else None
    placed = place_bundle(bundle, runtime, identify(), asked, tuner)
    placement, session = placed.placement, placed.session(options.allow_fallback)
    check_memory(manifest["weights"], session.engine, bundle.file(MANIFEST))
    before = read_conditions(options.root)
    run = _Runs(bundle, options, session, is_board, on_progress)
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
        "run_settings": placed.in_force.to_dict(),
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
    *("versions", "rehearsal", "placement", "run_settings", "checks", "scoring", "decode", "conditions"),
)


class _Runs:
    """The measuring processes of one verification, one after the other."""

    def __init__(
        self,
        bundle: Bundle,
        options: VerifyOptions,
        session: SessionOptions,
        is_board: bool,
        on_progress: Progress,
    ) -> None:
        self._bundle, self._session = str(bundle.path.resolve()), session
        self._options, self._on_progress = options, on_progress
        source = options.power_source or bundle.manifest["profile"]["power"].get("source")
        self._root = [] if is_live(options.root) else [f"--root={options.root.resolve()}"]
        self._power = [f"--power={options.power}", *([f"--power-source={source}"] if source else [])]
        self._power += ["--only-power-source"] if options.power_source else []
        self._power += ["--power-marker"] if options.power_marker else []
        self._power += ["--is-board"] if is_board else []

    def score(self, budget_bytes: int | None) -> dict[str, Any]:
        """Golden vectors and items, on all cores."""
        budget = [f"--memory-budget-bytes={budget_bytes}"] if budget_bytes else []
        session = replace(self._session, threads=usable_cores()).to_arguments()
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
