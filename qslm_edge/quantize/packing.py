"""Packing small codes into bytes, in the two layouts that the exported graph reads. Pure functions on arrays.

Blocked: the layout of ONNX Runtime's MatMulNBits: codes along the columns, least significant bits first, one block a
group; zero points packed the same way per row, each row starting on a byte. Planar: the layout of the embedding table,
where a byte holds channels that lie C*bits/8 apart, so that a shift and a mask restore the row in any opset.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["pack_blocked", "pack_planar", "unpack_blocked", "unpack_planar"]

Bytes = NDArray[np.uint8]


def pack_blocked(codes: Bytes, bits: int) -> Bytes:
    """Pack codes along the last axis, least significant bits first; a short last byte is filled with zeros.

    Args:
        codes: [..., n] with values below 2**bits.
        bits: 1, 2, 4 or 8.

    Returns:
        [..., ceil(n * bits / 8)].

    Raises:
        ValueError: when a code does not fit.
    """
    per_byte = _per_byte(codes, bits)
    if per_byte == 1:
        return codes.copy()
    if spare := -codes.shape[-1] % per_byte:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], spare), np.uint8)], axis=-1)
    grouped = codes.reshape(*codes.shape[:-1], -1, per_byte)
    packed = np.zeros(grouped.shape[:-1], np.uint8)
    for i in range(per_byte):
        packed |= grouped[..., i] << np.uint8(i * bits)
    return packed


def unpack_blocked(packed: Bytes, bits: int, n: int) -> Bytes:
    """Inverse of `pack_blocked`: [..., ceil(n * bits / 8)] -> [..., n]."""
    per_byte = 8 // bits
    mask = np.uint8(2**bits - 1)
    planes = [(packed >> np.uint8(i * bits)) & mask for i in range(per_byte)]
    return np.stack(planes, axis=-1).reshape(*packed.shape[:-1], -1)[..., :n].astype(np.uint8)


def pack_planar(codes: Bytes, bits: int) -> Bytes:
    """Pack rows so that byte j holds, in its i-th field, the code of channel i * n*bits/8 + j.

    Args:
        codes: [..., n], n a multiple of 8 / bits.
        bits: 1, 2, 4 or 8.

    Returns:
        [..., n * bits / 8].

    Raises:
        ValueError: when a code does not fit, or n is not a multiple of 8 / bits.
    """
    per_byte = _per_byte(codes, bits)
    if codes.shape[-1] % per_byte:
        raise ValueError(f"{codes.shape[-1]} codes do not fill whole bytes at {bits} bits")
    planes = codes.reshape(*codes.shape[:-1], per_byte, -1)
    packed = np.zeros((*codes.shape[:-1], planes.shape[-1]), np.uint8)
    for i in range(per_byte):
        packed |= planes[..., i, :] << np.uint8(i * bits)
    return packed


def unpack_planar(packed: Bytes, bits: int) -> Bytes:
    """Inverse of `pack_planar`: [..., n * bits / 8] -> [..., n]."""
    mask = np.uint8(2**bits - 1)
    return np.concatenate([(packed >> np.uint8(i * bits)) & mask for i in range(8 // bits)], axis=-1)


def _per_byte(codes: Bytes, bits: int) -> int:
    if bits not in (1, 2, 4, 8):
        raise ValueError(f"width {bits} does not divide a byte")
    if codes.size and int(codes.max()) >= 2**bits:
        raise ValueError(f"code {int(codes.max())} does not fit {bits} bits")
    return 8 // bits
