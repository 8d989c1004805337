"""How small each method makes the reference model under each limit, and what that costs in quality and work.

One line a row: method × task × limit on one board (x86-cpu, whose runtime runs 2 bits). The metric of the report items
decides: nothing was chosen on them. `budgeted` takes the default quantiser (gptq), `cut` may cut hidden units as well,
`rtn` is the same search with rounding alone, `tiered` the paper's walk over packed levels. `qslm` is the paper's
scheme, simulated per-tensor levels with memory counted as parameters × bits; its bytes leave out what a file must
hold, so the line beside ours flatters it. `tuned` and `tuned-cut` tune weights: minutes a row on a GPU, hours on a CPU.
Where no GPU is, rows of theirs that were measured on one and are kept in benchmarks/compression/ stand in, named by
their device; `--rows tuned` measures them here all the same.

Each row keeps its searches in a directory of its own and its result in row.json there: stopped and started again, the
table goes on where it was. Delete a directory to measure its row anew. `qslm-edge export DIRECTORY` makes a bundle of
what a row chose.

    make bench BENCH=compression
    python benchmarks/bench_compression.py --rows budgeted --report-windows 100 --json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from qslm_edge import __version__
from qslm_edge.deploy import open_run
from qslm_edge.errors import InfeasibleError
from qslm_edge.items import Items
from qslm_edge.metrics import Paired, Scores, paired, quality
from qslm_edge.progress import Silent
from qslm_edge.quantize.levels import Setting
from qslm_edge.recipe import make_recipe, write_recipe
from qslm_edge.runner.machine import identify
from qslm_edge.search.evaluator import Evaluator
from qslm_edge.search.journal import fingerprint
from qslm_edge.search.reference import float_reference
from qslm_edge.steps.find import find_setting, write_json
from qslm_edge.steps.found import FILE, describe_search
from qslm_edge.steps.plan import Plan
from qslm_edge.steps.prepare import prepare
from qslm_edge.tuning.stored import TunedModel


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        method: a name for people, also of the directory.
        task: wikitext2 or sst2.
        limit: perplexity increase, or accuracy drop in points.
        choices: what the recipe says beside profile, task and limit.
    """

    method: str
    task: str
    limit: float
    choices: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.method}-{self.task}-{self.limit:g}"


TUNED = {"method": "budgeted", "tune": True, "tune_rounds": 3}
METHODS: dict[str, dict[str, Any]] = {
    "tuned": TUNED,
    "tuned-cut": TUNED | {"cut_hidden": 0.75},
    "budgeted": {"method": "budgeted"},
    "cut": {"method": "budgeted", "cut_hidden": 0.75},
    "rtn": {"method": "budgeted", "quantiser": "rtn"},
    "tiered": {"method": "tiered"},
    "qslm": {"method": "qslm"},
}
"""A further method is a line here: what its recipe says."""
KEPT = Path(__file__).resolve().parent / "compression"
"""Rows that were measured where not everybody can measure them."""
CASES = (("wikitext2", 1.0), ("wikitext2", 4.0), ("sst2", 1.0), ("sst2", 3.0))
TUNE_TOKENS = {"wikitext2": 15_000_000, "sst2": 3_000_000}
"""Training tokens of one tuning; sentences are short, so that these are as many steps."""
ROWS = tuple(
    Row(method, *case, choices | ({"tune_tokens": TUNE_TOKENS[case[0]]} if "tune" in choices else {}))
    for case in CASES
    for method, choices in METHODS.items()
)


def measure(
    row: Row, profile: str, report_windows: int | None, out: Path, *, kept_only: bool = False
) -> dict[str, Any] | None:
    """Search and score one row, or read what was measured before.

    Args:
        row: what to measure.
        profile: the board.
        report_windows: report items of a language model; None takes all.
        out: directory of the table.
        kept_only: measure nothing; None is the answer where nothing was measured before.
    """
    limits = {"report_windows": report_windows} if row.task == "wikitext2" else {}
    recipe = make_recipe(profile=profile, task=row.task, max_degradation=row.limit, **limits, **row.choices)
    plan, place = prepare(recipe), out / row.name
    identity = fingerprint(
        {"recipe": recipe.model_dump(mode="json"), "model": plan.digest, "version": __version__}
    )
    path = place / "row.json"
    for file in (path, KEPT / f"{row.name}.json"):
        if file.is_file():
            known: dict[str, Any] = json.loads(file.read_text("utf-8"))
            if known["identity"] == identity:
                return known
    if kept_only:
        return None
    with open_run(place):
        write_recipe(recipe, place / "recipe.toml")
        found = {"identity": identity, **_head(row, profile), **_measure(plan, place)}
        write_json(path, found)
    return found


def _head(row: Row, profile: str) -> dict[str, Any]:
    named = {"method": row.method, "task": row.task, "limit": row.limit, "profile": profile}
    return {**named, "device": _device()}


def _device() -> str:
    """Where this process computes."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{identify().cpu_model or 'CPU'}, {torch.get_num_threads()} threads"


def _measure(plan: Plan, place: Path) -> dict[str, Any]:
    items = plan.items("search")
    float_reference(Evaluator(plan.store(), items, reuse=False), plan.digest)  # no row pays for it alone
    begun = time.perf_counter()
    try:
        result, evaluator, tuned = find_setting(plan, items, place, Silent())
    except InfeasibleError as error:
        return {"infeasible": str(error)}
    seconds = time.perf_counter() - begun
    write_json(place / FILE, describe_search(plan, items, result, evaluator, tuned))
    chosen = result.chosen
    return {
        "infeasible": None,
        "setting": chosen.setting.to_dict(),
        "summary": chosen.setting.describe(),
        "deployable": plan.recipe.method != "qslm",
        "weight_bytes": chosen.weight_bytes,
        "reduction": 1 - chosen.weight_bytes / plan.hierarchy.float32_bytes,
        "unit": "perplexity" if plan.task.kind == "language_model" else "%",
        "search": _metrics(result.reference.scores, result.chosen_scores),
        "report": _report(plan, chosen.setting, tuned),
        "cost": {
            **asdict(result.cost),
            "replayed_tokens": result.replayed_tokens,
            "tuning_tokens": None
            if plan.tuning is None
            else len({trial.setting for trial in result.trials}) * plan.tuning.tokens,
            "seconds": seconds,
        },
    }


def _report(plan: Plan, setting: Setting, tuned: TunedModel | None) -> dict[str, Any]:
    """Float model and setting on the report items, which steered nothing."""
    items: Items = plan.items("report")
    evaluator = Evaluator(plan.store(), items, reuse=False)
    reference = float_reference(evaluator, plan.digest).scores
    if tuned is not None:
        evaluator = Evaluator(tuned.store(plan.store()), items, reuse=False)
    return _metrics(reference, evaluator.evaluate(setting))


def _metrics(reference: Scores, scores: Scores) -> dict[str, Any]:
    change: Paired = paired(reference, scores, quality(reference).value)
    return {
        "float": asdict(quality(reference)),
        "quantised": asdict(quality(scores)),
        "change": asdict(change),
    }


def show(rows: Sequence[dict[str, Any]]) -> str:
    """The table as text."""
    columns = ("task", "limit", "method", "memory", "search items", "report items", "tokens", "seconds", "on")
    devices = list(dict.fromkeys(row["device"] for row in rows))
    table = [columns]
    for row in rows:
        head, place = (
            (row["task"], f"{row['limit']:g}", row["method"]),
            f"[{devices.index(row['device']) + 1}]",
        )
        if row["infeasible"]:
            table.append((*head, "none found", "", "", "", "", place))
            continue
        label = f"-{100 * row['reduction']:.2f} %" + ("" if row["deployable"] else " *")
        cost = row["cost"]
        tokens = f"{cost['tokens']:,}"
        if cost["replayed_tokens"]:
            tokens += f" + {cost['replayed_tokens']:,}"
        if cost["tuning_tokens"]:
            tokens += f", {cost['tuning_tokens'] / 1e6:g} M tuned"
        metrics = (_metric(row["search"]), _metric(row["report"]))
        table.append((*head, label, *metrics, tokens, f"{cost['seconds']:.0f}", place))
    widths = [max(len(line[at]) for line in table) for at in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    notes = [
        "metric: quantised, and its change to float ± paired standard error; a drop counts as a positive change",
        "tokens: scored in the search, + replayed from an earlier, stopped one; tuned: training tokens seen",
        "*: simulated, counted as the paper does",
        *(f"[{number}] {device}" for number, device in enumerate(devices, 1)),
        *_shares(rows),
    ]
    return "\n".join([*(line.rstrip() for line in lines), *notes]) + "\n"


def _shares(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the knapsack took of the tokens that the tiers took for the same case, where both are there."""
    tokens = {
        (row["task"], row["limit"], row["method"]): row["cost"]["tokens"] + row["cost"]["replayed_tokens"]
        for row in rows
        if not row["infeasible"]
    }
    return [
        f"{task} ≤ {limit:g}: budgeted scored {tokens[case] / tokens[task, limit, 'tiered']:.2f} times the tokens of "
        "tiered with early decisions; make bench BENCH=search_cost compares with the exhaustive walk"
        for case in tokens
        for task, limit, method in (case,)
        if method == "budgeted" and (task, limit, "tiered") in tokens
    ]


def _metric(found: dict[str, Any]) -> str:
    change = found["change"]
    return (
        f"{found['quantised']['value']:.2f} ({change['degradation']:+.2f} ± {change['standard_error']:.2f}, "
        f"n {change['n_items']})"
    )


def left_out(row: Row) -> str | None:
    """Why a row is not measured unless it is asked for; None where it is."""
    if row.choices.get("tune") and not torch.cuda.is_available():
        return "hours on two cores, minutes on a GPU"
    if row.method in ("tiered", "qslm") and row.limit != min(
        limit for task, limit in CASES if task == row.task
    ):
        return "a long walk, shown at the tighter limit"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description="Memory and quality by method, task and limit.")
    parser.add_argument("--profile", default="x86-cpu")
    parser.add_argument(
        "--rows", help="only rows whose name holds this, e.g. budgeted-sst2; a dash takes all"
    )
    parser.add_argument("--report-windows", type=int, help="WikiText-2 report windows; all")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-compression"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows, missing = [], []
    for row in ROWS:
        if options.rows is not None and options.rows not in row.name:
            continue
        why = left_out(row) if options.rows is None else None
        sys.stderr.write(f"{row.name} ...\n")
        found = measure(row, options.profile, options.report_windows, options.out, kept_only=why is not None)
        if found is None:
            missing.append(f"left out: {row.name} ({why}); it runs with --rows {row.name}")
        else:
            rows.append(found)
    if options.json:
        content = {"schema": "qslm-edge/bench-compression/1", "rows": rows, "left_out": missing}
        sys.stdout.write(json.dumps(content, indent=1) + "\n")
    else:
        sys.stdout.write(show(rows) + "".join(f"{line}\n" for line in missing))
    return 0


if __name__ == "__main__":
    sys.exit(main())
