"""Energy of decoding, in a process of its own: source, protocol, conditions, and what repeats say together."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from qslm_edge.bundle.reader import Bundle
from qslm_edge.items import Items
from qslm_edge.runner.clock_watch import ClockWatch, stored_samples
from qslm_edge.runner.condition_readers import Conditions
from qslm_edge.runner.conditions import compare, read_conditions
from qslm_edge.runner.power import (
    PRESETS,
    EnergyResult,
    PowerSource,
    Unavailable,
    measure_energy,
    open_source,
    summarise_repeats,
)
from qslm_edge.runner.session import import_onnxruntime, uses_gpu
from qslm_edge.runner.stream import PROMPT_TOKENS, DecodeOptions, Stream, load, stream_tokens

__all__ = ["energy_dict", "measure_decode_energy", "no_energy"]


def measure_decode_energy(
    bundle: Bundle, items: Items, options: DecodeOptions, note: Callable[[str], None]
) -> dict[str, Any]:
    """Load the bundle and measure the energy of its decoding by the protocol.

    Args:
        bundle: what to load; its files were checked before.
        items: token ids to feed.
        options: how.
        note: told what is being done.

    Returns:
        JSON-able: energy with every reading and the conditions of its runs; where no source can be read, why.

    Raises:
        RuntimeFault: the runtime refuses or fails.
    """
    source = _power_source(options)
    if not isinstance(source, PowerSource):
        return no_energy(source.reason, source.name)
    try:
        import_onnxruntime()
        tokens = stream_tokens(items)
        note("power")
        stream = Stream(load(bundle, options), tokens)
        stream.feed(PROMPT_TOKENS)
        phases = PRESETS[options.power]
        before, work = read_conditions(), _Work(stream, uses_gpu(options.provider))
        results = [measure_energy(source, work, **phases.lengths()) for _ in range(phases.repeats)]
    finally:
        source.close()
    after = read_conditions()
    conditions = {
        "before": before.to_dict(),
        "after": after.to_dict(),
        "clocks": [stored_samples(run) for run in work.samples],
        "flags": compare(before, after, work.samples),
        "scope": "before and after all phases; clocks during the windows that count",
    }
    return energy_dict(results) | {"conditions": conditions}


class _Work:
    """The workload of the protocol, which calls it for the warm-up and for the window, in turn.

    Attributes:
        samples: clocks of each window.
    """

    def __init__(self, stream: Stream, use_gpu: bool) -> None:
        self.samples: list[list[Conditions]] = []
        self._stream, self._use_gpu, self._calls = stream, use_gpu, 0

    def __call__(self, seconds: float) -> int:
        """Decode for some seconds; the number of tokens."""
        self._calls += 1
        if self._calls % 2:
            return self._stream.run_for(seconds)
        with ClockWatch(use_gpu=self._use_gpu) as watch:
            count = self._stream.run_for(seconds)
        self.samples.append(watch.samples)
        return count


def _power_source(options: DecodeOptions) -> PowerSource | Unavailable:
    """The profile's source, or another of this host where this is a rehearsal."""
    gpu = uses_gpu(options.provider)
    if options.power_source == "nvml" and not gpu:
        idle_gpu = Unavailable("nvml", "NVML reads the GPU board, and the bundle ran on the CPU")
        other = open_source(None, use_gpu=False)
        if isinstance(other, PowerSource):
            other.skipped = (idle_gpu, *other.skipped)
            return other
        return Unavailable("nvml", f"{idle_gpu.reason}; {other.reason}")
    return open_source(options.power_source, use_gpu=gpu, only_preferred=options.is_board)


def no_energy(reason: str, name: str = "none") -> dict[str, Any]:
    """The result where nothing was measured."""
    nothing = EnergyResult("unavailable", reason, {"name": name, "reason": reason})
    return energy_dict([nothing]) | {"conditions": None}


def energy_dict(results: Sequence[EnergyResult]) -> dict[str, Any]:
    """One or more energy runs as JSON: every run with its readings, and above them what they say together.

    Together: energy a token and powers are means over the runs; tokens, seconds, joules and readings are sums;
    peak and edge error are the largest. When one run has no valid window, status and reason are its, and there
    is no figure.
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


_SUMS = ("tokens", "duration_s", "energy_j", "net_energy_j", "n_samples")
_MEANS = ("gross_j_per_token", "net_j_per_token", "mean_w", "idle_w", "idle_noise_w", "idle_after_w")
_LARGEST = ("peak_w", "edge_error_j")
