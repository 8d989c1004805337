"""Whether a model fits a board, before any work: what each width needs, what the board has, what would help.

Only names and shapes of the checkpoint are read. Bytes of weights are exact; the memory of the process is the
prediction that the search uses (quantize/accounting.py), for a runtime that has kernels for the width. Whether
the model is still good at a width is the search's question, not this one's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qslm_edge import __version__, reference
from qslm_edge.errors import EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_PASS, UsageError
from qslm_edge.profiles import Profile, Width, list_profiles
from qslm_edge.quantize.accounting import ProcessMemory, predict_memory, weight_bytes
from qslm_edge.quantize.levels import FLOAT32, Level
from qslm_edge.search.space import LevelMap
from qslm_edge.spikegpt import Hierarchy, build_hierarchy
from qslm_edge.spikegpt.checkpoint import read_config
from qslm_edge.spikegpt.config import N_STATE, SpikeGPTConfig
from qslm_edge.steps.levels import GROUP_SIZE, allowed_level, default_levels, listed_levels
from qslm_edge.tasks import get_task

__all__ = ["fit_model"]

SCHEMA = "qslm-edge/fit/1"
MOST_BOARDS = 3


@dataclass(frozen=True)
class _Need:
    """What one level needs.

    Attributes:
        level: of every module.
        weights: bytes of the weights.
        memory: of the process.
        refused: why the board's runtime does not run it, else None.
    """

    level: Level
    weights: int
    memory: ProcessMemory
    refused: str | None


def fit_model(
    model: str | None,
    profile: Profile,
    *,
    task: str | None = None,
    embedding: str | None = None,
    levels: Sequence[str] | None = None,
    group_size: int | None = None,
    budget_bytes: int | None = None,
) -> dict[str, Any]:
    """Compare what a model needs at each width with what a board has.

    Args:
        model: path; None takes the embedded reference.
        profile: the board.
        task: decides the head that counts; None takes the language model where there is one.
        embedding: dense or binary, where the checkpoint does not tell.
        levels: in place of every width that the profile names.
        group_size: of levels given as bare widths.
        budget_bytes: in place of the profile's budget.

    Returns:
        JSON-able result with "verdict" (fits, does not fit, unknown) and "exit_code" (0, 1, 3).

    Raises:
        InputError: the checkpoint, task or levels cannot be used.
    """
    path = reference.model_path() if model is None else Path(model)
    config = read_config(path, embedding)
    wanted = get_task(task or ("wikitext2" if config.has_lm_head else "sst2"))
    hierarchy = build_hierarchy(config, wanted.head)
    needs = [
        _need(hierarchy, config, level, refused) for level, refused in _levels(profile, levels, group_size)
    ]
    budget = budget_bytes or profile.memory.budget_bytes
    rows = [_row(need, profile, budget) for need in needs]
    verdict = _verdict(row["verdict"] for row in rows)
    state = 4 * N_STATE * config.n_layer * config.n_embd
    return {
        "schema": SCHEMA,
        "tool_version": __version__,
        "model": {
            "name": reference.MODEL_NAME if model is None else path.name,
            "n_params": hierarchy.n_params,
            "head": hierarchy.head,
            "task": wanted.name,
            "state_bytes_per_stream": state,
        },
        "profile": {
            "id": profile.id,
            "name": profile.name,
            "memory_kind": profile.memory.kind,
            "visible_bytes": profile.memory.visible_bytes,
            "budget_bytes": budget,
            "budget_source": "profile" if budget_bytes is None else "--memory-budget",
            "provider": profile.provider,
            "onnxruntime": profile.runtime.onnxruntime,
        },
        "levels": rows,
        "verdict": verdict,
        "exit_code": _EXIT_CODES[verdict],
        "would_fit": [] if verdict == "fits" else _remedies(hierarchy, config, profile, needs, budget),
        "method": "weights counted; memory predicted for the CPU by a rule fitted on x86-64 to about 3 MiB; "
        "verify measures",
    }


_EXIT_CODES = {"fits": EXIT_PASS, "does not fit": EXIT_FAIL, "unknown": EXIT_INCONCLUSIVE}


def _levels(
    profile: Profile, levels: Sequence[str] | None, group_size: int | None
) -> list[tuple[Level, str | None]]:
    """Levels, each with the reason why the board does not run it, widest first."""
    if levels is not None:
        return [(level, _refusal(level, profile)) for level in listed_levels(levels, None, group_size)]
    usable = {width.bits for width in profile.usable_widths()}
    found: list[tuple[Level, str | None]] = [(FLOAT32, None)] if 32 in usable else []
    found += [(level, None) for level in default_levels(profile, group_size) if level != FLOAT32]
    refused = [
        (Level(bits, group_size or GROUP_SIZE, 4), reason) for bits, reason in profile.refused_widths()
    ]
    return found + refused


def _refusal(level: Level, profile: Profile) -> str | None:
    try:
        allowed_level(level, profile, str(level))
    except UsageError as error:
        return error.what if error.allowed is None else f"{error.what}; allowed: {error.allowed}"
    return None


def _need(hierarchy: Hierarchy, config: SpikeGPTConfig, level: Level, refused: str | None) -> _Need:
    setting = LevelMap(config).setting(hierarchy, level)
    return _Need(level, weight_bytes(hierarchy, setting), predict_memory(hierarchy, setting), refused)


def _row(need: _Need, profile: Profile, budget: int) -> dict[str, Any]:
    memory, vram = need.memory, profile.memory.kind == "vram"
    # what a card must hold at least; the prediction is one of the process, not of a GPU's memory
    margin = budget - (need.weights if vram else memory.peak_bytes)
    if need.refused is not None:
        verdict, reason = "not run", need.refused
    elif margin < 0:
        verdict, reason = "does not fit", None
    elif vram:
        verdict, reason = "unknown", "no rule predicts what a GPU takes beyond the weights"
    else:
        verdict, reason = "fits", None
    return {
        "level": str(need.level),
        "bits": need.level.bits,
        "onnxruntime_min": _first_release(profile, need.level.bits),
        "weight_bytes": need.weights,
        "bare_process_bytes": memory.bare_bytes,
        "matrices_bytes": memory.matrices_bytes,
        "session_bytes": memory.session_bytes,
        "load_peak_bytes": memory.load_peak_bytes,
        "steady_bytes": memory.steady_bytes,
        "peak_bytes": memory.peak_bytes,
        "overhead_bytes": memory.peak_bytes - need.weights,
        "margin_bytes": margin,
        "verdict": verdict,
        "reason": reason,
    }


def _first_release(profile: Profile, bits: int) -> str | None:
    """The first onnxruntime with a kernel, for the planned provider where it has one."""
    widths = [width for width in profile.widths if width.bits == bits]
    planned = [width for width in widths if width.provider == profile.provider]
    return (planned or widths)[0].min_onnxruntime if widths else None


def _verdict(verdicts: Iterable[str]) -> str:
    found = set(verdicts)
    return "fits" if "fits" in found else "unknown" if "unknown" in found else "does not fit"


def _remedies(
    hierarchy: Hierarchy, config: SpikeGPTConfig, profile: Profile, needs: Sequence[_Need], budget: int
) -> list[str]:
    """What would make it fit, nearest first; empty when nothing known would."""
    if profile.memory.kind == "vram":
        return []
    lines = [
        f"{need.level}, which needs {_mb(need.memory.peak_bytes)}: {need.refused}"
        for need in needs
        if need.refused is not None and need.memory.peak_bytes <= budget
    ]
    shown = {need.level for need in needs if need.refused is None}
    every = [
        _need(hierarchy, config, level, None)
        for width in profile.usable_widths()
        for level in _of_width(width)
    ]
    lines += [
        f"--levels {need.level}, which needs {_mb(need.memory.peak_bytes)}"
        for need in every
        if need.level not in shown and need.memory.peak_bytes <= budget
    ]
    least = min(every, key=lambda need: need.memory.peak_bytes)
    visible = profile.memory.visible_bytes
    if budget < least.memory.peak_bytes <= visible:
        lines.append(
            f"a budget of {_mb(least.memory.peak_bytes)} (--memory-budget) at {least.level}; "
            f"the board shows {_mb(visible)}"
        )
    return lines + _boards(hierarchy, config, profile)


def _of_width(width: Width) -> list[Level]:
    """Every level of a width that the runtime runs."""
    sizes = width.block_sizes or (None,)
    levels = [Level(width.bits, size, width.accuracy_level or 0) for size in sizes]
    return [level for level in levels if level.group_size in (None, 32, 64, 128)]


def _boards(hierarchy: Hierarchy, config: SpikeGPTConfig, profile: Profile) -> list[str]:
    """The smallest shipped boards that it fits."""
    fitting = []
    for other in list_profiles():
        if other.id == profile.id or other.memory.kind == "vram":
            continue
        budget = other.memory.budget_bytes
        levels = [level for width in other.usable_widths() for level in _of_width(width)]
        best = min(
            (_need(hierarchy, config, level, None) for level in levels), key=lambda n: n.memory.peak_bytes
        )
        if best.memory.peak_bytes <= budget:
            fitting.append((budget, f"{other.id} ({_mb(budget)}) at {best.level}"))
    names = [name for _, name in sorted(fitting)[:MOST_BOARDS]]
    return [f"another board: {', '.join(names)}"] if names else []


def _mb(size: int) -> str:
    """Rounded up: what is told as enough must be enough."""
    return f"{-(-size // 10**6)} MB"
