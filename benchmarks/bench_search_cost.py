"""What a search costs by method, and what its answer weighs.

One model, one set of items, one limit. The measure is the paper's tiered search with every evaluation in full and from
the first block ("exhaustive"); the same tiers with prefix reuse, with early decisions and with both; the budgeted
search; the Pareto front. Counted are tokens scored and token-blocks computed, which do not depend on the machine;
seconds are of this machine and printed, as all costs, as ratios to the exhaustive search of the same run. Early
decisions and reuse must not change what the tiers choose, and the budgeted search must take at most a tenth of the
tokens for a setting no larger. `--predictions` adds how well the two ways to predict a matrix's cost repeat themselves.

    make bench BENCH=search_cost            # python benchmarks/bench_search_cost.py --json for programs
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qslm_edge.items import Items
from qslm_edge.progress import Silent
from qslm_edge.recipe import make_recipe
from qslm_edge.search.evaluator import Evaluator
from qslm_edge.search.fisher import fisher_divergence
from qslm_edge.search.reference import float_reference
from qslm_edge.search.space import LevelMap
from qslm_edge.steps.find import find_setting
from qslm_edge.steps.plan import Plan
from qslm_edge.steps.prepare import prepare

ROWS: dict[str, dict[str, Any]] = {
    "exhaustive tiered": {"method": "tiered", "reuse": False, "early": False},
    "tiered, prefix reuse": {"method": "tiered", "reuse": True, "early": False},
    "tiered, early decisions": {"method": "tiered", "reuse": False, "early": True},
    "tiered": {"method": "tiered"},
    "budgeted": {"method": "budgeted"},
    "pareto": {"method": "pareto"},
}
MOST_TOKENS = 0.1
"""Share of the exhaustive search's tokens that the budgeted one may take."""


def measure(name: str, base: dict[str, Any]) -> dict[str, Any]:
    """Run one row and return its costs."""
    plan = prepare(make_recipe(**base, **ROWS[name]))
    items = plan.items("search")
    # float scores are kept on disk between runs: make them now, so that no row pays for them alone
    float_reference(Evaluator(plan.store(), items, reuse=False), plan.digest)
    begun = time.perf_counter()
    result, _, _ = find_setting(plan, items, None, Silent())
    chosen = result.chosen
    return {
        "row": name,
        "seconds": time.perf_counter() - begun,
        **asdict(result.cost),
        "chosen": chosen.setting.to_dict(),
        "summary": chosen.setting.describe(),
        "weight_bytes": chosen.weight_bytes,
        "reduction": 1 - chosen.weight_bytes / plan.hierarchy.float32_bytes,
        "metric": chosen.metric,
        "degradation": chosen.comparison.degradation,
        "upper": chosen.comparison.upper,
    }


def faults(rows: list[dict[str, Any]]) -> list[str]:
    """What the rows must not say; an absent row is not judged."""
    known = {row["row"]: row for row in rows}
    found = []
    tiers = [row for row in rows if "tiered" in row["row"]]
    if any(row["chosen"] != tiers[0]["chosen"] for row in tiers):
        found.append("the tiered searches chose different settings")
    if {"exhaustive tiered", "budgeted"} <= known.keys():
        whole, budgeted = known["exhaustive tiered"], known["budgeted"]
        if budgeted["tokens"] > MOST_TOKENS * whole["tokens"]:
            found.append(f"budgeted took more than {MOST_TOKENS:.0%} of the exhaustive search's tokens")
        if budgeted["weight_bytes"] > whole["weight_bytes"]:
            found.append("budgeted chose a larger setting than the exhaustive search")
    return found


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.argsort(np.argsort(values)).astype(np.float64)


def predictions(base: dict[str, Any], n_items: int) -> list[dict[str, Any]]:
    """Two ways to predict what each matrix costs at the narrowest level, each on two halves of the items.

    A prediction that ranks matrices by anything but chance ranks them alike on both halves (Spearman).
    """
    plan = prepare(make_recipe(**base))
    items, level = plan.items("search"), plan.options.levels[-1]
    space = LevelMap(plan.model.config)
    cells = [(module, space.level(module, level)) for module in plan.hierarchy.modules]
    rows = []
    for name, predict in (("measured one by one", _one_by_one), ("gradient pass", _by_gradient)):
        begun = time.perf_counter()
        halves = [items.subset(np.arange(start, 2 * n_items, 2)) for start in (0, 1)]
        pairs = [predict(plan, half, cells) for half in halves]
        agreement = float(np.corrcoef(_ranks(pairs[0][0]), _ranks(pairs[1][0]))[0, 1])
        tokens = sum(cost for _, cost in pairs)
        seconds = time.perf_counter() - begun
        rows.append({"prediction": name, "agreement": agreement, "tokens": tokens, "seconds": seconds})
    return rows


def _one_by_one(plan: Plan, items: Items, cells: list[Any]) -> tuple[NDArray[np.float64], int]:
    evaluator = Evaluator(plan.store(), items)
    start = evaluator.float_setting()
    whole = evaluator.evaluate(start).loss.sum()
    losses = [
        evaluator.evaluate(start.with_levels({module.name: level})).loss.sum() for module, level in cells
    ]
    return np.array(losses) - whole, evaluator.cost.tokens


def _by_gradient(plan: Plan, items: Items, cells: list[Any]) -> tuple[NDArray[np.float64], int]:
    evaluator = Evaluator(plan.store(), items)
    return np.array([s.loss.sum() for s in fisher_divergence(evaluator, cells)]), evaluator.cost.tokens


def main() -> int:
    parser = argparse.ArgumentParser(description="Cost and answer of every search method under one limit.")
    parser.add_argument("--profile", default="jetson-orin")
    parser.add_argument("--task", default="wikitext2")
    parser.add_argument("--windows", type=int, help="search items; the task's default")
    parser.add_argument("--levels", help="e.g. 16,8g64,4g32,4g128; the profile's")
    parser.add_argument("--limit", type=float, help="perplexity increase or points; the task's default")
    parser.add_argument("--rows", help="of " + "; ".join(ROWS) + ", with ; between them; all")
    parser.add_argument(
        "--predictions", type=int, metavar="N", help="compare predictions on two halves of 2 N items instead"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    base = {
        "profile": options.profile,
        "task": options.task,
        "search_windows": options.windows,
        "levels": None if options.levels is None else tuple(options.levels.split(",")),
        "max_degradation": options.limit,
    }
    if options.predictions:
        return _show_predictions(predictions(base, options.predictions), options.json)
    names = list(ROWS) if options.rows is None else [name.strip() for name in options.rows.split(";")]
    rows = []
    for name in names:
        row = measure(name, base)
        rows.append(row)
        done = f"{row['tokens']:,} tokens, {row['seconds']:.0f} s, -{100 * row['reduction']:.2f} %"
        sys.stderr.write(f"{name}: {done}, {row['degradation']:+.3f}\n")
    wrong = faults(rows)
    if options.json:
        sys.stdout.write(json.dumps({"faults": wrong, "rows": rows}, indent=1) + "\n")
    else:
        _show(rows)
        sys.stdout.writelines(f"fault: {fault}\n" for fault in wrong)
    return 1 if wrong else 0


def _show(rows: list[dict[str, Any]]) -> None:
    line = "{:24} {:>11} {:>8} {:>12} {:>6}  {:>9}  {}\n"
    sys.stdout.write(line.format("row", "evaluations", "tokens", "token-blocks", "time", "weights", "chosen"))
    for row in rows:
        ratios = [f"{row[key] / rows[0][key]:.3f}" for key in ("tokens", "block_tokens", "seconds")]
        size = f"{row['weight_bytes'] / 1e6:.3f} MB"
        chosen = f"-{100 * row['reduction']:.2f} %, {row['degradation']:+.3f}, {row['summary']}"
        sys.stdout.write(line.format(row["row"], row["evaluations"], *ratios, size, chosen))
    sys.stdout.write(f"ratios to {rows[0]['row']}: {rows[0]['tokens']:,} tokens\n")


def _show_predictions(rows: list[dict[str, Any]], as_json: bool) -> int:
    if as_json:
        sys.stdout.write(json.dumps({"predictions": rows}, indent=1) + "\n")
        return 0
    line = "{:20} {:>24} {:>9} {:>8}\n"
    sys.stdout.write(line.format("prediction", "ranks alike (Spearman)", "tokens", "seconds"))
    for row in rows:
        cells = (f"{row['agreement']:.2f}", f"{row['tokens']:,}", f"{row['seconds']:.0f}")
        sys.stdout.write(line.format(row["prediction"], *cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
