"""The list of levels in order, and which of them a module can really take."""

from __future__ import annotations

from itertools import permutations

import pytest

from qslm_edge.errors import UsageError
from qslm_edge.quantize.accounting import matrix_bytes
from qslm_edge.quantize.levels import FLOAT16, FLOAT32, GROUP_SIZES, SIGN, Level, parse_level
from qslm_edge.quantize.packed import pack_matrix
from qslm_edge.search.space import LevelMap, check_levels
from qslm_edge.spikegpt import Module, SpikeGPTConfig, build_hierarchy

ORDERED = ["32", "16", "8g32", "8g64", "8g128", "4g32", "4g64", "4g128", "2g32", "2g64", "2g128"]
SQUARE = Module("m", 0, "linear", 1024, 1024)


def dense(c: int, f: int | None = None) -> LevelMap:
    return LevelMap(SpikeGPTConfig(1, c, f or 4 * c, 11, "dense"))


def test_levels_fall_in_bits_per_weight_whatever_the_order_given() -> None:
    for given in (ORDERED, ORDERED[::-1], sorted(ORDERED), ORDERED + ORDERED):
        assert [str(level) for level in check_levels(map(parse_level, given))] == ORDERED
    for mixed in permutations(["8g64", "4g64", "4g64f"]):
        assert [str(level) for level in check_levels(map(parse_level, mixed))] == ["8g64", "4g64", "4g64f"]
    sizes = [matrix_bytes(SQUARE, level) for level in check_levels(map(parse_level, ORDERED))]
    assert sizes == sorted(sizes, reverse=True)


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(UsageError, match="--levels: no precision levels"):
        check_levels([])


@pytest.mark.parametrize(
    ("columns", "wanted", "found"),
    [
        (256, "4g128", "4g128"),
        (192, "4g128", "4g64"),
        (96, "4g128", "4g32"),
        (96, "8g64", "8g32"),
        (96, "8g32", "8g32"),
        (100, "4g32", "32"),
        (16, "2g32", "32"),
        (96, "16", "16"),
        (100, "16", "16"),
        (96, "q6", "q6"),
        (100, "q6", "q6"),
        (64, "4g64f", "4g64f"),
    ],
)
def test_a_module_takes_the_nearest_group_that_divides(columns: int, wanted: str, found: str) -> None:
    module = Module("m", 0, "linear", 8, columns)
    assert str(dense(columns).level(module, parse_level(wanted))) == found


def test_an_embedding_has_no_activations_to_round() -> None:
    module = Module("emb", 0, "embedding", 11, 64)
    assert dense(64).level(module, Level(4, 64, 4)) == Level(4, 64, 0)


@pytest.mark.parametrize("wanted", ["32", "16", "8g64", "2g32"])
def test_a_binary_embedding_is_its_signs(wanted: str) -> None:
    space = LevelMap(SpikeGPTConfig(1, 64, 256, 11, "binary"))
    level = parse_level(wanted)
    assert space.level(Module("emb", 0, "embedding", 11, 64), level) == SIGN
    assert space.level(Module("head", 2, "linear", 11, 64), level) == level
    assert space.level(Module("emb", 0, "embedding", 11, 64), parse_level("q4")) == parse_level("q4")


def test_signs_that_fill_no_whole_bytes_stay_float() -> None:
    space = LevelMap(SpikeGPTConfig(1, 100, 400, 11, "binary"))
    assert space.level(Module("emb", 0, "embedding", 11, 100), Level(4, 32, 4)) == FLOAT32


@pytest.mark.parametrize("c", [32, 64, 96, 100, 104, 320])
@pytest.mark.parametrize("embedding", ["dense", "binary"])
def test_whatever_a_module_takes_can_be_packed(c: int, embedding: str) -> None:
    import numpy as np

    config = SpikeGPTConfig(1, c, 2 * c, 3, "binary" if embedding == "binary" else "dense")
    hierarchy = build_hierarchy(config, "lm")
    for text in ORDERED:
        setting = LevelMap(config).setting(hierarchy, parse_level(text))
        assert [name for name, _ in setting.levels] == [module.name for module in hierarchy.modules]
        for module in hierarchy.modules[:2]:
            weights = np.ones((module.rows, module.columns), np.float32)
            level = setting[module.name]
            assert pack_matrix(module, weights, level).nbytes == matrix_bytes(module, level)


def test_group_sizes_and_float_levels_are_those_of_the_runtime() -> None:
    assert GROUP_SIZES == (32, 64, 128)
    assert check_levels([FLOAT16, FLOAT32]) == (FLOAT32, FLOAT16)
