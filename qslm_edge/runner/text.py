"""The result of a verification as plain lines, for a board without rich, and as JSON for every reader."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qslm_edge.runner.run_settings import settings_words

__all__ = ["amount", "figure", "json_ready", "summary_lines"]

_SCALES = {"bytes": (1e-6, "MB"), "s": (1e3, "ms"), "J": (1e3, "mJ")}
"""How a unit of a check is shown: MB is 10^6 bytes."""


def json_ready(data: Any) -> Any:
    """The same data with None for NaN and infinity, which JSON has no word for, and lists for tuples."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: json_ready(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [json_ready(value) for value in data]
    return data


def amount(value: float, unit: str) -> str:
    """A value with the unit that people read: bytes as MB, seconds as ms, joules as mJ."""
    if unit in _SCALES:
        factor, shown = _SCALES[unit]
        return f"{value * factor:.2f} {shown}" if unit == "bytes" else f"{value * factor:.4g} {shown}"
    return f"{value:.4g} {unit}".rstrip()


def figure(value: float | None, unit: str) -> str:
    """A value of a check with its unit; a difference has a sign."""
    if value is None:
        return "not measured"
    if unit in _SCALES or unit in ("tokens/s", "flags"):
        return amount(value, unit)
    return f"{value:+.4g} {unit}".rstrip()


def summary_lines(result: dict[str, Any]) -> list[str]:
    """What was checked, what was measured, the verdict last."""
    host = result["host"]
    lines = [
        f"{'rehearsal' if result['rehearsal'] else 'board'}: {host['why']}",
        f"provider: {result['placement']['provider']} ({result['placement']['note']})",
        f"settings: {settings_words(result['run_settings'])}",
    ]
    for check in result["checks"]:
        value, limit = figure(check["value"], check["unit"]), figure(check["limit"], check["unit"])
        lines.append(
            f"{check['verdict'].upper():12} {check['name']}: {value} (limit {limit}; {check['detail']})"
        )
    if result["decode"] is not None:
        lines += _decode_lines(result["decode"], "this host" if result["rehearsal"] else "this board")
    flags = result["conditions"]["flags"]
    lines += [f"FLAGGED      {flag}" for flag in flags]
    if result["conditions"].get("not_read"):
        lines.append(f"conditions: {result['conditions']['not_read']}")
    count = f", {len(flags)} flagged condition{'s' if len(flags) > 1 else ''}" if flags else ""
    lines.append(f"verdict: {result['verdict']}{count}")
    return lines


def _decode_lines(decode: dict[str, Any], where: str) -> list[str]:
    latency, prefill, energy = decode["latency"], decode["prefill"], decode["energy"]
    median = _number(latency["p50_s"], 1e3, ".3f", "ms a token", latency["reasons"].get("p50_s"))
    tail = _number(latency["p95_s"], 1e3, ".3f", "ms", latency["reasons"].get("p95_s"))
    speed = _number(prefill["tokens_per_s"], 1.0, ".0f", "tokens/s", prefill.get("reason"))
    lines = [f"decode on {where}: median {median}, p95 {tail}, prefill {speed}"]
    if energy["status"] == "measured":
        gross = _number(energy["gross_j_per_token"], 1e3, ".3f", "mJ a token", energy["reason"])
        net = _number(energy["net_j_per_token"], 1e3, ".3f", "mJ a token", energy["net_reason"])
        lines.append(f"energy on {where}: gross {gross}, net {net} ({energy['source']['name']})")
    else:
        lines.append(f"energy: {energy['status']}: {energy['reason']}")
    return lines


def _number(value: float | None, factor: float, form: str, unit: str, reason: str | None) -> str:
    if value is None:
        return f"not measured ({reason or 'no reason given'})"
    return f"{format(factor * value, form)} {unit}"
