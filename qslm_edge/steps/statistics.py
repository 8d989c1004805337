"""Statistics of the chosen setting against the float model, on the first search items; never on report items."""

from __future__ import annotations

import time
from typing import Any

from qslm_edge.items import Items
from qslm_edge.progress import Progress
from qslm_edge.quantize.levels import Setting
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.search.statistics import STATISTICS_ITEMS, measure_statistics
from qslm_edge.steps.plan import Plan
from qslm_edge.tuning.stored import TunedModel

__all__ = ["setting_statistics"]


def setting_statistics(
    plan: Plan,
    items: Items,
    store: WeightStore,
    setting: Setting,
    progress: Progress,
    tuned: TunedModel | None = None,
) -> dict[str, Any]:
    """What `statistics` holds in search.json, and below `search` in report.json.

    Args:
        plan: task and model.
        items: the search items, of which the first are used.
        store: matrices of the model, with those of the setting already quantised.
        setting: the chosen levels.
        progress: shown to the user.
        tuned: the tuned model of the setting, where weights are tuned.
    """
    progress.stage("statistics", 1.0)
    begun = time.monotonic()
    first = items.subset(range(min(items.n_items, STATISTICS_ITEMS[plan.task.kind])))
    other = None if tuned is None else tuned.store(store)
    found = measure_statistics(store, setting, first, progress.advance, other)
    return {
        "source": items.source,
        "n_items_total": items.n_items,
        **found.to_dict(),
        "seconds": time.monotonic() - begun,
    }
