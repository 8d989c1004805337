"""Whole searches of tests, and their answers in a form that compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck

from qslm_edge.quantize.levels import Level, parse_level
from qslm_edge.search.constraints import Constraints
from qslm_edge.search.evaluator import Evaluator
from qslm_edge.search.journal import Journal
from qslm_edge.search.run import SearchOptions, SearchResult, run_search
from qslm_edge.search.space import check_levels

__all__ = ["PARTS", "SHARED", "MakeEvaluator", "answer", "levels_of", "search"]

MakeEvaluator = Callable[..., Evaluator]
SHARED = [HealthCheck.function_scoped_fixture]
PARTS = {"model": "m", "items": "i"}


def levels_of(text: str) -> tuple[Level, ...]:
    return check_levels(parse_level(word) for word in text.split())


def search(
    evaluator: Evaluator,
    limit: float,
    levels: str = "8g64 4g64 2g64",
    path: Path | None = None,
    parts: dict[str, str] | None = None,
    *,
    mu: float | None = None,
    early: bool = True,
    weights: int | None = None,
    memory: int | None = None,
) -> SearchResult:
    journal = Journal(path, evaluator.kind, parts or PARTS)
    options = SearchOptions(levels_of(levels), mu, early)
    # the digest names the landscape, so that no float scores are shared
    digest = f"{getattr(evaluator, 'seed', 'real')}"
    return run_search(evaluator, digest, Constraints(limit, weights, memory), options, journal)


def answer(result: SearchResult) -> dict[str, Any]:
    """What a resumed search must give again: everything but costs and times."""
    kept = {f.name for f in fields(SearchResult)} - {
        "cost",
        "seconds",
        "replayed",
        "replayed_tokens",
        "reference",
        "chosen_scores",
    }
    found = {name: getattr(result, name) for name in kept}
    for name in ("index", "loss", "count", "correct"):
        found[f"chosen {name}"] = getattr(result.chosen_scores, name).tolist()
        found[f"float {name}"] = getattr(result.reference.scores, name).tolist()
    return found
