"""Quantised weights as the torch model sees them, the store behind them, and rounded activations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.quantize import weights as module
from qslm_edge.quantize.levels import FLOAT16, FLOAT32, SIGN, Level, Setting, parse_level
from qslm_edge.quantize.packed import pack_matrix
from qslm_edge.quantize.rtn import midrise_groups
from qslm_edge.quantize.weights import QuantisedWeights, WeightStore, round_activations
from qslm_edge.spikegpt import Hierarchy, SpikeGPT, build_hierarchy, load_checkpoint

KEY = "blocks.0.att.key"


@pytest.fixture
def store(golden_model: SpikeGPT, golden_hierarchy: Hierarchy) -> WeightStore:
    return WeightStore(golden_model, golden_hierarchy)


@pytest.fixture
def binary(root: Path) -> WeightStore:
    model = load_checkpoint(root / "tests" / "fixtures" / "golden" / "small_binary.pth", "binary")
    return WeightStore(model, build_hierarchy(model.config, "lm"))


def with_weights(model: SpikeGPT, store: WeightStore, setting: Setting) -> SpikeGPT:
    quantised = SpikeGPT(model.config, model.tensors)
    quantised.weights = QuantisedWeights(store, setting)
    return quantised


def uniform(store: WeightStore, text: str) -> Setting:
    return Setting.uniform((m.name for m in store.hierarchy.modules), parse_level(text))


def round_by_hand(group: list[float]) -> list[float]:
    """The rule in float64: half to even, a group of zeros stays zero."""
    peak = max(abs(x) for x in group)
    return [0.0 if peak == 0 else round(x * (127 / peak)) * (peak / 127) for x in group]


# Multiples of 1/8 under a peak of 127/4 make scales and ties exact.
values = st.integers(-254, 254).map(lambda n: n / 8)


@given(x=st.lists(values, min_size=32, max_size=32), quarter=st.booleans())
def test_activations_round_half_to_even_per_group(x: list[float], quarter: bool) -> None:
    x = [min(max(v, -31.75), 31.75) for v in x]
    x[0], x[16] = 31.75, (-31.75 if quarter else x[16])
    rounded = round_activations(torch.tensor([x]), 16)[0].tolist()
    expected = round_by_hand(x[:16]) + round_by_hand(x[16:])
    np.testing.assert_allclose(rounded, expected, rtol=1e-6, atol=1e-6)


def test_each_row_and_group_has_its_own_scale() -> None:
    x = torch.randn(3, 2, 64, generator=torch.Generator().manual_seed(0))
    x[1] *= 1000
    x[..., 32:] /= 1000
    before = x.clone()
    rounded = round_activations(x, 32)
    assert torch.equal(x, before)
    assert rounded.shape == x.shape
    for row, original in zip(rounded.reshape(-1, 32), x.reshape(-1, 32), strict=True):
        error = float((row - original).abs().max() / original.abs().max())
        assert 0 < error <= 0.5001 / 127


def test_zeros_and_peaks_are_kept() -> None:
    x = torch.zeros(1, 64)
    x[0, 40] = -3.3
    assert round_activations(x, 32).tolist()[0][40] == pytest.approx(-3.3)
    assert int((round_activations(x, 32) != 0).sum()) == 1


def test_float32_is_the_float_model_bit_for_bit(store: WeightStore) -> None:
    idx = torch.arange(24).view(2, 12) % 211
    same = with_weights(store.model, store, uniform(store, "32"))
    assert torch.equal(same(idx), store.model(idx))
    assert store.dense(KEY, FLOAT32) is store.model.tensors[f"{KEY}.weight"]


@pytest.mark.parametrize("text", ["8g64", "4g32", "4g64f", "2g32"])
def test_products_use_dequantised_weights_and_rounded_activations(store: WeightStore, text: str) -> None:
    level = parse_level(text)
    x = torch.randn(3, 2, 64, generator=torch.Generator().manual_seed(1))
    found = QuantisedWeights(store, uniform(store, text)).linear(KEY, x)
    matrix = pack_matrix(store.modules[KEY], store.model.tensors[f"{KEY}.weight"].numpy(), level).dequantise()
    inputs = round_activations(x, level.group_size or 0) if level.accuracy_level == 4 else x
    assert torch.equal(found, F.linear(inputs, torch.from_numpy(matrix)))
    assert not torch.equal(found, F.linear(x, store.model.tensors[f"{KEY}.weight"]))


def test_mid_rise_products_are_those_of_the_runtime(store: WeightStore) -> None:
    """Codes minus 2 with rounded activations, and half a scale times the block sums of activations as they are."""
    level = parse_level("2g32m")
    x = torch.randn(3, 2, 64, generator=torch.Generator().manual_seed(1))
    found = QuantisedWeights(store, uniform(store, "2g32m")).linear(KEY, x)
    codes, scales = midrise_groups(store.model.tensors[f"{KEY}.weight"].numpy(), 2, 32)
    steps = torch.from_numpy(scales)
    low = torch.from_numpy((codes.reshape(64, 2, 32).astype(np.float32) - 2) * scales[..., None]).flatten(1)
    sums = x.reshape(3, 2, 2, 32).sum(-1)
    expected = F.linear(round_activations(x, 32), low) + F.linear(sums, steps) / 2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(store.scales(KEY, level), steps)
    with pytest.raises(ValueError, match="no scales at 32"):
        store.scales(KEY, FLOAT32)


def test_eight_bits_cost_little_and_two_bits_much(store: WeightStore) -> None:
    idx = torch.arange(96).view(2, 48) % 211
    exact = store.model(idx)

    def error(text: str) -> float:
        return float((with_weights(store.model, store, uniform(store, text))(idx) - exact).pow(2).mean())

    errors = [error(text) for text in ("16", "8g32", "4g32", "2g32")]
    assert errors == sorted(errors)
    assert errors[-1] > 4 * errors[1]


def test_simulated_levels_round_weights_only(store: WeightStore) -> None:
    quantised = QuantisedWeights(store, uniform(store, "q4"))
    x = torch.eye(64)
    found = quantised.linear(KEY, x).t()
    assert len(set(found.flatten().tolist())) <= 16
    torch.testing.assert_close(found, store.dense(KEY, Level(4, simulated=True)))


def test_vectors_stay_float(store: WeightStore) -> None:
    quantised = QuantisedWeights(store, uniform(store, "2g32"))
    assert torch.equal(quantised.vector("ln_out.weight"), store.model.tensors["ln_out.weight"])
    assert quantised.vector("blocks.0.att.time_mix_k").shape == (64,)


def test_a_binary_embedding_by_its_signs_changes_nothing(binary: WeightStore) -> None:
    idx = torch.arange(24).view(2, 12) % 211
    setting = uniform(binary, "32").with_levels({"emb": SIGN})
    assert torch.equal(with_weights(binary.model, binary, setting)(idx), binary.model(idx))
    assert binary.is_lossless("emb", SIGN)
    rows = QuantisedWeights(binary, setting).embedding(idx)
    assert set(rows.flatten().tolist()) == {0.0, 1.0}


def test_a_binary_embedding_rounded_otherwise_flips_signs(binary: WeightStore) -> None:
    idx = torch.arange(24).view(2, 12) % 211
    exact = (binary.model.tensors["emb.weight"][idx] >= 0).float()
    rows = QuantisedWeights(binary, uniform(binary, "2g32")).embedding(idx)
    assert set(rows.flatten().tolist()) == {0.0, 1.0}
    assert 0 < float((rows != exact).float().mean()) < 0.5
    half = QuantisedWeights(binary, uniform(binary, "16")).embedding(idx)
    assert torch.equal(half, exact)


def test_what_is_lossless(store: WeightStore, golden_model: SpikeGPT, golden_hierarchy: Hierarchy) -> None:
    assert store.is_lossless(KEY, FLOAT32)
    assert not store.is_lossless(KEY, FLOAT16)
    assert not store.is_lossless(KEY, Level(32, simulated=True))
    halved = {key: tensor.half().float() for key, tensor in golden_model.tensors.items()}
    half = WeightStore(SpikeGPT(golden_model.config, halved), golden_hierarchy)
    assert half.is_lossless(KEY, FLOAT16)
    assert not half.is_lossless(KEY, Level(8, 32, 4))


def test_rounded_activations_are_a_loss_even_where_the_weights_are_exact(store: WeightStore) -> None:
    grid = torch.arange(64 * 64).view(64, 64).remainder(16).float() - 8
    tensors = {**store.model.tensors, f"{KEY}.weight": grid, "emb.weight": grid[:1].repeat(211, 1)}
    exact = WeightStore(SpikeGPT(store.model.config, tensors), store.hierarchy)
    assert torch.equal(exact.dense(KEY, Level(4, 32, 4)), grid)
    assert not exact.is_lossless(KEY, Level(4, 32, 4))
    assert exact.is_lossless(KEY, Level(4, 32, 0))
    assert exact.is_lossless("emb", Level(4, 32, 4))  # rows are looked up, not multiplied


def test_each_matrix_and_level_is_quantised_once(
    golden_model: SpikeGPT, golden_hierarchy: Hierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counting(*arguments: object) -> object:
        calls.append(str(arguments[2]))
        return pack_matrix(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "pack_matrix", counting)
    store = WeightStore(golden_model, golden_hierarchy, cache_bytes=1)
    level = Level(4, 32, 4)
    first = store.dense(KEY, level).clone()
    store.dense("head", level)  # pushes the first one out of the cache of dense tensors
    assert torch.equal(store.dense(KEY, level), first)
    assert store.packed(KEY, level) is store.packed(KEY, level)
    assert calls == ["4g32", "4g32"]


def test_dense_tensors_are_kept_within_their_limit(
    golden_model: SpikeGPT, golden_hierarchy: Hierarchy
) -> None:
    one = 4 * 64 * 64
    store = WeightStore(golden_model, golden_hierarchy, cache_bytes=2 * one)
    names = [f"blocks.0.att.{n}" for n in ("key", "value", "receptance")]
    level = Level(8, 32, 4)
    key, value, _ = (store.dense(name, level) for name in names)
    assert store.dense(names[1], level) is value
    assert store.dense(names[0], level) is not key  # the oldest went
    wide = WeightStore(golden_model, golden_hierarchy, cache_bytes=10 * one)
    assert wide.dense(names[0], level) is wide.dense(names[0], level)


def test_a_store_follows_its_model(store: WeightStore) -> None:
    other = SpikeGPT(replace(store.model.config, ctx_len=64), store.model.tensors)
    assert WeightStore(other, store.hierarchy).model is other
