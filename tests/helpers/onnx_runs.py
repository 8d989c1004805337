"""Running an exported graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qslm_edge.exporters import ExportJob
from qslm_edge.exporters.onnx_exporter import OnnxExporter
from qslm_edge.runner.runtime import import_onnxruntime
from qslm_edge.spikegpt.model import initial_state

__all__ = ["LEVELS", "Array", "exported", "onnxruntime", "open_session", "run_lm"]

onnxruntime = import_onnxruntime()
Array = NDArray[Any]
LEVELS = ("32", "16", "8g64", "8g64f", "4g32", "4g64f", "2g64", "2g64m", "2g64mf")


def open_session(directory: Path) -> Any:
    return onnxruntime.InferenceSession(str(directory / "model.onnx"), providers=["CPUExecutionProvider"])


def exported(job: ExportJob, directory: Path) -> Any:
    OnnxExporter().export(job, directory)
    return open_session(directory)


def run_lm(
    session: Any,
    job: ExportJob,
    tokens: Array,
    state: Array | None = None,
    last: int | None = None,
) -> tuple[Array, Array]:
    """Logits [t, B, V] and the new state."""
    if state is None:
        state = initial_state(job.store.model.config, tokens.shape[1]).numpy()
    feed = {
        "tokens": tokens,
        "state": state,
        "last": np.array([len(tokens) if last is None else last], np.int64),
    }
    logits, new = session.run(["logits", "state_out"], feed)
    return logits, new
