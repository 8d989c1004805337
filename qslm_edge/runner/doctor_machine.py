"""Findings of `doctor` on the machine itself: runtime, providers, widths, memory, power, conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qslm_edge.runner.conditions import Conditions, read_conditions
from qslm_edge.runner.findings import Finding
from qslm_edge.runner.machine import Machine
from qslm_edge.runner.memory import available_bytes, cgroup_memory
from qslm_edge.runner.observe import is_live, list_paths
from qslm_edge.runner.power import PowerSource, open_source
from qslm_edge.runner.probe import Outcome, ProviderProbe
from qslm_edge.runner.runtime import CPU, RUNTIME_PACKAGES, uses_gpu
from qslm_edge.runner.survey import MemoryProof, RuntimeFacts

__all__ = ["host_findings", "runtime_findings"]

Probes = Mapping[str, ProviderProbe]


def runtime_findings(facts: RuntimeFacts, probes: Probes) -> list[Finding]:
    """onnxruntime, every provider that it lists, every packed width on those that run."""
    if facts.version is None:
        step = f"install {RUNTIME_PACKAGES}: python3 -m pip install onnxruntime"
        return [Finding("runtime", "onnxruntime", "problem", facts.reason or "cannot be imported", step)]
    packages = ", ".join(facts.packages) or "no package record: an own build"
    findings = [
        Finding("runtime", "onnxruntime", "ok", f"{facts.version} ({packages}), numpy {np.__version__}")
    ]
    if len(facts.packages) > 1:
        findings.append(
            Finding(
                "runtime",
                "packages",
                "warning",
                f"{' and '.join(facts.packages)} share one import name: which files lie there is chance",
                "uninstall both, then install the one you mean",
            )
        )
    for provider, probe in probes.items():
        findings += _provider(provider, probe)
    return findings


def _provider(provider: str, probe: ProviderProbe) -> list[Finding]:
    float32 = probe.float32
    if not probe.runs:
        serious = provider == CPU
        return [
            Finding(
                "runtime",
                provider,
                "problem" if serious else "warning",
                f"listed, but no node runs on it: {float32.reason}",
                "install another build of onnxruntime"
                if serious
                else "check driver and build; bundles run on the other providers",
            )
        ]
    detail = f"ran a node, relative error {float32.relative_error:.1e} against numpy"
    findings = [Finding("runtime", provider, "ok", detail)]
    for bits in (8, 4, 2):
        outcomes = [outcome for outcome in probe.forms if outcome.form.bits == bits]
        findings.append(_width(provider, bits, outcomes))
    return findings


def _width(provider: str, bits: int, outcomes: Sequence[Outcome]) -> Finding:
    name = f"{bits} bits, {provider.removesuffix('ExecutionProvider')}"
    fast = [outcome for outcome in outcomes if outcome.status == "fast"]
    slow = [outcome for outcome in outcomes if outcome.status == "slow"]
    if fast:
        texts = _levels(fast)
        levels = sorted({o.form.accuracy_level or 0 for o in slow} - {o.form.accuracy_level for o in fast})
        texts += [f"level {level} has no kernel (dequantised on every call)" for level in levels]
        return Finding("runtime", name, "ok", "; ".join(texts))
    step = "a newer onnxruntime, or export without this width"
    if slow:
        least = min(outcome.float_ratio or 0.0 for outcome in slow)
        detail = f"right values, but {least:.0f} times the time of float32: dequantised on every call"
        return Finding("runtime", name, "warning", detail, step)
    reasons = dict.fromkeys(outcome.reason or "not run" for outcome in outcomes)
    return Finding("runtime", name, "warning", "; ".join(reasons) or "not run", step)


def _levels(outcomes: Sequence[Outcome]) -> list[str]:
    """Each accuracy level with its blocks, time against float32 and error."""
    texts = []
    for level in sorted({outcome.form.accuracy_level or 0 for outcome in outcomes}):
        those = [outcome for outcome in outcomes if outcome.form.accuracy_level == level]
        blocks = ", ".join(str(outcome.form.block_size) for outcome in those)
        ratios = [outcome.float_ratio or 0.0 for outcome in those]
        error = max(outcome.relative_error or 0.0 for outcome in those)
        texts.append(
            f"level {level} in blocks of {blocks} at {min(ratios):.1f} to {max(ratios):.1f} times "
            f"the time of float32, error {error:.0e}"
        )
    return texts


def host_findings(machine: Machine, memory: MemoryProof, probes: Probes, root: Path) -> list[Finding]:
    """Machine, memory, power and conditions."""
    simulated = not is_live(root)
    gpu = any(uses_gpu(provider) and probe.runs for provider, probe in probes.items())
    read = [*_machine(machine, root), *_limits(root), _power(root, gpu), *_conditions(read_conditions(root))]
    marked = [replace(finding, simulated=simulated) for finding in read]
    proof = _memory_proof(memory)
    place = next((i for i, finding in enumerate(marked) if finding.area == "memory"), len(marked))
    return [*marked[:place], proof, *marked[place:]]


def _machine(machine: Machine, root: Path) -> list[Finding]:
    system = machine.os_name or "unnamed system"
    found = [Finding("machine", "host", "ok", f"{machine.label}, {system}, Python {machine.python_version}")]
    if not list_paths(root, "sys/devices/system/cpu/*"):
        why = f" ({machine.container})" if machine.container else ""
        found.append(
            Finding(
                "machine",
                "sysfs",
                "warning",
                f"/sys is not there{why}: no clocks, temperatures or power can be read",
                "start the container with -v /sys:/sys:ro",
            )
        )
    elif machine.container:
        detail = f"{machine.container}; limits and counters may be those of the host"
        found.append(Finding("machine", "container", "ok", detail))
    return found


def _memory_proof(memory: MemoryProof) -> Finding:
    name = "read-out"
    if memory.ok:
        moved = (memory.moved_bytes or 0) / 2**20
        detail = f"the peak moved by {moved:.0f} MiB with a known allocation ({memory.source})"
        return Finding("memory", name, "ok", detail)
    reason = memory.reason or "not known"
    if memory.moved_bytes is None:
        step = "verify cannot judge a memory limit here: use Linux with /proc"
        return Finding("memory", name, "warning", reason, step)
    step = "do not believe peaks of this system: verify on the board itself, outside the sandbox"
    return Finding("memory", name, "problem", reason, step)


def _limits(root: Path) -> list[Finding]:
    group, free = cgroup_memory(root), available_bytes(root)
    findings = []
    if free.value is None:
        findings.append(Finding("memory", "available", "warning", f"{free.source}: {free.reason}"))
    else:
        findings.append(Finding("memory", "available", "ok", f"{free.value / 1e6:.0f} MB without swapping"))
    limit = group.limit
    text = str(limit.reason) if limit.value is None else f"{limit.value / 1e6:.0f} MB"
    findings.append(Finding("memory", "limit of the control group", "ok", text))
    if group.oom_kills.value:
        findings.append(
            Finding(
                "memory",
                "ended processes",
                "warning",
                f"the kernel ended {group.oom_kills.value} processes of this group for want of memory",
                "raise the limit of the container",
            )
        )
    return findings


def _power(root: Path, gpu: bool) -> Finding:
    source = open_source(None, root, use_gpu=gpu)
    if not isinstance(source, PowerSource):
        step = "connect an external meter; without one energy is unavailable"
        return Finding("power", "power source", "warning", source.reason, step)
    try:
        return Finding("power", "power source", "ok", f"{source.name} gave a reading: {source.scope}")
    finally:
        source.close()


_NONE_AT_ALL = {"clocks": ("cpu.governor",), "temperatures": ("thermal",), "throttle counters": ("gpu",)}
"""Where the reason stands when a system has none of a group."""


def _conditions(values: Conditions) -> list[Finding]:
    groups = {
        "clocks": [name for name in values.values if name.endswith(".clock_hz")],
        "temperatures": [name for name in values.values if name.endswith(".celsius")],
        "throttle counters": [
            name
            for name in values.values
            if name.startswith("counter.") or name.endswith((".throttle_reasons", "pi.throttled"))
        ],
    }
    findings = []
    for title, names in groups.items():
        read = [name for name in names if values.get(name) is not None]
        if read:
            shown = ", ".join(read[:3]) + (f" and {len(read) - 3} more" if len(read) > 3 else "")
            findings.append(Finding("conditions", title, "ok", shown))
            continue
        absent = [values.values[name] for name in (*names, *_NONE_AT_ALL[title]) if name in values.values]
        reasons = dict.fromkeys(str(item.reason) for item in absent)
        why = "; ".join(reasons) or "this system shows none"
        step = "a change during a run cannot be seen here: repeat runs, and compare"
        findings.append(Finding("conditions", title, "warning", why, step))
    return findings
