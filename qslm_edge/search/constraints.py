"""What a setting must meet: performance within a limit, bytes within budgets."""

from __future__ import annotations

from dataclasses import dataclass

from qslm_edge.quantize.accounting import predict_peak_rss_bytes, weight_bytes
from qslm_edge.quantize.levels import Setting
from qslm_edge.spikegpt.hierarchy import Hierarchy

__all__ = ["Constraints"]


@dataclass(frozen=True)
class Constraints:
    """Limits of a deployment.

    Attributes:
        max_degradation: perplexity increase, or accuracy drop in percentage points.
        weights_budget_bytes: limit of the packed weights (the paper's memory constraint), None without one.
        memory_budget_bytes: limit of the process peak on the device, predicted here and measured by `verify`.
        max_latency_s, min_decode_tokens_per_s, max_energy_j_per_token: limits that only the board can tell:
            the search does not look at them, `verify` does.
    """

    max_degradation: float
    weights_budget_bytes: int | None = None
    memory_budget_bytes: int | None = None
    max_latency_s: float | None = None
    min_decode_tokens_per_s: float | None = None
    max_energy_j_per_token: float | None = None

    def memory_violation(self, hierarchy: Hierarchy, setting: Setting) -> str | None:
        """Why a setting does not fit, or None when it does."""
        weights = weight_bytes(hierarchy, setting)
        if self.weights_budget_bytes is not None and weights > self.weights_budget_bytes:
            return f"weights {weights / 1e6:.2f} MB > budget {self.weights_budget_bytes / 1e6:.2f} MB"
        peak = predict_peak_rss_bytes(hierarchy, setting)
        if self.memory_budget_bytes is not None and peak > self.memory_budget_bytes:
            return f"predicted peak RSS {peak / 1e6:.0f} MB > budget {self.memory_budget_bytes / 1e6:.0f} MB"
        return None
