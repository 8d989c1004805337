"""Third step: export a setting as a bundle, and prove that the graph computes what the torch model does."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qslm_edge import __version__
from qslm_edge.allocator import give_back_freed_memory
from qslm_edge.bundle.reader import MANIFEST, Bundle
from qslm_edge.bundle.writer import check_place, finish_bundle, save_arrays, save_scores, save_split, staging
from qslm_edge.errors import DisagreementError, UsageError
from qslm_edge.exporters import ExportJob
from qslm_edge.exporters.onnx_cuda import FUSED_MINIMUM
from qslm_edge.exporters.onnx_exporter import OnnxExporter
from qslm_edge.exporters.parity import Parity, check_parity
from qslm_edge.items import Items
from qslm_edge.metrics import Scores, quality
from qslm_edge.profiles.kernels import CUDA_PROVIDER, version_key
from qslm_edge.progress import Progress
from qslm_edge.quantize.accounting import predict_peak_rss_bytes, weight_bytes
from qslm_edge.quantize.cuts import describe_cuts
from qslm_edge.quantize.levels import Setting
from qslm_edge.quantize.weights import QuantisedWeights
from qslm_edge.runner.text import json_ready
from qslm_edge.search.evaluator import Evaluator
from qslm_edge.search.reference import FloatReference, float_reference
from qslm_edge.spikegpt.model import SpikeGPT
from qslm_edge.steps.find import analyse
from qslm_edge.steps.plan import Plan
from qslm_edge.tuning.stored import TunedModel

__all__ = ["ExportResult", "describe_export", "export_bundle"]

SCHEMA = "qslm-edge/export/1"
BASE_RUNTIME = "1.18.1"
"""Oldest onnxruntime that loads opset 21, IR 10 and 4-bit MatMulNBits."""
GOLDEN_BYTES, GOLDEN_STREAMS = 2**20, 2
GOLDEN_TOLERANCE = {"float": 0.02, "float16": 0.15, "int8": 0.15}
"""Mean KL in nats: rounding flips single spikes and moves distributions; a wrong kernel moves whole nats."""
EXPECTED_TOLERANCE = {"language_model": 0.002, "classification": 0.2}
"""Relative perplexity, or points of accuracy, besides three paired standard errors."""

ExportResult = tuple[Bundle, Parity, dict[str, Any]]


def export_bundle(
    plan: Plan,
    setting: Setting,
    search_items: Items,
    expected: Scores | None,
    target: Path,
    progress: Progress,
    tuned: TunedModel | None = None,
) -> ExportResult:
    """Write the bundle of a setting.

    Args:
        plan: model, profile, task, constraints.
        setting: the levels.
        search_items: the items that steered the search.
        expected: scores of the setting on them as the search measured; None measures them now.
        target: bundle directory, replaced if it is one.
        progress: shown to the user.
        tuned: the tuned model of the setting; None packs the float model.

    Returns:
        The bundle, the parity, and what the report says of the export.

    Raises:
        DisagreementError: a module of the graph differs from the torch module by more than rounding.
        OutputError: the place cannot be written.
    """
    if simulated := [name for name, level in setting.levels if level.simulated]:
        raise UsageError(
            "simulated levels cannot be exported", where=simulated[0], found=setting[simulated[0]]
        )
    check_place(target)
    if any(level.is_packed for _, level in setting.levels):
        plan.calibrate(progress)
    exporter = OnnxExporter()
    store = plan.store() if tuned is None else tuned.store(plan.store())
    runtime = plan.profile.runtime
    cuda = CUDA_PROVIDER in runtime.providers
    fused = cuda and version_key(runtime.onnxruntime) >= version_key(FUSED_MINIMUM)
    job = ExportJob(store, setting, runtime.opset, runtime.ir_version, cuda, fused)
    report_items = plan.items("report")
    float_search, float_report, expected = _scores(plan, job, search_items, report_items, expected, progress)
    give_back_freed_memory()  # the exporter and the runtime need none of what scoring used
    with staging(target) as work:
        progress.stage("export", 3)
        exported = exporter.export(job, work)
        progress.advance(1, "model.onnx, model.bin")
        golden = _golden_tokens(plan, search_items)
        tapped = exporter.export_tapped(job, work)
        parity = check_parity(job, tapped, golden)
        tapped.unlink()
        progress.advance(1, "parity with torch")
        if parity.fault is not None:
            raise DisagreementError(
                "the exported graph does not compute what the torch model computes",
                found=parity.fault,
                hint="report this with the onnxruntime version; the bundle was not written",
            )
        items = {
            "search": save_split(work, search_items, float_search.scores, float_search.top),
            "report": save_split(work, report_items, float_report.scores, float_report.top),
        }
        save_scores(work / "eval" / "search-expected.npz", expected)
        _save_golden(plan, job, work, golden)
        (work / "tokenizer.json").write_bytes(plan.tokenizer.raw)
        (work / "NOTICE.txt").write_text(_NOTICE, "utf-8")
        if plan.hierarchy.head == "classifier":
            np.save(
                work / "classifier.npy",
                store.model.tensors["classifier.weight"].cpu().numpy(),
                allow_pickle=False,
            )
        manifest = _manifest(plan, setting, expected, items, exported.requirements, tuned) | exported.parts
        bundle = finish_bundle(work, manifest)
        progress.advance(1, "bundle")
    bundle = Bundle(target, bundle.manifest)
    facts = {
        "operators": exported.operators,
        "files": bundle.file_bytes,
        "weight_bytes": weight_bytes(plan.hierarchy, setting),
        "model_bin_bytes": bundle.file_bytes["model.bin"],
        "parity": parity.to_dict(),
    }
    return bundle, parity, facts


def describe_export(plan: Plan, setting: Setting, bundle: Bundle, facts: dict[str, Any]) -> dict[str, Any]:
    """An export as JSON-able data: what export.json holds.

    Args:
        plan: model, profile, task, constraints.
        setting: the levels.
        bundle: as it was written.
        facts: what `export_bundle` says of it.
    """
    described: dict[str, Any] = {
        "schema": SCHEMA,
        "tool_version": __version__,
        "recipe": plan.recipe.model_dump(mode="json", by_alias=True, exclude_none=True),
        "model": bundle.manifest["model"],
        "profile": {"id": plan.profile.id, "name": plan.profile.name, "digest": plan.profile.digest},
        "task": bundle.manifest["task"],
        "constraints": asdict(plan.constraints),
        "setting": setting.to_dict(),
        "summary": setting.describe(),
        "quantiser": bundle.manifest["quantiser"],
        "cuts": bundle.manifest["cuts"],
        "weights": bundle.manifest["weights"],
        "expected": bundle.manifest["expected"]["search"],
        "bundle": {"path": str(bundle.path), "digest": bundle.digest},
        "bytes": sum(bundle.file_bytes.values()) + (bundle.path / MANIFEST).stat().st_size,
        **facts,
    }
    ready: dict[str, Any] = json_ready(described)
    return ready


def _scores(
    plan: Plan, job: ExportJob, search: Items, report: Items, expected: Scores | None, progress: Progress
) -> tuple[FloatReference, FloatReference, Scores]:
    """Float scores of both splits (from the cache where they are), and the setting's on the search items."""
    progress.stage("float model on the report items", 1.0)
    report_evaluator = Evaluator(plan.store(), report, reuse=False)
    float_report = float_reference(report_evaluator, plan.digest, progress.advance)
    float_search = float_reference(Evaluator(plan.store(), search, reuse=False), plan.digest)
    if expected is None or expected.n_items < search.n_items:
        progress.stage("setting on the search items", 1.0)
        expected = Evaluator(job.store, search, reuse=False).evaluate(job.setting, on_batch=progress.advance)
    return float_search, float_report, expected


def _golden_tokens(plan: Plan, items: Items) -> NDArray[np.int64]:
    """[T, B] tokens from the search items, so few that their logits stay near 1 MiB."""
    width = plan.model.config.vocab_size if plan.hierarchy.head == "lm" else plan.model.config.n_embd
    longest = max(4, min(64, GOLDEN_BYTES // (4 * width * GOLDEN_STREAMS)))
    order = np.argsort(-items.lengths, kind="stable")[:GOLDEN_STREAMS]
    length = int(min(longest, items.lengths[order].min()))
    rows = [items.tokens[items.offsets[i] : items.offsets[i] + length] for i in order]
    return np.stack(rows, axis=1).astype(np.int64)


@torch.inference_mode()
def _save_golden(plan: Plan, job: ExportJob, work: Path, tokens: NDArray[np.int64]) -> None:
    quantised = SpikeGPT(plan.model.config, job.store.model.tensors)
    quantised.weights = QuantisedWeights(job.store, job.setting)
    idx = torch.from_numpy(tokens.T.copy()).to(plan.model.device)
    if plan.hierarchy.head == "lm":
        expected = quantised(idx).transpose(0, 1).cpu().numpy()
    else:
        expected = quantised.classify(idx).cpu().numpy()
    mask = np.ones(tokens.shape, np.float32)
    save_arrays(work / "golden.npz", {"tokens": tokens.astype(np.int32), "mask": mask, "expected": expected})


def _manifest(
    plan: Plan,
    setting: Setting,
    expected: Scores,
    items: dict[str, Any],
    requirements: dict[str, Any],
    tuned: TunedModel | None,
) -> dict[str, Any]:
    model = {key: value for key, value in analyse(plan).items() if key != "blocks"}
    task, profile = plan.task, plan.profile
    arithmetic = _arithmetic(setting, profile.provider)
    weights = weight_bytes(plan.hierarchy, setting)
    minima = [profile.width(level.bits).min_onnxruntime for _, level in setting.levels if level.is_packed]
    minimum = max([BASE_RUNTIME, *minima], key=lambda text: tuple(int(part) for part in text.split(".")))
    return {
        "model": model,
        "task": {
            "name": task.name,
            "kind": task.kind,
            "metric": task.metric,
            "unit": task.unit,
            "direction": "drop" if task.larger_is_better else "increase",
            "window": plan.window,
        },
        "profile": profile.to_manifest(),
        "constraints": asdict(plan.constraints),
        "recipe": plan.recipe.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=_PRIVATE),
        "setting": setting.to_dict(),
        "quantiser": plan.choice.to_dict(),
        "cuts": describe_cuts(plan.hierarchy, setting),
        "tuning": None if tuned is None else tuned.provenance(),
        "weights": {
            "bytes": weights,
            "float32_bytes": plan.hierarchy.float32_bytes,
            "reduction": round(1 - weights / plan.hierarchy.float32_bytes, 6),
            "counts": "packed codes, scales, zero points and all float tensors of this task's model",
            "predicted_peak_rss_bytes": predict_peak_rss_bytes(plan.hierarchy, setting),
        },
        "state": {
            "layout": ["att_x", "ffn_x", "a", "b", "p", "v1", "v2"],
            "n_layer": plan.model.config.n_layer,
            "n_embd": plan.model.config.n_embd,
            "p_init": -1e38,
        },
        "runtime": {"onnxruntime_min": minimum, "providers": list(profile.runtime.providers), **requirements},
        "expected": {
            "scores": "eval/search-expected.npz",
            "search": _rounded(asdict(quality(expected))),
            "tolerance": EXPECTED_TOLERANCE[task.kind],
            "arithmetic": arithmetic,
        },
        "golden": {"file": "golden.npz", "tolerance": GOLDEN_TOLERANCE[arithmetic]},
        "items": items,
    }


def _arithmetic(setting: Setting, provider: str) -> str:
    """What a provider computes activations with."""
    if any(level.is_packed and level.accuracy_level for _, level in setting.levels):
        return "int8"
    return "float16" if provider == CUDA_PROVIDER else "float"


_PRIVATE = {"model", "tokenizer", "search_data", "report_data", "calibration_data", "profile"}
"""Recipe entries that are paths: a bundle names none."""


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in values.items()}


_NOTICE = """This bundle was written by qslm-edge.

eval/ holds token ids made from evaluation data. Unless the manifest names other sources these are WikiText-2
(Merity et al. 2017), from Wikipedia, under CC BY-SA, or SST-2 (Socher et al. 2013; GLUE), under the terms of
those data sets.
"""
