"""`verify --tune`: which of the choices that change no result runs fastest here, by measurement.

Every candidate runs in a fresh process, all of them in turns and that several times, so that what else the machine
does falls on all alike. A candidate takes the place of a simpler one only if it was faster in every round and by
more than 3 % in the median: ties go to fewer threads, to no spinning, to the portable engine and to the smaller
chunk. What is chosen holds for the load under which it was measured.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import QslmError
from qslm_edge.runner.child import run_child
from qslm_edge.runner.run_settings import Asked, RunSettings
from qslm_edge.runner.runtime import uses_gpu
from qslm_edge.runner.sessions import ENGINES
from qslm_edge.runner.sessions.base import ONNXRUNTIME

__all__ = ["TITLE", "candidates", "choose", "tune", "usable_cores"]

TITLE = "tuning run settings"
ROUNDS = 3
GAIN = 0.03
CHUNKS = (32, 64, 128)
"""None larger than the default: prefill gains nothing beyond it, and its memory grows."""

Measured = dict[RunSettings, list[float]]


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def candidates(provider: str, asked: Asked, cores: int) -> list[RunSettings]:
    """Every way to run that is compared, the simplest first.

    Args:
        provider: of onnxruntime; only engines of the same processor stand beside it.
        asked: what the user's flags fix.
        cores: threads go up to them, doubled each time.
    """
    gpu = uses_gpu(provider)
    engines = [name for name in ENGINES if name == ONNXRUNTIME or uses_gpu(name) == gpu]
    if asked.engine is not None or asked.provider is not None:
        engines = [asked.engine or ONNXRUNTIME]
    doubled = [2**power for power in range(cores.bit_length()) if 2**power < cores]
    threads = [asked.threads] if asked.threads is not None else [1] if gpu else [*doubled, cores]
    found = []
    for count in threads:
        spinning = [False, True] if count > 1 else [False]  # a single thread has nothing to wait for
        for spins in spinning if asked.spinning is None else [asked.spinning]:
            found += [RunSettings(engine, count, spins) for engine in engines]
    return found


def choose(measured: Measured) -> RunSettings:
    """The settings that beat every simpler one; keys in order of simplicity, values paired by round."""
    order = list(measured)
    best = order[0]
    for one in order[1:]:
        ratios = [a / b for a, b in zip(measured[one], measured[best], strict=True)]
        if max(ratios) < 1 and statistics.median(ratios) < 1 - GAIN:
            best = one
    return best


def tune(
    bundle: Bundle,
    provider: str,
    asked: Asked,
    *,
    allow_fallback: bool = False,
    on_progress: Callable[[str, float], None],
) -> tuple[RunSettings, dict[str, Any]]:
    """Measure the candidates and choose.

    Args:
        bundle: whose files were checked.
        provider: of onnxruntime that the profile or the user chose.
        asked: what the user's flags fix.
        allow_fallback: as the user allows.
        on_progress: told the share of each process.

    Returns:
        The best settings, and every measurement, JSON-able.

    Raises:
        QslmError: the simplest candidate cannot run: its own error.
    """
    ways = candidates(provider, asked, usable_cores())
    share = 1.0 / (ROUNDS * (len(ways) + 1))

    def measure(command: str, way: RunSettings, *more: str) -> dict[str, Any]:
        arguments = way.session(provider, allow_fallback).to_arguments()
        found = run_child(
            [command, str(bundle.path.resolve()), *arguments, *more], lambda _title, _share: None
        )
        on_progress(TITLE, share)
        return found

    on_progress(TITLE, 0.0)
    measured: Measured = {way: [] for way in ways}
    refused: dict[RunSettings, str] = {}
    for turn in range(ROUNDS):
        for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            if way in refused:
                continue
            try:
                measured[way].append(float(measure("_speed", way)["token_s"]))
            except QslmError as error:
                if way.engine == ways[0].engine:
                    raise  # an engine that stands beside may be missing here; that of the bundle may not
                refused[way] = error.line()
    best = choose({way: times for way, times in measured.items() if way not in refused})
    turns = [measure("_chunks", best, *map(str, CHUNKS))["token_s"] for _ in range(ROUNDS)]
    by_chunk = {replace(best, prefill_chunk=chunk): [turn[str(chunk)] for turn in turns] for chunk in CHUNKS}
    chosen = choose(by_chunk)
    return chosen, {
        "decode": [
            {**_way(way), "token_s": times, "reason": refused.get(way)} for way, times in measured.items()
        ],
        "prefill": [{"chunk": way.prefill_chunk, "token_s": times} for way, times in by_chunk.items()],
        "method": f"median seconds of a decoded token, and seconds a token of a prompt; {ROUNDS} rounds, all in "
        f"turns, each in a fresh process; a simpler choice stands unless beaten in every round and by {GAIN:.0%}",
    }


def _way(way: RunSettings) -> dict[str, Any]:
    """The choices of decoding."""
    return {key: value for key, value in asdict(way).items() if key != "prefill_chunk"}
