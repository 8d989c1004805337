"""Sections on where it was measured: conditions, machine, versions, digests."""

from __future__ import annotations

from typing import Any

from qslm_edge.report.document import Block, Bullets, Section, table, text
from qslm_edge.report.figures import clean, count, megabytes, number, shown, unavailable
from qslm_edge.runner.run_settings import settings_words

__all__ = ["conditions_section", "versions_section"]


def conditions_section(report: dict[str, Any]) -> Section:
    """Flags first, then every value before and after with its source."""
    conditions = report["verification"]["conditions"]
    before, after = conditions["before"], conditions["after"]
    flags = tuple(clean(flag) for flag in conditions["flags"])
    rows = [
        (
            name,
            _observed(before.get(name)),
            _observed(after.get(name)),
            (before.get(name) or after[name])["source"],
        )
        for name in dict.fromkeys([*before, *after])
    ]
    lead = (
        "What makes the figures doubtful:"
        if flags
        else "Nothing that could be read speaks against the figures."
    )
    blocks: list[Block] = [text(f"Read at {conditions['scope']}.")] if conditions.get("scope") else []
    blocks.append(text(lead))
    if flags:
        blocks.append(Bullets(flags))
    absent = conditions.get("not_read")
    if absent:
        blocks.append(text(f"{absent[:1].upper()}{absent[1:]}."))
    watched = _watched(conditions.get("clocks") or [])
    if watched:
        blocks.append(text("Read once a second during the timed run."))
        blocks.append(table(("during the run", "lowest", "highest", "readings"), watched, right=(1, 2, 3)))
    blocks.append(table(("condition", "before", "after", "source"), rows))
    return Section("Conditions", tuple(blocks))


def _watched(runs: list[list[dict[str, Any]]]) -> list[tuple[str, str, str, str]]:
    """Range of each clock and temperature that was read during the run."""
    found: dict[str, list[float]] = {}
    for sample in (sample for run in runs for sample in run):
        for name, value in sample.items():
            if name.endswith((".clock_hz", ".celsius")) and value is not None:
                found.setdefault(name, []).append(value)
    return [
        (name, _clock(name, min(values)), _clock(name, max(values)), count(len(values)))
        for name, values in found.items()
    ]


def _clock(name: str, value: float) -> str:
    return f"{value / 1e6:.0f} MHz" if name.endswith("_hz") else f"{value:g} C"


def _observed(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return unavailable("not read")
    return unavailable(entry.get("reason")) if entry["value"] is None else shown(entry["value"])


_NAMES = {"numpy": "numpy", "kernel_build": "kernel build", "l4t": "L4T", "nvidia_driver": "NVIDIA driver"}


def _versions(versions: dict[str, Any]) -> list[tuple[str, str]]:
    """Versions that no other row tells."""
    return [(title, _observed(versions[name])) for name, title in _NAMES.items() if name in versions]


def _settings(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """How the bundle ran; nothing for an older report, which does not tell."""
    return [] if found is None else [("run settings", settings_words(found))]


def versions_section(report: dict[str, Any]) -> Section:
    """Model, board, host and software, with digests."""
    verification, model, profile = report["verification"], report["model"], report["profile"]
    machine, session = verification["host"]["machine"], verification["scoring"]["session"]
    reasons = machine.get("reasons") or {}
    gpus = machine.get("gpu_names")
    placement = verification["placement"]
    sizes = f"{model['n_layer']} layers, {model['n_embd']} channels, vocabulary {model['vocab_size']}"
    rows = [
        ("model", f"{model['name']}: {sizes}"),
        ("parameters of this task's model", count(model["n_params"])),
        ("sha256 of the model", model["digest"]),
        ("board", f"{profile['name']} ({profile['id']})"),
        ("sha256 of the profile", profile["digest"]),
        ("sha256 of the bundle's manifest", report["bundle"]["digest"]),
        ("qslm-edge", f"{report['tool_version']}; runner {verification['tool_version']}"),
        (
            "onnxruntime",
            f"{session['onnxruntime']}; the profile's board has {shown(profile.get('onnxruntime'))}",
        ),
        ("provider", f"{placement['provider']}: {placement['note']}; planned {shown(placement['planned'])}"),
        *_settings(verification.get("run_settings")),
        ("host", machine["label"]),
        ("usable cores", shown(machine.get("cores_usable"))),
        ("GPUs", shown(gpus) if gpus else unavailable(reasons.get("gpu_names") or "none found")),
        (
            "memory of the host",
            megabytes(machine.get("total_memory_bytes"), 0, reasons.get("total_memory_bytes")),
        ),
        ("system", f"{shown(machine.get('os_name'))}, kernel {shown(machine.get('kernel'))}"),
        ("Python", shown(machine.get("python_version"))),
        *_versions(verification.get("versions") or {}),
    ]
    seconds = ", ".join(f"{name} {number(value, 1)} s" for name, value in report["seconds"].items())
    return Section(
        "Versions and digests",
        (table(("what", "value"), rows), text(f"Time of the steps on the host that deployed: {seconds}.")),
    )
