"""Checkpoints that are read: every form, by the tensors alone, and sizes without values."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qslm_edge.errors import CheckpointError
from qslm_edge.spikegpt import load_checkpoint
from qslm_edge.spikegpt.checkpoint import read_config
from tests.helpers.checkpoints import Tensors, refusal, save_pth, split, write_directory, write_shards


def assert_same(path: Path, tensors: Tensors, embedding: str | None = None) -> None:
    model = load_checkpoint(path, embedding)
    assert model.tensors.keys() == tensors.keys()
    for key, tensor in model.tensors.items():
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert torch.equal(tensor, tensors[key].float()), key


def test_bare_state_dict(tmp_path: Path, tensors: Tensors) -> None:
    assert_same(save_pth(tmp_path / "m.pth", tensors), tensors, "dense")


def test_single_safetensors_file(tmp_path: Path, tensors: Tensors) -> None:
    save_file(tensors, tmp_path / "m.safetensors")
    assert_same(tmp_path / "m.safetensors", tensors, "binary")


def test_model_directory(tmp_path: Path, tensors: Tensors) -> None:
    folder = write_directory(tmp_path / "m", tensors, n_layer=2, n_embd=32, ffn_dim=64, vocab_size=11)
    assert_same(folder, tensors)


def test_sharded_directory(tmp_path: Path, tensors: Tensors) -> None:
    first, second = split(tensors)
    shards = {"model-00001-of-00002.safetensors": first, "model-00002-of-00002.safetensors": second}
    assert_same(write_shards(tmp_path / "m", shards), tensors)


def test_sizes_are_read_from_the_tensors(tmp_path: Path, make_tensors: Callable[..., Tensors]) -> None:
    tensors = make_tensors(n_layer=3, c=16, f=40, vocab=9, labels=4, lm=False)
    folder = write_directory(
        tmp_path / "m", tensors, ctx_len=128, id2label={str(i): f"c{i}" for i in range(4)}
    )
    config = load_checkpoint(folder).config
    assert (config.n_layer, config.n_embd, config.ffn_dim, config.vocab_size) == (3, 16, 40, 9)
    assert (config.num_labels, config.has_lm_head, config.ctx_len) == (4, False, 128)
    assert (config.embedding, config.labels) == ("dense", ("c0", "c1", "c2", "c3"))


def test_sizes_of_one_are_read_rightly(tmp_path: Path, make_tensors: Callable[..., Tensors]) -> None:
    tensors = make_tensors(n_layer=1, c=1, f=1, vocab=1)
    assert_same(save_pth(tmp_path / "m.pth", tensors), tensors, "dense")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_float_types_become_float32(
    tmp_path: Path, tensors: Tensors, dtype: torch.dtype, suffix: str
) -> None:
    narrow = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    path = tmp_path / f"m{suffix}"
    if suffix == ".pth":
        torch.save(narrow, path)
    else:
        save_file(narrow, path)
    assert_same(path, narrow, "dense")


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module"])
@pytest.mark.parametrize("prefix", ["", "module.", "_forward_module.", "model."])
def test_wrappers_and_prefixes_of_trainers(
    tmp_path: Path, tensors: Tensors, wrapper: str, prefix: str
) -> None:
    content = {wrapper: {prefix + key: tensor for key, tensor in tensors.items()}, "epoch": 3, "args": None}
    assert_same(save_pth(tmp_path / "m.pth", content), tensors, "dense")


def test_ordered_dicts_parameters_and_views(tmp_path: Path, tensors: Tensors) -> None:
    content = OrderedDict((k, torch.nn.Parameter(t)) for k, t in tensors.items())
    # saved views drag their whole storage along, and need not be contiguous
    content["head.weight"] = torch.nn.Parameter(tensors["head.weight"].t().contiguous().t())
    assert_same(save_pth(tmp_path / "m.pth", content), tensors, "dense")


def test_tied_embedding_and_head_share_one_storage(tmp_path: Path, tensors: Tensors) -> None:
    tensors["head.weight"] = tensors["emb.weight"]
    assert_same(save_pth(tmp_path / "m.pth", tensors), tensors, "dense")


def test_vectors_may_carry_axes_of_length_one(tmp_path: Path, tensors: Tensors) -> None:
    odd = dict(tensors)
    odd["blocks.0.att.time_decay"] = tensors["blocks.0.att.time_decay"].view(1, 1, -1)
    odd["blocks.1.ffn.time_mix_k"] = tensors["blocks.1.ffn.time_mix_k"].view(-1)
    assert_same(save_pth(tmp_path / "m.pth", odd), tensors, "dense")


def test_the_rule_by_vocabulary_reaches_bare_files(
    tmp_path: Path, make_tensors: Callable[..., Tensors]
) -> None:
    path = save_pth(tmp_path / "m.pth", make_tensors(n_layer=1, c=8, f=8, vocab=77))
    assert load_checkpoint(path).config.embedding == "binary"
    assert load_checkpoint(path, "dense").config.embedding == "dense"
    assert load_checkpoint(str(path)).config.vocab_size == 77


def test_the_flag_wins_over_config_json(tmp_path: Path, tensors: Tensors) -> None:
    folder = write_directory(tmp_path / "m", tensors, embedding="binary")
    assert load_checkpoint(folder).config.embedding == "binary"
    assert load_checkpoint(folder, "dense").config.embedding == "dense"


def test_published_golden_checkpoints(golden: Path) -> None:
    for mode, embedding in (("plain", "dense"), ("binary", "binary")):
        config = load_checkpoint(golden / f"small_{mode}.pth", embedding).config
        assert (config.n_layer, config.n_embd, config.ffn_dim, config.vocab_size) == (3, 64, 256, 211)


def test_sizes_are_read_without_a_look_at_the_values(tensors: Tensors, tmp_path: Path) -> None:
    tensors["emb.weight"][0, 0] = float("nan")
    for suffix in (".safetensors", ".pth"):
        path = tmp_path / f"m{suffix}"
        save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
        config = read_config(path, "dense")
        assert (config.vocab_size, config.n_embd) == tuple(tensors["emb.weight"].shape)
        assert "NaN" in refusal(path)


def test_sizes_need_every_tensor_in_its_shape(tensors: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    key = "blocks.0.att.key.weight"
    for change, text in (
        ({key: tensors[key][:-1].clone()}, "wrong shape"),
        ({"blocks.0.att.extra": torch.zeros(1)}, "unknown tensors"),
    ):
        save_file({**tensors, **change}, path)
        with pytest.raises(CheckpointError, match=text):
            read_config(path, "dense")
    save_file({name: tensor for name, tensor in tensors.items() if name != key}, path)
    with pytest.raises(CheckpointError, match="tensors are missing"):
        read_config(path, "dense")
