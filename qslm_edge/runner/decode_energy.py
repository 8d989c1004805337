"""Energy of decoding, in a process of its own: source, protocol, conditions, and what repeats say together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qslm_edge.bundle.reader import Bundle
from qslm_edge.items import Items
from qslm_edge.runner.clock_watch import ClockWatch, stored_samples
from qslm_edge.runner.condition_readers import Conditions
from qslm_edge.runner.conditions import compare, read_conditions
from qslm_edge.runner.observe import is_live
from qslm_edge.runner.power import (
    PRESETS,
    EnergyResult,
    ExternalMeter,
    PowerSource,
    Unavailable,
    energy_dict,
    measure_energy,
    open_source,
)
from qslm_edge.runner.sessions import load_library
from qslm_edge.runner.simulated import mark_source
from qslm_edge.runner.stream import PROMPT_TOKENS, DecodeOptions, Stream, load, stream_tokens

__all__ = ["measure_decode_energy", "no_energy"]


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
        if not options.power_marker:
            return no_energy(source.reason, source.name)
        source = ExternalMeter(source.reason)  # a marker is made for a meter that looks on
    try:
        load_library(options.session)
        tokens = stream_tokens(items)
        note("power")
        stream = Stream(load(bundle, options), tokens)
        stream.feed(PROMPT_TOKENS)
        phases = PRESETS[options.power]
        before = read_conditions(options.root)
        work = _Work(stream, options.session.uses_gpu, phases.run_s)
        results = [
            measure_energy(source, work, **phases.lengths(), marker=options.power_marker and number == 0)
            for number in range(phases.repeats)
        ]
    finally:
        source.close()
    after = read_conditions(options.root)
    conditions = {
        "before": before.to_dict(),
        "after": after.to_dict(),
        "clocks": [stored_samples(run) for run in work.samples],
        "flags": compare(before, after, work.samples),
        "scope": "before and after all phases; clocks during the windows that count",
    }
    return energy_dict(results) | {"conditions": conditions}


class _Work:
    """The workload of the protocol, which calls it for marker, warm-up and window.

    Attributes:
        samples: clocks of each window.
    """

    def __init__(self, stream: Stream, use_gpu: bool, window_s: float) -> None:
        self.samples: list[list[Conditions]] = []
        self._stream, self._use_gpu, self._window_s = stream, use_gpu, window_s

    def __call__(self, seconds: float) -> int:
        """Decode for some seconds; the number of tokens."""
        if seconds != self._window_s:
            return self._stream.run_for(seconds)
        with ClockWatch(use_gpu=self._use_gpu) as watch:
            count = self._stream.run_for(seconds)
        self.samples.append(watch.samples)
        return count


def _power_source(options: DecodeOptions) -> PowerSource | Unavailable:
    """The profile's source, or another of this host where this is a rehearsal."""
    gpu = options.session.uses_gpu
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


def no_energy(reason: str, name: str = "none") -> dict[str, Any]:
    """The result where nothing was measured."""
    nothing = EnergyResult("unavailable", reason, {"name": name, "reason": reason})
    return energy_dict([nothing]) | {"conditions": None}
