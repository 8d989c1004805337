"""Every kernel against a numpy model of its arithmetic, on every instruction set that this processor has.

The head of a model is the matrix under test. Its input is known exactly: ln_out has weight 0, so the input is ln_out's
bias, whatever the layers did.
"""

from __future__ import annotations

import ctypes
from ctypes import c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qslm_edge.quantize.packing import pack_blocked
from qslm_edge.runner.native.interface import ABI, LANGUAGE_MODEL, Layer, Library, Matrix, Spec
from tests.helpers.native import ISAS, library, needs_compiler

Array = NDArray[Any]
pytestmark = needs_compiler


@dataclass(frozen=True)
class Case:
    """A matrix and an input.

    Attributes:
        bits: 32, 16, 8, 4 or 2.
        group: columns of a scale.
        groups: of a row.
        rows: outputs.
        scale_bits: 16 or 32.
        midrise, float_activations: as in docs/bundle.md.
        tokens: that run at once.
        seed: of weights and input.
    """

    bits: int
    group: int
    groups: int
    rows: int
    scale_bits: int
    midrise: bool
    float_activations: bool
    tokens: int
    seed: int

    @property
    def columns(self) -> int:
        return self.group * self.groups


@st.composite
def packed_cases(draw: st.DrawFn) -> Case:
    bits = draw(st.sampled_from([8, 4, 2]))
    return Case(
        bits,
        draw(st.sampled_from([32, 64, 128])),
        draw(st.integers(1, 19)),
        draw(st.integers(1, 140)),
        draw(st.sampled_from([16, 32])),
        draw(st.booleans()) if bits == 2 else False,
        draw(st.booleans()),
        draw(st.integers(1, 20)),
        draw(st.integers(0, 2**32 - 1)),
    )


@st.composite
def float_cases(draw: st.DrawFn) -> Case:
    rows, columns = draw(st.integers(1, 140)), draw(st.integers(1, 300))
    return Case(
        *(draw(st.sampled_from([32, 16])), columns, 1, rows, 0, False, True),
        draw(st.integers(1, 20)),
        draw(st.integers(0, 2**32 - 1)),
    )


class Kept:
    """Arrays whose addresses are in a structure."""

    def __init__(self) -> None:
        self.arrays: list[Array] = []

    def place(self, array: Array) -> int:
        self.arrays.append(np.ascontiguousarray(array))
        return int(self.arrays[-1].ctypes.data)


def draws(case: Case) -> tuple[Array, Array, Array, Array]:
    """Codes, scales, zero points and input of a packed case."""
    rng = np.random.default_rng(case.seed)
    shape = (case.rows, case.groups)
    codes = rng.integers(0, 2**case.bits, (*shape, case.group), np.uint8)
    scales = rng.uniform(1e-4, 2, shape).astype(np.float16)
    scales[rng.random(shape) < 0.05] = 0
    zeros = rng.integers(0, 2**case.bits, shape, np.uint8)
    x = rng.normal(size=case.columns).astype(np.float32) * np.float32(rng.choice([1e-3, 1, 1e3]))
    if case.seed % 4 == 0:
        x[: case.group] = 0
    return codes, scales, zeros, x


def run_head(case: Case, head: Matrix, x: Array, kept: Kept, isa: str) -> Array:
    """The head times x, for each of the tokens: [tokens, rows]."""
    c, rows = case.columns, case.rows
    zero, floats = kept.place(np.zeros((3, c), np.float32)), kept.place(np.zeros((c, c), np.float32))
    square = Matrix(rows=c, columns=c, bits=32, codes=floats)
    narrow = Matrix(rows=1, columns=c, bits=32, codes=floats)
    wide = Matrix(rows=c, columns=1, bits=32, codes=floats)
    layer = Layer(
        *([zero] * 8),
        att_key=square,
        att_value=square,
        att_receptance=square,
        att_output=square,
        ffn_key=narrow,
        ffn_receptance=square,
        ffn_value=wide,
    )
    table = Matrix(rows=rows, columns=c, bits=32, codes=kept.place(np.ones((rows, c), np.float32)))
    spec = Spec(
        abi=ABI,
        n_layer=1,
        n_embd=c,
        vocab_size=rows,
        kind=LANGUAGE_MODEL,
        threads=1 + case.seed % 2,
        embedding=table,
        head=head,
        ln0_weight=zero,
        ln0_bias=zero,
        ln_out_weight=zero,
        ln_out_bias=kept.place(x),
        layers=ctypes.pointer(layer),
    )
    engine, model, state = Library(library(isa)), c_void_p(), c_void_p()
    engine.call("qslm_open", ctypes.byref(spec), ctypes.byref(model))
    engine.call("qslm_state_new", model, 1, ctypes.byref(state))
    tokens = np.zeros((case.tokens, 1), np.int64)
    out = np.full((case.tokens, rows), np.nan, np.float32)
    engine.call("qslm_run", model, state, tokens.ctypes.data, case.tokens, None, case.tokens, out.ctypes.data)
    engine.free_state(state)
    engine.close(model)
    return out


def packed_head(case: Case, codes: Array, scales: Array, zeros: Array, kept: Kept) -> Matrix:
    stored = scales if case.scale_bits == 16 else scales.astype(np.float32)
    return Matrix(
        rows=case.rows,
        columns=case.columns,
        bits=case.bits,
        group=case.group,
        scale_bits=case.scale_bits,
        midrise=case.midrise,
        float_activations=case.float_activations,
        codes=kept.place(pack_blocked(codes, case.bits)),
        scales=kept.place(stored),
        zeros=None if case.midrise else kept.place(pack_blocked(zeros, case.bits)),
    )


def modelled(case: Case, codes: Array, scales: Array, zeros: Array, x: Array) -> Array:
    """y [rows] with int8 inputs, each float operation as docs/native.md has it."""
    groups = x.reshape(case.groups, case.group)
    peak = np.abs(groups).max(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        factor = np.where(peak > 128 / np.finfo(np.float32).max, np.float32(127) / peak, np.float32(0))
    q = np.rint(groups * factor).astype(np.int64)
    zero = np.full_like(zeros, 2 ** (case.bits - 1)) if case.midrise else zeros
    dots = ((codes.astype(np.int64) - zero[..., None]) * q).sum(-1).astype(np.float32)
    s = scales.astype(np.float32)
    y = np.zeros(case.rows, np.float32)
    for g in range(case.groups):
        term = dots[:, g] * s[:, g] * (peak[g] / np.float32(127))
        if case.midrise:
            lanes = groups[g].reshape(-1, 16).cumsum(0, dtype=np.float32)[-1]
            while len(lanes) > 1:
                lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
            term = term + s[:, g] * (np.float32(0.5) * lanes[0])
        y = y + term
    return y


@pytest.mark.parametrize("isa", ISAS)
@given(case=packed_cases())
@settings(max_examples=80)
def test_packed_products(isa: str, case: Case) -> None:
    codes, scales, zeros, x = draws(case)
    kept = Kept()
    found = run_head(case, packed_head(case, codes, scales, zeros, kept), x, kept, isa)
    assert (found == found[0]).all()  # however many tokens run beside it
    if not case.float_activations:
        assert (found[0] == modelled(case, codes, scales, zeros, x)).all()
        return
    centre = np.full(scales.shape, (2**case.bits - 1) / 2) if case.midrise else zeros.astype(np.float64)
    terms = (
        (codes - centre[..., None])
        * scales.astype(np.float64)[..., None]
        * x.reshape(case.groups, case.group)
    )
    wanted, size = terms.sum((1, 2)), np.abs(terms).sum((1, 2))
    assert (np.abs(found[0] - wanted) <= 1e-6 * size + 1e-30).all()


@pytest.mark.parametrize("isa", ISAS)
@given(case=float_cases())
@settings(max_examples=40)
def test_float_products(isa: str, case: Case) -> None:
    rng = np.random.default_rng(case.seed)
    weights = rng.normal(size=(case.columns, case.rows)).astype(f"float{case.bits}")
    x = rng.normal(size=case.columns).astype(np.float32)
    kept = Kept()
    head = Matrix(rows=case.rows, columns=case.columns, bits=case.bits, codes=kept.place(weights))
    found = run_head(case, head, x, kept, isa)
    assert (found == found[0]).all()
    wanted = np.zeros(case.rows, np.float32)
    for k in range(case.columns):
        wanted = wanted + weights[k].astype(np.float32) * x[k]
    assert (found[0] == wanted).all()
