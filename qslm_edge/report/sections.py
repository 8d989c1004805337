"""The report as a document: the verdict and what it rests on first, the record after it."""

from __future__ import annotations

import shlex
from typing import Any

from qslm_edge.report import host_view as host
from qslm_edge.report import measured_view as measured
from qslm_edge.report import search_view as chosen
from qslm_edge.report.document import Code, Document, Section, table, text
from qslm_edge.report.figures import clean, known, megabytes, shown, unavailable
from qslm_edge.report.statistics_view import statistics_section
from qslm_edge.report.summary import ROW_KEYS, condition_lines, title_line, verdict_words, where_line
from qslm_edge.runner.text import amount

__all__ = ["build_document"]


def build_document(report: dict[str, Any]) -> Document:
    """All that a view shows.

    Args:
        report: as in report.json; nothing else is looked at.
    """
    return Document(
        title=title_line(report),
        verdict=verdict_words(report),
        lead=_lead(report),
        sections=(
            _result(report),
            _checks(report),
            chosen.setting_section(report),
            chosen.search_section(report),
            chosen.sensitivity_section(report),
            statistics_section(report),
            chosen.export_section(report),
            measured.agreement_section(report),
            measured.data_section(report),
            measured.memory_section(report),
            measured.latency_section(report),
            measured.energy_section(report),
            host.conditions_section(report),
            host.versions_section(report),
            _recipe(report),
            _again(report),
        ),
    )


def _lead(report: dict[str, Any]) -> tuple[str, ...]:
    lines = [
        clean(f"{check['name']}: {check['verdict']}: {check['detail']}")
        for check in report["verification"]["checks"]
        if check["verdict"] != "pass"
    ]
    return (*lines, *condition_lines(report), where_line(report))


def _result(report: dict[str, Any]) -> Section:
    rows = [[row.get(key, "") for key in ROW_KEYS] for row in report["summary"]]
    return Section("Result", (table(ROW_KEYS, rows, right=(1, 2, 3), cards=True),))


_OWN_LIMITS = (
    ("p95 of the latency", "max_latency_s", "s"),
    ("least decoding speed", "min_decode_tokens_per_s", "tokens/s"),
    ("energy a token", "max_energy_j_per_token", "J"),
)


def _checks(report: dict[str, Any]) -> Section:
    rows = [
        (
            check["name"],
            check["verdict"],
            _value(check["value"], check["unit"], check["detail"]),
            _value(check["limit"], check["unit"], "no limit"),
            "" if check["unit"] in ("bytes", "s", "J") else check["unit"],
            check["detail"],
        )
        for check in report["verification"]["checks"]
    ]
    constraints, task = report["constraints"], report["task"]
    metric = (
        f"{task['metric']} {task['direction']} of {constraints['max_degradation']:g} {task['unit']}".rstrip()
    )
    weights, peak = _budget(constraints["weights_budget_bytes"]), _budget(constraints["memory_budget_bytes"])
    own = "; ".join(
        f"{name} {'not limited' if constraints.get(key) is None else amount(constraints[key], unit)}"
        for name, key, unit in _OWN_LIMITS
    )
    limits = f"Limits: {metric}; weights {weights}; peak of the process {peak}; {own}."
    columns = ("check", "verdict", "value", "limit", "unit", "detail")
    return Section("Checks", (text(limits), table(columns, rows, right=(2, 3), cards=True)))


def _value(value: float | None, unit: str, reason: str) -> str:
    if unit == "bytes":
        return megabytes(value, 2, reason)
    if value is not None and known(value) and unit in ("s", "J"):
        return amount(value, unit)
    return f"{value:.4g}" if value is not None and known(value) else unavailable(reason)


def _budget(size: int | None) -> str:
    return "not limited" if size is None else megabytes(size)


def _recipe(report: dict[str, Any]) -> Section:
    rows = [(key, shown(value)) for key, value in report["recipe"].items()]
    return Section("Recipe", (table(("choice", "value"), rows),))


def _again(report: dict[str, Any]) -> Section:
    path, name = clean(report["bundle"]["path"]), clean(f"{report['profile']['id']}-{report['task']['name']}")
    command = f"cd {shlex.quote(name)} && python3 run.pyz verify --json"
    source = report["profile"].get("power") or {}
    power = shown(source.get("source")) if source else unavailable("the profile names no source")
    return Section(
        "Verify again on the board",
        (
            text("The board needs Python 3.10 or newer, numpy and onnxruntime; nothing of qslm-edge."),
            Code(
                (
                    f"scp -r {shlex.quote(path)} user@board:{shlex.quote(name)}",
                    f"ssh user@board {shlex.quote(command)} > verify.json",
                )
            ),
            text(
                "Exit code 0 pass, 1 fail, 2 bad bundle, 3 inconclusive, 4 environment. bundle.digest in "
                f"verify.json must be {report['bundle']['digest']}. Power source of the profile: {power}."
            ),
        ),
    )
