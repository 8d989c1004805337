"""`doctor`: what this machine can run and measure, and whether it can verify a bundle; each claim is tried.

The machine first, then the bundle on it. Nothing is changed and nothing is kept. With a recorded tree of files
in the place of /proc and /sys what was read there is marked as simulated, and the exit code is never 0.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qslm_edge import __version__
from qslm_edge.bundle.reader import open_bundle
from qslm_edge.errors import EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_PASS, EnvironmentFault
from qslm_edge.runner.doctor_bundle import bundle_findings
from qslm_edge.runner.doctor_machine import host_findings, runtime_findings
from qslm_edge.runner.findings import Finding
from qslm_edge.runner.machine import identify
from qslm_edge.runner.observe import is_live
from qslm_edge.runner.survey import prove_memory_in_child, prove_provider, runtime_facts
from qslm_edge.runner.text import json_ready

__all__ = ["SCHEMA", "examine"]

SCHEMA = "qslm-edge/doctor/1"
Progress = Callable[[str, float], None]


def examine(
    bundle: Path | None = None,
    *,
    root: Path = Path("/"),
    on_progress: Progress = lambda _title, _share: None,
) -> dict[str, Any]:
    """Try everything that a run needs.

    Args:
        bundle: whose needs are tried too.
        root: "/"; a folder with a recorded tree plays the board in a test.
        on_progress: told (title, share) of each step.

    Returns:
        JSON-able document with "findings", "probes", "summary" and "exit_code": 0 everything needed works,
        1 the bundle's needs are not met, 3 simulated, 4 the machine lacks what any run needs.

    Raises:
        BundleError: the path is no bundle at all (a damaged one is a finding).
    """
    opened = None if bundle is None else open_bundle(bundle, check=False)
    facts = runtime_facts()
    probes = {}
    for provider in facts.providers:
        on_progress(f"running nodes on {provider}", 0.0)
        probes[provider] = prove_provider(provider, on_progress)
    on_progress("reading memory, power and conditions", 0.0)
    machine, memory = identify(root), prove_memory_in_child()
    findings = runtime_findings(facts, probes) + host_findings(machine, memory, probes, root)
    if opened is not None:
        on_progress("checking the bundle", 0.0)
        findings += bundle_findings(opened, facts, probes, machine, memory, root, on_progress)
    code, summary = _outcome(findings, simulated=not is_live(root), with_bundle=opened is not None)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "tool_version": __version__,
        "simulated": not is_live(root),
        "machine": machine.to_dict(),
        "runtime": facts.to_dict(),
        "probes": [probe.to_dict() for probe in probes.values()],
        "bundle": None if opened is None else {"digest": opened.digest},
        "findings": [finding.to_dict() for finding in findings],
        "summary": summary,
        "exit_code": code,
    }
    ready: dict[str, Any] = json_ready(document)
    return ready


def _outcome(findings: list[Finding], *, simulated: bool, with_bundle: bool) -> tuple[int, str]:
    """Exit code and closing line. What the machine lacks is told before what the bundle misses."""
    problems = [finding for finding in findings if finding.status == "problem"]
    own = [finding for finding in problems if finding.area != "bundle"]
    warnings = sum(finding.status == "warning" for finding in findings)
    noted = f", {warnings} warning{'s' if warnings != 1 else ''}" if warnings else ""
    if own:
        names = "; ".join(finding.name for finding in own)
        return EnvironmentFault.exit_code, f"This machine lacks what a run needs: {names}{noted}."
    if problems:
        names = "; ".join(finding.name for finding in problems)
        return EXIT_FAIL, f"This machine does not meet what the bundle needs: {names}{noted}."
    if simulated:
        return EXIT_INCONCLUSIVE, f"Simulated: a recorded tree of files says nothing of a board{noted}."
    what = "this bundle can be verified here" if with_bundle else "bundles can run and be measured here"
    return EXIT_PASS, f"Everything needed works: {what}{noted}."
