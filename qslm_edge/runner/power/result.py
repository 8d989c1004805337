"""What the energy measurement of one run gives, the summary of a figure over repeats, and both as JSON.

A figure that is not known is None, with the reason in the field beside it; the raw readings stay with it.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qslm_edge.runner.power.base import Reading

__all__ = ["EnergyResult", "RepeatSummary", "Status", "energy_dict", "summarise_repeats"]

Status = Literal["measured", "unavailable", "rejected"]


@dataclass(frozen=True)
class EnergyResult:
    """Energy per token of one run, or why there is none.

    Args:
        status: "measured", "unavailable" (no source), or "rejected" (a source, but no valid window).
        reason: why there is no figure; None if measured.
        source: what was read: name, kind, scope, rails, what was passed over.
        method: "counter" or "trapezoid".
        rate_hz: nominal sampling rate.
        n_samples: valid readings inside the run window.
        duration_s: length T of the run window.
        tokens: exact number of tokens of the run.
        energy_j: energy of the run window, idle part included.
        gross_j_per_token: energy_j / tokens.
        gross_uncertainty_j_per_token: of it, from edges, resolution and alignment.
        net_energy_j: energy_j less idle power times T.
        net_j_per_token: net_energy_j / tokens; None with `net_reason` if below resolution.
        net_uncertainty_j_per_token: of it, with the noise of the idle power besides.
        net_reason: why there is no net energy per token.
        uncertainty_reason: which part of the uncertainties is not known.
        mean_w, peak_w: mean over the run window; highest value, as `peak_method` says.
        idle_w, idle_noise_w: mean of the idle phase before, and standard deviation of its 1 s means.
        idle_after_w: mean of the idle phase after the run.
        drift: True if the two idle powers differ too much; None if one of them is not known.
        edge_error_j: largest error at the edges, one update of the interface at mean power; where the interface
            does not tell its update, the longest time that its value stood still in the run.
        resolution_error_j: half a step of the power times T; 0 for a counter, whose step is its update.
        idle_error_j: two standard errors of the idle power times T.
        alignment_error_j: what the edges would move by if the clocks differ as much as they may; None without
            an external meter.
        board_j_per_token: gross energy per token of the whole board by the calibration in `source.estimate`:
            an estimate, on which no verdict rests.
        phases: name of each phase and its edges on the monotonic clock.
        wall_phases: the same edges on the wall clock, in seconds since 1970.
        marker: edges of each burst of the marker pulse on the monotonic clock, if one was made.
        samples: every reading taken.
    """

    status: Status
    reason: str | None
    source: Mapping[str, object]
    method: str | None = None
    rate_hz: float | None = None
    n_samples: int | None = None
    duration_s: float | None = None
    tokens: int | None = None
    energy_j: float | None = None
    gross_j_per_token: float | None = None
    gross_uncertainty_j_per_token: float | None = None
    net_energy_j: float | None = None
    net_j_per_token: float | None = None
    net_uncertainty_j_per_token: float | None = None
    net_reason: str | None = None
    uncertainty_reason: str | None = None
    mean_w: float | None = None
    peak_w: float | None = None
    peak_method: str | None = None
    idle_w: float | None = None
    idle_noise_w: float | None = None
    idle_reason: str | None = None
    idle_after_w: float | None = None
    drift: bool | None = None
    drift_reason: str | None = None
    edge_error_j: float | None = None
    resolution_error_j: float | None = None
    idle_error_j: float | None = None
    alignment_error_j: float | None = None
    board_j_per_token: float | None = None
    phases: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    wall_phases: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    marker: tuple[tuple[float, float], ...] = ()
    samples: tuple[Reading, ...] = ()

    def to_dict(self, *, with_samples: bool = True) -> dict[str, object]:
        """All fields, ready for JSON; the raw readings can be left out."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        values["source"] = dict(self.source)
        for name in ("phases", "wall_phases"):
            values[name] = {phase: list(edges) for phase, edges in getattr(self, name).items()}
        values["marker"] = [list(edges) for edges in self.marker]
        values["samples"] = [item.to_dict() for item in self.samples] if with_samples else None
        return values


# Two-sided 95 % points of Student's t for 1 to 9 degrees of freedom.
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class RepeatSummary:
    """Mean and 95 % interval of a figure over repeated runs, in the unit of the figure.

    Args:
        n: repeats that gave the figure.
        mean: their mean; None if there are none.
        ci95_low, ci95_high: interval of the mean by Student's t; None below two repeats.
        reason: what is missing and why.
    """

    n: int
    mean: float | None
    ci95_low: float | None
    ci95_high: float | None
    reason: str | None

    def to_dict(self) -> dict[str, object]:
        """All fields, ready for JSON."""
        return dataclasses.asdict(self)


def summarise_repeats(values: Sequence[float | None]) -> RepeatSummary:
    """Summarise one figure of several results, e.g. `[result.net_j_per_token for result in results]`.

    Args:
        values: one per repeat; None where a repeat has no such figure. At most 10 may be given a value.
    """
    known = [value for value in values if value is not None]
    n, lost = len(known), len(values) - len(known)
    reason = f"{lost} of {len(values)} repeats gave no figure" if lost else None
    if n < 2:
        text = "an interval needs 2 repeats or more"
        return RepeatSummary(n, known[0] if n else None, None, None, f"{reason}; {text}" if reason else text)
    mean = statistics.fmean(known)
    factor = STUDENT_T[min(n - 2, len(STUDENT_T) - 1)]  # beyond 10 repeats the last one is on the safe side
    half = factor * statistics.stdev(known) / math.sqrt(n)
    return RepeatSummary(n, mean, mean - half, mean + half, reason)


_SUMS = ("tokens", "duration_s", "energy_j", "net_energy_j", "n_samples")
_MEANS = (
    *("gross_j_per_token", "net_j_per_token", "board_j_per_token"),
    *("mean_w", "idle_w", "idle_noise_w", "idle_after_w"),
)
# errors of an instrument are alike in every run and do not average out
_LARGEST = (
    *("peak_w", "gross_uncertainty_j_per_token", "net_uncertainty_j_per_token"),
    *("edge_error_j", "resolution_error_j", "idle_error_j", "alignment_error_j"),
)


def energy_dict(results: Sequence[EnergyResult]) -> dict[str, Any]:
    """One or more energy runs as JSON: every run with its readings, and above them what they say together.

    Together: energy a token and powers are means over the runs, tokens, seconds, joules and readings are
        sums, peak and errors the largest. When one run has no valid window, status and reason are its, and
        there is no figure.
    """
    failed = next((result for result in results if result.status != "measured"), None)
    joined = (results[0] if failed is None else failed).to_dict(with_samples=False)
    del joined["samples"]
    gross = summarise_repeats([result.gross_j_per_token for result in results])
    net = summarise_repeats([result.net_j_per_token for result in results])
    if failed is None and len(results) > 1:
        for names, join in ((_SUMS, sum), (_MEANS, statistics.fmean), (_LARGEST, max)):
            for name in names:
                values = [getattr(result, name) for result in results]
                joined[name] = None if None in values else join(values)
        joined["net_reason"] = next((r.net_reason for r in results if r.net_j_per_token is None), None)
        joined["drift"] = True if any(result.drift for result in results) else joined["drift"]
    return {
        **joined,
        "n_runs": len(results),
        "repeats": {"gross_j_per_token": gross.to_dict(), "net_j_per_token": net.to_dict()},
        "runs": [result.to_dict() for result in results],
    }
