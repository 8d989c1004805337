"""Weight widths of a drafted profile, from the nodes that were run.

A width is written only when a node of its form gave right values here and docs/profile.md knows a kernel for
it; its first release is the installed one, since no other was tried. That a form is slow is advice: it stands
in the width's condition, and faster forms go first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qslm_edge.profiles.kernels import kernels, version_key
from qslm_edge.runner.probe import Outcome, ProviderProbe

__all__ = ["draft_widths"]


def draft_widths(
    running: Sequence[ProviderProbe], cpu: str, release: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """The entries of [[widths]], and a line for each width that is left out.

    Args:
        running: providers that ran a node, in order of preference.
        cpu: kernel class of the processor.
        release: installed onnxruntime, three numbers.
    """
    widths: list[dict[str, Any]] = []
    left_out: list[str] = []
    for probe in running:
        base = {"provider": probe.provider, "min_onnxruntime": release}
        widths.append({"bits": 32, **base})
        for bits in (16, 8, 4, 2):
            outcomes = [outcome for outcome in probe.forms if outcome.form.bits == bits]
            found = _float16(outcomes) if bits == 16 else _packed(probe.provider, cpu, release, outcomes)
            if isinstance(found, str):
                left_out.append(f"{bits} bits on {probe.provider}: {found}")
            else:
                widths.append({"bits": bits, **base, **found})
    return widths, left_out


def _float16(outcomes: Sequence[Outcome]) -> dict[str, Any] | str:
    if not any(outcome.runs for outcome in outcomes):
        return _reasons(outcomes)
    return {"condition": "stored as float16, computed as float32: half the file, not half the memory"}


def _packed(provider: str, cpu: str, release: str, outcomes: Sequence[Outcome]) -> dict[str, Any] | str:
    """Level, blocks and condition of one width, or why it is left out."""
    kernel = kernels(provider, cpu).get(outcomes[0].form.bits) if outcomes else None
    if kernel is None:
        return f"no release has a kernel for it on {cpu}"
    if version_key(release) < version_key(kernel.min_onnxruntime):
        return f"needs onnxruntime {kernel.min_onnxruntime}, here is {release}"
    right = [
        outcome
        for outcome in outcomes
        if outcome.runs
        and outcome.form.accuracy_level in kernel.accuracy_levels
        and outcome.form.block_size in kernel.block_sizes
    ]
    if not right:
        return _reasons(outcomes)
    fast = [outcome for outcome in right if outcome.status == "fast"]
    kept = fast or right
    level = max(outcome.form.accuracy_level or 0 for outcome in kept)
    chosen = [outcome for outcome in kept if outcome.form.accuracy_level == level]
    rounded = any(outcome.int8_activations for outcome in chosen)
    condition = "activations rounded to int8" if rounded else "float activations"
    if not fast:
        ratio = min(outcome.float_ratio or 0.0 for outcome in chosen)
        condition = f"slow here: {ratio:.0f} times the time of float32, as if dequantised on every call"
    return {
        "accuracy_level": level,
        "block_sizes": sorted(outcome.form.block_size or 0 for outcome in chosen),
        "condition": condition,
    }


def _reasons(outcomes: Sequence[Outcome]) -> str:
    return "; ".join(dict.fromkeys(outcome.reason or outcome.status for outcome in outcomes)) or "not run"
