"""Files that are refused: damaged, hostile, or of another kind, each in one line and without running code."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from qslm_edge.errors import CheckpointError
from qslm_edge.spikegpt import load_checkpoint
from tests.helpers.checkpoints import Tensors, refusal, save_pth

SHARED = [HealthCheck.function_scoped_fixture]


@pytest.fixture(scope="module")
def files(make_tensors: Callable[..., Tensors], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of one small model in both file forms."""
    folder = tmp_path_factory.mktemp("files")
    tensors = make_tensors(n_layer=1, c=8, f=16, vocab=3)
    save_file(tensors, folder / "m.safetensors")
    torch.save(tensors, folder / "m.pth")
    return {suffix: (folder / f"m{suffix}").read_bytes() for suffix in (".safetensors", ".pth")}


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
