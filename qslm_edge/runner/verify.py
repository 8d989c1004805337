"""Verifying a bundle where it lies: is it whole, does it compute the same, does it meet its constraints?

One process checks the digests and the host, a second scores, a third decodes. Every figure says where it
comes from. On a host that is not the board of the profile it is a rehearsal: metric, bytes and memory count,
speed and power belong to this host and are labelled so.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qslm_edge import __version__
from qslm_edge.bundle.reader import Bundle, open_bundle
from qslm_edge.errors import RuntimeFault, UsageError
from qslm_edge.metrics import Paired
from qslm_edge.runner.child import run_child
from qslm_edge.runner.conditions import Conditions, compare, read_conditions
from qslm_edge.runner.gate import Check, agreement_check, exit_code, limit_check, overall, quality_check
from qslm_edge.runner.machine import identify, matches
from qslm_edge.runner.observe import is_live
from qslm_edge.runner.session import CPU, import_onnxruntime
from qslm_edge.runner.simulated import mark_result
from qslm_edge.runner.text import json_ready

__all__ = ["VerifyOptions", "choose_provider", "verify_bundle"]

SCHEMA = "qslm-edge/verify/1"
MIB = 2**20
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class VerifyOptions:
    """How to verify.

    Attributes:
        provider: execution provider; None takes the first of the profile that this host has.
        threads: threads for decoding; scoring uses all cores.
        steps: decode steps to time.
        power: "smoke", "release" or "off".
        power_source: interface to read, instead of the profile's; no other stands in for it.
        power_marker: make a marker pulse for an external meter.
        memory_budget_bytes: overrides the bundle's limit of the process peak.
        max_degradation: overrides the bundle's limit of the metric.
        root: "/"; a folder with a recorded tree plays the board in a test. Then nothing is the board's, and
            what would be a pass is called "simulated".
    """

    provider: str | None = None
    threads: int = 1
    steps: int = 256
    power: str = "smoke"
    memory_budget_bytes: int | None = None
    max_degradation: float | None = None
    power_source: str | None = None
    power_marker: bool = False
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
        The result as documented in docs/report.md (`verify`), with "verdict" and "exit_code".

    Raises:
        BundleError: incomplete or tampered with.
        RuntimeFault: runtime missing, too old, without the provider, or failing.
    """
    on_progress("checking files", 0.0)
    bundle = open_bundle(path)
    runtime = import_onnxruntime(bundle.manifest["runtime"]["onnxruntime_min"])
    simulated = not is_live(options.root)
    machine = identify(options.root)
    is_board, why = matches(bundle.manifest["profile"]["match"], machine)
    provider, placement = choose_provider(
        list(bundle.manifest["runtime"]["providers"]),
        available=runtime.get_available_providers(),
        known=runtime.get_all_providers(),
        asked=options.provider,
    )
    rehearsal = not (is_board and placement["as_planned"])
    before = read_conditions(options.root)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    place = str(bundle.path.resolve())
    budget = options.memory_budget_bytes or bundle.manifest["constraints"].get("memory_budget_bytes")
    scoring = ["_score", place, f"--provider={provider}", f"--threads={cores}"]
    scored = run_child(scoring + ([f"--memory-budget-bytes={budget}"] if budget else []), on_progress)
    decoded: dict[str, Any] | None = None
    if scored["golden"]["ok"]:
        arguments = ["_decode", place, f"--provider={provider}", f"--threads={options.threads}"]
        arguments += [f"--steps={options.steps}", f"--power={options.power}"]
        source = options.power_source or bundle.manifest["profile"]["power"].get("source")
        arguments += [f"--power-source={source}"] if source else []
        arguments += ["--only-power-source"] if options.power_source else []
        arguments += ["--power-marker"] if options.power_marker else []
        arguments += [f"--root={options.root.resolve()}"] if simulated else []
        decoded = run_child(arguments + (["--is-board"] if is_board else []), on_progress)
    conditions = (
        decoded.pop("conditions") if decoded is not None else _conditions_around(before, options.root)
    )
    checks = _checks(bundle, options, scored, decoded)
    verdict = overall(checks)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "tool_version": __version__,
        "verdict": verdict,
        "exit_code": exit_code(verdict),
        "bundle": {
            "digest": bundle.digest,
            "files": bundle.file_bytes,
            "bytes": sum(bundle.file_bytes.values()),
        },
        "host": {"machine": machine.to_dict(), "is_board": is_board, "why": why},
        "rehearsal": rehearsal,
        "placement": placement,
        "checks": [check.to_dict() for check in checks],
        "scoring": scored,
        "decode": decoded,
        "conditions": conditions,
    }
    ready: dict[str, Any] = json_ready(mark_result(result) if simulated else result)
    return ready


def _conditions_around(before: Conditions, root: Path) -> dict[str, Any]:
    """Conditions by this process, when no decode process could read them under load."""
    after = read_conditions(root)
    return {
        "before": before.to_dict(),
        "after": after.to_dict(),
        "flags": compare(before, after),
        "scope": "around the scoring process; decoding did not run, so clocks are not those of a load",
    }


def choose_provider(
    planned: list[str], *, available: list[str], known: list[str], asked: str | None
) -> tuple[str, dict[str, Any]]:
    """Which provider runs the bundle, and what is said about it. Never another one in silence.

    Args:
        planned: providers of the profile in order of preference.
        available: those of this onnxruntime build.
        known: every name that onnxruntime has.
        asked: the user's choice.

    Returns:
        The provider, and what the report says of it; `as_planned` is False when the CPU stands in for an
        accelerator.

    Raises:
        UsageError: the user asked for a name that does not exist.
        RuntimeFault: the asked provider is not in this onnxruntime.
    """
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


def _checks(
    bundle: Bundle, options: VerifyOptions, scored: dict[str, Any], decoded: dict[str, Any] | None
) -> list[Check]:
    golden = scored["golden"]
    checks = [
        agreement_check(
            "golden vectors", golden["value"], golden["tolerance"], golden["measure"], "runtime against torch"
        )
    ]
    constraints, task = bundle.manifest["constraints"], bundle.manifest["task"]
    search = scored["splits"].get("search", {}).get("against_search")
    if search is not None:
        checks.append(
            agreement_check(
                "agreement with the search",
                search["value"],
                search["allowed"],
                search["unit"],
                f"same items; stated tolerance {search['tolerance']:g} plus three paired standard errors",
            )
        )
    report = scored["splits"].get("report")
    if report is not None:
        limit = options.max_degradation
        limit = float(constraints["max_degradation"]) if limit is None else limit
        checks.append(
            quality_check(
                f"{task['metric']} {task['direction']}", Paired(**report["comparison"]), limit, task["unit"]
            )
        )
    weights = bundle.manifest["weights"]
    budget = constraints.get("weights_budget_bytes")
    checks += _present(limit_check("weights", float(weights["bytes"]), budget, "bytes"))
    if decoded is not None:
        peak = decoded["memory"]["decode_peak_rss_bytes"]
        limit_bytes = options.memory_budget_bytes or constraints.get("memory_budget_bytes")
        reason = decoded["memory"]["steady"].get("reason") or ""
        checks += _present(limit_check("peak RSS", peak, limit_bytes, "bytes", str(reason)))
    return checks


def _present(check: Check | None) -> list[Check]:
    return [] if check is None else [check]
