"""Reading checkpoints: every form that is accepted, and one readable line for everything that is not."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from qslm_edge.errors import CheckpointError
from qslm_edge.spikegpt import load_checkpoint
from qslm_edge.spikegpt.checkpoint import INDEX, read_config

Tensors = dict[str, Tensor]
SHARED = [HealthCheck.function_scoped_fixture]


@pytest.fixture
def tensors(make_tensors: Callable[..., Tensors]) -> Tensors:
    return make_tensors()


@pytest.fixture(scope="module")
def files(make_tensors: Callable[..., Tensors], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of one small model in both file forms."""
    folder = tmp_path_factory.mktemp("files")
    tensors = make_tensors(n_layer=1, c=8, f=16, vocab=3)
    save_file(tensors, folder / "m.safetensors")
    torch.save(tensors, folder / "m.pth")
    return {suffix: (folder / f"m{suffix}").read_bytes() for suffix in (".safetensors", ".pth")}


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


def assert_same(path: Path, tensors: Tensors, embedding: str | None = None) -> None:
    model = load_checkpoint(path, embedding)
    assert model.tensors.keys() == tensors.keys()
    for key, tensor in model.tensors.items():
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert torch.equal(tensor, tensors[key].float()), key


# What is accepted.


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


# What is refused: files.


def test_missing_empty_and_impossible_paths(tmp_path: Path) -> None:
    assert "no such checkpoint" in refusal(tmp_path / "none.pth")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "empty.safetensors").touch()
    assert "file is empty" in refusal(tmp_path / "empty.pth")
    assert "file is empty" in refusal(tmp_path / "empty.safetensors")
    assert "config.json is missing" in refusal(tmp_path)
    assert "cannot be read" in refusal(tmp_path / ("x" * 300 + ".pth"))
    assert "such checkpoint" in refusal(tmp_path / "a\0b.pth")
    if Path("/dev/null").exists():
        assert "file is empty" in refusal(Path("/dev/null"))


def test_a_file_too_large_is_not_opened(tmp_path: Path) -> None:
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"m{suffix}"
        with path.open("wb") as file:
            file.truncate(16 * 10**9 + 1)  # sparse: takes no room
        assert "file is too large" in refusal(path)
        path.unlink()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@settings(max_examples=25, suppress_health_check=SHARED)
@given(data=st.data())
def test_truncated_anywhere(
    tmp_path: Path, files: dict[str, bytes], suffix: str, data: st.DataObject
) -> None:
    content = files[suffix]
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content[: data.draw(st.integers(1, len(content) - 1))])
    assert "not a complete" in refusal(path) or "cannot be loaded" in refusal(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@settings(max_examples=80, suppress_health_check=SHARED)
@given(data=st.data())
def test_flipped_bytes_load_or_are_refused(
    tmp_path: Path, files: dict[str, bytes], suffix: str, data: st.DataObject
) -> None:
    content = bytearray(files[suffix])
    # the structure stands at the beginning, and of a zip also at the end
    places = st.integers(0, 1500) | st.integers(len(content) - 3000, len(content) - 1)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(places)] = data.draw(st.integers(0, 255))
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    try:
        model = load_checkpoint(path, "dense")
    except CheckpointError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert all(bool(torch.isfinite(tensor).all()) for tensor in model.tensors.values())


@settings(max_examples=80, suppress_health_check=SHARED)
@given(data=st.data())
def test_a_hostile_pickle_in_a_sound_zip(
    tmp_path: Path, files: dict[str, bytes], data: st.DataObject
) -> None:
    (tmp_path / "good.pth").write_bytes(files[".pth"])
    with zipfile.ZipFile(tmp_path / "good.pth") as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    program = bytearray(entries[name])
    if data.draw(st.booleans()):
        program[data.draw(st.integers(0, len(program) - 1))] = data.draw(st.integers(0, 255))
    else:
        program = bytearray(b"\x80\x02" + data.draw(st.binary(max_size=40)) + b".")
    with zipfile.ZipFile(tmp_path / "bad.pth", "w", zipfile.ZIP_STORED) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, bytes(program) if entry == name else content)
    try:
        load_checkpoint(tmp_path / "bad.pth", "dense")
    except CheckpointError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


@settings(max_examples=40, suppress_health_check=SHARED)
@given(header=st.binary(max_size=60) | st.text(max_size=40).map(lambda t: json.dumps({t: t}).encode()))
@example(header=b'{"emb.weight": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}')
@example(header=b'{"emb.weight": {"dtype": "F32", "shape": [1000000, 16384], "data_offsets": [0, 8]}}')
@example(header=b'{"emb.weight": {"dtype": "F8_E8M0", "shape": [8], "data_offsets": [0, 8]}}')
@example(header=b"[" * 5000)
def test_a_hostile_safetensors_header(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    refusal(path)


class Payload:
    """Pickles to a call of os.mkdir: what an attacker would use for anything."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("place", ["alone", "beside", "inside"])
@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_would_run_code_is_not_run(
    tmp_path: Path, tensors: Tensors, place: str, modern: bool
) -> None:
    marker, path = tmp_path / "executed", tmp_path / "m.pth"
    attack = Payload(marker)
    contents: dict[str, Any] = {
        "alone": attack,
        "beside": {**tensors, "x": attack},
        "inside": {"state_dict": tensors, "x": [attack]},
    }
    torch.save(contents[place], path, _use_new_zipfile_serialization=modern)
    line = refusal(path)
    assert "run code" in line if modern else "zip form" in line
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the attack is real
    assert marker.is_dir()


def test_a_legacy_pickle_is_refused_with_a_way_out(tmp_path: Path, tensors: Tensors) -> None:
    path = tmp_path / "m.pth"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    assert "save it once more" in refusal(path)


def test_a_legacy_pickle_with_a_zip_behind_it(tmp_path: Path, tensors: Tensors) -> None:
    marker, legacy, modern = tmp_path / "executed", tmp_path / "l.pth", tmp_path / "m.pth"
    torch.save(Payload(marker), legacy, _use_new_zipfile_serialization=False)
    torch.save(tensors, modern)
    both = tmp_path / "both.pth"
    both.write_bytes(legacy.read_bytes() + modern.read_bytes())
    refusal(both)
    assert not marker.exists()


def test_a_torchscript_archive_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    (tmp_path / "good.pth").write_bytes(files[".pth"])
    with (
        zipfile.ZipFile(tmp_path / "good.pth") as good,
        zipfile.ZipFile(tmp_path / "script.pth", "w", zipfile.ZIP_STORED) as bad,
    ):
        for info in good.infolist():
            bad.writestr(info.filename, good.read(info))
        bad.writestr(f"{good.infolist()[0].filename.split('/')[0]}/constants.pkl", b"\x80\x02).")
    refusal(tmp_path / "script.pth")


def test_compressed_entries_are_refused_before_they_inflate(tmp_path: Path, files: dict[str, bytes]) -> None:
    (tmp_path / "good.pth").write_bytes(files[".pth"])
    with (
        zipfile.ZipFile(tmp_path / "good.pth") as good,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for info in good.infolist():
            content = good.read(info)
            large = info.filename.endswith("data/0")
            bomb.writestr(info.filename, bytes(2**22) if large else content)
    assert (tmp_path / "bomb.pth").stat().st_size < 2**17
    assert "compressed entries are refused" in refusal(tmp_path / "bomb.pth")


@pytest.mark.parametrize("size", [(2**20, 2**14), (2**16, 2**10)])
def test_a_tensor_of_stride_zero_is_refused_before_it_inflates(
    tmp_path: Path, tensors: Tensors, size: tuple[int, int]
) -> None:
    tensors["emb.weight"] = torch.zeros(1).expand(size)
    path = save_pth(tmp_path / "m.pth", tensors)
    assert path.stat().st_size < 2**20
    assert "larger than the file" in refusal(path)


def test_tensors_that_all_share_one_storage_are_refused(
    tmp_path: Path, make_tensors: Callable[..., Tensors]
) -> None:
    tensors = make_tensors(n_layer=40, c=64, f=64, vocab=64)
    shared = torch.zeros(64, 64)
    small = {key: shared if tensor.dim() == 2 else tensor for key, tensor in tensors.items()}
    assert "larger than the file" in refusal(save_pth(tmp_path / "m.pth", small))


def test_sparse_and_meta_tensors_are_refused(tmp_path: Path, tensors: Tensors) -> None:
    place, value = torch.zeros(2, 1).long(), torch.ones(1)
    tensors["emb.weight"] = torch.sparse_coo_tensor(place, value, (2**20, 2**14), check_invariants=True)
    assert "not a plain dense tensor" in refusal(save_pth(tmp_path / "s.pth", tensors))
    tensors["emb.weight"] = torch.empty(2**20, 2**14, device="meta")
    refusal(save_pth(tmp_path / "m.pth", tensors))


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {}, "text", {"state_dict": {}}])
def test_something_else_in_a_pth(tmp_path: Path, content: Any) -> None:
    line = refusal(save_pth(tmp_path / "m.pth", content))
    assert "state dict" in line


# What is refused: directories.


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


# What is refused: contents.


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


# sizes alone


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
