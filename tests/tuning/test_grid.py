"""A matrix on its grid: what the forward pass uses is what gets stored, to the last bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qslm_edge.quantize.levels import Level
from qslm_edge.quantize.packed import pack_matrix
from qslm_edge.spikegpt.hierarchy import Module
from qslm_edge.tuning.grid import PackedGrid

ROWS, COLUMNS = 6, 128
Kind = Literal["linear", "embedding"]


def grid(kind: Kind, bits: int, group: int, seed: int = 0, *, midrise: bool = False) -> PackedGrid:
    module = Module("emb" if kind == "embedding" else "head", 0, kind, ROWS, COLUMNS)
    weights = np.random.default_rng(seed).normal(size=(ROWS, COLUMNS)).astype(np.float32)
    weights[2, :group] = 0  # a group of zeros
    start = pack_matrix(module, weights, Level(bits, group, 4 if kind == "linear" else 0, midrise=midrise))
    return PackedGrid([start], [torch.from_numpy(weights)])


def dense(found: PackedGrid) -> NDArray[np.float32]:
    """The values of the one matrix."""
    (matrix,) = found.dense()
    return matrix.detach().numpy()


@pytest.mark.parametrize("kind", ["linear", "embedding"])
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_it_begins_where_the_quantiser_ended(kind: Kind, bits: int, group: int) -> None:
    found = grid(kind, bits, group)
    assert np.array_equal(dense(found), found.starts[0].dequantise())


@pytest.mark.parametrize("kind", ["linear", "embedding"])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_a_mid_rise_grid_has_no_zero_point(kind: Kind, group: int) -> None:
    found = grid(kind, 2, group, midrise=True)
    assert found.starts[0].zeros is None
    assert np.array_equal(dense(found), found.starts[0].dequantise())
    with torch.no_grad():
        found.latent += 0.3
        found.log_scale -= 0.2
    assert np.array_equal(found.packed()[0].dequantise(), dense(found))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(["linear", "embedding"]),
    bits=st.sampled_from([8, 4, 2]),
    group=st.sampled_from([32, 64, 128]),
    spread=st.sampled_from([0.01, 0.3, 3.0]),
)
def test_what_is_stored_is_what_was_used(seed: int, kind: Kind, bits: int, group: int, spread: float) -> None:
    found = grid(kind, bits, group, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        found.latent += spread * torch.randn(found.latent.shape, generator=generator)
        found.log_scale += spread * torch.randn(found.log_scale.shape, generator=generator)
    (packed,) = found.packed()
    assert np.array_equal(packed.dequantise(), dense(found))
    assert packed.nbytes == found.starts[0].nbytes
    assert packed.level == found.starts[0].level


def test_matrices_that_share_a_grid_keep_to_themselves() -> None:
    kinds: tuple[Kind, ...] = ("embedding", "linear", "linear")
    alone = [grid(kind, 4, 64, seed) for seed, kind in enumerate(kinds)]
    starts = [one.starts[0] for one in alone]
    together = PackedGrid(starts, [one.latent.detach().reshape(ROWS, COLUMNS) for one in alone])
    for part, one, packed in zip(together.dense(), alone, together.packed(), strict=True):
        assert np.array_equal(part.detach().numpy(), dense(one))
        assert np.array_equal(packed.data, one.packed()[0].data)
    together.dense()[1].sum().backward()  # type: ignore[no-untyped-call]
    assert together.latent.grad is not None
    rows = together.latent.grad.reshape(3, -1)
    assert rows[1].any()
    assert not rows[0].any()
    assert not rows[2].any()


def test_it_begins_at_codes_that_rounding_would_not_choose() -> None:
    found = grid("linear", 4, 64)
    start = found.starts[0]
    moved = replace(
        start, data=np.bitwise_xor(start.data.astype(np.uint8), 0x11).astype(np.uint8)
    )  # every code one up or down
    other = PackedGrid([moved], [torch.from_numpy(start.dequantise())])
    assert np.array_equal(dense(other), moved.dequantise())
    distance = np.abs(
        other.latent.detach().numpy().reshape(ROWS, -1, 64) - start.dequantise().reshape(ROWS, -1, 64)
    )
    assert (distance <= 0.51 * np.asarray(start.scales, np.float32)[..., None]).all()


def test_a_group_of_zeros_stays_zero() -> None:
    found = grid("linear", 2, 64)
    with torch.no_grad():
        found.latent += 1.0
        found.log_scale += 1.0
    assert not dense(found)[2, :64].any()
    assert dense(found)[2, 64:].any()


def test_gradients_pass_the_rounding_and_stop_at_the_ends_of_the_grid() -> None:
    found = grid("linear", 2, 64)
    with torch.no_grad():
        found.latent[0, 0] = 100.0  # far outside
    found.dense()[0].sum().backward()  # type: ignore[no-untyped-call]
    latent, scale = found.latent.grad, found.log_scale.grad
    assert latent is not None
    assert scale is not None
    assert latent[0, 0] == 0
    assert set(latent.flatten().tolist()) == {0.0, 1.0}
    inside = latent.reshape(ROWS, COLUMNS)[1] == 1
    assert inside.any()
    assert torch.isfinite(scale).all()


def test_the_gradient_of_a_scale_is_that_of_learned_step_sizes() -> None:
    """LSQ: ds = (q - z) - w / s inside the grid, (q - z) at its ends."""
    found = grid("linear", 4, 128)
    found.dense()[0].sum().backward()  # type: ignore[no-untyped-call]
    values = found.starts[0].dequantise()
    scales = np.asarray(found.starts[0].scales, np.float32)
    ratio = values / np.where(scales == 0, 1, scales)  # q - z
    latent = found.latent.detach().numpy().reshape(ROWS, COLUMNS) / np.where(scales == 0, 1, scales)
    assert found.latent.grad is not None
    inside = found.latent.grad.numpy().reshape(ROWS, COLUMNS) == 1
    wanted = (np.where(inside, ratio - latent, ratio) * scales).sum(1, keepdims=True)
    assert found.log_scale.grad is not None
    np.testing.assert_allclose(found.log_scale.grad.numpy(), wanted, rtol=2e-4, atol=1e-4)


def test_a_float_level_has_no_grid(root: object) -> None:
    module = Module("head", 0, "linear", ROWS, COLUMNS)
    with pytest.raises(ValueError, match="only packed levels"):
        PackedGrid([pack_matrix(module, np.ones((ROWS, COLUMNS), np.float32), Level(16))], [torch.ones(1)])
