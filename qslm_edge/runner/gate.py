"""The gate: every limit against its measurement, each pass, fail or inconclusive, and one verdict.

A failed check decides; else an inconclusive one; only when every check passes, and there is at least one, is
it a pass. A figure with an error passes when its whole interval lies within the limit, fails when its whole
interval lies outside, and is inconclusive between. Which limits a verification is judged by: `judge.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qslm_edge.errors import EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_PASS
from qslm_edge.metrics import Paired, Verdict, judge
from qslm_edge.runner.text import amount

__all__ = [
    "Check",
    "agreement_check",
    "exit_code",
    "interval_check",
    "limit_check",
    "overall",
    "quality_check",
    "undecided",
]


@dataclass(frozen=True)
class Check:
    """One constraint.

    Attributes:
        name: what is limited.
        verdict: pass, fail or inconclusive.
        value: what was measured, None when it could not be, or is not that of the board.
        limit: the constraint.
        unit: of value and limit.
        detail: the margin against the error, or the reason why there is no verdict.
        low, high: interval of the value by which it was judged; None where it is exact or not known.
    """

    name: str
    verdict: Verdict
    value: float | None
    limit: float | None
    unit: str
    detail: str
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def quality_check(name: str, result: Paired, limit: float, unit: str) -> Check:
    """Degradation against the float model on the report items, one-sided at 95 %."""
    return Check(
        name,
        judge(result, limit),
        result.degradation,
        limit,
        unit,
        f"95 % bounds {result.lower:+.3f} to {result.upper:+.3f}, {result.n_items} items, paired",
        result.lower,
        result.upper,
    )


def limit_check(
    name: str, value: float | None, limit: float | None, unit: str, reason: str = "", note: str = ""
) -> Check | None:
    """An exact value against a limit; None when there is no limit."""
    if limit is None:
        return None
    if value is None:
        return undecided(name, limit, unit, f"not measured: {reason or 'unavailable'}")
    share = value / limit if limit else float("inf")
    detail = f"{100 * share:.0f} % of the limit" + (f"; {note}" if note else "")
    return Check(name, "pass" if value <= limit else "fail", value, limit, unit, detail)


def undecided(name: str, limit: float | None, unit: str, reason: str) -> Check:
    """A limit without a figure that could decide it."""
    return Check(name, "inconclusive", None, limit, unit, reason)


def interval_check(
    name: str,
    value: float,
    interval: tuple[float | None, float | None],
    limit: float,
    unit: str,
    *,
    at_least: bool = False,
    error: str = "95 % interval",
    reason: str = "",
    doubts: int = 0,
) -> Check:
    """A value with an error against a limit.

    Args:
        name: what is limited.
        value: what was measured.
        interval: bounds of the value; None for one that is not known.
        limit: the constraint.
        unit: of value and limit.
        at_least: the value must reach the limit, in place of staying below it.
        error: what the interval is.
        reason: why a bound is not known.
        doubts: flags of the conditions; with any, the figure decides nothing.
    """
    low, high = interval
    good, bad = (low, high) if at_least else (high, low)
    sign = -1.0 if at_least else 1.0
    verdict: Verdict = "inconclusive"
    if good is not None and sign * good <= sign * limit:
        verdict = "pass"
    elif bad is not None and sign * bad > sign * limit:
        verdict = "fail"
    ends = " to ".join("unknown" if end is None else amount(end, unit) for end in interval)
    detail = f"{error} {ends}"
    if None not in (good, bad) and verdict != "inconclusive":
        nearest = good if verdict == "pass" else bad
        share = abs(limit - (nearest or 0.0)) / limit
        detail += f", {'clear of' if verdict == 'pass' else 'beyond'} the limit by {100 * share:.0f} %"
    elif None not in (good, bad):
        detail += ", which includes the limit: more samples or repeats narrow it"
    if reason and None in (good, bad):
        detail += f" ({reason})"
    if doubts and verdict != "inconclusive":
        detail = f"would {verdict}, but the run is flagged (see conditions): {detail}"
        verdict = "inconclusive"
    return Check(name, verdict, value, limit, unit, detail, low, high)


def agreement_check(name: str, value: float, tolerance: float, unit: str, detail: str) -> Check:
    """Whether two places that must measure the same do."""
    verdict: Verdict = "pass" if abs(value) <= tolerance else "fail"  # NaN fails
    if not math.isfinite(value):
        detail = f"not a finite number: {value}; {detail}"
    return Check(name, verdict, value, tolerance, unit, detail)


def overall(checks: Sequence[Check]) -> Verdict:
    """The verdict of all checks; an empty gate is inconclusive, never a pass."""
    verdicts = {check.verdict for check in checks}
    if "fail" in verdicts:
        return "fail"
    return "pass" if verdicts == {"pass"} else "inconclusive"


def exit_code(verdict: Verdict) -> int:
    """0 pass, 1 fail, 3 inconclusive."""
    return {"pass": EXIT_PASS, "fail": EXIT_FAIL, "inconclusive": EXIT_INCONCLUSIVE}[verdict]
