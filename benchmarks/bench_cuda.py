"""Speed and energy of the step graph on an NVIDIA GPU, at the shape of SpikeGPT-216M with random packed weights.

What is timed is the product's own session: the exporter writes the two graphs over one weight file, `CudaSession` runs
them. For each number of streams: the time of a step with the output left on the GPU, that with the logits brought to
the host, and the energy of a token by the NVML counter and the protocol of `verify`. What the model says means nothing.
Without a GPU, or an onnxruntime without CUDA, it says so and ends.

    make bench BENCH=cuda
    .venv/bin/python benchmarks/bench_cuda.py --level 4g64 --streams 1 128 --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import RuntimeFault
from qslm_edge.exporters import ExportJob
from qslm_edge.exporters.onnx_exporter import OnnxExporter
from qslm_edge.quantize.levels import Level, Setting, parse_level
from qslm_edge.quantize.packed import PackedMatrix
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.runner.power import PRESETS, PowerSource, measure_energy, open_source
from qslm_edge.runner.runtime import import_onnxruntime
from qslm_edge.runner.sessions.base import SessionOptions
from qslm_edge.runner.sessions.cuda import CudaSession
from qslm_edge.runner.sessions.opening import CUDA
from qslm_edge.search.space import LevelMap
from qslm_edge.spikegpt import SpikeGPT, build_hierarchy
from qslm_edge.spikegpt.config import SpikeGPTConfig

SPREAD = 4.0
"""Standard deviations that the codes of a random matrix span."""


class RandomStore:
    """Random matrices at any level, in the packed form: quantising them would take minutes and change nothing.

    Args:
        config: sizes of the model.
    """

    def __init__(self, config: SpikeGPTConfig) -> None:
        self.hierarchy = build_hierarchy(config, "lm")
        self.model = SpikeGPT(config, _vectors(config))
        self.modules = {module.name: module for module in self.hierarchy.modules}

    def packed(self, name: str, level: Level) -> PackedMatrix:
        """A matrix; equal for equal names."""
        module = self.modules[name]
        rows, columns = module.rows, module.columns
        draw = np.random.default_rng(sorted(self.modules).index(name))
        deviation = 1.6 / np.sqrt(columns)
        if level.group_size is None:
            values = draw.standard_normal((rows, columns), np.float32) * np.float32(deviation)
            return PackedMatrix(module, level, values.astype(np.float32 if level.bits == 32 else np.float16))
        groups, bits = columns // level.group_size, level.bits
        codes = np.frombuffer(draw.bytes(rows * columns * bits // 8), np.uint8)
        shape = (rows, -1) if module.kind == "embedding" else (rows, groups, level.group_size * bits // 8)
        scales = np.full((rows, groups), SPREAD * deviation / 2**bits, np.float16)
        middle = {8: 0x80, 4: 0x88, 2: 0xAA}[bits]
        zeros = np.full((rows, -(-groups * bits // 8)), middle, np.uint8)
        return PackedMatrix(module, level, codes.reshape(shape), scales, None if level.midrise else zeros)


def _vectors(config: SpikeGPTConfig) -> dict[str, torch.Tensor]:
    """The tensors of a model that are no matrices."""
    draw, c = torch.Generator().manual_seed(0), config.n_embd
    found = {"blocks.0.ln0.weight": torch.ones(c), "blocks.0.ln0.bias": torch.zeros(c)}
    for layer in range(config.n_layer):
        base = f"blocks.{layer}"
        for norm in ("ln1", "ln2"):
            found[f"{base}.{norm}.weight"], found[f"{base}.{norm}.bias"] = torch.ones(c), torch.zeros(c)
        found[f"{base}.att.time_decay"] = torch.linspace(-5, 1, c)
        found[f"{base}.att.time_first"] = torch.full((c,), -1.2)
        for part, kinds in (("att", "kvr"), ("ffn", "kr")):
            for kind in kinds:
                found[f"{base}.{part}.time_mix_{kind}"] = torch.rand(1, 1, c, generator=draw)
    return found | {"ln_out.weight": torch.ones(c), "ln_out.bias": torch.zeros(c)}


def random_bundle(config: SpikeGPTConfig, level: str, folder: Path) -> Bundle:
    """Graphs and weights with as much of a manifest as a session reads."""
    store = RandomStore(config)
    setting: Setting = LevelMap(config).setting(store.hierarchy, parse_level(level))
    done = OnnxExporter().export(ExportJob(cast(WeightStore, store), setting, cuda=True), folder)
    return Bundle(
        folder,
        {
            "model": {"vocab_size": config.vocab_size},
            "state": {"n_embd": config.n_embd},
            "task": {"kind": "language_model"},
            "setting": setting.to_dict(),
            "runtime": {"onnxruntime_min": "1.18.1"},
            **done.parts,
        },
    )


class Streams:
    """Some streams decoding random tokens, with the state carried over."""

    def __init__(self, session: CudaSession, number: int, vocabulary: int) -> None:
        self.session, self.number = session, number
        self.tokens = np.random.default_rng(number).integers(0, vocabulary, (256, number), np.int64)
        self.state, self.position = session.initial_state(number), 0

    def advance(self, steps: int) -> None:
        """Steps whose output stays on the GPU."""
        places = np.arange(self.position, self.position + steps) % len(self.tokens)
        self.position += steps
        self.state = self.session.advance(self.tokens[places], self.state)

    def decode(self) -> None:
        """One step with its logits on the host."""
        self.position += 1
        row = self.tokens[self.position % len(self.tokens)][None]
        _, self.state = self.session.logits(row, self.state, 1)

    def run_for(self, seconds: float) -> int:
        """Steps for some seconds; the number of tokens."""
        end, count = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            self.advance(16)
            count += 16 * self.number
        return count


def measure(session: CudaSession, number: int, vocabulary: int, steps: int, source: Any) -> dict[str, Any]:
    """Medians of a step in seconds, and the energy of a token."""
    streams = Streams(session, number, vocabulary)
    streams.advance(32)
    device, host = [], []
    for _ in range(steps // 16):
        begun = time.perf_counter()
        streams.advance(16)
        device.append((time.perf_counter() - begun) / 16)
    for _ in range(steps // 4):
        begun = time.perf_counter()
        streams.decode()
        host.append(time.perf_counter() - begun)
    step_s = statistics.median(device)
    found: dict[str, Any] = {
        "streams": number,
        "step_s": step_s,
        "tokens_per_s": number / step_s,
        "step_with_logits_s": statistics.median(host),
        "tokens_per_s_with_logits": number / statistics.median(host),
        "energy": None,
        "energy_reason": None if isinstance(source, PowerSource) else str(getattr(source, "reason", source)),
    }
    if isinstance(source, PowerSource):
        result = measure_energy(source, streams.run_for, **PRESETS["smoke"].lengths())
        names = (
            "status",
            "reason",
            "gross_j_per_token",
            "net_j_per_token",
            "mean_w",
            "idle_w",
            "duration_s",
            "tokens",
        )
        found["energy"] = {name: getattr(result, name) for name in names}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--level", default="4g64")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--channels", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=50277)
    parser.add_argument("--steps", type=int, default=1024)
    parser.add_argument("--no-energy", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = SimpleNamespace(**vars(parser.parse_args()))
    if CUDA not in import_onnxruntime().get_available_providers():
        print(f"skipped: this onnxruntime has no {CUDA}")
        return
    size = (options.layers, options.channels, 4 * options.channels, options.vocabulary)
    config = SpikeGPTConfig(*size, "dense", ctx_len=1024, num_labels=None)
    source = "switched off" if options.no_energy else open_source("nvml", use_gpu=True, only_preferred=True)
    with tempfile.TemporaryDirectory(prefix="qslm-edge-") as folder:
        bundle = random_bundle(config, options.level, Path(folder))
        try:
            begun = time.perf_counter()
            session = CudaSession(bundle, SessionOptions(provider=CUDA))
        except RuntimeFault as fault:
            print(f"skipped: {fault.line()}")
            return
        load_s = time.perf_counter() - begun
        rows = [measure(session, n, options.vocabulary, options.steps, source) for n in options.streams]
        result = {"level": options.level, "load_s": load_s, "session": session.describe(), "rows": rows}
    if options.json:
        print(json.dumps(result))
        return
    for row in rows:
        energy = row["energy"]
        told = f"no energy: {row['energy_reason']}"
        if energy is not None and energy["gross_j_per_token"] is not None:
            told = f"{1e3 * energy['gross_j_per_token']:.3g} mJ/token at {energy['mean_w']:.0f} W"
        print(
            f"{options.level}, {row['streams']:4d} streams: {1e3 * row['step_s']:.3f} ms/step, "
            f"{row['tokens_per_s']:,.0f} tokens/s; with logits on the host {1e3 * row['step_with_logits_s']:.3f} ms; "
            f"{told}"
        )


if __name__ == "__main__":
    main()
