"""One stored matrix: its bytes as accounted, and the values that it stands for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from qslm_edge.errors import UsageError
from qslm_edge.quantize import packed
from qslm_edge.quantize.accounting import matrix_bytes
from qslm_edge.quantize.levels import FLOAT16, FLOAT32, GROUP_SIZES, SIGN, Level, parse_level
from qslm_edge.quantize.packed import PackedMatrix, pack_matrix
from qslm_edge.quantize.packing import unpack_blocked, unpack_planar
from qslm_edge.quantize.rtn import (
    dequantise_groups,
    dequantise_midrise,
    midrise_groups,
    quantise_groups,
)
from qslm_edge.spikegpt import Module

LINEAR = Module("blocks.0.att.key", 1, "linear", 10, 384)
EMBEDDING = Module("emb", 0, "embedding", 10, 384)
PACKED = [Level(bits, group, 4) for bits in (8, 4, 2) for group in GROUP_SIZES]
MIDRISE = [Level(2, group, 4, midrise=True) for group in GROUP_SIZES]
ODD = Module("head", 2, "linear", 7, 5 * 32)


def weights(module: Module = LINEAR) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((module.rows, module.columns)).astype(np.float32)


@pytest.mark.parametrize("level", [FLOAT32, FLOAT16, SIGN, *PACKED, *MIDRISE, Level(4, 64, 0)], ids=str)
@pytest.mark.parametrize("module", [LINEAR, EMBEDDING], ids=lambda m: m.kind)
def test_accounted_bytes_are_stored_bytes(module: Module, level: Level) -> None:
    assert matrix_bytes(module, level) == pack_matrix(module, weights(), level).nbytes


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_accounted_bytes_where_zero_points_end_inside_a_byte(bits: int, kind: str) -> None:
    module = Module("m", 0, "linear" if kind == "linear" else "embedding", ODD.rows, ODD.columns)
    assert (
        matrix_bytes(module, Level(bits, 32, 4))
        == pack_matrix(module, weights(ODD), Level(bits, 32, 4)).nbytes
    )


def test_bits_per_weight_as_published() -> None:
    square = Module("m", 0, "linear", 768, 768)
    bits = {str(level): 8 * matrix_bytes(square, level) / square.n_params for level in PACKED}
    assert bits["4g32"] == 5.125
    assert bits["4g64"] == pytest.approx(4.5625)
    assert bits["4g128"] == pytest.approx(4.281, abs=1e-3)


@pytest.mark.parametrize("level", PACKED, ids=str)
@pytest.mark.parametrize("module", [LINEAR, EMBEDDING], ids=lambda m: m.kind)
def test_packing_keeps_what_the_quantiser_chose(module: Module, level: Level) -> None:
    group = level.group_size or 0
    codes, scales, zeros = quantise_groups(weights(), level.bits, group)
    stored = pack_matrix(module, weights(), level)
    assert stored.zeros is not None
    np.testing.assert_array_equal(stored.scales, scales)
    np.testing.assert_array_equal(stored.dequantise(), dequantise_groups(codes, scales, zeros))
    data = stored.data.astype(np.uint8)
    if module.kind == "linear":
        assert data.shape == (10, 384 // group, group * level.bits // 8)
        np.testing.assert_array_equal(unpack_blocked(data, level.bits, group).reshape(codes.shape), codes)
    else:
        assert data.shape == (10, 384 * level.bits // 8)
        np.testing.assert_array_equal(unpack_planar(data, level.bits), codes)
    np.testing.assert_array_equal(unpack_blocked(stored.zeros, level.bits, 384 // group), zeros)


@pytest.mark.parametrize("level", MIDRISE, ids=str)
@pytest.mark.parametrize("module", [LINEAR, EMBEDDING], ids=lambda m: m.kind)
def test_mid_rise_has_no_zero_points(module: Module, level: Level) -> None:
    codes, scales = midrise_groups(weights(), 2, level.group_size or 0)
    stored = pack_matrix(module, weights(), level)
    assert stored.zeros is None
    np.testing.assert_array_equal(stored.dequantise(), dequantise_midrise(codes, scales, 2))
    assert stored.nbytes < pack_matrix(module, weights(), replace(level, midrise=False)).nbytes


def test_more_bits_and_smaller_groups_are_nearer() -> None:
    matrix = weights()

    def error(text: str) -> float:
        restored = pack_matrix(LINEAR, matrix, parse_level(text)).dequantise()
        return float(np.linalg.norm(restored - matrix) / np.linalg.norm(matrix))

    found = [error(text) for text in ("16", "8g32", "8g128", "4g32", "4g64", "4g128", "2g32", "2g128")]
    assert found == sorted(found)
    assert found[0] < 3e-4
    assert found[1] < 0.005
    assert 0.05 < found[3] < 0.1
    assert 0.25 < found[-1] < 0.5
    assert error("32") == 0


def test_signs_are_lossless_for_a_binary_embedding() -> None:
    matrix = weights(EMBEDDING)
    matrix[0, :4] = [0.0, -0.0, 1e-40, -1e-40]
    stored = pack_matrix(EMBEDDING, matrix, SIGN)
    assert stored.nbytes == 10 * 48
    np.testing.assert_array_equal(stored.dequantise(), (matrix >= 0).astype(np.float32))
    assert stored.dequantise()[0, :4].tolist() == [1, 1, 1, 0]


def test_float16_is_exact_where_the_checkpoint_was() -> None:
    matrix = weights().astype(np.float16).astype(np.float32)
    stored = pack_matrix(LINEAR, matrix, FLOAT16)
    assert stored.data.dtype == np.float16
    assert stored.dequantise().dtype == np.float32
    np.testing.assert_array_equal(stored.dequantise(), matrix)


def test_a_weight_that_does_not_fit_float16() -> None:
    matrix = weights()
    matrix[2, 2] = -7e4
    with pytest.raises(UsageError, match="does not fit float16; found 70000.*--levels"):
        pack_matrix(LINEAR, matrix, FLOAT16)


@pytest.mark.parametrize("level", [Level(4, 128, 4), Level(4), Level(8, 256)], ids=["128", "none", "256"])
def test_a_group_that_does_not_divide(level: Level) -> None:
    with pytest.raises(UsageError, match="group size does not divide"):
        pack_matrix(ODD, weights(ODD), level)


@pytest.mark.parametrize("text", ["q16", "q8", "q4"])
def test_a_simulated_level_has_no_stored_form(text: str) -> None:
    with pytest.raises(UsageError, match="simulated"):
        pack_matrix(LINEAR, weights(), parse_level(text))


def test_codes_without_scales_stand_for_nothing() -> None:
    stored = PackedMatrix(LINEAR, Level(4, 32, 4), np.zeros((10, 12, 16), np.uint8))
    with pytest.raises(ValueError, match="without scales"):
        stored.dequantise()


@pytest.mark.parametrize("text", ["8g64", "4g32", "2g64", "2g64m"])
def test_a_matrix_quantised_in_parts_is_the_same(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.default_rng(2).normal(size=(10, 128)).astype(np.float32)
    module = Module("head", 0, "linear", 10, 128, 16)
    whole = pack_matrix(module, weights, parse_level(text))
    monkeypatch.setattr(packed, "PART_WEIGHTS", 3 * 128)  # three rows, and one at the end
    parts = pack_matrix(module, weights, parse_level(text))
    assert np.array_equal(parts.data, whole.data)
    assert np.array_equal(np.asarray(parts.scales), np.asarray(whole.scales))
    assert (parts.zeros is None) == (whole.zeros is None)
    assert parts.zeros is None or np.array_equal(parts.zeros, np.asarray(whole.zeros))
