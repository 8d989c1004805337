"""Cuts in the search: which sizes are offered, what they are predicted to cost, and pairs that choose together."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qslm_edge.errors import InfeasibleError, UsageError
from qslm_edge.items import Items
from qslm_edge.quantize.accounting import predict_peak_rss_bytes, weight_bytes
from qslm_edge.quantize.calibrate import Statistics, measure_statistics
from qslm_edge.quantize.levels import FLOAT32, Level, Setting, parse_level
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.search.allocations import allocate
from qslm_edge.search.constraints import Constraints
from qslm_edge.search.evaluator import Evaluator
from qslm_edge.search.fisher import fisher_divergence
from qslm_edge.search.journal import Journal
from qslm_edge.search.prediction import CUT_UNDERRATED, Prediction, predict_modules
from qslm_edge.search.run import SearchOptions, run_search
from qslm_edge.search.space import CUT_SIZES, LevelMap, check_levels, cut_sizes
from qslm_edge.spikegpt import Hierarchy, Module, SpikeGPT, SpikeGPTConfig

MakeItems = Callable[..., Items]
CONFIG = SpikeGPTConfig(1, 64, 256, 13, "dense", 16, None)
KEY, VALUE = "blocks.1.ffn.key", "blocks.1.ffn.value"
LEVELS = check_levels(map(parse_level, ("8g64", "4g32", "2g64m")))


def value_of(columns: int) -> Module:
    return Module("blocks.0.ffn.value", 1, "linear", 64, columns, hidden="columns")


@pytest.fixture(scope="module")
def statistics(golden_model: SpikeGPT, golden_store: WeightStore, make_windows: MakeItems) -> Statistics:
    return measure_statistics(golden_model, golden_store.hierarchy, make_windows(16, 32, 211))


@pytest.fixture
def evaluator(
    golden_model: SpikeGPT, golden_store: WeightStore, statistics: Statistics, make_windows: MakeItems
) -> Evaluator:
    store = WeightStore(golden_model, golden_store.hierarchy, statistics=lambda: statistics)
    return Evaluator(store, make_windows(24, 16, 211), batch_items=8)


# Sizes.


@given(
    blocks=st.integers(2, 40),
    share=st.floats(0.01, 0.99),
    groups=st.lists(st.sampled_from([32, 64, 128]), max_size=3),
)
def test_sizes_keep_every_group_and_the_share(blocks: int, share: float, groups: list[int]) -> None:
    step = max(groups, default=32)
    value = value_of(step * blocks)
    levels = [Level(4, group, 4) for group in groups] or [FLOAT32]
    fewest = max(1, math.ceil(value.columns * (1 - share) / step)) * step
    if fewest >= value.columns:
        with pytest.raises(UsageError, match="--cut-hidden"):
            cut_sizes(value, share, levels)
        return
    sizes = cut_sizes(value, share, levels)
    assert 1 <= len(sizes) <= CUT_SIZES
    assert list(sizes) == sorted(set(sizes), reverse=True)
    assert all(size % step == 0 and 0 < size < value.columns for size in sizes)
    assert all(size >= value.columns * (1 - share) for size in sizes)
    assert sizes[-1] == fewest
    space = LevelMap(CONFIG, sizes)
    for level in levels:
        assert {space.level(value, wanted).group_size for wanted in space.wanted([level])} == {
            level.group_size
        }


def test_sizes_by_example() -> None:
    assert cut_sizes(value_of(1024), 0.75, [Level(4, 128, 4)]) == (896, 768, 640, 512, 384, 256)
    assert cut_sizes(value_of(1024), 0.5, [Level(4, 64, 4), Level(2, 128, 4)]) == (896, 768, 640, 512)
    assert cut_sizes(value_of(3072), 0.5, [Level(4, 128, 4)]) == (2816, 2560, 2304, 2048, 1792, 1536)


@pytest.mark.parametrize(("columns", "share"), [(1024, 0.1), (128, 0.9), (64, 0.5)])
def test_a_share_below_one_group_is_refused(columns: int, share: float) -> None:
    with pytest.raises(UsageError, match="--cut-hidden: the share is too small .*Groups hold 128"):
        cut_sizes(value_of(columns), share, [Level(4, 128, 4)])


def test_only_an_srffn_is_cut_and_never_to_more_than_it_has() -> None:
    space = LevelMap(CONFIG)
    level = parse_level("4g64@128")
    assert str(space.level(Module("head", 2, "linear", 512, 512), level)) == "4g64"
    assert str(space.level(value_of(128), level)) == "4g64"
    assert str(space.level(value_of(256), level)) == "4g64@128"
    assert str(space.level(value_of(256), parse_level("4g128@192"))) == "4g64@192"
    with pytest.raises(UsageError, match="more hidden units than the model has.*allowed: 64 or fewer"):
        space.level(value_of(64), level)


# Predictions.


def test_what_is_cut_is_charged_to_the_value(evaluator: Evaluator) -> None:
    store = evaluator.store
    level = parse_level("32@128")
    key, value = (store.modules[name] for name in (KEY, VALUE))
    of_key, of_value, whole = fisher_divergence(
        evaluator, [(key, level), (value, level), (value, parse_level("8g64"))]
    )
    assert of_key.loss.sum() == 0
    assert of_value.loss.sum() > 10 * whole.loss.sum()


def test_less_left_is_predicted_to_cost_more_and_more_than_the_second_order_says(
    evaluator: Evaluator,
) -> None:
    space = LevelMap(evaluator.store.model.config, (192, 128, 64))
    journal = Journal(None, evaluator.kind, {"model": "m"})
    table = {(c.module, c.level): c for c in predict_modules(evaluator, [FLOAT32, *LEVELS], space, journal)}
    nats = [table[VALUE, f"32{cut}"].nats for cut in ("", "@192", "@128", "@64")]
    assert nats == sorted(nats)
    assert nats[0] == 0
    (plain,) = fisher_divergence(evaluator, [(evaluator.store.modules[VALUE], parse_level("32@64"))])
    mean = float(plain.loss.sum() / plain.count.sum())
    assert nats[-1] == pytest.approx(CUT_UNDERRATED * 4 * mean)
    assert table[VALUE, "8g64@64"].nats == pytest.approx(nats[-1], rel=0.2)
    assert {level for module, level in table if module == "head"} == {"32", "8g64", "4g32", "2g64m"}
    assert predict_modules(evaluator, [FLOAT32, *LEVELS], space, journal) == list(table.values())


# The knapsack.


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
def test_key_and_value_keep_the_same_units_and_the_best_is_found(
    golden_store: WeightStore, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    first = golden_store.hierarchy
    names = {"blocks.0.ffn.key", "blocks.0.ffn.value", "blocks.0.ffn.receptance"}
    modules = tuple(m for m in first.blocks[1].modules if m.name in names)
    blocks = (first.blocks[0].__class__("attention.0", 0, modules, ()),)
    hierarchy = Hierarchy(blocks, "lm")
    space = LevelMap(golden_store.model.config, (192, 64))
    table = [
        Prediction(
            m.name, str(level), float(rng.integers(1, 9)), 0.0, int(rng.integers(1, 9)), 1, "predicted"
        )
        for m in modules
        for level in dict.fromkeys(space.level(m, wanted) for wanted in space.wanted(LEVELS[:2]))
    ]
    found = allocate(hierarchy, table, Constraints(1.0))
    rows = [[cell for cell in table if cell.module == m.name] for m in modules]
    choices = [
        (sum(c.weight_bytes for c in taken), sum(c.nats for c in taken))
        for taken in product(*rows)
        if parse_level(taken[0].level).units == parse_level(taken[2].level).units
    ]
    assert [m.hidden for m in modules] == ["rows", None, "columns"]
    for index in range(len(found)):
        setting = found.setting(index)
        assert [name for name, _ in setting.levels] == [m.name for m in modules]
        assert setting["blocks.0.ffn.key"].units == setting["blocks.0.ffn.value"].units
        fitting = [nats for size, nats in choices if size <= found.bytes[index]]
        assert found.nats[index] == min(fitting)


def searched(evaluator: Evaluator, limit: float, cuts: tuple[int, ...], **limits: int) -> Setting:
    result = run_search(
        evaluator,
        "real",
        Constraints(limit, **limits),
        SearchOptions(LEVELS, method="budgeted", cuts=cuts),
        Journal(None, evaluator.kind, {"model": "m"}),
    )
    assert result.chosen.comparison.upper <= limit
    assert result.chosen.weight_bytes == weight_bytes(evaluator.hierarchy, result.chosen.setting)
    return result.chosen.setting


def test_a_search_cuts_where_the_limit_allows_it(evaluator: Evaluator) -> None:
    generous = searched(evaluator, 1e6, (192, 128, 64))
    left = {generous[name].units for name in (KEY, VALUE)}
    assert left == {64}
    plain = searched(evaluator, 1e6, ())
    assert weight_bytes(evaluator.hierarchy, generous) < weight_bytes(evaluator.hierarchy, plain)


def test_budgets_count_what_a_cut_leaves(evaluator: Evaluator) -> None:
    hierarchy, space = evaluator.hierarchy, LevelMap(evaluator.store.model.config)
    whole, cut = (space.setting(hierarchy, parse_level(text)) for text in ("2g64m", "2g64m@64"))
    budget = weight_bytes(hierarchy, cut)
    with pytest.raises(InfeasibleError, match="no setting can fit"):
        searched(evaluator, 1e6, (), weights_budget_bytes=budget)
    assert searched(evaluator, 1e6, (128, 64), weights_budget_bytes=budget) == cut
    peak = predict_peak_rss_bytes(hierarchy, cut)
    assert peak < predict_peak_rss_bytes(hierarchy, whole)
    assert searched(evaluator, 1e6, (128, 64), memory_budget_bytes=peak)[VALUE].units == 64


def test_prefix_reuse_tells_cuts_apart(evaluator: Evaluator) -> None:
    base = evaluator.float_setting()
    settings_ = [base.with_levels({KEY: Level(32, units=n), VALUE: Level(32, units=n)}) for n in (192, 64)]
    reused = [evaluator.evaluate(setting).loss for setting in settings_]
    fresh = Evaluator(evaluator.store, evaluator.items, reuse=False, batch_items=8)
    for setting, loss in zip(settings_, reused, strict=True):
        np.testing.assert_allclose(fresh.evaluate(setting).loss, loss, rtol=1e-6)
    assert not torch.equal(*(torch.from_numpy(loss) for loss in reused))
