"""Which limits a verification is judged by, from its result alone, so that it can be judged again later.

Metric, bytes and memory count wherever the bundle runs. Speed and energy belong to one machine: on a rehearsal
those limits are inconclusive, whatever this host measured, and on the board they are inconclusive when the
conditions of the run are flagged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qslm_edge.metrics import Paired
from qslm_edge.runner.gate import (
    Check,
    agreement_check,
    interval_check,
    limit_check,
    quality_check,
    undecided,
)
from qslm_edge.runner.limits import Limits
from qslm_edge.runner.runtime import CPU, NATIVE
from qslm_edge.runner.text import amount

__all__ = ["checks_of", "energy_interval"]

MIB = 2**20
Result = Mapping[str, Any]


def checks_of(result: Result) -> list[Check]:
    """Every check of a verification.

    Args:
        result: as documented in docs/report.md (`verification`); read are limits, task, profile, bundle,
            host, rehearsal, scoring, decode and conditions.
    """
    limits = Limits(**result["limits"])
    checks = _scored(result["scoring"], result["task"], limits)
    checks += _present(
        limit_check("weights", float(result["bundle"]["weights_bytes"]), limits.weights_budget_bytes, "bytes")
    )
    if result["decode"] is not None:
        checks += _memory(result, limits)
        checks += _own_figures(result, limits)
    return checks


def _present(check: Check | None) -> list[Check]:
    return [] if check is None else [check]


def _number(value: float | None, absent: float = math.nan) -> float:
    """A number back from JSON, where what is not finite became null."""
    return absent if value is None else float(value)


def _scored(scoring: Result, task: Result, limits: Limits) -> list[Check]:
    golden = scoring["golden"]
    checks = [
        agreement_check(
            "golden vectors",
            _number(golden["value"]),
            golden["tolerance"],
            golden["measure"],
            "runtime against torch",
        )
    ]
    search = scoring["splits"].get("search", {}).get("against_search")
    if search is not None:
        checks.append(
            agreement_check(
                "agreement with the search",
                _number(search["value"]),
                search["allowed"],
                search["unit"],
                f"same items; stated tolerance {search['tolerance']:g} plus three paired standard errors",
            )
        )
    report = scoring["splits"].get("report")
    if report is not None and limits.max_degradation is not None:
        compared = dict(report["comparison"])
        for key, absent in (("lower", -math.inf), ("upper", math.inf), ("standard_error", math.inf)):
            compared[key] = _number(compared[key], absent)
        name = f"{task['metric']} {task['direction']}"
        checks.append(quality_check(name, Paired(**compared), limits.max_degradation, task["unit"]))
    return checks


def _memory(result: Result, limits: Limits) -> list[Check]:
    memory, profile = result["decode"]["memory"], result["profile"]
    reason = str(memory["steady"].get("reason") or "")
    budget, planned = limits.memory_budget_bytes, result["placement"]["planned"]
    on_cpu = result["placement"]["provider"] in (CPU, NATIVE)
    other = on_cpu and planned[:1] not in ([], [CPU])
    note = f"on the CPU; what {planned[0]} takes on the board is not in it" if other else ""
    checks = _present(limit_check("peak RSS", memory["decode_peak_rss_bytes"], budget, "bytes", reason, note))
    if memory["gpu"]["status"] == "not used":
        return checks
    if profile["memory_kind"] == "unified":  # allocations of the GPU are in no process's resident set
        drop = memory["available"]
        checks += _present(
            limit_check("unified memory", drop["drop_bytes"], budget, "bytes", str(drop["reason"] or ""))
        )
    elif profile["memory_kind"] == "vram" and profile["budget_mib"]:
        gpu = memory["gpu"]
        cards = float(profile["budget_mib"] * MIB)
        checks += _present(
            limit_check("GPU memory", gpu["total_bytes"], cards, "bytes", str(gpu["reason"] or ""))
        )
    return checks


def _own_figures(result: Result, limits: Limits) -> list[Check]:
    """Limits on speed and energy, and the conditions that they stand under."""
    if not limits.of_speed_or_energy:
        return []
    decode, flags = result["decode"], result["conditions"]["flags"]
    figures = _figures(decode, limits)
    if result["rehearsal"]:
        why = "this host is not the board"
        if result["host"]["is_board"]:
            why = "the provider is not the one that the profile plans for"
        return [undecided(name, limit, unit, f"{why}{here}") for name, limit, unit, here, _ in figures]
    doubts = len(flags)
    if flags:
        detail = f"{flags[0]}{f' and {doubts - 1} more' if doubts > 1 else ''}: measure again"
    else:
        detail = result["conditions"]["not_read"] or "nothing that could be read speaks against the run"
    conditions = Check("conditions", "inconclusive" if flags else "pass", float(doubts), 0.0, "flags", detail)
    checks: list[Check] = []
    for name, limit, unit, _, judged in figures:
        if isinstance(judged, str):
            checks.append(undecided(name, limit, unit, f"not measured: {judged}"))
        else:
            value, interval, how = judged
            checks.append(interval_check(name, value, interval, limit, unit, **how, doubts=doubts))
    return [conditions, *checks]


Judged = tuple[float, tuple[float | None, float | None], dict[str, Any]]


def _figures(decode: Result, limits: Limits) -> list[tuple[str, float, str, str, Judged | str]]:
    """Name, limit, unit, what this host measured in words, and the figure with its interval or why not."""
    latency, energy = decode["latency"], decode["energy"]
    reasons = latency["reasons"]
    found: list[tuple[str, float, str, str, Judged | str]] = []

    def add(name: str, limit: float | None, unit: str, value: float | None, judged: Judged | str) -> None:
        if limit is not None:
            here = "" if value is None else f" (here {amount(value, unit)})"
            found.append((name, limit, unit, here, judged))

    p95_s, speed = latency["p95_s"], latency["tokens_per_s_total"]
    bounds = latency["p95_ci95_low_s"], latency["p95_ci95_high_s"]
    why = {"error": "p95, 95 % interval", "reason": reasons.get("p95_ci95_high_s", "")}
    absent = reasons.get("p95_s", "no reason given")
    add("latency", limits.max_latency_s, "s", p95_s, absent if p95_s is None else (p95_s, bounds, why))
    bounds = latency["tokens_per_s_ci95_low"], latency["tokens_per_s_ci95_high"]
    why = {"at_least": True, "reason": reasons.get("tokens_per_s_ci95_low", "")}
    absent = reasons.get("tokens_per_s_total", "no reason given")
    judged: Judged | str = absent if speed is None else (speed, bounds, why)
    add("decode speed", limits.min_decode_tokens_per_s, "tokens/s", speed, judged)
    gross = energy["gross_j_per_token"] if energy["status"] == "measured" else None
    judged = f"{energy['status']}: {energy['reason'] or 'no reason given'}"
    if gross is not None:
        low, high, words = energy_interval(energy)
        judged = (gross, (low, high), {"error": words, "reason": words if low is None else ""})
    add("energy a token", limits.max_energy_j_per_token, "J", gross, judged)
    return found


def energy_interval(energy: Result) -> tuple[float | None, float | None, str]:
    """Bounds of the gross energy a token in joules, and what they are or why there are none.

    The 95 % interval over the repeats, widened by the largest uncertainty of a run (edges, resolution, alignment).
    One run has no interval over repeats: there its own uncertainty alone counts.
    """
    gross = energy["gross_j_per_token"]
    errors = [
        run["gross_uncertainty_j_per_token"] / run["gross_j_per_token"]
        for run in energy["runs"]
        if run["gross_uncertainty_j_per_token"] is not None
    ]
    repeats = energy["repeats"]["gross_j_per_token"]
    low, high = repeats["ci95_low"], repeats["ci95_high"]
    if low is None or high is None:
        if not errors:
            return None, None, "one run, by a source whose error is not known"
        low, high, words = gross, gross, "uncertainty of one run"
    else:
        words = f"95 % interval of {repeats['n']} runs and their uncertainty"
    half = gross * max(errors, default=0.0)
    return low - half, high + half, words
