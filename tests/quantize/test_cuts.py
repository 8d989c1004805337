"""Cutting hidden units: exact, least harm first, and bytes as they are stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qslm_edge.errors import UsageError
from qslm_edge.items import Items
from qslm_edge.quantize.accounting import matrix_bytes, predict_peak_rss_bytes, weight_bytes
from qslm_edge.quantize.base import Float, InputStatistics
from qslm_edge.quantize.calibrate import Statistics, measure_statistics
from qslm_edge.quantize.cuts import DAMPING, cut_columns, describe_cuts, rank_units
from qslm_edge.quantize.gptq import damped_hessian
from qslm_edge.quantize.levels import Level, Setting, parse_level
from qslm_edge.quantize.packed import pack_matrix
from qslm_edge.quantize.quantisers import QUANTISERS, get_quantiser
from qslm_edge.quantize.weights import QuantisedWeights, WeightStore
from qslm_edge.search.space import LevelMap
from qslm_edge.spikegpt import Hierarchy, SpikeGPT

KEY, VALUE = "blocks.1.ffn.key", "blocks.1.ffn.value"
TOKENS = torch.arange(48).view(2, 24) * 7 % 211


@pytest.fixture(scope="module")
def statistics(golden_model: SpikeGPT, golden_hierarchy: Hierarchy) -> Statistics:
    stream = np.random.default_rng(5).integers(0, 211, 16 * 32 + 1).astype(np.int32)
    items = Items("wikitext2", "search", stream[:-1], np.arange(17) * 32, stream[1:])
    return measure_statistics(golden_model, golden_hierarchy, items)


def make_store(
    model: SpikeGPT, hierarchy: Hierarchy, statistics: Statistics, name: str = "gptq"
) -> WeightStore:
    return WeightStore(model, hierarchy, quantiser=get_quantiser(name), statistics=lambda: statistics)


@pytest.fixture
def store(golden_model: SpikeGPT, golden_hierarchy: Hierarchy, statistics: Statistics) -> WeightStore:
    return make_store(golden_model, golden_hierarchy, statistics)


def uniform(store: WeightStore, text: str) -> Setting:
    return LevelMap(store.model.config).setting(store.hierarchy, parse_level(text))


def whole_model(store: WeightStore, setting: Setting) -> SpikeGPT:
    """The model at its full size with the values of the setting, the columns of units that are cut at zero."""
    tensors = dict(store.model.tensors)
    for module in store.hierarchy.modules:
        level = setting[module.name]
        values = store.dense(module.name, level)
        if level.units is not None:
            kept = torch.from_numpy(store.kept_units(module.name, level.units))
            full = tensors[module.key].clone()
            if module.hidden == "rows":
                full[kept] = values  # what units compute that nothing reads does not matter
            else:
                full.zero_()
                full[:, kept] = values
            values = full
        tensors[module.key] = values
    return SpikeGPT(store.model.config, tensors)


@pytest.mark.parametrize("quantiser", QUANTISERS)
@pytest.mark.parametrize("text", ["32@192", "16@64", "8g64f@128", "4g32f@96", "2g64f@64"])
def test_a_cut_model_is_the_whole_one_with_those_columns_at_zero(
    golden_model: SpikeGPT, golden_hierarchy: Hierarchy, statistics: Statistics, text: str, quantiser: str
) -> None:
    store = make_store(golden_model, golden_hierarchy, statistics, quantiser)
    setting = uniform(store, text)
    cut = SpikeGPT(golden_model.config, golden_model.tensors)
    cut.weights = QuantisedWeights(store, setting)
    torch.testing.assert_close(cut(TOKENS), whole_model(store, setting)(TOKENS), rtol=1e-6, atol=1e-6)


def test_one_layer_may_be_cut_and_others_not(store: WeightStore) -> None:
    setting = uniform(store, "32").with_levels({KEY: parse_level("32@64"), VALUE: parse_level("4g64f@64")})
    cut = SpikeGPT(store.model.config, store.model.tensors)
    cut.weights = QuantisedWeights(store, setting)
    torch.testing.assert_close(cut(TOKENS), whole_model(store, setting)(TOKENS), rtol=1e-6, atol=1e-6)
    assert not torch.equal(cut(TOKENS), store.model(TOKENS))


@pytest.mark.parametrize("quantiser", QUANTISERS)
@pytest.mark.parametrize("level", ["8g32", "4g64", "2g64m", "2g32"])
def test_rows_of_the_key_are_taken_as_they_are_packed(
    golden_model: SpikeGPT, golden_hierarchy: Hierarchy, statistics: Statistics, level: str, quantiser: str
) -> None:
    store = make_store(golden_model, golden_hierarchy, statistics, quantiser)
    cut = store.packed(KEY, parse_level(f"{level}@96"))
    kept = store.kept_units(KEY, 96)
    alone = pack_matrix(
        replace(store.modules[KEY], rows=96),
        golden_model.tensors[f"{KEY}.weight"].numpy()[kept],
        cut.level,
        store.quantiser,
        statistics[KEY],
    )
    for part in ("data", "scales", "zeros"):
        np.testing.assert_array_equal(getattr(cut, part), getattr(alone, part))
    assert cut.level == parse_level(f"{level}@96")


@settings(max_examples=40)
@given(
    bits=st.sampled_from([2, 4, 8]),
    group=st.sampled_from([32, 64]),
    midrise=st.booleans(),
    units=st.sampled_from([64, 128, 192, 256]),
)
def test_bytes_are_those_that_are_stored(
    golden_model: SpikeGPT,
    golden_hierarchy: Hierarchy,
    statistics: Statistics,
    bits: int,
    group: int,
    midrise: bool,
    units: int,
) -> None:
    store = make_store(golden_model, golden_hierarchy, statistics, "rtn")
    level = Level(bits, group, 4, midrise=midrise and bits == 2, units=units)
    setting = LevelMap(store.model.config).setting(store.hierarchy, level)
    whole = LevelMap(store.model.config).setting(store.hierarchy, level.whole)
    for name in (KEY, VALUE):
        assert matrix_bytes(store.modules[name], setting[name]) == store.packed(name, setting[name]).nbytes
    size, peak = (
        (rule(golden_hierarchy, setting), rule(golden_hierarchy, whole))
        for rule in (weight_bytes, predict_peak_rss_bytes)
    )
    assert size[0] < size[1] if units < 256 else setting == whole
    assert peak[0] <= peak[1]


def gram_of(inputs: NDArray[np.float64]) -> InputStatistics:
    return InputStatistics((inputs.T @ inputs / len(inputs)).astype(np.float32), len(inputs))


def loss(value: Float, V: Float, kept: NDArray[np.int64], H: NDArray[np.float64]) -> float:
    E = value.astype(np.float64)
    E[:, kept] -= V
    return float(np.trace(E @ H @ E.T))


@given(seed=st.integers(0, 10**6), n_kept=st.integers(1, 5))
def test_what_stays_makes_up_as_well_as_it_can(seed: int, n_kept: int) -> None:
    rng = np.random.default_rng(seed)
    value = rng.normal(size=(3, 6)).astype(np.float32)
    statistics = gram_of(np.maximum(rng.normal(size=(20, 6)), 0))
    kept = np.sort(rng.permutation(6)[:n_kept])
    H = damped_hessian(statistics, 6, DAMPING)
    best = cut_columns(value, kept, statistics)
    found = loss(value, best, kept, H)
    # least squares by another way: H = R^T R, minimise |R (w - S v)|
    R = np.linalg.cholesky(H).T
    solved = np.linalg.lstsq(R[:, kept], R @ value.T.astype(np.float64), rcond=None)[0].T
    np.testing.assert_allclose(best, solved, rtol=1e-3, atol=1e-4)
    assert found <= loss(value, value[:, kept], kept, H) * (1 + 1e-6)


@given(seed=st.integers(0, 10**6))
def test_the_unit_that_goes_first_is_the_one_that_costs_least(seed: int) -> None:
    rng = np.random.default_rng(seed)
    value = rng.normal(size=(3, 6)).astype(np.float32)
    statistics = gram_of(np.maximum(rng.normal(size=(20, 6)), 0))
    H = damped_hessian(statistics, 6, DAMPING)
    others = [np.delete(np.arange(6), unit) for unit in range(6)]
    costs = [loss(value, cut_columns(value, kept, statistics), kept, H) for kept in others]
    ranking = rank_units(value, statistics)
    np.testing.assert_allclose(np.array(costs)[ranking], np.sort(costs)[::-1], rtol=1e-4)


def test_units_that_never_fire_and_doubles_cost_next_to_nothing() -> None:
    rng = np.random.default_rng(0)
    inputs = np.maximum(rng.normal(size=(200, 8)), 0)
    inputs[:, 3] = 0.0
    inputs[:, 6] = inputs[:, 1]
    value = rng.normal(size=(4, 8)).astype(np.float32)
    assert rank_units(value, gram_of(inputs))[-1] == 3
    assert set(rank_units(value, gram_of(inputs))[-3:].tolist()) == {1, 3, 6}
    kept = np.delete(np.arange(8), [3, 6])
    cut = cut_columns(value, kept, gram_of(inputs))
    before, after = inputs @ value.T, inputs[:, kept] @ cut.T
    assert np.abs(after - before).max() < 0.05 * np.abs(before).max()


def test_cuts_are_nested_and_both_matrices_agree(store: WeightStore) -> None:
    smaller, larger = store.kept_units(KEY, 64), store.kept_units(VALUE, 160)
    assert set(smaller.tolist()) < set(larger.tolist())
    assert (np.diff(larger) > 0).all()


def test_without_calibration_data_nothing_is_cut(golden_model: SpikeGPT, golden_hierarchy: Hierarchy) -> None:
    store = WeightStore(golden_model, golden_hierarchy)
    with pytest.raises(UsageError, match="without calibration data"):
        store.packed(VALUE, parse_level("4g64@128"))


def test_what_is_said_of_cuts(store: WeightStore) -> None:
    assert describe_cuts(store.hierarchy, uniform(store, "4g64")) is None
    setting = uniform(store, "4g64").with_levels({KEY: parse_level("4g64@64"), VALUE: parse_level("2g64@64")})
    assert describe_cuts(store.hierarchy, setting) == {
        "rule": "obs/1",
        "hidden_units": [256, 64, 256],
        "share": 0.25,
    }
    assert setting.describe() == "22 × 4g64, 1 × 2g64; SRFFN cut to 1 × 64"
