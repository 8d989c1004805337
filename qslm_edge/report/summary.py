"""The closing table: before, after, constraint, verdict, and where each figure comes from.

Cells are short, so that the table fits 80 columns; `note` says the rest: items, bounds, what was predicted,
why a figure is absent. A speed or energy that belongs to another host than the board says so in `status`.
"""

from __future__ import annotations

from typing import Any

from qslm_edge.report.figures import (
    FLAGGED,
    UNAVAILABLE,
    clean,
    count,
    error,
    flag_words,
    known,
    megabytes,
    milliseconds,
    number,
    unavailable,
)

__all__ = [
    "COUNTED",
    "MEASURED",
    "MEASURED_HERE",
    "ROW_KEYS",
    "condition_lines",
    "cuts_line",
    "quantiser_line",
    "summary_rows",
    "title_line",
    "tuning_line",
    "verdict_words",
    "where_line",
]

Row = dict[str, str]
ROW_KEYS = ("figure", "before", "after", "change", "constraint", "verdict", "status", "note")
COUNTED, MEASURED, MEASURED_HERE = "counted", "measured", "measured, this host"
_NOT_RUN = "not measured, since the golden vectors failed"


def summary_rows(report: dict[str, Any]) -> list[Row]:
    """Rows of text with the keys of ROW_KEYS, from a report whose other parts are complete."""
    checks = {check["name"]: check for check in report["verification"]["checks"]}
    rows = [*_metric(report, checks), _weights(report, checks)]
    decode = report["verification"]["decode"]
    if decode is None:
        figures = ("peak RSS", "latency", "energy a token")
        rows += [_row(figure, after=UNAVAILABLE, status=UNAVAILABLE, note=_NOT_RUN) for figure in figures]
    else:
        rows += [*_peak(report, decode, checks), *_speed(report, decode, checks)]
        rows.append(_energy(report, decode, checks))
    return rows + _conditions(checks) + _health(checks)


def title_line(report: dict[str, Any]) -> str:
    """Model, board, and what it was judged on."""
    data = "own data" if report["recipe"].get("report_data") else report["task"]["title"]
    return clean(f"{report['model']['name']} on {report['profile']['name']}, {data}")


def verdict_words(report: dict[str, Any]) -> str:
    """The verdict, that it is no board's where it is not, and how many conditions are flagged."""
    flagged = flag_words(len(report["verification"]["conditions"]["flags"]))
    return clean(report["verdict"]) + (" (rehearsal)" if report["rehearsal"] else "") + flagged


def condition_lines(report: dict[str, Any]) -> list[str]:
    """What makes the figures doubtful, one line each, and what nobody could watch."""
    conditions = report["verification"]["conditions"]
    lines = [clean(f"{FLAGGED}: {flag}") for flag in conditions["flags"]]
    absent = conditions.get("not_read")
    return [*lines, clean(f"Conditions {absent}")] if absent else lines


def quantiser_line(report: dict[str, Any]) -> str:
    """How weights were quantised, on what it was calibrated, and why so; empty where a report does not say."""
    found = report.get("quantiser")
    if found is None:
        return ""
    data = found["calibration"]
    on = "" if data is None else f", calibrated on {data['source']}, {data['n_tokens']} tokens"
    return clean(f"Quantiser: {found['name']}{on} ({found['why']})")


def cuts_line(report: dict[str, Any]) -> str:
    """Hidden units that every layer has left; empty where none was cut."""
    found = report.get("cuts")
    if found is None:
        return ""
    units = ", ".join(str(n) for n in found["hidden_units"])
    whole = report["model"]["ffn_dim"]
    return f"Cut: {100 * found['share']:.1f} % of the hidden units; of {whole} a layer keeps {units}"


def tuning_line(report: dict[str, Any]) -> str:
    """What tuning did, on trained items and on others; empty where weights were not tuned."""
    found = report.get("tuning")
    if found is None:
        return ""
    seen, other = (found["divergence_nats"][key] for key in ("trained", "held_out"))
    return (
        f"Tuned: {found['steps']} steps, {found['tokens']:,} tokens; divergence from float "
        f"{seen['before']:.3f} → {seen['after']:.3f} nats on trained items, "
        f"{other['before']:.3f} → {other['after']:.3f} on held-out ones"
    )


def where_line(report: dict[str, Any]) -> str:
    """Where the bundle was verified, and on a rehearsal what that means."""
    host, placement = report["verification"]["host"], report["verification"]["placement"]
    why = clean(host["why"])
    if not report["rehearsal"]:
        return f"Verified on the board: {why}."
    whose = "this host, not to the board"
    if host["is_board"]:  # another provider than the profile plans for
        why, whose = clean(f"{why}, but {placement['note']}"), "this provider, not to the planned one"
    return f"Rehearsal: {why}. Metric, bytes and memory are judged here; speed and power belong to {whose}."


def _row(figure: str, **cells: str) -> Row:
    row = dict.fromkeys(ROW_KEYS, "")
    return row | {"figure": figure} | cells


def _metric(report: dict[str, Any], checks: dict[str, Any]) -> list[Row]:
    task, rows = report["task"], []
    accuracy = task["metric"] == "accuracy"
    unit = "%" if accuracy else ""
    for split, used in (("report", "decides the verdict"), ("search", "steered the search")):
        found = report["verification"]["scoring"]["splits"].get(split)
        figure = f"{task['metric']}, {split}"
        if found is None:
            if split == "report":
                reason = unavailable() if report["verification"]["scoring"]["golden"]["ok"] else _NOT_RUN
                rows.append(_row(figure, after=UNAVAILABLE, status=UNAVAILABLE, note=reason))
            continue
        paired = found["comparison"]
        sign = -1 if accuracy else 1
        check = checks.get(f"{task['metric']} {task['direction']}") if split == "report" else None
        low, high = sorted((sign * paired["lower"], sign * paired["upper"]))
        bounds = f"{number(low, 3, signed=True)} to {number(high, 3, signed=True)}"
        note = f"{count(found['n_items'])} items, {used}; change paired, one-sided 95 % bounds {bounds}"
        if accuracy:
            note += " points"
        if not known(paired["standard_error"]):
            note = f"{count(found['n_items'])} items, {used}; too few for an error"
        rows.append(
            _row(
                figure,
                before=number(found["float"]["value"], 2, unit),
                after=number(found["bundle"]["value"], 2, unit),
                change=error(sign * paired["degradation"], paired["standard_error"]),
                constraint="" if check is None else _limit(check["limit"], accuracy),
                verdict="" if check is None else check["verdict"],
                status=MEASURED,
                note=note,
            )
        )
    return rows


def _limit(limit: float, accuracy: bool) -> str:
    if accuracy:
        return f"≥ {-limit:g} points" if limit else "≥ 0 points"
    return f"≤ {limit:+g}" if limit else "≤ 0"


def _weights(report: dict[str, Any], checks: dict[str, Any]) -> Row:
    weights, check = report["weights"], checks.get("weights")
    return _row(
        "weights",
        before=megabytes(weights["float32_bytes"]),
        after=megabytes(weights["bytes"]),
        change=number(-100 * weights["reduction"], 2, "%", signed=True),
        constraint="" if check is None else f"≤ {megabytes(check['limit'])}",
        verdict="" if check is None else check["verdict"],
        status=COUNTED,
        note=f"against float32; {weights['counts']}",
    )


def _peak(report: dict[str, Any], decode: dict[str, Any], checks: dict[str, Any]) -> list[Row]:
    memory, check = decode["memory"], checks.get("peak RSS")
    peak = memory["decode_peak_rss_bytes"]
    predicted = f"predicted {megabytes(report['weights']['predicted_peak_rss_bytes'], 0)}"
    reason = memory["steady"].get("reason")
    row = _row(
        "peak RSS",
        after=megabytes(peak, 0),
        constraint="" if check is None else f"≤ {megabytes(check['limit'], 0)}",
        verdict="" if check is None else check["verdict"],
        status=UNAVAILABLE if peak is None else MEASURED,
        note=f"{unavailable(reason)}; {predicted}"
        if peak is None
        else f"of the process, decoding; {predicted}",
    )
    return [
        row,
        *(_other_memory(checks[name]) for name in ("unified memory", "GPU memory") if name in checks),
    ]


def _other_memory(check: dict[str, Any]) -> Row:
    """Memory that the resident set does not show, where the bundle ran on a GPU."""
    what = {"unified memory": "drop of MemAvailable", "GPU memory": "of the process, context included"}
    absent = check["value"] is None
    return _row(
        check["name"],
        after=megabytes(check["value"], 0),
        constraint=f"≤ {megabytes(check['limit'], 0)}",
        verdict=check["verdict"],
        status=UNAVAILABLE if absent else MEASURED,
        note=clean(check["detail"]) if absent else what[check["name"]],
    )


def _host(report: dict[str, Any]) -> str:
    return MEASURED_HERE if report["rehearsal"] else MEASURED


def _speed(report: dict[str, Any], decode: dict[str, Any], checks: dict[str, Any]) -> list[Row]:
    latency, prefill, first = decode["latency"], decode["prefill"], decode["first_token"]
    reasons = latency.get("reasons") or {}
    threads = decode["session"]["threads"]
    steps = (
        f"median of {count(latency['n'])} steps of one token, {threads} thread{'s' if threads != 1 else ''}"
    )
    speed = latency["tokens_per_s_total"]
    low, high = latency.get("p95_ci95_low_s"), latency.get("p95_ci95_high_s")
    bounds = (
        f"; 95 % interval {milliseconds(low)} to {milliseconds(high)}" if known(low) and known(high) else ""
    )
    tail = f"95th percentile of the same steps{bounds}"
    return [
        _timed(report, "latency", milliseconds(latency["p50_s"]), steps, reasons.get("p50_s")),
        _timed(report, "latency, p95", milliseconds(latency["p95_s"]), tail, reasons.get("p95_s"))
        | _limited(checks.get("latency"), "≤", 1e3, "ms"),
        _timed(
            report,
            "decode tokens/s",
            number(speed, 0),
            f"over the whole run; {number(latency['tokens_per_s_median'], 0)} from the median",
            reasons.get("tokens_per_s_total"),
        )
        | _limited(checks.get("decode speed"), "≥", 1, ""),
        _timed(
            report,
            "first token",
            milliseconds(first["seconds"]),
            f"after a prompt of {first['prompt_tokens']} tokens; "
            f"{milliseconds(first['with_load_s'], 0)} with loading the model",
            None,
        ),
        _timed(
            report,
            "prefill tokens/s",
            number(prefill["tokens_per_s"], 0),
            f"{count(prefill['tokens'])} tokens in chunks of {prefill.get('chunk')}",
            prefill.get("reason"),
        ),
    ]


def _limited(check: dict[str, Any] | None, sign: str, factor: float, unit: str) -> Row:
    """Cells of a limit on speed or energy; none without one."""
    if check is None:
        return {}
    limit = f"{check['limit'] * factor:g} {unit}".rstrip()
    return {"constraint": f"{sign} {limit}", "verdict": check["verdict"]}


def _timed(report: dict[str, Any], figure: str, after: str, note: str, reason: object) -> Row:
    absent = after.startswith(UNAVAILABLE)
    status = UNAVAILABLE if absent else _host(report)
    return _row(
        figure, after=after, status=status, note=clean(reason or "no reason given") if absent else note
    )


def _energy(report: dict[str, Any], decode: dict[str, Any], checks: dict[str, Any]) -> Row:
    return _energy_row(report, decode["energy"]) | _limited(checks.get("energy a token"), "≤", 1e3, "mJ")


def _energy_row(report: dict[str, Any], energy: dict[str, Any]) -> Row:
    if energy["status"] != "measured":
        why = clean(energy.get("reason") or "no reason given")
        if energy["status"] != UNAVAILABLE:
            why = f"{energy['status']}: {why}"
        return _row("energy a token", after=UNAVAILABLE, status=UNAVAILABLE, note=why)
    net = energy.get("net_j_per_token")
    net_text = _millijoules(net) if net is not None else unavailable(energy.get("net_reason"))
    source = energy["source"]
    scope = clean(source.get("scope") or "scope not stated")
    return _row(
        "energy a token",
        after=_millijoules(energy["gross_j_per_token"]),
        status=_host(report),
        note=f"gross, by {source['name']} ({scope}); net of idle: {net_text}",
    )


def _millijoules(joules: float | None) -> str:
    """Joules as mJ."""
    return number(None if joules is None else 1e3 * joules, 3, "mJ")


def _conditions(checks: dict[str, Any]) -> list[Row]:
    """The check that limits on speed and energy stand under; only on the board, and only with such limits."""
    check = checks.get("conditions")
    if check is None:
        return []
    return [
        _row(
            "conditions",
            after=f"{count(check['value'])} flagged",
            constraint="none flagged",
            verdict=check["verdict"],
            status=MEASURED,
            note=clean(check["detail"]),
        )
    ]


def _health(checks: dict[str, Any]) -> list[Row]:
    rows = []
    golden, agreement = checks.get("golden vectors"), checks.get("agreement with the search")
    if golden is not None:
        rows.append(
            _row(
                "golden vectors",
                after=number(golden["value"], 4),
                constraint=f"≤ {golden['limit']:.2g}",
                verdict=golden["verdict"],
                status=MEASURED,
                note=f"{golden['unit']}; {golden['detail']}",
            )
        )
    if agreement is not None:
        relative = agreement["unit"].startswith("relative")
        factor, unit = (100, "%") if relative else (1, clean(agreement["unit"]))
        rows.append(
            _row(
                "search agreement",
                after=number(factor * agreement["value"], 2, unit, signed=True),
                constraint=f"±{number(factor * agreement['limit'], 2, unit)}",
                verdict=agreement["verdict"],
                status=MEASURED,
                note=f"bundle against the search, {agreement['unit']}; {agreement['detail']}",
            )
        )
    return rows
