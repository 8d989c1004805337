"""The registry, and what every quantiser keeps to."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from qslm_edge.errors import CheckpointError, UsageError
from qslm_edge.quantize.base import InputStatistics
from qslm_edge.quantize.levels import parse_level
from qslm_edge.quantize.packed import pack_matrix
from qslm_edge.quantize.quantisers import QUANTISERS, get_quantiser
from qslm_edge.spikegpt import Module

MODULE = Module("blocks.0.att.key", 1, "linear", 12, 128)


def matrix() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(2).standard_normal((12, 128)).astype(np.float32)


def inputs() -> InputStatistics:
    X = np.random.default_rng(3).standard_normal((400, 128))
    X[:, 1:] += X[:, :-1]
    return InputStatistics((X.T @ X / 400).astype(np.float32), 400)


@pytest.mark.parametrize("name", QUANTISERS)
def test_names_identities_and_options(name: str) -> None:
    quantiser = get_quantiser(name)
    assert quantiser.identity == f"{name}/{quantiser.version}"
    assert quantiser == get_quantiser(name)
    assert set(quantiser.options) == {field.name for field in fields(quantiser)}


@pytest.mark.parametrize("name", QUANTISERS)
@pytest.mark.parametrize("text", ["8g64", "4g32", "2g128"])
def test_equal_input_gives_equal_bytes_and_what_is_stored_is_what_was_chosen(name: str, text: str) -> None:
    level, quantiser = parse_level(text), get_quantiser(name)
    given = matrix()
    stored = pack_matrix(MODULE, given, level, quantiser, inputs())
    again = pack_matrix(MODULE, given, level, quantiser, inputs())
    np.testing.assert_array_equal(given, matrix())  # pure
    assert stored.data.tobytes() == again.data.tobytes()
    codes, scales, zeros = quantiser.quantise(given, level.bits, level.group_size or 0, inputs())
    expected = (codes.reshape(*scales.shape, -1).astype(np.float32) - zeros[..., None]) * scales[..., None]
    np.testing.assert_array_equal(stored.dequantise(), expected.reshape(given.shape))


def test_quantisers_differ() -> None:
    packed = {
        n: pack_matrix(MODULE, matrix(), parse_level("2g64"), get_quantiser(n), inputs()) for n in QUANTISERS
    }
    assert len({p.data.tobytes() for p in packed.values()}) == len(QUANTISERS)


def test_an_unknown_name_proposes_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown quantiser.*gtpq.*gptq, hqq, rtn.*Did you mean gptq"):
        get_quantiser("gtpq")


@pytest.mark.parametrize("name", QUANTISERS)
def test_a_weight_that_is_not_finite_names_the_module(name: str) -> None:
    weights = matrix()
    weights[3, 4] = np.nan
    with pytest.raises(CheckpointError, match=r"blocks\.0\.att\.key: a weight is not finite"):
        pack_matrix(MODULE, weights, parse_level("4g32"), get_quantiser(name), inputs())
