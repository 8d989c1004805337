"""The gate: every constraint against its measurement, each pass, fail or inconclusive, and one verdict.

A failed check decides; else an inconclusive one; only when every check passes, and there is at least one, is
it a pass. Memory, bytes and the metric count wherever the bundle runs; figures of another machine than the
profile's board never pass or fail that board.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qslm_edge.errors import EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_PASS
from qslm_edge.metrics import Paired, Verdict, judge

__all__ = ["Check", "agreement_check", "exit_code", "limit_check", "overall", "quality_check"]


@dataclass(frozen=True)
class Check:
    """One constraint.

    Attributes:
        name: what is limited.
        verdict: pass, fail or inconclusive.
        value: what was measured, None when it could not be.
        limit: the constraint.
        unit: of value and limit.
        detail: the margin against the error, or the reason why there is no verdict.
    """

    name: str
    verdict: Verdict
    value: float | None
    limit: float | None
    unit: str
    detail: str

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
    )


def limit_check(
    name: str, value: float | None, limit: float | None, unit: str, reason: str = ""
) -> Check | None:
    """A measured value against a limit; None when there is no limit."""
    if limit is None:
        return None
    if value is None:
        return Check(name, "inconclusive", None, limit, unit, f"not measured: {reason or 'unavailable'}")
    share = value / limit if limit else float("inf")
    return Check(
        name, "pass" if value <= limit else "fail", value, limit, unit, f"{100 * share:.0f} % of the limit"
    )


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
