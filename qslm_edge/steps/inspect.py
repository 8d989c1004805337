"""Network analysis of a checkpoint without evaluation: what it consists of, what each precision level takes.

Bytes are exact, counted as the exporter will write them. The process peak is the prediction that the search
uses; only `verify` measures it. Tensors are read to check them, and nothing is quantised.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qslm_edge import __version__, reference
from qslm_edge.profiles import Profile
from qslm_edge.quantize.accounting import block_bytes, matrix_bytes, predict_peak_rss_bytes, weight_bytes
from qslm_edge.quantize.levels import SIGN, Level, Setting
from qslm_edge.quantize.scales import with_scale_bits
from qslm_edge.search.reference import model_digest
from qslm_edge.search.space import LevelMap
from qslm_edge.spikegpt import Hierarchy, Module, SpikeGPTConfig, build_hierarchy, load_checkpoint
from qslm_edge.spikegpt.config import N_STATE
from qslm_edge.steps.levels import default_levels, listed_levels
from qslm_edge.tasks import get_task

__all__ = ["PLAIN_LEVELS", "inspect_model"]

SCHEMA = "qslm-edge/inspect/1"
PLAIN_LEVELS = ("16", "8", "4", "2")
"""What is shown without a profile: every width that some runtime stores."""


def inspect_model(
    model: str | None = None,
    *,
    task: str | None = None,
    embedding: str | None = None,
    profile: Profile | None = None,
    levels: Sequence[str] | None = None,
    group_size: int | None = None,
) -> dict[str, Any]:
    """Analyse a checkpoint.

    Args:
        model: path; None takes the embedded reference.
        task: decides the head that is counted; None takes the language model where there is one.
        embedding: dense or binary, where the checkpoint does not tell.
        profile: its levels are shown, and the predicted process peak against its budget.
        levels: to show in place of the profile's.
        group_size: of levels given as bare widths.

    Returns:
        JSON-able analysis; bytes are integers, absent figures None with a reason.

    Raises:
        InputError: the checkpoint, task or levels cannot be used.
    """
    shown = _levels(profile, levels, group_size)
    wanted = None if task is None else get_task(task)
    path = reference.model_path() if model is None else Path(model)
    loaded = load_checkpoint(path, embedding)
    config = loaded.config
    if wanted is None:
        wanted = get_task("wikitext2" if config.has_lm_head else "sst2")
    hierarchy = with_scale_bits(
        build_hierarchy(config, wanted.head), lambda module: loaded.tensors[module.key].numpy()
    )
    space = LevelMap(config)
    settings = {str(level): space.setting(hierarchy, level) for level in shown}
    return {
        "schema": SCHEMA,
        "tool_version": __version__,
        "model": {
            "name": reference.MODEL_NAME if model is None else path.name,
            "digest": model_digest(loaded),
            **_config(config),
        },
        "task": wanted.name,
        "head": hierarchy.head,
        "n_params": hierarchy.n_params,
        "float32_bytes": hierarchy.float32_bytes,
        "state_bytes": 4 * N_STATE * config.n_layer * config.n_embd,
        "profile": None if profile is None else _board(profile),
        "levels": [_level(hierarchy, level, settings[str(level)], profile) for level in shown],
        "blocks": _blocks(hierarchy, settings),
    }


def _levels(profile: Profile | None, levels: Sequence[str] | None, group_size: int | None) -> list[Level]:
    if levels is not None:
        return list(listed_levels(levels, profile, group_size))
    if profile is not None:
        return list(default_levels(profile, group_size))
    return list(listed_levels(PLAIN_LEVELS, None, group_size))


def _config(config: SpikeGPTConfig) -> dict[str, Any]:
    heads = (["lm"] if config.has_lm_head else []) + (["classifier"] if config.num_labels else [])
    return {
        "n_layer": config.n_layer,
        "n_embd": config.n_embd,
        "ffn_dim": config.ffn_dim,
        "vocab_size": config.vocab_size,
        "embedding": config.embedding,
        "ctx_len": config.ctx_len,
        "heads": heads,
        "num_labels": config.num_labels,
        "labels": list(config.labels),
    }


def _board(profile: Profile) -> dict[str, Any]:
    vram = profile.memory.kind == "vram"
    return {
        "id": profile.id,
        "name": profile.name,
        "provider": profile.provider,
        "budget_bytes": None if vram else profile.memory.budget_bytes,
        "reason": "the budget is of GPU memory, the prediction of a process" if vram else None,
        "refused_widths": [{"bits": bits, "reason": why} for bits, why in profile.refused_widths()],
    }


def _level(hierarchy: Hierarchy, level: Level, setting: Setting, profile: Profile | None) -> dict[str, Any]:
    total = weight_bytes(hierarchy, setting)
    peak = predict_peak_rss_bytes(hierarchy, setting)
    fits = None
    if profile is not None and profile.memory.kind != "vram":
        fits = peak <= profile.memory.budget_bytes
    return {
        "level": str(level),
        "weight_bytes": total,
        "reduction": 1 - total / hierarchy.float32_bytes,
        "predicted_peak_rss_bytes": peak,
        "fits": fits,
        "elsewhere": {m.name: str(setting[m.name]) for m in hierarchy.modules if _differs(m, level, setting)},
    }


def _differs(module: Module, level: Level, setting: Setting) -> bool:
    """Whether a module takes another width or group than asked for; a binary embedding is always signs."""
    taken = setting[module.name]
    return taken != SIGN and (taken.bits, taken.group_size) != (level.bits, level.group_size)


def _blocks(hierarchy: Hierarchy, settings: dict[str, Setting]) -> list[dict[str, Any]]:
    return [
        {
            "name": block.name,
            "n_params": block.n_params,
            "float_params": block.n_float_params,
            "float32_bytes": 4 * block.n_params,
            "share": block.n_params / hierarchy.n_params,
            "bytes": {level: block_bytes(block, setting) for level, setting in settings.items()},
            "modules": [
                {
                    "name": module.name,
                    "rows": module.rows,
                    "columns": module.columns,
                    "n_params": module.n_params,
                    "float32_bytes": 4 * module.n_params,
                    "bytes": {
                        level: matrix_bytes(module, setting[module.name])
                        for level, setting in settings.items()
                    },
                }
                for module in block.modules
            ],
        }
        for block in hierarchy.blocks
    ]
