"""What prefix reuse and early decisions save in a search, and whether they change its answer.

Four searches of the embedded reference over the same items: neither, each alone, both. Counted are tokens scored and
token-blocks computed, which do not depend on the machine; seconds are printed as ratios to the plain search of the same
run. The chosen settings must be equal.

    make bench BENCH=search_cost            # JSON on stdout with --json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from typing import Any

from qslm_edge.progress import Silent
from qslm_edge.recipe import make_recipe
from qslm_edge.search.evaluator import Evaluator
from qslm_edge.search.reference import float_reference
from qslm_edge.steps.find import find_setting
from qslm_edge.steps.prepare import prepare

VARIANTS = {
    "exhaustive": {"reuse": False, "early": False},
    "prefix reuse": {"reuse": True, "early": False},
    "early decision": {"reuse": False, "early": True},
    "both": {"reuse": True, "early": True},
}


def measure(profile: str, task: str, windows: int, levels: tuple[str, ...] | None) -> list[dict[str, Any]]:
    """Run every variant once and return its costs."""
    rows: list[dict[str, Any]] = []
    for name, switches in VARIANTS.items():
        recipe = make_recipe(profile=profile, task=task, search_windows=windows, levels=levels, **switches)
        plan = prepare(recipe)
        items = plan.items("search")
        # float scores are kept on disk between runs: make them now, so that no variant pays for them alone
        float_reference(Evaluator(plan.store(), items, reuse=False), plan.digest)
        begun = time.perf_counter()
        result, _ = find_setting(plan, items, None, Silent())
        rows.append(
            {
                "variant": name,
                "seconds": time.perf_counter() - begun,
                **asdict(result.cost),
                "chosen": result.chosen.setting.to_dict(),
                "summary": result.chosen.setting.describe(),
                "reduction": 1 - result.chosen.weight_bytes / plan.hierarchy.float32_bytes,
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Search cost with and without prefix reuse and early decisions."
    )
    parser.add_argument("--profile", default="jetson-orin")
    parser.add_argument("--task", default="wikitext2")
    parser.add_argument("--windows", type=int, default=32, help="search items")
    parser.add_argument("--levels", default="16,8g64,4g64,4g128")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options.profile, options.task, options.windows, tuple(options.levels.split(",")))
    same = all(row["chosen"] == rows[0]["chosen"] for row in rows)
    if options.json:
        sys.stdout.write(json.dumps({"same_setting": same, "rows": rows}, indent=1) + "\n")
    else:
        plain = rows[0]
        line = "{:16} {:>12} {:>14} {:>14} {:>8}  {}\n"
        sys.stdout.write(line.format("variant", "evaluations", "tokens", "token-blocks", "time", "chosen"))
        for row in rows:
            ratios = [f"{row[key] / plain[key]:.2f}" for key in ("tokens", "block_tokens", "seconds")]
            chosen = f"-{100 * row['reduction']:.2f} % {row['summary']}"
            sys.stdout.write(line.format(row["variant"], row["evaluations"], *ratios, chosen))
        sys.stdout.write(f"same setting chosen by all: {'yes' if same else 'NO'}\n")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
