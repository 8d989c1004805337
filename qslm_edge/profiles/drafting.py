"""From what was found on a machine to the data of a device profile, each fact with grade and source.

What was read or tried is measured; decisions (budget, order of providers, how the board is known again) are
chosen. Of a recorded tree nothing is measured: everything in it is unconfirmed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from qslm_edge.errors import EnvironmentFault, RuntimeFault
from qslm_edge.profiles.draft_widths import draft_widths
from qslm_edge.profiles.kernels import CPU_PROVIDER, CUDA_PROVIDER
from qslm_edge.profiles.survey import Survey
from qslm_edge.profiles.values import PowerSource, Provider
from qslm_edge.runner.observe import Observed
from qslm_edge.runner.probe import ProviderProbe
from qslm_edge.runner.runtime import RUNTIME_PACKAGES
from qslm_edge.runner.simulated import LABEL

__all__ = ["Draft", "draft_profile", "kernel_class", "visible_memory"]

MIB = 2**20
TEXT_LIMIT = 400  # of one text in a profile
FEATURES = {
    "x86_64": "avx2 fma f16c avx_vnni avx512f avx512bw avx512vl avx512_vnni avx512_bf16 amx_int8",
    "aarch64": "asimd asimdhp asimddp i8mm bf16 sve sve2",
}
"""Flags that decide kernels; the others say nothing about speed here."""
LARGE_MIB = 15_000
_PROVIDERS = get_args(Provider)


@dataclass(frozen=True)
class Draft:
    """A profile as data, and what did not get into it.

    Attributes:
        data: as the TOML file holds it.
        left_out: one line a width or provider that is missing, with the reason.
    """

    data: dict[str, Any]
    left_out: tuple[str, ...]


def kernel_class(arch: str, features: Sequence[str]) -> str | None:
    """The class that decides which kernels run, None for a processor that no class fits."""
    if arch == "aarch64":
        return "arm64-dotprod" if "asimddp" in features else "arm64-nodotprod"
    if arch == "x86_64" and "avx512f" in features:
        return "x86-avx512"
    return "x86-avx2" if arch == "x86_64" and "avx2" in features else None


def visible_memory(survey: Survey) -> Observed[int]:
    """Bytes that a process can have at most: what the kernel manages, or less by the control group."""
    total, limit = survey.machine.total_memory_bytes, survey.memory_limit.value
    if total is None:
        reason = survey.machine.reasons.get("total_memory_bytes", "not told")
        return Observed(None, "MemTotal of /proc/meminfo", reason)
    if limit is not None and limit < total:
        return Observed(limit, f"limit of the control group ({survey.memory_limit.source})")
    return Observed(total, "MemTotal of /proc/meminfo")


def draft_profile(survey: Survey, *, name: str | None = None, budget_bytes: int | None = None) -> Draft:
    """Put a survey into the words of a profile.

    Args:
        survey: what was found.
        name: name for people; None takes that of board or processor.
        budget_bytes: peak memory that a process may take; None applies the rule of docs/profile.md.

    Raises:
        RuntimeFault: no runtime, or none that runs a node here.
        EnvironmentFault: a processor without a kernel class, or memory that cannot be read.
    """
    runtime, machine = survey.runtime, survey.machine
    running = [probe for probe in survey.probes.values() if probe.runs and probe.provider in _PROVIDERS]
    if runtime.release is None:
        raise RuntimeFault(
            f"onnxruntime {runtime.reason}",
            hint=f"install {RUNTIME_PACKAGES}: python3 -m pip install onnxruntime; then run this again",
        )
    if not running:
        found = "; ".join(f"{p.provider}: {p.float32.reason}" for p in survey.probes.values())
        raise RuntimeFault(
            "no execution provider runs a node here",
            found=found or "no provider",
            hint="install another build of onnxruntime, 1.18 or newer",
        )
    cpu = kernel_class(machine.arch, machine.features)
    if cpu is None:
        raise EnvironmentFault(
            "no kernels for packed weights on this processor",
            found=f"{machine.arch}, {machine.reasons.get('features', 'without avx2')}",
            allowed="aarch64, or x86_64 with avx2",
        )
    running.sort(key=lambda probe: probe.provider == CPU_PROVIDER)  # an accelerator that works goes first
    widths, left_out = draft_widths(running, cpu, runtime.release)
    cuda = any(probe.provider == CUDA_PROVIDER for probe in running)
    memory, memory_sources = _memory(survey, cuda, budget_bytes)
    label = name or machine.device_tree_model or (survey.gpu.name if cuda and survey.gpu else None)
    label = _line(label or machine.cpu_model or "this machine")
    flags = [flag for flag in FEATURES[machine.arch].split() if flag in machine.features]
    data: dict[str, Any] = {
        "schema": "qslm-edge/profile/1",
        "id": _identifier(label),
        "name": label,
        "description": _line(_description(survey, memory["visible_mib"])),
        "status": "supported",
        "memory": memory,
        "cpu": {"arch": machine.arch, "kernel_class": cpu, "cores": _cores(survey), "features": flags},
    }
    if cuda:
        data["accelerator"] = _accelerator(survey)
    data |= {
        "runtime": _runtime(survey, running),
        "widths": widths,
        "power": _power(survey),
        "match": _match(survey, flags, memory),
    }
    data |= _evidence(survey, data, memory_sources)
    return Draft(data, (*left_out, *_not_running(survey)))


def _line(text: str) -> str:
    clean = "".join(mark if mark.isprintable() else "?" for mark in " ".join(text.split()))
    return clean if len(clean) <= TEXT_LIMIT else f"{clean[: TEXT_LIMIT - 3]}..."


def _identifier(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:64].rstrip("-") or "my-board"


def _description(survey: Survey, visible_mib: int) -> str:
    cores = ", ".join(f"{kind.count} x {kind.model}" for kind in survey.cores)
    text = f"{cores or survey.machine.arch}, {visible_mib} MiB, {survey.machine.os_name or 'unnamed system'}"
    return f"{LABEL}, on a runtime of another machine: {text}" if survey.simulated else f"detected: {text}"


def _memory(survey: Survey, cuda: bool, budget_bytes: int | None) -> tuple[dict[str, Any], dict[str, str]]:
    """The section, and the sources of its facts."""
    gpu = survey.gpu
    if cuda and gpu is not None and gpu.memory_bytes is not None:
        kind, visible, share = "vram", Observed(gpu.memory_bytes, "nvmlDeviceGetMemoryInfo"), 0.7
        why = "70 % of a card's memory"
    else:
        visible = visible_memory(survey)
        unified = cuda or "NVIDIA" in (survey.machine.device_tree_model or "")
        kind = "unified" if unified else "dram"
        large = (visible.value or 0) >= LARGE_MIB * MIB
        share = 0.5 if large or not (unified or survey.screen) else 0.4
        why = f"{100 * share:.0f} % of the visible memory, since " + (
            "there are 16 GB or more"
            if large
            else "a GPU shares it"
            if unified
            else "a screen is connected"
            if survey.screen
            else "no screen is connected and no GPU shares it"
        )
    if visible.value is None:
        raise EnvironmentFault("the memory of this machine cannot be read", found=visible.reason)
    visible_mib = visible.value // MIB
    budget_mib = int(visible_mib * share) if budget_bytes is None else budget_bytes // MIB
    section: dict[str, Any] = {"kind": kind, "visible_mib": visible_mib, "budget_mib": budget_mib}
    rates = survey.bandwidth
    sources = {
        "memory.kind": "which providers ran a node, and whether NVML tells memory of its own",
        "memory.visible_mib": visible.source,
        "memory.budget_mib": f"project rule: {why}" if budget_bytes is None else "the user's choice",
    }
    if rates.one_thread_bytes_per_s is not None and rates.all_threads_bytes_per_s is not None:
        best = max(rates.one_thread_bytes_per_s, rates.all_threads_bytes_per_s)
        section["bandwidth_gb_s"] = {
            "default": round(best / 1e9, 2),
            "one_thread": round(rates.one_thread_bytes_per_s / 1e9, 2),
        }
        sources["memory.bandwidth_gb_s"] = (
            f"reading, no theoretical peak: {rates.method}, by {rates.threads} threads and by one"
        )
    return section, sources


def _cores(survey: Survey) -> list[dict[str, Any]]:
    """Kinds of core, or none where a clock cannot be read: the profile then says "read it from the machine"."""
    kinds = [(kind.count, _line(kind.model), kind.max_hz) for kind in survey.cores]
    if any(hz is None for _, _, hz in kinds):
        return []
    return [{"count": n, "model": m, "max_ghz": round((hz or 0) / 1e9, 3)} for n, m, hz in kinds]


def _accelerator(survey: Survey) -> dict[str, Any]:
    gpu = survey.gpu
    if gpu is None:
        return {"kind": "cuda", "name": _line(survey.machine.device_tree_model or "a CUDA device")}
    capability = {} if gpu.compute_capability is None else {"cuda_compute_capability": gpu.compute_capability}
    return {"kind": "cuda", "name": _line(gpu.name), **capability}


def _runtime(survey: Survey, running: Sequence[ProviderProbe]) -> dict[str, Any]:
    packages = " and ".join(survey.runtime.packages) or f"an own build, {survey.runtime.version}"
    major, minor = survey.machine.python_version.split(".")[:2]
    return {
        "onnxruntime": survey.runtime.release,
        "python": f"{major}.{minor}",
        "providers": [probe.provider for probe in running],
        "opset": 21,
        "ir_version": 10,
        "note": _line(f"installed: {packages}; each provider here ran a node"),
    }


def _not_running(survey: Survey) -> list[str]:
    lines = [
        f"{probe.provider}: listed, but no node runs on it: {probe.float32.reason}"
        for probe in survey.probes.values()
        if not probe.runs
    ]
    return lines + [
        f"{probe.provider}: runs a node, but profiles of this version do not know it"
        for probe in survey.probes.values()
        if probe.runs and probe.provider not in _PROVIDERS
    ]


def _power(survey: Survey) -> dict[str, Any]:
    power = survey.power
    if power.source is None or power.source not in get_args(PowerSource):
        return {"source": "none", "note": _line(power.reason or "no source that a profile can name")}
    rails = [_line(re.sub(r" \([^)]*\)$", "", rail)) for rail in power.rails]
    return {
        "source": power.source,
        "total": list(dict.fromkeys(rails)) or ["*"],
        "scope": _line(power.scope or power.source),
    }


def _match(survey: Survey, flags: list[str], memory: dict[str, Any]) -> dict[str, Any]:
    model = survey.machine.device_tree_model
    if model is not None:
        return {"device_tree_model": [_line(model)], **_sizes(survey, memory)}
    if memory["kind"] == "vram" and survey.gpu is not None:
        return {"gpu_name": [_line(survey.gpu.name)]}
    processor = survey.machine.cpu_model
    named = {"cpu_model": [_line(processor)]} if processor is not None else {}
    return {**named, "arch": survey.machine.arch, "features": flags}


def _sizes(survey: Survey, memory: dict[str, Any]) -> dict[str, int]:
    """Sizes of one board often share its name, each twice the one before: half way to both neighbours."""
    total_mib = (survey.machine.total_memory_bytes or 0) // MIB
    if total_mib != memory["visible_mib"]:  # a card's own, or less by a control group
        return {}
    return {"min_memory_mib": total_mib * 3 // 4, "max_memory_mib": total_mib * 3 // 2}


def _evidence(survey: Survey, data: dict[str, Any], memory_sources: dict[str, str]) -> dict[str, Any]:
    """The tables [grades] and [sources]."""
    proof = "one node a form was run and compared with the product in double precision, and timed"
    known = "profiles detect: "
    sources = {
        **memory_sources,
        "cpu": "/proc/cpuinfo and cpufreq",
        "runtime": "import onnxruntime, and its package record",
        "runtime.providers": "those that ran a node; an accelerator before the CPU",
        "widths": proof,
        "power": "an interface that gave a reading"
        if survey.power.source
        else "every known interface was tried",
    }
    if "accelerator" in data:
        sources["accelerator"] = "NVML" if survey.gpu is not None else "CUDA ran a node; NVML tells nothing"
    chosen = ("memory.budget_mib", "runtime.providers", "runtime.opset", "runtime.ir_version", "match")
    grade = "unconfirmed" if survey.simulated else "measured"
    label = f"{known}{LABEL}: " if survey.simulated else known
    return {
        "grades": {"*": grade, **dict.fromkeys(chosen, "chosen")},
        "sources": {key: [_line(label + text)] for key, text in sources.items()},
    }
