"""Decoding one stream, measured: memory from load on, first token, latency per token, prefill, energy.

Runs in a process of its own, since the peak of a process never falls. The order matters: memory of decoding
is read before anything else can raise the peak (prefill with a longer input, libraries that tell the
conditions). Conditions are read at the two edges of the timed run, in this process, since clocks fall within
milliseconds after the load ends. Latency and energy are separate passes. Sentences of a classifier are
measured as a stream of tokens, the same graph and state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qslm_edge.bundle.reader import Bundle
from qslm_edge.items import Items
from qslm_edge.runner.conditions import compare, read_conditions
from qslm_edge.runner.latency import summarise_latency
from qslm_edge.runner.memory import read_memory
from qslm_edge.runner.observe import is_live
from qslm_edge.runner.power import (
    PRESETS,
    EnergyResult,
    ExternalMeter,
    PowerPlan,
    PowerSource,
    Unavailable,
    energy_dict,
    measure_energy,
    open_source,
)
from qslm_edge.runner.session import Session, import_onnxruntime, uses_gpu
from qslm_edge.runner.simulated import mark_source

__all__ = ["DecodeOptions", "energy_dict", "measure_decode"]

PROMPT_TOKENS = 16
WARMUP_STEPS = 8
PREFILL_CHUNK = 128


@dataclass(frozen=True)
class DecodeOptions:
    """What to measure.

    Attributes:
        threads: intra-op threads.
        provider: execution provider.
        steps: decode steps to time.
        prefill_tokens: tokens of the prefill measurement, 0 for none.
        power: "smoke", "release", or "off".
        power_source: interface named by the profile, or by the user.
        power_plan: what the profile says of power.
        power_marker: make a marker pulse for an external meter before the first run.
        only_source: the user named the interface: no other stands in.
        is_board: this host is the board of the profile.
        root: "/"; a folder with a recorded tree plays the board in a test.
    """

    threads: int = 1
    provider: str = "CPUExecutionProvider"
    steps: int = 256
    prefill_tokens: int = 512
    power: str = "smoke"
    power_source: str | None = None
    power_plan: PowerPlan | None = None
    power_marker: bool = False
    only_source: bool = False
    is_board: bool = False
    root: Path = Path("/")


class _Stream:
    """One stream of tokens through the session, whatever the head."""

    def __init__(self, session: Session, tokens: NDArray[np.int64]) -> None:
        self.session, self.tokens, self.position = session, tokens, 0
        self.state = session.initial_state(1)

    def feed(self, count: int) -> None:
        """Run the next `count` tokens; a language model gives the logits of the last."""
        taken = np.take(self.tokens, range(self.position, self.position + count), mode="wrap")[:, None]
        self.position += count
        if self.session.kind == "language_model":
            _, self.state = self.session.logits(taken, self.state, 1)
        else:
            _, _, self.state = self.session.pooled(taken, self.state, np.ones(taken.shape, np.float32))

    def run_for(self, seconds: float) -> int:
        """Decode for some seconds and return the exact number of tokens."""
        end, count = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            self.feed(1)
            count += 1
        return count


def measure_decode(
    bundle: Bundle, items: Items, options: DecodeOptions, note: Callable[[str], None]
) -> dict[str, Any]:
    """Load the bundle and measure it.

    Args:
        bundle: what to load; its files were checked before.
        items: token ids to feed.
        options: what to measure.
        note: told what is being done.

    Returns:
        JSON-able results: memory, latency, prefill, power.

    Raises:
        RuntimeFault: the runtime refuses or fails.
    """
    import_onnxruntime()  # so that `bare` holds the runtime's own libraries

    tokens = items.tokens[: max(4096, options.prefill_tokens)].astype(np.int64)
    bare = read_memory()
    note("loading")
    begun = time.perf_counter()
    session = Session(bundle, provider=options.provider, threads=options.threads)
    load_s = time.perf_counter() - begun
    loaded = read_memory()

    note("decoding")
    stream = _Stream(session, tokens)
    begun = time.perf_counter()
    stream.feed(PROMPT_TOKENS)
    first_s = time.perf_counter() - begun
    for _ in range(WARMUP_STEPS):
        stream.feed(1)
    steady = read_memory()

    prefill: dict[str, Any] = {"tokens": 0, "tokens_per_s": None, "reason": "not asked for"}
    if options.prefill_tokens:
        note("prefill")
        prefill = _prefill(session, tokens, options.prefill_tokens)
    after_prefill = read_memory()
    note("timing")
    samples, conditions = _timed(stream, options.steps, options.root)
    return {
        "session": session.describe(),
        "load_s": load_s,
        "memory": {
            "bare": bare.to_dict(),
            "loaded": loaded.to_dict(),
            "steady": steady.to_dict(),
            "decode_peak_rss_bytes": steady.peak_rss_bytes,
            "prefill_peak_rss_bytes": after_prefill.peak_rss_bytes,
            "method": "fresh process; VmHWM after load, prompt and warm-up steps with last-token logits, "
            "before prefill and the timed run",
        },
        "first_token": {
            "prompt_tokens": PROMPT_TOKENS,
            "seconds": first_s,
            "with_load_s": load_s + first_s,
            "method": "first run of the prompt in a fresh session; with_load adds the loading, not imports",
        },
        "latency": summarise_latency(samples).to_dict(),
        "latency_samples_s": samples,
        "prefill": prefill,
        "conditions": conditions,
        "energy": _energy(stream, options, note),
    }


def _timed(stream: _Stream, steps: int, root: Path) -> tuple[list[float], dict[str, Any]]:
    """Seconds of each step, and the conditions at both edges of the run."""
    before = read_conditions(root)
    for _ in range(WARMUP_STEPS):  # reading takes milliseconds, in which clocks and caches go back to rest
        stream.feed(1)
    samples: list[float] = []
    for _ in range(steps):
        begun = time.perf_counter()
        stream.feed(1)
        samples.append(time.perf_counter() - begun)
    after = read_conditions(root)
    return samples, {
        "before": before.to_dict(),
        "after": after.to_dict(),
        "flags": compare(before, after),
        "scope": "the edges of the timed decode run, read in the process that decodes",
    }


def _prefill(session: Session, tokens: NDArray[np.int64], count: int) -> dict[str, Any]:
    stream = _Stream(session, tokens)
    begun = time.perf_counter()
    for start in range(0, count, PREFILL_CHUNK):
        stream.feed(min(PREFILL_CHUNK, count - start))
    seconds = time.perf_counter() - begun
    return {"tokens": count, "tokens_per_s": count / seconds, "chunk": PREFILL_CHUNK, "seconds": seconds}


def _energy(stream: _Stream, options: DecodeOptions, note: Callable[[str], None]) -> dict[str, Any]:
    if options.power == "off":
        reason = "switched off (--power off)"
        return energy_dict([EnergyResult("unavailable", reason, {"name": "none", "reason": reason})])
    source = _power_source(options)
    phases = PRESETS[options.power]
    note("power")
    if not isinstance(source, PowerSource):
        if not options.power_marker:
            return energy_dict([measure_energy(source, stream.run_for, **phases.lengths())])
        source = ExternalMeter(source.reason)  # a marker is made for a meter that looks on
    try:
        results = [
            measure_energy(
                source, stream.run_for, **phases.lengths(), marker=options.power_marker and number == 0
            )
            for number in range(phases.repeats)
        ]
    finally:
        source.close()
    return energy_dict(results)


def _power_source(options: DecodeOptions) -> PowerSource | Unavailable:
    """The profile's source, or another of this host where this is a rehearsal."""
    gpu = uses_gpu(options.provider)
    if not is_live(options.root):
        source = open_source(
            options.power_source, options.root, plan=options.power_plan, use_gpu=gpu, only_preferred=True
        )
        return mark_source(source) if isinstance(source, PowerSource) else source
    if options.power_source == "nvml" and not gpu and not options.only_source:
        idle_gpu = Unavailable("nvml", "NVML reads the GPU board, and the bundle ran on the CPU")
        other = open_source(None, use_gpu=False)
        if isinstance(other, PowerSource):
            other.skipped = (idle_gpu, *other.skipped)
            return other
        return Unavailable("nvml", f"{idle_gpu.reason}; {other.reason}")
    return open_source(
        options.power_source,
        plan=options.power_plan,
        use_gpu=gpu,
        only_preferred=options.is_board or options.only_source,
    )
