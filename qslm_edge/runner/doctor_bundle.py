"""Findings of `doctor` on a bundle: whether this machine can verify it, each need tried on its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import QslmError
from qslm_edge.runner.child import run_child
from qslm_edge.runner.findings import Finding
from qslm_edge.runner.machine import Machine
from qslm_edge.runner.matching import matches
from qslm_edge.runner.memory import available_bytes
from qslm_edge.runner.observe import is_live
from qslm_edge.runner.power import PowerSource, open_source
from qslm_edge.runner.probe import ProviderProbe
from qslm_edge.runner.runtime import CPU, uses_gpu, version_tuple
from qslm_edge.runner.survey import MemoryProof, RuntimeFacts

__all__ = ["bundle_findings"]

Probes = Mapping[str, ProviderProbe]
Progress = Callable[[str, float], None]


def bundle_findings(
    bundle: Bundle,
    facts: RuntimeFacts,
    probes: Probes,
    machine: Machine,
    memory: MemoryProof,
    root: Path,
    on_progress: Progress,
) -> list[Finding]:
    """Try what a bundle needs.

    Args:
        bundle: opened without a check of its files.
        facts, probes: runtime and providers of this machine, tried already.
        machine: the host, or the board that a recorded tree plays.
        memory: whether the read-out of the peak is believed.
        root: "/", or that tree.
        on_progress: told of the steps.
    """
    simulated = not is_live(root)
    is_board, why = matches(bundle.manifest["profile"]["match"], machine)
    board = Finding("bundle", "board", "ok" if is_board else "warning", why, _REHEARSAL[is_board])
    files = _files(bundle)
    runtime = _runtime(bundle, facts)
    findings = [files, replace(board, simulated=simulated), runtime]
    provider = next((name for name in _planned(bundle) if _runs(probes, name)), CPU)
    if facts.version is not None:
        findings.append(_provider(bundle, probes, is_board))
        findings += _widths(bundle, probes.get(provider))
    if "problem" in (files.status, runtime.status) or not _runs(probes, provider):
        findings.append(
            Finding("bundle", "golden vectors", "warning", "not run: what stands above comes first")
        )
    else:
        on_progress("golden vectors", 0.0)
        findings.append(_golden(bundle, provider, on_progress))
    findings += _memory(bundle, memory, root)
    findings.append(replace(_power(bundle, provider, is_board, root), simulated=simulated))
    return findings


_REHEARSAL = {True: None, False: "verify gives a rehearsal here; for the verdict of the board run it there"}


def _planned(bundle: Bundle) -> list[str]:
    return [str(name) for name in bundle.manifest["runtime"]["providers"]]


def _runs(probes: Probes, provider: str) -> bool:
    return provider in probes and probes[provider].runs


def _files(bundle: Bundle) -> Finding:
    try:
        bundle.check_files()
    except QslmError as error:
        return Finding("bundle", "files", "problem", error.line(), error.hint)
    sizes = bundle.file_bytes
    total = sum(sizes.values()) / 1e6
    return Finding("bundle", "files", "ok", f"{len(sizes)} files, {total:.2f} MB, every digest is right")


def _runtime(bundle: Bundle, facts: RuntimeFacts) -> Finding:
    needed = str(bundle.manifest["runtime"]["onnxruntime_min"])
    if facts.version is None:
        detail = f"needs onnxruntime {needed}, and none can be imported"
    elif version_tuple(facts.version) < version_tuple(needed):
        detail = f"needs onnxruntime {needed}, here is {facts.version}"
    else:
        detail = f"needs onnxruntime {needed}, here is {facts.version}"
        return Finding("bundle", "runtime", "ok", detail)
    step = f"install {needed} or newer, or export again for a profile with this runtime"
    return Finding("bundle", "runtime", "problem", detail, step)


def _provider(bundle: Bundle, probes: Probes, is_board: bool) -> Finding:
    first = _planned(bundle)[0]
    if _runs(probes, first):
        return Finding("bundle", "provider", "ok", f"{first}, the profile's first choice, runs here")
    why = probes[first].float32.reason if first in probes else "not in this build of onnxruntime"
    others = [name for name in (*_planned(bundle)[1:], CPU) if _runs(probes, name)]
    detail = f"the profile promises {first}, which does not run here: {why}"
    if is_board or not others:
        step = "install a build of onnxruntime that runs it, or correct runtime.providers of the profile"
        return Finding("bundle", "provider", "problem", detail, step)
    return Finding("bundle", "provider", "warning", f"{detail}; {others[0]} stands in", _REHEARSAL[False])


def _widths(bundle: Bundle, probe: ProviderProbe | None) -> list[Finding]:
    """Every packed form of the setting, against what the provider showed."""
    if probe is None or not probe.runs:
        return []
    needed = set()
    for module, text in bundle.manifest["setting"].items():
        match = re.fullmatch(r"([0-9]+)g([0-9]+)m?(f?)(?:@[0-9]+)?", str(text))
        if match is not None and module != "emb":  # rows of the embedding are looked up, not multiplied
            needed.add((int(match[1]), 0 if match[3] else 4, int(match[2])))
    shown = {(o.form.bits, o.form.accuracy_level, o.form.block_size): o for o in probe.forms}
    findings = []
    for key in sorted(needed, key=lambda form: (-form[0], *form[1:])):
        outcome = shown.get(key)
        name = f"{key[0]} bits, block {key[2]}, accuracy level {key[1]}"
        if outcome is None:
            findings.append(Finding("bundle", name, "warning", "a form that was not tried"))
        elif outcome.status == "fast":
            detail = f"{outcome.float_ratio or 0.0:.1f} times the time of float32"
            findings.append(Finding("bundle", name, "ok", detail))
        elif outcome.status == "slow":
            detail = f"{outcome.float_ratio or 0.0:.0f} times the time of float32: dequantised on every call"
            stands_in = probe.provider != _planned(bundle)[0]
            step = _REHEARSAL[False] if stands_in else "update onnxruntime, or export without this form"
            findings.append(Finding("bundle", name, "warning", detail, step))
        else:
            step = "export for a profile of this machine: qslm-edge profiles detect"
            findings.append(Finding("bundle", name, "problem", outcome.reason or outcome.status, step))
    return findings


def _golden(bundle: Bundle, provider: str, on_progress: Progress) -> Finding:
    """Every operator has a kernel and the whole graph computes the same, or the reason why not."""
    place = str(bundle.path.resolve())
    name = "golden vectors"
    try:
        answer: dict[str, Any] = run_child(["_golden", place, f"--provider={provider}"], on_progress)
    except QslmError as error:
        return Finding("bundle", name, "problem", error.line(), error.hint)
    golden = answer["golden"]
    detail = (
        f"{golden['measure']} {golden['value']:.2g}, allowed {golden['tolerance']:g}, "
        f"{golden['n_tokens']} tokens on {provider}"
    )
    if golden["ok"]:
        return Finding("bundle", name, "ok", f"every operator runs; {detail}")
    step = "another release of onnxruntime, or report this with the version"
    return Finding("bundle", name, "problem", detail, step)


def _memory(bundle: Bundle, memory: MemoryProof, root: Path) -> list[Finding]:
    budget = bundle.manifest["constraints"].get("memory_budget_bytes")
    predicted = bundle.manifest["weights"].get("predicted_peak_rss_bytes")
    findings = []
    if budget is not None and not memory.ok:
        detail = f"a limit of {budget / 1e6:.0f} MB cannot be judged: {memory.reason}"
        findings.append(
            Finding("bundle", "memory limit", "problem", detail, "verify where the peak can be read")
        )
    free = available_bytes(root)
    if isinstance(predicted, (int, float)) and free.value is not None:
        detail = f"{predicted / 1e6:.0f} MB predicted, {free.value / 1e6:.0f} MB available"
        fits = predicted <= free.value
        step = None if fits else "free some memory, or raise the limit of the container"
        status = Finding("bundle", "memory", "ok" if fits else "problem", detail, step)
        findings.append(replace(status, simulated=not is_live(root)))
    return findings


def _power(bundle: Bundle, provider: str, is_board: bool, root: Path) -> Finding:
    promised = bundle.manifest["profile"]["power"].get("source")
    source = open_source(promised, root, use_gpu=uses_gpu(provider), only_preferred=is_board)
    if not isinstance(source, PowerSource):
        return Finding("bundle", "power source", "warning", f"no energy: {source.reason}")
    try:
        if source.name == promised:
            return Finding("bundle", "power source", "ok", f"{source.name}, as the profile says")
        detail = f"the profile says {promised}; {source.name} of this host stands in"
        return Finding("bundle", "power source", "warning", detail, _REHEARSAL[False])
    finally:
        source.close()
