"""Exporters: back ends that turn a model and a setting into files for a runtime.

A new format is one file with a subclass of `Exporter` and one line here.
"""

from __future__ import annotations

import difflib

from qslm_edge.errors import UsageError
from qslm_edge.exporters.base import Exported, Exporter, ExportJob
from qslm_edge.exporters.onnx_exporter import OnnxExporter

__all__ = ["EXPORTERS", "ExportJob", "Exported", "Exporter", "get_exporter"]

EXPORTERS: dict[str, type[Exporter]] = {"onnx": OnnxExporter}


def get_exporter(name: str) -> Exporter:
    """Exporter by its registered name.

    Raises:
        UsageError: for an unknown name.
    """
    if name not in EXPORTERS:
        near = difflib.get_close_matches(name, EXPORTERS, 1)
        raise UsageError(
            "unknown export format",
            found=name,
            allowed=", ".join(EXPORTERS),
            hint=f"did you mean {near[0]}?" if near else None,
        )
    return EXPORTERS[name]()
