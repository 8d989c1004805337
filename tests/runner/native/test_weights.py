"""Weights mapped or copied: the same bytes at every offset, the same results, and each failure one line."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import numpy as np
import pytest

from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import RuntimeFault, UsageError
from qslm_edge.runner.native.weights import WEIGHTS_VARIABLE, WeightMemory, copies_weights
from tests.helpers.native import exported_bundle, native_session, needs_compiler
from tests.helpers.tiny import make_job, make_model, random_tokens

SIZE, BEGIN = 3 * mmap.PAGESIZE + 77, mmap.PAGESIZE + 5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "model.bin"
    file.write_bytes(np.random.default_rng(0).integers(0, 256, SIZE, np.uint8).tobytes())
    return file


@pytest.mark.parametrize("copied", [False, True])
def test_every_byte_is_where_it_is_said_to_be(path: Path, copied: bool) -> None:
    memory = WeightMemory(path)
    assert memory.size == SIZE
    memory.bring_in(BEGIN, copied)
    for offset in (0, mmap.PAGESIZE - 1, mmap.PAGESIZE, BEGIN, SIZE - 1):
        assert ctypes.string_at(memory.address(offset), 1) == path.read_bytes()[offset : offset + 1]
    assert ctypes.string_at(memory.address(BEGIN), SIZE - BEGIN) == path.read_bytes()[BEGIN:]


def test_a_copy_fails_in_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = WeightMemory(path)
    path.write_bytes(b"short")
    with pytest.raises(RuntimeFault, match=f"the weights end early; found {mmap.PAGESIZE}; allowed: {SIZE}"):
        memory.bring_in(BEGIN, copied=True)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("qslm_edge.runner.native.weights.mmap.mmap", refuse)
    with pytest.raises(
        RuntimeFault, match=r"no memory for a copy of the weights; found Cannot allocate memory"
    ):
        memory.bring_in(BEGIN, copied=True)


def test_the_user_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    assert not copies_weights()
    monkeypatch.setenv(WEIGHTS_VARIABLE, "copied")
    assert copies_weights()
    monkeypatch.setenv(WEIGHTS_VARIABLE, "moved")
    with pytest.raises(UsageError, match=f"{WEIGHTS_VARIABLE}: unknown place of the weights; found moved"):
        copies_weights()


@needs_compiler
def test_a_copy_changes_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle: Bundle = exported_bundle(make_job(make_model(), "4g64"), tmp_path)
    tokens, said = random_tokens(9, 2), []
    found = []
    for way in ("mapped", "copied"):
        monkeypatch.setenv(WEIGHTS_VARIABLE, way)
        session = native_session(bundle)
        found.append(session.logits(tokens, session.initial_state(2), 9)[0])
        said.append(str(session.describe()["native"]))
    assert (found[0] == found[1]).all()
    assert said[1] == f"{said[0]}, weights copied"
