"""A short measurement of one way to run a bundle, in a process of its own: what tuning compares.

Decoding and prefill together take about a second, so that many ways can be measured in turns. The medians are for
comparison within one tuning; `decode.py` measures what is reported.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from qslm_edge.bundle.reader import Bundle
from qslm_edge.items import Items
from qslm_edge.runner.latency import summarise_latency
from qslm_edge.runner.sessions import load_library
from qslm_edge.runner.stream import PROMPT_TOKENS, DecodeOptions, Stream, load, stream_tokens

__all__ = ["measure_prefill_chunks", "measure_speed"]

MIN_STEPS, MAX_STEPS, RUN_S = 32, 1024, 0.5
PREFILL_TOKENS, PREFILL_PASSES = 256, 2


def measure_speed(
    bundle: Bundle, items: Items, options: DecodeOptions, note: Callable[[str], None]
) -> dict[str, Any]:
    """The median seconds of a decoded token.

    Args:
        bundle, items, options, note: as for `decode.measure_latency`.

    Returns:
        JSON-able: token_s, steps.

    Raises:
        RuntimeFault: the runtime refuses or fails.
        EnvironmentFault: the clock cannot be trusted.
    """
    load_library(options.session)
    note("speed")
    stream = Stream(load(bundle, options), stream_tokens(items))
    stream.feed(PROMPT_TOKENS)
    stream.warm_up()
    samples: list[float] = []
    while len(samples) < MIN_STEPS or (sum(samples) < RUN_S and len(samples) < MAX_STEPS):
        begun = time.perf_counter()
        stream.feed(1)
        samples.append(time.perf_counter() - begun)
    summarise_latency(samples)  # refuses a clock that jumps
    return {"token_s": statistics.median(samples), "steps": len(samples)}


def measure_prefill_chunks(
    bundle: Bundle, items: Items, options: DecodeOptions, chunks: Sequence[int]
) -> dict[str, Any]:
    """The seconds a token of a prompt that runs in chunks of each size, the sizes in turns.

    Args:
        bundle, items, options: as for `measure_speed`.
        chunks: sizes in tokens.

    Returns:
        JSON-able: token_s by size, the faster of the passes.
    """
    load_library(options.session)
    session, tokens = load(bundle, options), stream_tokens(items)
    found: dict[str, float] = {}
    for passed in range(PREFILL_PASSES + 1):
        for chunk in chunks:
            stream = Stream(session, tokens)
            begun = time.perf_counter()
            for _ in range(0, PREFILL_TOKENS, chunk):
                stream.feed(chunk)
            spent = (time.perf_counter() - begun) / stream.position
            if passed:  # the first pass warms up
                found[str(chunk)] = min(spent, found.get(str(chunk), spent))
    return {"token_s": found}
