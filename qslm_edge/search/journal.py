"""Append-only journal of evaluations, so that a killed search goes on where it stopped and ends with the same answer.

One JSON object a line. The first holds the fingerprint of everything a score depends on (model, items, quantiser,
package version); a journal with another fingerprint is refused, never mixed in. Evaluations hold the raw per-item
scores, so decisions are made anew from evidence, and other limits or budgets can reuse them. A torn last line (a
kill in the middle of a write) is dropped and evaluated again.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from qslm_edge.errors import OutputError, RunError
from qslm_edge.metrics import Kind, Scores

__all__ = ["Journal", "fingerprint"]

SCHEMA = "qslm-edge/journal/1"


def fingerprint(parts: dict[str, Any]) -> str:
    """sha256 of a JSON-able description, keys sorted."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _pack(scores: Scores) -> dict[str, Any]:
    # repr of a Python float restores it exactly, so a resumed search sees the same bits
    return {
        "index": scores.index.tolist(),
        "loss": scores.loss.tolist(),
        "count": scores.count.tolist(),
        "correct": scores.correct.tolist(),
    }


class Journal:
    """Evaluations of one search, kept in memory and, with a path, on disk.

    Args:
        path: file to continue or begin; None keeps everything in memory.
        kind: what the scores are of.
        parts: description of everything the scores depend on.

    Raises:
        RunError: the file belongs to another model, data, quantiser or version, or is damaged before its last line.
        OutputError: the file cannot be written.
    """

    def __init__(self, path: Path | None, kind: Kind, parts: dict[str, Any]) -> None:
        self.path, self.kind = path, kind
        self.parts, self.fingerprint = parts, fingerprint(parts)
        self._known: dict[tuple[str, str], Scores] = {}
        self._from_file: set[tuple[str, str]] = set()
        self.replayed = self.replayed_tokens = 0
        """Evaluations read from the file that were asked for, and the tokens that they hold."""
        if path is None:
            return
        if path.exists():
            self._read(path)
        else:
            self._append({"schema": SCHEMA, "fingerprint": self.fingerprint, "parts": parts})

    def get(self, purpose: str, key: str) -> Scores | None:
        """Scores of a setting evaluated before for this purpose, None when it was not."""
        if (purpose, key) in self._from_file:
            self._from_file.remove((purpose, key))
            self.replayed += 1
            self.replayed_tokens += int(self._known[purpose, key].count.sum())
        return self._known.get((purpose, key))

    def put(self, purpose: str, key: str, setting: dict[str, str], scores: Scores) -> None:
        """Record an evaluation; it is on disk when this returns."""
        self._known[purpose, key] = scores
        self._from_file.discard((purpose, key))
        if self.path is not None:
            self._append({"purpose": purpose, "key": key, "setting": setting, "scores": _pack(scores)})

    def _append(self, record: dict[str, Any]) -> None:
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, separators=(",", ":")) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                "the journal cannot be written", where=self.path, found=error.strerror
            ) from None

    def _read(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RunError("the journal cannot be read", where=path, found=error.strerror) from None
        lines = content.split(b"\n")
        whole = len(lines) - 1  # behind the last line break stands nothing, or what a kill left of a line
        for number, line in enumerate(lines[:whole], 1):
            try:
                self._take(json.loads(line), number, path)
            except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
                raise RunError(
                    "damaged journal",
                    where=f"{path}, line {number}",
                    found=f"{type(error).__name__}: {error}",
                    hint="delete the run directory, or use another --out, to search afresh",
                ) from None
        if lines[whole]:
            self._truncate(path, b"".join(line + b"\n" for line in lines[:whole]))
        if whole == 0:
            self._append({"schema": SCHEMA, "fingerprint": self.fingerprint, "parts": self.parts})

    def _truncate(self, path: Path, content: bytes) -> None:
        try:
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(content)
            os.replace(temporary, path)
        except OSError as error:
            raise OutputError("the journal cannot be written", where=path, found=error.strerror) from None

    def _take(self, record: Any, number: int, path: Path) -> None:
        if not isinstance(record, dict):
            raise TypeError(f"a record is an object, not {type(record).__name__}")
        if number == 1:
            if record.get("schema") != SCHEMA:
                raise RunError(
                    "not a journal of this version", where=path, found=record.get("schema"), allowed=SCHEMA
                )
            if record["fingerprint"] != self.fingerprint:
                mine, theirs = self.parts, record.get("parts", {})
                differing = sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
                raise RunError(
                    "the journal belongs to another search",
                    where=path,
                    found=f"different {', '.join(differing)}",
                    hint="use another --out, or delete this run directory to search afresh",
                )
            return
        raw = record["scores"]
        scores = Scores(
            self.kind,
            np.asarray(raw["index"], np.int64),
            np.asarray(raw["loss"], np.float64),
            np.asarray(raw["count"], np.int64),
            np.asarray(raw["correct"], np.int64),
        )
        if len({array.shape for array in (scores.index, scores.loss, scores.count, scores.correct)}) > 1:
            raise ValueError("scores of different lengths")
        self._known[record["purpose"], record["key"]] = scores
        self._from_file.add((record["purpose"], record["key"]))
