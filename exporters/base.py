"""What an exporter is given and what it must return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qslm_edge.quantize.levels import Setting
from qslm_edge.quantize.weights import WeightStore

__all__ = ["ExportJob", "Exported", "Exporter"]


@dataclass(frozen=True)
class ExportJob:
    """A model, a setting, and the limits of the runtime that will load the result.

    Attributes:
        store: matrices of the model at any level; knows model and hierarchy.
        setting: a level for every module.
        opset, ir_version: the newest that the profile's runtime loads.
        cuda: also write the step graph of onnxruntime's CUDA provider.
        fused_cuda: let it use operators that the profile's runtime has and older ones have not.
    """

    store: WeightStore
    setting: Setting
    opset: int = 21
    ir_version: int = 10
    cuda: bool = False
    fused_cuda: bool = False


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: paths relative to the directory, in a fixed order.
        weight_bytes: bytes of all weights in the files, without alignment.
        operators: operator types in the graph with their number, e.g. {"com.microsoft::MatMulNBits": 44}.
        requirements: what the runtime must have, for the manifest.
        parts: keys of the manifest that describe further graphs.
    """

    files: tuple[str, ...]
    weight_bytes: int
    operators: dict[str, int]
    requirements: dict[str, Any]
    parts: dict[str, Any] = field(default_factory=dict)


class Exporter(ABC):
    """One export format."""

    name: str

    @abstractmethod
    def export(self, job: ExportJob, directory: Path) -> Exported:
        """Write the model into an existing directory.

        Raises:
            UsageError: the setting holds levels that the format cannot store.
            OutputError: the directory cannot be written.
        """
