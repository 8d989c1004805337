"""Both byte layouts against their definitions, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qslm_edge.quantize.packing import pack_blocked, pack_planar, unpack_blocked, unpack_planar

Bytes = NDArray[np.uint8]
WIDTHS = (1, 2, 4, 8)


@st.composite
def blocked_codes(draw: st.DrawFn) -> tuple[Bytes, int]:
    """Codes of any length, in one, two or three dimensions."""
    bits = draw(st.sampled_from(WIDTHS))
    shape = (*draw(st.lists(st.integers(1, 3), max_size=2)), draw(st.integers(1, 40)))
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).integers(0, 2**bits, shape, dtype=np.uint8), bits


@st.composite
def planar_codes(draw: st.DrawFn) -> tuple[Bytes, int]:
    """Codes whose rows fill whole bytes."""
    bits = draw(st.sampled_from(WIDTHS))
    n = draw(st.integers(1, 20)) * (8 // bits)
    shape = (*draw(st.lists(st.integers(1, 3), max_size=2)), n)
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).integers(0, 2**bits, shape, dtype=np.uint8), bits


@given(case=blocked_codes())
def test_blocked_rows_are_one_little_endian_number(case: tuple[Bytes, int]) -> None:
    codes, bits = case
    packed = pack_blocked(codes, bits)
    n = codes.shape[-1]
    assert packed.dtype == np.uint8
    assert packed.shape == (*codes.shape[:-1], -(-n * bits // 8))
    for row, stored in zip(codes.reshape(-1, n), packed.reshape(-1, packed.shape[-1]), strict=True):
        number = int.from_bytes(stored.tobytes(), "little")
        assert number == sum(int(code) << (bits * k) for k, code in enumerate(row))


@given(case=blocked_codes())
def test_blocked_round_trip(case: tuple[Bytes, int]) -> None:
    codes, bits = case
    before = codes.copy()
    unpacked = unpack_blocked(pack_blocked(codes, bits), bits, codes.shape[-1])
    assert unpacked.dtype == np.uint8
    np.testing.assert_array_equal(unpacked, before)
    np.testing.assert_array_equal(codes, before)


@given(case=planar_codes())
def test_planar_fields_lie_a_row_length_apart(case: tuple[Bytes, int]) -> None:
    codes, bits = case
    packed = pack_planar(codes, bits)
    n, length = codes.shape[-1], packed.shape[-1]
    assert packed.shape == (*codes.shape[:-1], n * bits // 8)
    for row, stored in zip(codes.reshape(-1, n), packed.reshape(-1, length), strict=True):
        for i in range(8 // bits):
            for j in range(length):
                assert (int(stored[j]) >> (i * bits)) % 2**bits == row[i * length + j]


@given(case=planar_codes())
def test_planar_round_trip(case: tuple[Bytes, int]) -> None:
    codes, bits = case
    np.testing.assert_array_equal(unpack_planar(pack_planar(codes, bits), bits), codes)


def test_layouts_by_example() -> None:
    codes = np.array([1, 2, 3, 0, 1, 1, 2, 3], np.uint8)
    assert pack_blocked(codes, 2).tolist() == [0b00_11_10_01, 0b11_10_01_01]
    assert pack_blocked(codes[:5], 4).tolist() == [0x21, 0x03, 0x01]
    assert pack_planar(codes, 2).tolist() == [0b10_01_11_01, 0b11_01_00_10]
    assert pack_planar(codes, 4).tolist() == [0x11, 0x12, 0x23, 0x30]
    assert pack_planar(np.array([1, 0, 0, 0, 0, 0, 0, 1], np.uint8), 1).tolist() == [0x81]


def test_eight_bits_are_a_copy() -> None:
    codes = np.array([[5, 250]], np.uint8)
    packed = pack_blocked(codes, 8)
    packed[0, 0] = 1
    assert codes[0, 0] == 5


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_code_that_does_not_fit_is_refused(bits: int) -> None:
    codes = np.array([0] * 7 + [2**bits], np.uint8)
    for pack in (pack_blocked, pack_planar):
        with pytest.raises(ValueError, match=f"code {2**bits} does not fit {bits} bits"):
            pack(codes, bits)


@pytest.mark.parametrize("bits", [0, 3, 5, 6, 7, 16])
def test_a_width_that_does_not_divide_a_byte_is_refused(bits: int) -> None:
    for pack in (pack_blocked, pack_planar):
        with pytest.raises(ValueError, match="does not divide a byte"):
            pack(np.zeros(8, np.uint8), bits)


@pytest.mark.parametrize(("n", "bits"), [(7, 1), (9, 1), (3, 2), (5, 4)])
def test_planar_rows_must_fill_whole_bytes(n: int, bits: int) -> None:
    with pytest.raises(ValueError, match="do not fill whole bytes"):
        pack_planar(np.zeros(n, np.uint8), bits)
