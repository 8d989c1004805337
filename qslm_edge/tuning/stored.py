"""A tuned model on disk: float tensors, packed matrices and what they were tuned from, in one safetensors file.

It is what `export` packs and what a resumed run takes in place of tuning again. The file names its setting and the
digest of the float model that it belongs to, and is read with the same suspicion as a checkpoint.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qslm_edge.errors import OutputError, RunError
from qslm_edge.quantize.accounting import matrix_bytes
from qslm_edge.quantize.levels import Setting
from qslm_edge.quantize.packed import PackedMatrix
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.spikegpt.model import SpikeGPT

__all__ = ["TunedModel", "load_tuned", "save_tuned"]

SCHEMA = "qslm-edge/tuned/1"
_PARTS = ("data", "scales", "zeros")


@dataclass(frozen=True)
class TunedModel:
    """A model that was tuned for one setting.

    Attributes:
        setting: the levels it was tuned at; at others it is nothing special.
        tensors: float tensors by published key.
        packed: packed matrices by module.
        origin: what tuning said of itself: fingerprint, steps, tokens, divergences.
    """

    setting: Setting
    tensors: dict[str, Tensor]
    packed: dict[str, PackedMatrix]
    origin: dict[str, Any]

    def provenance(self) -> dict[str, Any]:
        """What a bundle says of it: all of its origin but times."""
        return {key: value for key, value in self.origin.items() if key != "seconds"}

    def store(self, base: WeightStore) -> WeightStore:
        """A store of the tuned model, beside that of the float model it came from."""
        device = base.model.device
        dense = {
            base.modules[name].key: torch.from_numpy(np.ascontiguousarray(matrix.dequantise())).to(device)
            for name, matrix in self.packed.items()
        }
        floats = {key: tensor.to(device) for key, tensor in self.tensors.items()}
        model = SpikeGPT(base.model.config, {**base.model.tensors, **dense, **floats})
        return base.tuned(model, self.packed)


def save_tuned(path: Path, tuned: TunedModel, model_digest: str) -> None:
    """Write a tuned model all at once.

    Raises:
        OutputError: the place cannot be written.
    """
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tuned.tensors.items()}
    for name, matrix in tuned.packed.items():
        for part in _PARTS:
            array: NDArray[Any] | None = getattr(matrix, part)
            if array is not None:
                tensors[f"{name}/{part}"] = torch.from_numpy(np.ascontiguousarray(array))
    metadata = {
        "schema": SCHEMA,
        "model_digest": model_digest,
        "setting": json.dumps(tuned.setting.to_dict()),
        "origin": json.dumps(tuned.origin),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, temporary, metadata)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink()
        found = getattr(error, "strerror", None) or error
        raise OutputError("the tuned model cannot be written", where=path, found=found) from None


def load_tuned(path: Path, base: WeightStore, model_digest: str) -> TunedModel:
    """Read a tuned model and check it against the float model that it must belong to.

    Args:
        path: as `save_tuned` wrote it.
        base: store of the float model.
        model_digest: of the float model.

    Raises:
        RunError: missing, damaged, of another model, or tensors that do not fit it.
    """
    again = "tune again, or use another --out"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("schema") != SCHEMA:
                raise RunError("not a tuned model of this version", where=path, hint=again)
            if metadata["model_digest"] != model_digest:
                raise RunError("the tuned model belongs to another float model", where=path, hint=again)
            setting = Setting.from_dict(json.loads(metadata["setting"]))
            origin = json.loads(metadata["origin"])
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        packed, floats = _parts(found, base, setting)
    except FileNotFoundError:
        raise RunError("no tuned model", where=path, hint=again) from None
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise RunError("damaged tuned model", where=path, found=error, hint=again) from None
    return TunedModel(setting, floats, packed, origin)


def _parts(
    found: dict[str, Tensor], base: WeightStore, setting: Setting
) -> tuple[dict[str, PackedMatrix], dict[str, Tensor]]:
    """Packed matrices and float tensors; ValueError unless they are just what the setting needs, and finite."""
    if [name for name, _ in setting.levels] != list(base.modules):
        raise ValueError("the setting names other modules")
    for key, tensor in found.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{key} is not finite")
    packed = {}
    for name, level in setting.levels:
        if not level.is_packed:
            continue
        module = base.modules[name].with_hidden(level.units)
        data, scales = (found.pop(f"{name}/{part}").numpy() for part in _PARTS[:2])
        zeros = None if level.midrise else found.pop(f"{name}/zeros").numpy()
        matrix = PackedMatrix(module, level, data, scales, zeros)
        if matrix.nbytes != matrix_bytes(module, level) or matrix.dequantise().shape != (
            module.rows,
            module.columns,
        ):
            raise ValueError(f"{name} does not fit {level}")
        packed[name] = matrix
    cut = {module.key: module.with_hidden(setting[name].units) for name, module in base.modules.items()}
    for key, tensor in found.items():
        wanted = (cut[key].rows, cut[key].columns) if key in cut else base.model.tensors[key].shape
        if tensor.shape != wanted:
            raise ValueError(f"{key} has shape {tuple(tensor.shape)}")
    return packed, found
