"""Sections on what was chosen: setting, search, sensitivity, export."""

from __future__ import annotations

from typing import Any

from qslm_edge.report.document import Block, Bullets, Chart, Section, table, text
from qslm_edge.report.figures import clean, count, known, megabytes, number, shown, unavailable
from qslm_edge.report.summary import cuts_line, quantiser_line

__all__ = ["export_section", "search_section", "sensitivity_section", "setting_section"]

TOP = 10
"""Candidates shown; report.json holds them all."""
_LEVELS = (
    "A level is a width in bits with its group size: 4g64 is 4 bits with a scale and a zero point for 64 "
    "columns; m: mid-rise values, without a zero point. f: activations stay float; else they are rounded to "
    "int8. 32 and 16 are float storage, 1 is the sign table of a binary embedding. @768: 768 hidden units are left."
)
_CANDIDATES = (
    "The metric is that of the whole search set, predicted where an evaluation stopped early because its "
    "decision was clear. Feasible means that the upper bound of the degradation, one-sided at 95 %, lies "
    "within the limit."
)
_FRONT = "Front: settings that no other beats in weights and degradation, each on every search item."
_TRIALS = (
    "Settings that the search evaluated: weights against the metric. The thin line ends at the 95 % bound, "
    "which must lie within the limit."
)
NO_SEARCH = "No search was run: the setting was given."


def setting_section(report: dict[str, Any]) -> Section:
    """Levels as blocks times modules."""
    setting: dict[str, str] = report["setting"]
    grid: dict[str, dict[str, str]] = {}
    singles: list[str] = []
    for block in report["model"]["blocks"]:
        levels = {_leaf(module["name"]): shown(setting.get(module["name"])) for module in block["modules"]}
        if len(levels) > 1:
            grid[block["name"]] = levels
        else:
            found = ", ".join(f"{name} {level}" for name, level in levels.items())
            singles.append(clean(f"{block['name']} block: {found or 'float32, nothing to quantise'}"))
    columns = list(dict.fromkeys(name for levels in grid.values() for name in levels))
    cells = [[name, *(levels.get(column, "") for column in columns)] for name, levels in grid.items()]
    lines = [line for line in (quantiser_line(report), cuts_line(report)) if line]
    blocks: list[Block] = [
        text(_LEVELS),
        *(text(f"{line}.") for line in lines),
        Bullets(tuple(singles)),
    ]
    if cells:
        blocks.append(table(["block", *columns], cells))
    return Section("Setting", tuple(blocks))


def _leaf(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[2:]) if parts[0] == "blocks" and len(parts) > 2 else module


def search_section(report: dict[str, Any]) -> Section:
    """What each tier did, and the best candidates."""
    search = report["search"]
    if search is None:
        return Section("Search", (text(NO_SEARCH),))
    reference, metric = search["float"], report["task"]["metric"]
    base = f"{number(reference['value'])} ± {number(reference['standard_error'])}"
    facts = [
        f"Method {search['method']}, levels {shown(search['levels'])}; selection: {search['selection']}.",
        f"Float model: {metric} {base} on {count(reference['n_items'])} search items.",
        _cost(search["cost"]),
    ]
    if search["eq1_score"] is not None:
        facts.append(f"Score of Eq. 1: {number(search['eq1_score'], 4)} (smaller is better).")
    rows = [_tier(name, group) for name, group in _by_tier(search["trials"]).items()]
    candidates = search["candidates"]
    chosen = search["chosen"]["setting"]
    top = [
        (
            f"{rank}{' (chosen)' if trial['setting'] == chosen else ''}",
            trial["summary"],
            megabytes(trial["weight_bytes"]),
            number(trial["metric"]),
            number(trial["comparison"]["degradation"], signed=True),
            number(trial["comparison"]["upper"], signed=True),
            f"{trial['n_items']} of {trial['n_items_total']}",
            f"{trial['tier']}: {trial['step']}",
        )
        for rank, trial in enumerate(candidates[:TOP], 1)
    ]
    return Section(
        "Search",
        (
            Bullets(tuple(clean(fact) for fact in facts)),
            *_front(search.get("front") or [], metric, chosen),
            Chart("trials", _TRIALS),
            table(
                ("tier", "evaluated", "perform", "feasible", "smallest feasible"), rows, right=(1, 2, 3, 4)
            ),
            text(f"Best {len(top)} of {len(candidates)} candidates. {_CANDIDATES}"),
            table(
                ("rank", "setting", "weights", metric, "degradation", "upper", "items", "found at"),
                top,
                right=(2, 3, 4, 5, 6),
                cards=True,
            ),
        ),
    )


def _front(points: list[dict[str, Any]], metric: str, chosen: dict[str, str]) -> tuple[Block, ...]:
    """The front, where the method made one."""
    if not points:
        return ()
    rows = [
        (
            megabytes(point["weight_bytes"]),
            number(point["metric"]),
            number(point["degradation"], signed=True),
            number(point["upper"], signed=True),
            f"{point['summary']}{' (chosen)' if point['setting'] == chosen else ''}",
        )
        for point in points
    ]
    columns = ("weights", metric, "degradation", "upper", "setting")
    return (text(_FRONT), table(columns, rows, right=(0, 1, 2, 3)))


def _cost(cost: dict[str, Any]) -> str:
    done = f"{count(cost['evaluations'])} evaluations of {count(cost['tokens'])} tokens in all"
    replayed = f"{count(cost['replayed_from_journal'])} more came from the journal"
    return f"Cost of this run: {done}, {number(cost['seconds'], 1)} s; {replayed}."


def _by_tier(trials: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    tiers: dict[str, list[dict[str, Any]]] = {}
    for trial in trials:
        tiers.setdefault(trial["tier"], []).append(trial)
    return tiers


def _tier(name: str, trials: list[dict[str, Any]]) -> tuple[str, ...]:
    feasible = [trial for trial in trials if trial["feasible"]]
    return (
        name,
        str(len(trials)),
        str(sum(trial["performance_ok"] for trial in trials)),
        str(len(feasible)),
        megabytes(min(trial["weight_bytes"] for trial in feasible)) if feasible else "none",
    )


def sensitivity_section(report: dict[str, Any]) -> Section:
    """Degradation when one block alone is quantised: blocks times levels."""
    search = report["search"]
    if search is None:
        return Section("Sensitivity", (text(NO_SEARCH),))
    cells, levels = search["sensitivity"], list(search["levels"])
    names = list(dict.fromkeys(cell["block"] for cell in cells))
    found = {(cell["block"], cell["level"]): cell for cell in cells}
    rows = [[name, *(_cell(found.get((name, level))) for level in levels)] for name in names]
    unit = report["task"]["unit"]
    meaning = f"{report['task']['metric']} {report['task']['direction']}{f' in {unit}' if unit else ''}"
    about = f"{meaning} when one block alone is quantised, ± standard error"
    if cells:
        fewest, most = min(cell["n_items"] for cell in cells), max(cell["n_items"] for cell in cells)
        about += f", on the first {fewest if fewest == most else f'{fewest} to {most}'} search items"
    return Section(
        "Sensitivity",
        (
            text(f"{about[:1].upper()}{about[1:]}. Negative is better than float; exact: no value changes."),
            Chart("sensitivity", f"{meaning} of each block at each level"),
            table(["block", *levels], rows, right=range(1, len(levels) + 1), folded=True)
            if rows
            else text("No cells."),
        ),
    )


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "not measured"
    if cell["source"] == "exact":
        return "exact"
    value = number(cell["degradation"], 3, signed=True)
    return f"{value} ± {number(cell['standard_error'], 3)}" if known(cell["standard_error"]) else value


def export_section(report: dict[str, Any]) -> Section:
    """Parity of the graph with torch, operators, files."""
    export = report["export"]
    if export is None:
        return Section("Export", (text("Nothing was exported in this run."),))
    operators = ", ".join(f"{name} {n}" for name, n in export["operators"].items())
    files = [(name, count(size)) for name, size in export["files"].items()]
    tolerance = export["parity"]["tolerance"]
    return Section(
        "Export and parity",
        (
            table(("parity with the quantised torch model", "value", "remark"), _parity(export["parity"])),
            text(
                "Allowed: " + "; ".join(f"{name}: {shown(value)}" for name, value in tolerance.items()) + "."
            ),
            text(f"Operators: {operators}."),
            text(
                f"model.bin holds {count(export['model_bin_bytes'])} bytes, of which "
                f"{count(export['weight_bytes'])} are weights; the rest is alignment and derived constants."
            ),
            table(("file of the bundle", "bytes"), files, right=(1,)),
        ),
    )


def _parity(parity: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = [("verdict", "pass" if parity["ok"] else "fail", parity.get("fault") or parity["method"])]
    for what, key in (("matrix products", "modules"), ("other pieces", "pieces")):
        found, worst = parity.get(key) or {}, parity.get(f"worst_{key[:-1]}")
        if found and worst is not None:
            remark = f"of {count(len(found))} the nearest to its tolerance: {worst}; relative RMS, or share"
            value = found.get(worst)
            rows.append((what, f"{value:.2g}" if known(value) else unavailable(), remark))
    rows += [
        ("spike decisions that differ", _percent(parity["spike_flip_rate"]), "both sides run freely"),
        ("firing rate, torch", _percent(parity["firing_rate_torch"]), "mean of all layers"),
        ("firing rate, graph", _percent(parity["firing_rate_graph"]), "mean of all layers"),
        (
            "largest difference of an output",
            number(parity["max_abs_output"], 4),
            f"{count(parity['n_tokens'])} tokens, both sides run freely: one flipped spike moves logits",
        ),
    ]
    if parity.get("perplexity_torch") is not None:
        pair = f"{number(parity['perplexity_torch'], 3)}, {number(parity['perplexity_graph'], 3)}"
        rows.append(("perplexity, torch and graph", pair, "golden tokens, both sides run freely"))
    return rows


def _percent(share: float | None) -> str:
    return number(None if share is None else 100 * share, 3, "%")
