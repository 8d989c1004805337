"""Sections on what was measured: agreement, data, memory, speed, energy."""

from __future__ import annotations

from typing import Any

from qslm_edge.report.document import Block, Section, table, text
from qslm_edge.report.figures import (
    clean,
    count,
    error,
    known,
    megabytes,
    milliseconds,
    number,
    shown,
    unavailable,
)

__all__ = [
    "agreement_section",
    "data_section",
    "energy_section",
    "latency_section",
    "memory_section",
]

NOT_DECODED = "Not measured: nothing is decoded when the golden vectors fail."


def _bounds(paired: dict[str, Any]) -> str:
    if not (known(paired["lower"]) and known(paired["upper"])):
        return unavailable("too few items for an error")
    return f"{number(paired['lower'], 3, signed=True)} to {number(paired['upper'], 3, signed=True)}"


def _paired(paired: dict[str, Any]) -> str:
    difference = error(paired["degradation"], paired["standard_error"], 3)
    return f"{difference}, paired; one-sided 95 % bounds {_bounds(paired)}"


def _in_unit(name: str, unit: str) -> str:
    return f"{name}, {unit}" if unit else name


def _and_error(value: dict[str, Any]) -> str:
    found = value["standard_error"]
    return f"standard error {number(found, 4)}; " if known(found) else ""


def agreement_section(report: dict[str, Any]) -> Section:
    """Does the bundle compute here what torch and the search computed?"""
    scoring = report["verification"]["scoring"]
    golden, rows = scoring["golden"], []
    rows.append(
        ("golden vectors", number(golden["value"], 4), f"≤ {golden['tolerance']:g}", f"{golden['measure']}")
    )
    if "top1_agreement" in golden:
        share = number(100 * golden["top1_agreement"], 2, "%")
        rows.append(("golden vectors, equal top tokens", share, "", f"{count(golden['n_tokens'])} tokens"))
    for split, found in scoring["splits"].items():
        same = found["top1_agreement"]
        value = same["value"]
        cell = unavailable(same.get("reason")) if value is None else number(100 * value, 2, "%")
        what = f"{count(same['n'])} {same['of']}" if value is not None else ""
        rows.append((f"same answer as float, {split}", cell, "", what))
    search = scoring["splits"].get("search", {}).get("against_search")
    if search is not None:
        rows.append(
            (
                "bundle against the search",
                number(search["value"], 4, signed=True),
                f"±{search['tolerance']:g} and 3 standard errors",
                f"{search['unit']}; {_and_error(search)}search {number(search['search']['value'])}",
            )
        )
    return Section("Agreement", (table(("comparison", "value", "allowed", "remark"), rows),))


def data_section(report: dict[str, Any]) -> Section:
    """Items, digests, and the metric of each split with its errors."""
    task = report["task"]
    blocks: list[Block] = []
    splits = report["verification"]["scoring"]["splits"]
    if not splits:
        return Section("Data", (text("No items were scored: the golden vectors failed."),))
    for split, found in splits.items():
        unit = "%" if task["metric"] == "accuracy" else ""
        rows = [
            ("source", found["source"]),
            ("sha256 of the items", found["digest"]),
            ("items, tokens", f"{count(found['n_items'])}, {count(found['n_tokens'])}"),
            (f"{task['metric']}, float", _estimate(found["float"], unit)),
            (f"{task['metric']}, bundle", _estimate(found["bundle"], unit)),
            (_in_unit(task["direction"], task["unit"]), _paired(found["comparison"])),
        ]
        if "word_perplexity" in found:
            reason = "the tokenizer does not say which text a token stands for"
            rows += [
                ("word perplexity, bundle", number(found["word_perplexity"], reason=reason)),
                ("bits per byte, bundle", number(found["bits_per_byte"], 4, reason=reason)),
            ]
        blocks.append(table((f"{split} items", "value"), rows))
    if task["kind"] == "language_model":
        blocks.append(text(f"Windows of {task['window']} tokens, the state reset at the start of each."))
    return Section("Data", tuple(blocks))


def _estimate(value: dict[str, Any], unit: str) -> str:
    text_ = number(value["value"], 3, unit)
    return f"{text_} ± {number(value['standard_error'], 3)}" if known(value["standard_error"]) else text_


_MEMORY = ("rss_bytes", "peak_rss_bytes", "rss_anon_bytes", "rss_file_bytes", "pss_bytes")


def memory_section(report: dict[str, Any]) -> Section:
    """Bare, loaded, steady and peak, in a process that only decodes."""
    decode, predicted = report["verification"]["decode"], report["weights"]["predicted_peak_rss_bytes"]
    if decode is None:
        return Section("Memory", (text(NOT_DECODED),))
    memory = decode["memory"]
    stages = (
        ("bare: Python, numpy, runtime", "bare"),
        ("model loaded", "loaded"),
        ("after decoding", "steady"),
    )
    rows = [[name, *(megabytes(memory[key][field], 1) for field in _MEMORY)] for name, key in stages]
    peaks = [
        (
            "peak RSS, loading",
            _peak(memory.get("load_peak_rss_bytes", memory["loaded"]["peak_rss_bytes"]), memory["loaded"]),
            "weights may stand twice for a moment",
        ),
        (
            "peak RSS, decoding",
            _peak(memory["decode_peak_rss_bytes"], memory["steady"]),
            "the constraint looks at this",
        ),
        (
            "peak RSS, prefill",
            _peak(memory["prefill_peak_rss_bytes"], memory["steady"]),
            "a process of its own; no constraint looks at it",
        ),
        ("predicted peak RSS", megabytes(predicted, 1), "estimated before the export, on the safe side"),
        (
            "peak RSS, scoring process",
            _peak(report["verification"]["scoring"]["memory"]["peak_rss_bytes"], memory["steady"]),
            "many items side by side; no constraint looks at it",
        ),
    ]
    reasons = sorted({str(memory[key]["reason"]) for _, key in stages if memory[key].get("reason")})
    return Section(
        "Memory",
        (
            table(("stage", "RSS", "peak RSS", "anonymous", "file", "Pss"), rows, right=range(1, 6)),
            table(("peak", "value", "remark"), peaks, right=(1,)),
            *_around(memory),
            text(f"{memory['method']}. Source: {memory['steady']['source']}."),
            *(text(f"Unavailable: {reason}.") for reason in reasons),
        ),
    )


def _around(memory: dict[str, Any]) -> list[Block]:
    """Memory that the resident set does not tell: GPU, the shared pool, the control group."""
    if "gpu" not in memory:  # a report of an earlier version
        return []
    gpu, free, group = memory["gpu"], memory["available"], memory["cgroup"]["after"]
    rows = [("drop of MemAvailable", megabytes(free["drop_bytes"], 1, free["reason"]), "whole machine")]
    if gpu["status"] == "not used":
        rows.append(("GPU memory", "not used", clean(gpu["reason"])))
    else:
        context = megabytes(gpu["context_bytes"], 1, gpu["context_reason"])
        rows += [
            ("GPU memory", megabytes(gpu["total_bytes"], 1, gpu["reason"]), clean(gpu["method"] or "")),
            ("GPU memory, context of the driver", context, ""),
            ("GPU memory, above the context", megabytes(gpu["model_bytes"], 1, gpu["context_reason"]), ""),
        ]
    moved = {True: "moved in this run", False: "of an earlier time: it did not move", None: "not comparable"}
    peak, limit = group["peak"], group["limit"]
    rows += [
        (
            "peak of the control group, page cache included",
            megabytes(peak["value"], 1, peak["reason"]),
            moved[memory["cgroup"]["peak_moved"]],
        ),
        ("limit of the control group", megabytes(limit["value"], 1, limit["reason"]), ""),
    ]
    return [table(("around the process", "value", "remark"), rows, right=(1,))]


def _peak(value: float | None, reading: dict[str, Any]) -> str:
    return megabytes(value, 1, reason=reading.get("reason") or "not given by this system")


_LATENCY = (
    ("median", "p50_s"),
    ("median, 95 % interval from", "ci95_low_s"),
    ("median, 95 % interval to", "ci95_high_s"),
    ("minimum", "min_s"),
    ("mean", "mean_s"),
    ("maximum", "max_s"),
)


def latency_section(report: dict[str, Any]) -> Section:
    """Latency a token with percentiles, first token, prefill."""
    decode = report["verification"]["decode"]
    if decode is None:
        return Section("Speed", (text(NOT_DECODED),))
    latency, prefill, first = decode["latency"], decode["prefill"], decode["first_token"]
    session, reasons = decode["session"], latency.get("reasons") or {}
    rows = [(name, milliseconds(latency[key], 3, reasons.get(key))) for name, key in _LATENCY[:3]]
    rows += [_percentile(percent, latency, reasons) for percent in (90, 95, 99)]
    rows += [(name, milliseconds(latency[key], 3, reasons.get(key))) for name, key in _LATENCY[3:]]
    rows += [
        (
            "tokens/s from the median",
            number(latency["tokens_per_s_median"], 1, reason=reasons.get("tokens_per_s_median")),
        ),
        (
            "tokens/s over the whole run",
            number(latency["tokens_per_s_total"], 1, reason=reasons.get("tokens_per_s_total"))
            + _speed_bounds(latency),
        ),
        ("drift, second half against first", _drift(latency, reasons)),
        ("outliers, beyond median + 5 MAD", _outliers(latency, reasons)),
        (f"first token after {first['prompt_tokens']} tokens", milliseconds(first["seconds"], 2)),
        ("first token with loading", milliseconds(first["with_load_s"], 1)),
        ("loading the model", milliseconds(decode["load_s"], 1)),
        (
            f"prefill of {count(prefill['tokens'])} tokens",
            number(prefill["tokens_per_s"], 0, "tokens/s", reason=prefill.get("reason")),
        ),
    ]
    lead = f"{count(latency['n'])} steps of one token, {session['threads']} threads, {session['provider']}."
    blocks: list[Block] = [text(_whose(report)), text(lead), table(("figure", "value"), rows, right=(1,))]
    return Section("Speed", tuple(blocks))


def _percentile(percent: int, latency: dict[str, Any], reasons: dict[str, str]) -> tuple[str, str]:
    """A percentile with its 95 % interval, or what the interval needs."""
    name = f"p{percent}"
    value = milliseconds(latency[f"{name}_s"], 3, reasons.get(f"{name}_s"))
    low, high = latency.get(f"{name}_ci95_low_s"), latency.get(f"{name}_ci95_high_s")
    if latency[f"{name}_s"] is None:
        return name, value
    if known(low) and known(high):
        return name, f"{value} (95 % interval {milliseconds(low, 3)} to {milliseconds(high, 3)})"
    why = reasons.get(f"{name}_ci95_high_s") or reasons.get(f"{name}_ci95_low_s") or "not computed"
    return name, f"{value} (no interval: {why})"


def _speed_bounds(latency: dict[str, Any]) -> str:
    low, high = latency.get("tokens_per_s_ci95_low"), latency.get("tokens_per_s_ci95_high")
    return f" (95 % interval {number(low, 1)} to {number(high, 1)})" if known(low) and known(high) else ""


def _outliers(latency: dict[str, Any], reasons: dict[str, str]) -> str:
    share = latency.get("outlier_share")
    if share is None:
        return unavailable(reasons.get("outlier_share") or "not computed")
    flag = "; flagged: something else ran" if latency["disturbed"] else ""
    return f"{count(latency['n_outliers'])} ({100 * share:.1f} %){flag}"


def _drift(latency: dict[str, Any], reasons: dict[str, str]) -> str:
    if latency["drift"] is None:
        return unavailable(reasons.get("drift"))
    flag = "; flagged: the clock or the temperature changed" if latency["drifted"] else ""
    return number(100 * latency["drift"], 1, "%", signed=True) + flag


def _whose(report: dict[str, Any]) -> str:
    board, verification = report["profile"]["name"], report["verification"]
    label, provider = verification["host"]["machine"]["label"], verification["placement"]["provider"]
    if report["rehearsal"]:
        return f"Rehearsal: these figures belong to {label} with {provider}, not to {board} as planned."
    return f"Measured on {board} with {provider}."


def energy_section(report: dict[str, Any]) -> Section:
    """Energy a token with its scope, or why there is none."""
    decode = report["verification"]["decode"]
    if decode is None:
        return Section("Energy", (text(NOT_DECODED),))
    energy = decode["energy"]
    if energy["status"] != "measured":
        return Section(
            "Energy",
            (text(f"{energy['status'].capitalize()}: {energy.get('reason') or 'no reason given'}."),),
        )
    source = energy["source"]
    rows = [
        ("gross a token", _milli(energy["gross_j_per_token"], "mJ")),
        *_interval(energy),
        ("net of idle a token", _milli(energy["net_j_per_token"], "mJ", energy["net_reason"])),
        ("mean power of the run", number(energy["mean_w"], 3, "W")),
        ("peak power", f"{number(energy['peak_w'], 3, 'W')} ({shown(energy['peak_method'])})"),
        ("idle power, model loaded", number(energy["idle_w"], 3, "W", reason=energy["idle_reason"])),
        ("idle power after the run", number(energy["idle_after_w"], 3, "W", reason=energy["drift_reason"])),
        (
            "drift of the idle power",
            unavailable(energy["drift_reason"]) if energy["drift"] is None else shown(energy["drift"]),
        ),
        ("run", f"{count(energy['tokens'])} tokens in {number(energy['duration_s'], 1)} s"),
        ("readings", f"{count(energy['n_samples'])} at {number(energy['rate_hz'], 0)} Hz"),
        ("largest error at the edges", number(energy["edge_error_j"], 3, "J")),
        ("method", shown(energy["method"])),
        ("source", source["name"]),
        ("scope", shown(source.get("scope"))),
        ("rails or zones", shown(source.get("rails"))),
        (
            "passed over",
            "; ".join(f"{s['name']}: {s['reason']}" for s in source.get("skipped") or []) or "nothing",
        ),
    ]
    return Section("Energy", (text(_whose(report)), table(("figure", "value"), rows)))


def _interval(energy: dict[str, Any]) -> list[tuple[str, str]]:
    """The 95 % interval over repeated runs; nothing for a single run."""
    repeats = (energy.get("repeats") or {}).get("gross_j_per_token") or {}
    if (repeats.get("n") or 0) < 2:
        return []
    low, high = _milli(repeats["ci95_low"], "mJ"), _milli(repeats["ci95_high"], "mJ")
    return [(f"95 % interval of {repeats['n']} runs", f"{low} to {high}")]


def _milli(value: float | None, unit: str, reason: object = None) -> str:
    return number(None if value is None else 1e3 * value, 3, unit, reason=reason)
