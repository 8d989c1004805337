"""Writing checkpoints of every form, and what a refused one says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from qslm_edge.errors import CheckpointError
from qslm_edge.spikegpt import load_checkpoint
from qslm_edge.spikegpt.checkpoint import INDEX

__all__ = ["Tensors", "refusal", "save_pth", "split", "write_directory", "write_shards"]

Tensors = dict[str, Tensor]


def refusal(path: Path, embedding: str | None = "dense") -> str:
    """The message of a refusal: one line of bearable length."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, embedding)
    line = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in line
    assert len(line) < 600
    return line


def save_pth(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def write_directory(folder: Path, tensors: Tensors, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    values = {"model_type": "spikegpt", "embedding": "dense", **config}
    (folder / "config.json").write_text(json.dumps(values), "utf-8")
    return folder


def write_shards(folder: Path, shards: dict[str, Tensors], weight_map: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in shards.items():
        save_file(content, folder / name)
    if weight_map is None:
        weight_map = {key: name for name, content in shards.items() for key in content}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    (folder / "config.json").write_text('{"embedding": "dense"}', "utf-8")
    return folder


def split(tensors: Tensors) -> tuple[Tensors, Tensors]:
    keys = sorted(tensors)
    return {k: tensors[k] for k in keys[::2]}, {k: tensors[k] for k in keys[1::2]}
