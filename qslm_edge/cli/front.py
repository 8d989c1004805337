"""What a saved front answers: `search --from-front` and the tables of fronts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qslm_edge.cli import console, flags
from qslm_edge.errors import UsageError
from qslm_edge.units import parse_bytes

__all__ = ["answer_from_front", "front_limits", "show_front"]


def front_limits(
    kind: str, max_ppl_increase: float | None, max_accuracy_drop: float | None, weights_budget: str | None
) -> tuple[float | None, int | None]:
    """The question to a front: limit of performance and budget in bytes, None where not asked.

    Raises:
        UsageError: a limit of the other kind of task, or no size.
    """
    limit = flags.limit_from_flags(kind, max_ppl_increase, max_accuracy_drop)
    budget = None if weights_budget is None else parse_bytes(weights_budget, "--weights-budget")
    return limit, budget


def answer_from_front(
    run: Path,
    max_ppl_increase: float | None,
    max_accuracy_drop: float | None,
    weights_budget: str | None,
    mu: float | None,
    others: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Answer a budget or a limit from the front of a run directory; nothing is evaluated or written.

    Raises:
        UsageError: a flag that a front has settled already.
        RunError: no front, or a damaged one.
        InfeasibleError: no point meets the question.
    """
    from qslm_edge.steps.front import read_front

    if given := [name for name, value in others.items() if value is not None]:
        raise UsageError(
            "a front brings its own model, board and data",
            where=f"--{given[0].replace('_', '-')}",
            found=f"--from-front {run}",
            allowed="--weights-budget, --max-ppl-increase or --max-accuracy-drop, --mu",
            hint="search again with this flag, without --from-front",
        )
    front = read_front(run)
    limit, budget = front_limits(front.kind, max_ppl_increase, max_accuracy_drop, weights_budget)
    asked = not (limit is None and budget is None and mu is None)
    chosen = front.answer(limit, budget, mu).to_dict() if asked else None
    if as_json:
        question = {"max_degradation": limit, "weights_budget_bytes": budget, "mu": mu}
        console.print_json({**front.data, "question": question, "chosen": chosen})
        return
    data = front.data
    base = data["float"]
    console.print_line(
        f"{data['model']['name']} for {data['profile']['name']}: float {data['task']['metric']} "
        f"{base['value']:.2f} ± {base['standard_error']:.2f}"
    )
    show_front(data["points"], data["task"]["metric"], data["model"]["float32_bytes"], chosen)
    if chosen is None:
        console.print_line("Ask it: --weights-budget 4MB, or the limit of the task")
        return
    console.print_line(f"Chosen: {chosen['summary']}", style="bold green")
    flags = [f"--weights-budget {weights_budget}"] if weights_budget is not None else []
    if limit is not None:
        flag = "--max-accuracy-drop" if front.kind == "classification" else "--max-ppl-increase"
        flags.append(f"{flag} {limit:g}")
    if mu is None:
        console.print_line(f"Export it: qslm-edge export {run} {' '.join(flags)}")
    else:
        console.print_line(f"Export it: qslm-edge export {run} --weights-budget {chosen['weight_bytes']}B")


def show_front(
    points: Sequence[Mapping[str, Any]], metric: str, float_bytes: int, chosen: Mapping[str, Any] | None
) -> None:
    """A front as a table, smallest first; the chosen point is marked."""
    direction = "drop" if metric == "accuracy" else "increase"
    columns = ("", "weights", "smaller by", metric, direction, "95 % bound", "setting")
    rows = [
        (
            "→" if chosen is not None and point["setting"] == chosen["setting"] else "",
            f"{point['weight_bytes'] / 1e6:.2f} MB",
            f"{100 * (1 - point['weight_bytes'] / float_bytes):.2f} %",
            f"{point['metric']:.2f}",
            f"{point['degradation']:+.3f} ± {point['standard_error']:.3f}",
            f"{point['upper']:+.3f}",
            point["summary"],
        )
        for point in points
    ]
    title = f"front of {len(rows)} settings, each on every search item"
    console.print_table(columns, rows, title=title, right=columns[1:6])
