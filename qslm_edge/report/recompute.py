"""Deriving every statistic of a stored result anew from its raw samples, and saying where the two part.

Metrics from the scores of single items, percentiles from single steps, energy from readings and phases, flags
from the conditions, verdicts from the checks, rows of the table from all of them; by the functions that made them.
Floats are equal within 1e-9: another numpy may sum in another order. What has no raw samples in a result is
listed, so that equal never claims more than was compared.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qslm_edge.errors import DataError, EnvironmentFault, RunError
from qslm_edge.report.model import SCHEMA as REPORT_SCHEMA
from qslm_edge.report.replay import replay_energy
from qslm_edge.report.summary import summary_rows
from qslm_edge.runner.clock_watch import to_samples
from qslm_edge.runner.conditions import Conditions, not_read
from qslm_edge.runner.decode import prefill_result
from qslm_edge.runner.decode_memory import drop_bytes
from qslm_edge.runner.gate import Check, exit_code, overall
from qslm_edge.runner.judge import checks_of
from qslm_edge.runner.latency import summarise_latency
from qslm_edge.runner.split import split_statistics, stored_scores
from qslm_edge.runner.text import json_ready
from qslm_edge.runner.verify import SCHEMA as VERIFY_SCHEMA
from qslm_edge.runner.verify import all_flags
from qslm_edge.steps.documents import read_document

__all__ = ["NOT_RECOMPUTED", "Difference", "Recomputation", "read_result", "recompute"]

RELATIVE_TOLERANCE = 1e-9
NOT_RECOMPUTED = (
    "golden vectors and top-1 agreement (outputs of single tokens are not stored)",
    "readings themselves: memory, clocks, counters, versions, digests",
    "search and export (their own evidence is the journal of the run)",
)
Json = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """One value that does not follow from the raw samples.

    Args:
        path: of the value in the document.
        stored, recomputed: the two values; None where one of them has none.
    """

    path: str
    stored: Any
    recomputed: Any


@dataclass(frozen=True)
class Recomputation:
    """What came of it.

    Args:
        compared: single values compared.
        differences: those that part, in the order of the document.
    """

    compared: int
    differences: tuple[Difference, ...]

    @property
    def equal(self) -> bool:
        """Whether every value follows from the raw samples."""
        return not self.differences

    def to_dict(self) -> Json:
        """Ready for JSON."""
        found = [asdict(item) for item in self.differences]
        return {
            "equal": self.equal,
            "compared": self.compared,
            "differences": found,
            "not_recomputed": list(NOT_RECOMPUTED),
        }


def read_result(path: Path) -> Json:
    """Read a report.json, the one of a run directory, or what `verify --json` printed.

    Raises:
        RunError: there is none, or it is of no schema that this version knows.
    """
    file = path / "report.json" if path.is_dir() else path
    if not file.exists():
        hint = "give a run directory, a report.json, or the JSON of a verification"
        raise RunError("no result here", where=file, hint=hint)
    return read_document(file, "result", REPORT_SCHEMA, VERIFY_SCHEMA)


def recompute(document: Json, where: object = None) -> Recomputation:
    """Derive a result anew and compare.

    Args:
        document: a report, or the result of a verification.
        where: named in errors.

    Raises:
        RunError: raw samples are missing or damaged, so that nothing can be derived.
    """
    try:
        fresh = _report(document) if document["schema"] == REPORT_SCHEMA else _verification(document)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, StopIteration) as error:
        raise RunError(
            "raw samples are missing or damaged",
            where=where,
            found=f"{type(error).__name__}: {error}",
            hint="only results of this version hold what is needed; verify the bundle again",
        ) from None
    except (DataError, EnvironmentFault) as error:
        raise RunError("raw samples are damaged", where=where, found=error.line()) from None
    pairs = list(_pairs(document, fresh, ""))
    parted = [Difference(path, old, new) for path, old, new in pairs if not _same(old, new)]
    return Recomputation(len(pairs), tuple(parted))


def _report(report: Json) -> Json:
    """What a report says beyond its verification."""
    verification = _verification(report["verification"])
    whole = {**report, "verification": _merged(report["verification"], verification)}
    shared = {key: verification[key] for key in ("verdict", "exit_code")}
    return {**shared, "verification": verification, "summary": summary_rows(whole)}


def _verification(stored: Json) -> Json:
    """Every derived part of a verification, without what was read."""
    whole = copy.deepcopy(stored)
    fresh: Json = {"scoring": _scoring(stored)}
    whole["scoring"] = _merged(stored["scoring"], fresh["scoring"])
    if stored["decode"] is not None:
        fresh["decode"] = _decode(stored["decode"])
        whole["decode"] = _merged(stored["decode"], fresh["decode"])
    conditions = stored["conditions"]
    samples = [to_samples(run) for run in conditions["clocks"]]
    fresh["conditions"] = {
        "flags": all_flags(whole),
        "not_read": not_read(Conditions.from_dict(conditions["before"]), samples),
    }
    whole["conditions"] = _merged(conditions, fresh["conditions"])
    checks: list[Check] = checks_of(whole)
    verdict = overall(checks)
    placed = stored["host"]["is_board"] and stored["placement"]["as_planned"]
    fresh |= {
        "checks": [check.to_dict() for check in checks],
        "verdict": verdict,
        "exit_code": exit_code(verdict),
        "rehearsal": not placed,
    }
    ready: Json = json_ready(fresh)
    return ready


def _scoring(stored: Json) -> Json:
    kind, golden = stored["task"]["kind"], stored["scoring"]["golden"]
    splits = {}
    for name, split in stored["scoring"]["splits"].items():
        raw = [split[key] for key in ("scores", "float_scores", "expected_scores")]
        scores, reference, expected = (None if part is None else stored_scores(kind, part) for part in raw)
        if scores is None or reference is None:
            raise ValueError(f"no scores of the {name} items")
        tolerance = 0.0 if expected is None else split["against_search"]["tolerance"]
        sizes = (split["n_words"], split["n_bytes"]) if kind == "language_model" else None
        found = split_statistics(scores, reference, expected, tolerance=tolerance, text_size=sizes)
        splits[name] = {**found, "n_items": scores.n_items}
    value = golden["value"]
    return {"golden": {"ok": value is not None and value <= golden["tolerance"]}, "splits": splits}


def _decode(stored: Json) -> Json:
    memory, prefill, energy = stored["memory"], stored["prefill"], stored["energy"]
    free = memory["available"]
    first = stored["first_token"]
    return {
        "memory": {
            "load_peak_rss_bytes": memory["loaded"]["peak_rss_bytes"],
            "decode_peak_rss_bytes": memory["steady"]["peak_rss_bytes"],
            "prefill_peak_rss_bytes": memory["prefill"]["peak_rss_bytes"],
            "available": {"drop_bytes": drop_bytes(free["before_bytes"], free["after_bytes"])},
        },
        "first_token": {"with_load_s": stored["load_s"] + first["seconds"]},
        "latency": summarise_latency(stored["latency_samples_s"]).to_dict(),
        "prefill": prefill_result(prefill["tokens"], prefill["chunk"], prefill["chunk_samples_s"]),
        "energy": replay_energy(energy["runs"]),
    }


def _merged(stored: Json, fresh: Json) -> Json:
    """The stored object with what was derived in its place."""
    merged = dict(stored)
    for key, value in fresh.items():
        old = merged.get(key)
        both = isinstance(value, dict) and isinstance(old, dict)
        merged[key] = _merged(old, value) if both and isinstance(old, dict) else value
    return merged


def _pairs(stored: Any, fresh: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Every single value that was derived, beside the stored one."""
    if isinstance(fresh, dict) and fresh and isinstance(stored, dict):
        for key, value in fresh.items():
            yield from _pairs(stored.get(key), value, f"{path}.{key}" if path else key)
    elif isinstance(fresh, list) and fresh and isinstance(stored, list) and len(fresh) == len(stored):
        for place, (old, new) in enumerate(zip(stored, fresh, strict=True)):
            yield from _pairs(old, new, f"{path}[{place}]")
    else:
        yield path, stored, fresh


def _same(stored: Any, fresh: Any) -> bool:
    plain = not isinstance(stored, bool) and not isinstance(fresh, bool)
    if plain and isinstance(stored, (int, float)) and isinstance(fresh, (int, float)):
        return math.isclose(stored, fresh, rel_tol=RELATIVE_TOLERANCE, abs_tol=1e-15)
    return bool(type(stored) is type(fresh) and stored == fresh)
