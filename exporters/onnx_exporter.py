"""ONNX: model.onnx with its weights in model.bin, and tensors.json, which says what lies where in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx

from qslm_edge.bundle.tensors import SCHEMA, TENSORS
from qslm_edge.errors import OutputError, UsageError
from qslm_edge.exporters.base import Exported, Exporter, ExportJob
from qslm_edge.exporters.onnx_graph import WeightFile
from qslm_edge.exporters.onnx_spikegpt import SpikeGPTGraph

__all__ = ["OnnxExporter"]

GRAPH, WEIGHTS = "model.onnx", "model.bin"


class OnnxExporter(Exporter):
    """Graph for ONNX Runtime with packed weights in one external file."""

    name = "onnx"

    def export(self, job: ExportJob, directory: Path) -> Exported:
        if simulated := [name for name, level in job.setting.levels if level.simulated]:
            raise UsageError(
                "simulated levels cannot be exported",
                where=simulated[0],
                found=job.setting[simulated[0]],
                allowed="packed (8, 4, 2) and float (16, 32) levels",
                hint="search with the default method",
            )
        try:
            with WeightFile(directory / WEIGHTS) as weights:
                builder = SpikeGPTGraph(job.store, job.setting, weights)
                model = builder.build(job.opset, job.ir_version, {"setting": job.setting.describe()})
            (directory / GRAPH).write_bytes(model.SerializeToString(deterministic=True))
            (directory / TENSORS).write_text(_tensor_table(job, weights), "utf-8")
            onnx.checker.check_model(str(directory / GRAPH))
        except OSError as error:
            raise OutputError("the model cannot be written", where=directory, found=error.strerror) from None
        bits = sorted({level.bits for _, level in job.setting.levels})
        requirements = {
            "opset": job.opset,
            "ir_version": job.ir_version,
            "bits": bits,
            "operators": sorted(op for op in builder.graph.operators() if "::" in op),
        }
        return Exported(
            (GRAPH, WEIGHTS, TENSORS), weights.weight_bytes, builder.graph.operators(), requirements
        )

    def export_tapped(self, job: ExportJob, directory: Path) -> Path:
        """Write a second graph over the same weights that also gives every module's input and output.

        Returns:
            Its path; the caller deletes it.
        """
        with WeightFile(directory / WEIGHTS, write=False) as weights:
            model = SpikeGPTGraph(job.store, job.setting, weights, taps=True).build(
                job.opset, job.ir_version, {}
            )
        path = directory / "tapped.onnx"
        path.write_bytes(model.SerializeToString(deterministic=True))
        return path


def _tensor_table(job: ExportJob, weights: WeightFile) -> str:
    """The text of tensors.json: a line for each tensor and each matrix."""
    matrices: list[dict[str, Any]] = []
    for name, level in job.setting.levels:
        module = job.store.modules[name].with_hidden(level.units)
        matrices.append(
            {
                "name": name,
                "rows": module.rows,
                "columns": module.columns,
                "bits": level.bits,
                "group": level.group_size if level.is_packed else None,
                "midrise": level.midrise,
                "float_activations": not (level.is_packed and level.accuracy_level),
            }
        )
    parts = [
        f'"{key}": [\n  ' + ",\n  ".join(json.dumps(entry) for entry in entries) + "\n ]"
        for key, entries in (("tensors", weights.tensors), ("matrices", matrices))
    ]
    head = f'"schema": {json.dumps(SCHEMA)},\n "file": {json.dumps(weights.name)}'
    return "{\n " + ",\n ".join([head, *parts]) + "\n}\n"
