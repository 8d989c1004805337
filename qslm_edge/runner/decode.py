"""Timing one stream in a process of its own: loading, first token, latency of every step; and prefill apart.

Conditions are read at the two edges of the timed run and clocks during it, in this process, since clocks fall
within milliseconds after the load ends. Raw samples are kept: every statistic comes from them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from qslm_edge.bundle.reader import Bundle
from qslm_edge.items import Items
from qslm_edge.runner.clock_watch import ClockWatch, stored_samples
from qslm_edge.runner.conditions import compare, read_conditions
from qslm_edge.runner.latency import summarise_latency
from qslm_edge.runner.memory import read_memory
from qslm_edge.runner.sessions import load_library
from qslm_edge.runner.stream import PROMPT_TOKENS, DecodeOptions, Stream, load, stream_tokens

__all__ = ["measure_latency", "measure_prefill", "prefill_result"]

MIN_STEPS, MAX_STEPS = 512, 8192
MIN_RUN_S = 4.0
"""Where the user names no number of steps: enough for the interval of p99, and for three readings of clocks."""

Note = Callable[[str], None]


def measure_latency(bundle: Bundle, items: Items, options: DecodeOptions, note: Note) -> dict[str, Any]:
    """Load the bundle and time its decoding.

    Args:
        bundle: what to load; its files were checked before.
        items: token ids to feed.
        options: how.
        note: told what is being done.

    Returns:
        JSON-able: load_s, first_token, latency, latency_samples_s, conditions.

    Raises:
        RuntimeFault: the runtime refuses or fails.
        EnvironmentFault: the clock cannot be trusted.
    """
    load_library(options.session)  # so that loading the library is not taken for loading the model
    tokens = stream_tokens(items)
    note("latency")
    begun = time.perf_counter()
    session = load(bundle, options)
    load_s = time.perf_counter() - begun
    stream = Stream(session, tokens)
    begun = time.perf_counter()
    stream.feed(PROMPT_TOKENS)
    first_s = time.perf_counter() - begun
    stream.warm_up()
    samples, conditions = _timed(stream, options)
    return {
        "load_s": load_s,
        "first_token": {
            "prompt_tokens": PROMPT_TOKENS,
            "seconds": first_s,
            "with_load_s": load_s + first_s,
            "method": "first run of the prompt in a fresh process; with_load adds the loading, not imports",
        },
        "latency": summarise_latency(samples).to_dict(),
        "latency_samples_s": samples,
        "conditions": conditions,
    }


def _timed(stream: Stream, options: DecodeOptions) -> tuple[list[float], dict[str, Any]]:
    """Seconds of each step, and the conditions at both edges of the run and within."""
    before = read_conditions(options.root)
    with ClockWatch(use_gpu=options.session.uses_gpu) as watch:
        stream.warm_up()  # reading takes milliseconds, in which clocks and caches go back to rest
        samples: list[float] = []
        total_s = 0.0
        while _goes_on(len(samples), total_s, options.steps):
            begun = time.perf_counter()
            stream.feed(1)
            samples.append(time.perf_counter() - begun)
            total_s += samples[-1]
        after = read_conditions(options.root)
    return samples, {
        "before": before.to_dict(),
        "after": after.to_dict(),
        "clocks": [stored_samples(watch.samples)],
        "flags": compare(before, after, [watch.samples]),
        "scope": "the edges of the timed decode run, read in the process that decodes",
    }


def _goes_on(done: int, total_s: float, steps: int | None) -> bool:
    if steps is not None:
        return done < steps
    return done < MIN_STEPS or (total_s < MIN_RUN_S and done < MAX_STEPS)


def measure_prefill(bundle: Bundle, items: Items, options: DecodeOptions, note: Note) -> dict[str, Any]:
    """Load the bundle and time a long prompt in chunks, after one chunk that does not count.

    Args:
        bundle, items, options, note: as for `measure_latency`.

    Returns:
        JSON-able: prefill with the seconds of every chunk, and the peak RSS of this process.

    Raises:
        RuntimeFault: the runtime refuses or fails.
    """
    load_library(options.session)
    tokens = stream_tokens(items)
    note("prefill")
    session, chunk = load(bundle, options), options.session.prefill_chunk
    Stream(session, tokens).feed(min(chunk, options.prefill_tokens))
    stream = Stream(session, tokens)
    seconds = []
    for start in range(0, options.prefill_tokens, chunk):
        begun = time.perf_counter()
        stream.feed(min(chunk, options.prefill_tokens - start))
        seconds.append(time.perf_counter() - begun)
    summarise_latency(seconds)  # refuses a clock that jumps
    return {
        "prefill": prefill_result(options.prefill_tokens, chunk, seconds),
        "memory": read_memory().to_dict(),
    }


def prefill_result(tokens: int, chunk: int, chunks_s: list[float]) -> dict[str, Any]:
    """Speed of a prompt from the seconds of its chunks; null with the reason where there is none."""
    seconds = sum(chunks_s)
    result: dict[str, Any] = {
        "tokens": tokens,
        "tokens_per_s": tokens / seconds if seconds > 0 else None,
        "chunk": chunk,
        "seconds": seconds,
        "chunk_samples_s": chunks_s,
    }
    if not seconds > 0:
        result["reason"] = "the clock is too coarse: the duration is 0"
    return result
