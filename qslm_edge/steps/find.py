"""Second step: search a setting for the plan, with its journal and sensitivity table on disk."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from qslm_edge.errors import OutputError
from qslm_edge.items import Items
from qslm_edge.progress import Progress
from qslm_edge.runner.text import json_ready
from qslm_edge.search.evaluator import Evaluator
from qslm_edge.search.journal import Journal
from qslm_edge.search.run import SearchResult, run_search
from qslm_edge.search.trial import Judge
from qslm_edge.steps.front import FILE, describe_front
from qslm_edge.steps.plan import Plan
from qslm_edge.tuning.judge import TunedJudge
from qslm_edge.tuning.stored import TunedModel

__all__ = ["analyse", "find_setting", "write_json"]


def write_json(path: Path, data: Any) -> None:
    """Write JSON all at once; NaN and infinity become null.

    Raises:
        OutputError: the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        text = json.dumps(json_ready(data), indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", "utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OutputError("cannot be written", where=path, found=error.strerror) from None


def analyse(plan: Plan) -> dict[str, Any]:
    """Network analysis without evaluation: blocks, modules, parameters, float32 bytes."""
    config = plan.model.config
    return {
        "name": plan.model_name,
        "digest": plan.digest,
        "n_layer": config.n_layer,
        "n_embd": config.n_embd,
        "ffn_dim": config.ffn_dim,
        "vocab_size": config.vocab_size,
        "embedding": config.embedding,
        "ctx_len": config.ctx_len,
        "head": plan.hierarchy.head,
        "num_labels": config.num_labels if plan.hierarchy.head == "classifier" else None,
        "labels": list(config.labels) if plan.hierarchy.head == "classifier" else [],
        "n_params": plan.hierarchy.n_params,
        "float32_bytes": plan.hierarchy.float32_bytes,
        "blocks": [
            {
                "name": block.name,
                "n_params": block.n_params,
                "float_params": block.n_float_params,
                "modules": [{"name": m.name, "rows": m.rows, "columns": m.columns} for m in block.modules],
            }
            for block in plan.hierarchy.blocks
        ],
    }


def find_setting(
    plan: Plan, items: Items, out: Path | None, progress: Progress
) -> tuple[SearchResult, Evaluator, TunedModel | None]:
    """Search; continues from the journal in `out` when there is one.

    Args:
        plan: model, levels, constraints.
        items: search items.
        out: run directory; None keeps nothing.
        progress: shown to the user.

    Returns:
        What was found, the evaluator of the float model, and the tuned model of the chosen setting where weights are
        tuned.

    Raises:
        InfeasibleError: nothing meets the constraints.
        RunError: the directory holds the journal of another search.
    """
    plan.calibrate(progress)
    evaluator = Evaluator(plan.store(), items, reuse=plan.recipe.reuse)
    journal = Journal(
        None if out is None else out / "journal.jsonl", evaluator.kind, plan.fingerprint_parts(items)
    )
    judges: list[TunedJudge] = []

    def make_judge(*arguments: Any, **options: Any) -> Judge:
        if plan.tuning is None:
            return Judge(*arguments, **options)
        judge = TunedJudge(
            *arguments,
            **options,
            items=plan.training_items,
            options=plan.tuning,
            digest=plan.digest,
            start=plan.tuning_start,
            folder=out,
            stage=progress.stage,
            advance=progress.advance,
        )
        judges.append(judge)
        return judge

    result = run_search(
        evaluator,
        plan.digest,
        plan.constraints,
        plan.options,
        journal,
        stage=progress.stage,
        advance=progress.advance,
        announce=lambda text: progress.advance(0.0, text),
        make_judge=make_judge,
    )
    tuned = judges[0].model(result.chosen.setting) if judges else None
    if out is not None:
        table = {
            "levels": [str(level) for level in plan.options.levels],
            "cells": [c.to_dict() for c in result.sensitivity],
            "modules": [c.to_dict() for c in result.predictions],
        }
        if result.front:
            write_json(out / FILE, describe_front(plan, items, result))
        write_json(
            out / "sensitivity.json",
            {"schema": "qslm-edge/sensitivity/1", **plan.fingerprint_parts(items), **table},
        )
    return result, evaluator, tuned
