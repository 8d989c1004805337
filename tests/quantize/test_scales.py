"""Scales are stored as float16 exactly where that loses nothing, and bytes follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qslm_edge.quantize.accounting import matrix_bytes
from qslm_edge.quantize.levels import Level
from qslm_edge.quantize.packed import pack_matrix
from qslm_edge.quantize.scales import scale_bits, with_scale_bits
from qslm_edge.spikegpt import Hierarchy, Module, SpikeGPT

LINEAR = Module("m", 1, "linear", 3, 128)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    exponent=st.integers(-30, 16),
    bits=st.sampled_from([8, 4, 2]),
    group=st.sampled_from([32, 64, 128]),
    kind=st.sampled_from(["linear", "embedding"]),
)
def test_float16_changes_no_value(seed: int, exponent: int, bits: int, group: int, kind: Any) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((3, 128)).astype(np.float32)
    weights[0, :32] = 0
    weights = np.ldexp(weights, exponent)
    module = replace(LINEAR, kind=kind)
    narrow = replace(module, scale_bits=scale_bits(weights))
    level = Level(bits, group, 4)
    wide, stored = pack_matrix(module, weights, level), pack_matrix(narrow, weights, level)
    assert stored.scales is not None
    assert stored.scales.dtype.itemsize == narrow.scale_bits // 8
    np.testing.assert_array_equal(stored.dequantise(), wide.dequantise())
    assert stored.nbytes == matrix_bytes(narrow, level)


@pytest.mark.parametrize(
    ("weights", "bits"),
    [
        (np.full((1, 32), 0.1), 16),
        (np.full((1, 32), 2.1e-3), 16),
        (np.full((1, 32), 2.0e-3), 32),  # 8 bits: a scale below 2^-17
        (np.full((1, 32), 1e5), 32),
        (np.zeros((1, 32)), 16),
        (np.full((1, 24), 0.1), 32),  # never packed
        (np.full((1, 32), np.nan), 32),
    ],
)
def test_the_range_decides(weights: np.ndarray[tuple[int, ...], np.dtype[np.float64]], bits: int) -> None:
    assert scale_bits(weights.astype(np.float32)) == bits


def test_every_module_is_told(golden_model: SpikeGPT, golden_hierarchy: Hierarchy) -> None:
    values = {m.name: golden_model.tensors[m.key].numpy() for m in golden_hierarchy.modules}
    values["head"] = values["head"] * np.float32(1e-7)
    told = with_scale_bits(golden_hierarchy, lambda module: values[module.name])
    assert {m.name: m.scale_bits for m in told.modules} == {name: scale_bits(w) for name, w in values.items()}
    assert {m.scale_bits for m in golden_hierarchy.modules} == {32}
    assert next(m for m in told.modules if m.name == "head").scale_bits == 32
    plain = [replace(m, scale_bits=32) for m in told.modules]
    assert plain == list(golden_hierarchy.modules)
