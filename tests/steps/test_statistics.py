"""Which items the statistics of a run are made of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from qslm_edge.progress import Silent
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.search.statistics import STATISTICS_ITEMS, measure_statistics
from qslm_edge.steps.statistics import setting_statistics
from tests.helpers import tiny


class Listener(Silent):
    """Keeps stages and steps."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.steps = 0.0

    def stage(self, title: str, total: float | None = None) -> None:
        super().stage(title, total)
        self.stages.append(title)

    def advance(self, steps: float = 1.0, note: str = "") -> None:
        super().advance(steps, note)
        self.steps += steps


@pytest.mark.parametrize("n_items", [3, 11])
def test_the_first_search_items_are_used(n_items: int) -> None:
    model = tiny.make_model()
    store = WeightStore(model, tiny.hierarchy_of(model))
    items = tiny.make_items(lengths=(6,) * n_items)
    setting, listener = tiny.uniform_setting(model, "4g64"), Listener()
    plan = cast(Any, SimpleNamespace(task=SimpleNamespace(kind="language_model")))
    found = setting_statistics(plan, items, store, setting, listener)
    used = min(n_items, STATISTICS_ITEMS["language_model"])
    assert (found["n_items"], found["n_items_total"], found["source"]) == (used, n_items, items.source)
    assert listener.stages == ["statistics"]
    assert listener.steps == pytest.approx(1)
    assert found["seconds"] > 0
    first = measure_statistics(store, setting, items.subset(range(used))).to_dict()
    assert {key: found[key] for key in first} == first
