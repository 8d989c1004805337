"""Choosing one candidate: the smallest feasible by default, or the trade-off of Eq. 1.

Eq. 1 of QSLM, the form being a reconstruction: classification maximises S = A - mu * m_q/m_o, generation minimises
S = P + mu * m_q/m_o, with A in percentage points, P perplexity, m_q and m_o the weight bytes of the quantised and
of the float32 model, and mu >= 0 the user's priority of memory (0: none).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from qslm_edge.metrics import Kind
from qslm_edge.search.trial import Trial

__all__ = ["eq1_score", "most_complete", "rank_candidates"]


def eq1_score(trial: Trial, float_bytes: int, mu: float, kind: Kind) -> float:
    """S of Eq. 1, with its sign turned where needed so that smaller is better.

    Args:
        trial: the candidate.
        float_bytes: m_o.
        mu: priority of memory.
        kind: language model (perplexity) or classification (accuracy).
    """
    memory = mu * trial.weight_bytes / float_bytes
    return trial.metric + memory if kind == "language_model" else -(trial.metric - memory)


def most_complete(trials: Sequence[Trial]) -> list[Trial]:
    """One trial per setting: its evaluation on most items, the last of several."""
    unique: dict[tuple[tuple[str, object], ...], Trial] = {}
    for trial in trials:
        known = unique.get(trial.setting.levels)
        if known is None or trial.n_items >= known.n_items:
            unique[trial.setting.levels] = trial
    return list(unique.values())


def rank_candidates(
    trials: Sequence[Trial], float_bytes: int, mu: float | None, kind: Kind, sigmas: float = 0.0
) -> list[Trial]:
    """Feasible settings, best first.

    Args:
        trials: everything that was evaluated.
        float_bytes: weight bytes of the float32 model.
        mu: None ranks by bytes, ties by metric; a number ranks by Eq. 1.
        kind: language model or classification.
        sigmas: let a trial that stopped early enter with a score better by as many standard errors of what it has
            not seen.

    Returns:
        One trial per setting (its most complete evaluation).
    """
    feasible = [trial for trial in most_complete(trials) if trial.feasible]

    def score(trial: Trial) -> float:
        known = eq1_score(trial, float_bytes, mu or 0.0, kind)
        if trial.complete or not sigmas:
            return known
        unseen = math.sqrt(1 - trial.n_items / trial.n_items_total)
        return known - sigmas * trial.comparison.standard_error * unseen

    if mu is not None:
        return sorted(feasible, key=lambda trial: (score(trial), trial.weight_bytes))
    return sorted(feasible, key=lambda trial: (trial.weight_bytes, score(trial)))
