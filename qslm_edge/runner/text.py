"""The result of a verification as plain lines, for a board without rich, and as JSON for every reader."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["figure", "json_ready", "summary_lines"]


def json_ready(data: Any) -> Any:
    """The same data with None for NaN and infinity, which JSON has no word for, and lists for tuples."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: json_ready(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [json_ready(value) for value in data]
    return data


def figure(value: float | None, unit: str) -> str:
    """A value with its unit, bytes as MB (10^6)."""
    if value is None:
        return "not measured"
    if unit == "bytes":
        return f"{value / 1e6:.2f} MB"
    return f"{value:+.4g} {unit}".rstrip()


def summary_lines(result: dict[str, Any]) -> list[str]:
    """What was checked, what was measured, the verdict last."""
    host = result["host"]
    lines = [
        f"{'rehearsal' if result['rehearsal'] else 'board'}: {host['why']}",
        f"provider: {result['placement']['provider']} ({result['placement']['note']})",
    ]
    for check in result["checks"]:
        value, limit = figure(check["value"], check["unit"]), figure(check["limit"], check["unit"])
        lines.append(
            f"{check['verdict'].upper():12} {check['name']}: {value} (limit {limit}; {check['detail']})"
        )
    if result["decode"] is not None:
        lines += _decode_lines(result["decode"], "this host" if result["rehearsal"] else "this board")
    lines += [f"condition: {flag}" for flag in result["conditions"]["flags"]]
    lines.append(f"verdict: {result['verdict']}")
    return lines


def _decode_lines(decode: dict[str, Any], where: str) -> list[str]:
    latency, prefill, energy = decode["latency"], decode["prefill"], decode["energy"]
    median = _number(latency["p50_s"], 1e3, ".3f", "ms a token", latency["reasons"].get("p50_s"))
    speed = _number(prefill["tokens_per_s"], 1.0, ".0f", "tokens/s", prefill.get("reason"))
    lines = [f"decode on {where}: median {median}, prefill {speed}"]
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
