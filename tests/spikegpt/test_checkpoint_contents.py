"""Directories, keys, shapes and values that are refused, each in one line that names them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from qslm_edge.spikegpt import load_checkpoint
from qslm_edge.spikegpt.checkpoint import INDEX
from tests.helpers.checkpoints import Tensors, refusal, save_pth, split, write_directory, write_shards


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, '"' + "x" * 100, "\ud800"], ids=range(7))
def test_config_json_that_is_none(tmp_path: Path, tensors: Tensors, text: str) -> None:
    folder = write_directory(tmp_path / "m", tensors)
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert "config.json" in refusal(folder)


def test_config_json_too_large(tmp_path: Path, tensors: Tensors) -> None:
    folder = write_directory(tmp_path / "m", tensors)
    with (folder / "config.json").open("wb") as file:
        file.truncate(64 * 2**20 + 1)
    assert "too large" in refusal(folder)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"n_layer": 3}, "n_layer; found 3; allowed: 2"),
        ({"n_embd": 64}, "n_embd; found 64"),
        ({"ffn_dim": 32}, "ffn_dim; found 32"),
        ({"vocab_size": 12}, "vocab_size; found 12"),
        ({"vocab_size": "11"}, "vocab_size; found 11"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "id2label; found 3 class names; allowed: 2"),
        ({"lif": {"tau": 3.0}}, "lif.tau = 3.0"),
        ({"embedding": 7}, "unknown embedding mode"),
        ({"model_type": "rwkv"}, "not a SpikeGPT"),
    ],
)
def test_config_that_disagrees_with_the_weights(
    tmp_path: Path, make_tensors: Callable[..., Tensors], config: dict[str, Any], found: str
) -> None:
    folder = write_directory(tmp_path / "m", make_tensors(labels=2), **config)
    line = refusal(folder, None)
    assert found in line.replace(": config.json and weights disagree", "")


def test_a_directory_without_weights(tmp_path: Path, tensors: Tensors) -> None:
    folder = write_directory(tmp_path / "m", tensors)
    (folder / "model.safetensors").unlink()
    assert "no weights" in refusal(folder)
    (folder / "model.safetensors").mkdir()
    refusal(folder)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": 3}', "{", ""])
def test_an_index_that_names_nothing(tmp_path: Path, tensors: Tensors, index: str) -> None:
    folder = write_directory(tmp_path / "m", tensors)
    (folder / "model.safetensors").unlink()
    (folder / INDEX).write_text(index)
    assert INDEX in refusal(folder)


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "/tmp/a.safetensors", "sub/a.safetensors", "..", "a.pth", "", 3, None, ["x"]]
)
def test_a_shard_outside_the_directory(tmp_path: Path, tensors: Tensors, name: Any) -> None:
    folder = write_shards(tmp_path / "m", {}, dict.fromkeys(tensors, name))
    save_file(tensors, tmp_path / "a.safetensors")
    (folder / "sub").mkdir()
    save_file(tensors, folder / "sub" / "a.safetensors")
    assert "shard name" in refusal(folder)


def test_a_missing_shard(tmp_path: Path, tensors: Tensors) -> None:
    first, second = split(tensors)
    folder = write_shards(tmp_path / "m", {"a.safetensors": first, "b.safetensors": second})
    (folder / "b.safetensors").unlink()
    assert "b.safetensors" in refusal(folder)


def test_a_shard_that_lacks_what_the_index_promises(tmp_path: Path, tensors: Tensors) -> None:
    first, second = split(tensors)
    whole = dict.fromkeys(first, "a.safetensors") | dict.fromkeys(second, "b.safetensors")
    lost = sorted(second)[0]
    del second[lost]
    folder = write_shards(tmp_path / "m", {"a.safetensors": first, "b.safetensors": second}, whole)
    assert f"lacks tensors of the index; found {lost}" in refusal(folder)


def test_a_tensor_in_two_shards_is_not_decided_by_order(tmp_path: Path, tensors: Tensors) -> None:
    first, second = split(tensors)
    whole = dict.fromkeys(first, "a.safetensors") | dict.fromkeys(second, "b.safetensors")
    twice = sorted(first)[0]
    second[twice] = first[twice] + 1
    folder = write_shards(tmp_path / "m", {"a.safetensors": first, "b.safetensors": second}, whole)
    assert twice in refusal(folder)


def test_wrong_keys(tmp_path: Path, tensors: Tensors) -> None:
    renamed = {key.replace("att", "attn"): tensor for key, tensor in tensors.items()}
    assert "tensors are missing" in refusal(save_pth(tmp_path / "m.pth", renamed))
    other = {"transformer.wte.weight": torch.zeros(3, 3)}
    line = refusal(save_pth(tmp_path / "o.pth", other))
    assert "emb.weight is missing; found transformer.wte.weight" in line


def test_each_missing_tensor_is_named(tmp_path: Path, tensors: Tensors) -> None:
    for key in ("blocks.0.ln0.bias", "blocks.1.att.time_first", "blocks.1.ffn.value.weight", "ln_out.weight"):
        rest = {name: tensor for name, tensor in tensors.items() if name != key}
        assert f"tensors are missing; found {key};" in refusal(save_pth(tmp_path / "m.pth", rest))
    lost = [key for key in tensors if key.startswith("blocks.1.att")]
    rest = {key: tensor for key, tensor in tensors.items() if key not in lost}
    assert f"and {len(lost) - 3} more" in refusal(save_pth(tmp_path / "m.pth", rest))
    del tensors["head.weight"]
    assert "no head" in refusal(save_pth(tmp_path / "m.pth", tensors))


@pytest.mark.parametrize(
    "extra", ["blocks.0.att.bias", "blocks.00.ln1.weight", "lm_head.weight", "blocks.1.ln0.weight"]
)
def test_extra_keys(tmp_path: Path, tensors: Tensors, extra: str) -> None:
    tensors[extra] = torch.zeros(32)
    assert f"unknown tensors; found {extra}" in refusal(save_pth(tmp_path / "m.pth", tensors))


def test_a_gap_between_the_layers(tmp_path: Path, make_tensors: Callable[..., Tensors]) -> None:
    tensors = make_tensors(n_layer=3)
    rest = {key: tensor for key, tensor in tensors.items() if not key.startswith("blocks.1.")}
    assert "tensors are missing; found blocks.1.att.key.weight" in refusal(save_pth(tmp_path / "m.pth", rest))
    tensors["blocks.9999.ln1.weight"] = torch.zeros(32)
    assert "n_layer = 10000" in refusal(save_pth(tmp_path / "m.pth", tensors))


def test_two_models_in_one_state_dict(tmp_path: Path, tensors: Tensors) -> None:
    both = tensors | {f"module.{key}": tensor + 1 for key, tensor in tensors.items()}
    assert "unknown tensors" in refusal(save_pth(tmp_path / "m.pth", both))


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("blocks.1.ffn.key.weight", (32, 64)),  # transposed: as many values, other meaning
        ("blocks.0.ffn.value.weight", (64, 32)),
        ("head.weight", (32, 11)),
        ("head.weight", (11, 32, 2)),
        ("head.weight", (12, 32)),
        ("blocks.1.att.key.weight", (32, 16)),
        ("blocks.1.att.key.weight", (1024,)),
        ("blocks.0.ln1.weight", (31,)),
        ("blocks.0.ln1.weight", ()),
        ("blocks.0.att.time_mix_k", (2, 16)),
        ("blocks.0.att.time_decay", (0,)),
    ],
)
def test_wrong_shapes(tmp_path: Path, tensors: Tensors, key: str, shape: tuple[int, ...]) -> None:
    tensors[key] = torch.zeros(shape)
    line = refusal(save_pth(tmp_path / "m.pth", tensors))
    assert f"{key}: wrong shape; found {list(shape)}" in line


@pytest.mark.parametrize(
    ("key", "tensor"),
    [
        ("emb.weight", torch.zeros(11)),
        ("emb.weight", torch.zeros(0, 32)),
        ("emb.weight", torch.zeros(2**20 + 1, 1)),
        ("blocks.0.ffn.key.weight", torch.zeros(64)),
        ("classifier.weight", torch.zeros(2)),
        ("classifier.weight", torch.zeros(0, 32)),
        ("classifier.weight", torch.zeros(2, 31)),
    ],
)
def test_wrong_shapes_of_what_gives_the_sizes(
    tmp_path: Path, tensors: Tensors, key: str, tensor: Tensor
) -> None:
    tensors[key] = tensor
    refusal(save_pth(tmp_path / "m.pth", tensors))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", ["emb.weight", "blocks.1.att.time_mix_v", "head.weight"])
def test_values_that_are_not_finite(tmp_path: Path, tensors: Tensors, key: str, value: float) -> None:
    tensors[key].view(-1)[-1] = value
    assert f"{key}: holds NaN or infinite values" in refusal(save_pth(tmp_path / "m.pth", tensors))


def test_a_double_that_overflows_float32(tmp_path: Path, tensors: Tensors) -> None:
    tensors["emb.weight"] = tensors["emb.weight"].double()
    tensors["emb.weight"][0, 0] = 1e300
    assert "infinite" in refusal(save_pth(tmp_path / "m.pth", tensors))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64])
def test_tensors_that_are_not_floating_point(tmp_path: Path, tensors: Tensors, dtype: torch.dtype) -> None:
    tensors["blocks.0.att.key.weight"] = tensors["blocks.0.att.key.weight"].to(dtype)
    assert "not a floating-point tensor" in refusal(save_pth(tmp_path / "m.pth", tensors))


def test_other_published_variants_are_named(tmp_path: Path, tensors: Tensors) -> None:
    variant = {key.replace("blocks.0.att", "blocks.0.ffnPre"): tensor for key, tensor in tensors.items()}
    assert "RWKV-ffnPre" in refusal(save_pth(tmp_path / "m.pth", variant))
    tensors["head_q.weight"] = torch.zeros(4, 32)
    assert "head_q.weight" in refusal(save_pth(tmp_path / "m.pth", tensors))


def test_an_embedding_that_cannot_be_told(tmp_path: Path, tensors: Tensors) -> None:
    path = save_pth(tmp_path / "m.pth", tensors)
    assert "--embedding" in refusal(path, None)
    assert "unknown embedding mode" in refusal(path, "Dense")


def test_loading_does_not_change_the_file(tmp_path: Path, golden: Path) -> None:
    path = tmp_path / "m.pth"
    shutil.copy(golden / "small_plain.pth", path)
    before = path.read_bytes()
    model = load_checkpoint(path, "dense")
    model.tensors["emb.weight"] += 1  # the mapping is private
    assert path.read_bytes() == before
    assert np.isfinite(model.tensors["emb.weight"].numpy()).all()
