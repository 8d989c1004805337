"""The native GPU engine beside torch on the same weights: time and energy of a token, one stream and many.

Random 4-bit weights of the shape of SpikeGPT-216M go packed into the engine and, as the very same values in float16,
into torch: eager, eager in a CUDA graph, compiled and captured in a CUDA graph. All of them leave logits on the GPU and
are waited for after every token. Energy is the counter of NVML over --seconds. Ratios are printed as they come; JSON
with --output, written anew after each number of streams. torch.compile compiles half a minute for each on 16 cores; a
peer that torch cannot make is a row with the reason. Exit code 4 where there is no GPU.

    .venv/bin/python benchmarks/bench_gpu.py --output gpu.json       # needs an NVIDIA GPU, nvcc and torch with CUDA
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch_spikegpt import P_INIT, TorchModel, captured

from qslm_edge.errors import QslmError, RuntimeFault
from qslm_edge.runner.native.build import build
from qslm_edge.runner.native.interface import ABI, Layer, Library, Matrix, Spec

OURS = "native-cuda"
GAIN = 1.6
BITS, GROUP = 4, 64
SPREAD = 4.6
"""Standard deviation of a random 4-bit code."""
WARM_UP, RUNS = 30, 200
MATRICES = (
    *(("att_key", "cc"), ("att_value", "cc"), ("att_receptance", "cc"), ("att_output", "cc")),
    *(("ffn_key", "fc"), ("ffn_receptance", "cc"), ("ffn_value", "cf")),
)


class Packed:
    """A random matrix [rows, columns] in the bundle's layout; float16 scales.

    Args:
        planar: as the embedding, whose nibbles lie half a row apart.
    """

    def __init__(self, rng: np.random.Generator, rows: int, columns: int, planar: bool = False) -> None:
        self.rows, self.columns, self.planar = rows, columns, planar
        self.codes = rng.integers(0, 256, (rows, columns // 2), np.uint8)
        scale = np.float32(GAIN / columns**0.5 / SPREAD)
        kept = scale.view(np.uint32) & np.uint32(0xFFFF0000)  # eight significant bits
        self.scales = np.full((rows, columns // GROUP), kept.view(np.float32), np.float16)

    def describe(self) -> Matrix:
        return Matrix(
            rows=self.rows,
            columns=self.columns,
            bits=BITS,
            group=GROUP,
            scale_bits=16,
            float_activations=1,
            codes=self.codes.ctypes.data,
            scales=self.scales.ctypes.data,
        )

    def values(self) -> Tensor:
        """The weights in float16, on the GPU."""
        codes = torch.from_numpy(self.codes).cuda()
        planes = [codes & 15, codes >> 4]
        whole = torch.cat(planes, 1) if self.planar else torch.stack(planes, 2).flatten(1)
        scales = torch.from_numpy(self.scales).cuda().repeat_interleave(GROUP, 1)
        return ((whole.float() - 8) * scales.float()).half()


class Model:
    """Random weights of one shape, for the engine and for torch."""

    def __init__(self, layers: int, channels: int, vocabulary: int) -> None:
        rng = np.random.default_rng(0)
        self.layers, self.channels, self.vocabulary = layers, channels, vocabulary
        size = {"c": channels, "f": 4 * channels}
        self.ones, self.zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        self.first = np.full(channels, np.log(0.3), np.float32)
        self.decay = -np.exp(np.linspace(-5, 1, channels)).astype(np.float32)
        self.embedding = Packed(rng, vocabulary, channels, planar=True)
        self.head = Packed(rng, vocabulary, channels)
        self.matrices = [
            {name: Packed(rng, size[shape[0]], size[shape[1]]) for name, shape in MATRICES}
            for _ in range(layers)
        ]
        self.mixes: list[NDArray[np.float32]] = [rng.random((5, channels), np.float32) for _ in range(layers)]

    def in_torch(self) -> TorchModel:
        """The same in torch, on the GPU."""

        def vector(values: NDArray[np.float32]) -> Tensor:
            return torch.from_numpy(values).cuda()

        matrices = [{name: m.values() for name, m in layer.items()} for layer in self.matrices]
        mixes = [vector(mix) for mix in self.mixes]
        embedding, head = self.embedding.values(), self.head.values()
        return TorchModel(embedding, head, matrices, mixes, vector(self.first), vector(self.decay))

    def spec(self) -> tuple[Spec, Any]:
        """What the engine is told, and what must live as long."""

        def layer(matrices: dict[str, Packed], mixes: NDArray[np.float32]) -> Layer:
            return Layer(
                ln1_weight=self.ones.ctypes.data,
                ln1_bias=self.zeros.ctypes.data,
                ln2_weight=self.ones.ctypes.data,
                ln2_bias=self.zeros.ctypes.data,
                att_mix=mixes.ctypes.data,
                time_first=self.first.ctypes.data,
                decay=self.decay.ctypes.data,
                ffn_mix=mixes[3:].ctypes.data,
                **{name: matrix.describe() for name, matrix in matrices.items()},
            )

        layers = (Layer * self.layers)(*map(layer, self.matrices, self.mixes))
        spec = Spec(
            abi=ABI,
            n_layer=self.layers,
            n_embd=self.channels,
            vocab_size=self.vocabulary,
            threads=1,
            p_init=P_INIT,
            embedding=self.embedding.describe(),
            head=self.head.describe(),
            ln0_weight=self.ones.ctypes.data,
            ln0_bias=self.zeros.ctypes.data,
            ln_out_weight=self.ones.ctypes.data,
            ln_out_bias=self.zeros.ctypes.data,
            layers=layers,
        )
        return spec, layers


class EngineStep:
    """One token of some streams in the engine; logits stay on the GPU.

    Args:
        library: the engine.
        model: opened in it.
        tokens: ids, one a stream, the same at every call.
        vocabulary: size of the logits.
    """

    def __init__(self, library: Library, model: ctypes.c_void_p, tokens: Tensor, vocabulary: int) -> None:
        self._library, self._model, self._state = library, model, ctypes.c_void_p()
        library.call("qslm_state_new", model, len(tokens), ctypes.byref(self._state))
        self._ids = tokens.cpu().numpy()
        self.logits = torch.empty(len(tokens), vocabulary, device="cuda")

    def __call__(self) -> None:
        ids, out = self._ids.ctypes.data, self.logits.data_ptr()
        self._library.call("qslm_run", self._model, self._state, ids, 1, None, 1, out)

    def close(self) -> None:
        """Free the state."""
        self._library.free_state(self._state)


class Engine:
    """The native engine over a model."""

    def __init__(self, model: Model) -> None:
        self.backend = Library(build(cuda=True).path)
        spec, self._kept = model.spec()
        self._model, self._vocabulary = ctypes.c_void_p(), model.vocabulary
        self.backend.call("qslm_open", ctypes.byref(spec), ctypes.byref(self._model))

    def step(self, tokens: Tensor) -> EngineStep:
        """A step of streams that have seen nothing."""
        return EngineStep(self.backend, self._model, tokens, self._vocabulary)


def energy_counter() -> Callable[[], float]:
    """Joules that the board has taken since some moment, from NVML."""
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3


def measure(
    step: Callable[[], None], batch: int, seconds: float, joules: Callable[[], float]
) -> dict[str, float]:
    """Median time of a step that is waited for, and energy over some seconds of them."""

    def waited() -> None:
        step()
        torch.cuda.synchronize()

    for _ in range(WARM_UP):
        waited()
    times = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        waited()
        times.append(time.perf_counter() - begun)
    before, begun, steps = joules(), time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        waited()
        steps += 1
    elapsed, used = time.perf_counter() - begun, joules() - before
    return {
        "step_s": statistics.median(times),
        "tokens_per_s": batch * steps / elapsed,
        "energy_j_per_token": used / (batch * steps),
        "power_w": used / elapsed,
    }


def peers(
    model: TorchModel, tokens: Tensor, compile_too: bool
) -> dict[str, Callable[[], Callable[[], None]]]:
    """Steps of torch by name, each made when it is asked for."""

    def eager() -> Callable[[], None]:
        state = model.state(len(tokens))
        return lambda: void(model.forward(tokens, state))

    def graph() -> Callable[[], None]:
        return captured(model.forward, tokens, model.state(len(tokens)))

    def compiled() -> Callable[[], None]:
        torch._dynamo.reset()
        return captured(torch.compile(model.forward, fullgraph=True), tokens, model.state(len(tokens)))

    found = {"torch eager": eager, "torch in a CUDA graph": graph}
    return {**found, "torch.compile in a CUDA graph": compiled} if compile_too else found


def compared(found: dict[str, float], ours: dict[str, float] | None) -> dict[str, float]:
    """The figures with their ratios to the engine's; ours is None for the engine itself."""
    base = ours or found
    return {**found, **{f"{key}_ratio": found[key] / base[key] for key in ("step_s", "energy_j_per_token")}}


def print_row(name: str, found: dict[str, Any]) -> None:
    """One line."""
    if "unavailable" in found:
        print(f"  {name:30} unavailable: {found['unavailable']}", flush=True)
        return
    print(
        f"  {name:30} {found['step_s'] * 1e3:8.3f} ms/step {found['tokens_per_s']:10.0f} tokens/s"
        f" {found['energy_j_per_token'] * 1e3:9.3f} mJ/token {found['power_w']:5.0f} W"
        f"   {found['step_s_ratio']:6.2f} × time {found['energy_j_per_token_ratio']:6.2f} × energy",
        flush=True,
    )


def keep(step: EngineStep) -> Callable[[], None]:
    """The step as it is."""
    return step


def void(_: object) -> None:
    """Drop a result."""


def agreement(engine: Engine, torch_model: TorchModel, tokens: Tensor) -> float:
    """Mean KL divergence of the first token's distribution, torch to engine, in nats: the same model?"""
    step = engine.step(tokens)
    step()
    expected = torch_model.forward(tokens, torch_model.state(len(tokens))).float().log_softmax(-1)
    found = float(F.kl_div(step.logits.log_softmax(-1), expected, log_target=True, reduction="batchmean"))
    step.close()
    return found


def run(options: argparse.Namespace) -> None:
    """Everything, printed and written as it comes."""
    if not torch.cuda.is_available():
        raise RuntimeFault(
            "no NVIDIA GPU for torch",
            found=f"torch {torch.__version__}",
            hint="run it on a GPU with torch for CUDA",
        )
    joules, model = energy_counter(), Model(options.layers, options.channels, options.vocabulary)
    engine, torch_model = Engine(model), model.in_torch()
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "engine": engine.backend.describe(),
        "shape": [options.layers, options.channels, options.vocabulary],
        "batches": {},
    }
    print(f"{result['engine']}\n{result['device']}, torch {torch.__version__}")
    for batch in options.batch:
        tokens = torch.randint(0, options.vocabulary, (batch,), device="cuda")
        with torch.inference_mode():
            rows: dict[str, Any] = {"kl_nats": agreement(engine, torch_model, tokens)}
            print(f"\n{batch} streams; first token agrees to {rows['kl_nats']:.1e} nats")
            steps: dict[str, dict[str, Any]] = {}
            ours = engine.step(tokens)
            makers: dict[str, Callable[[], Callable[[], None]]] = {OURS: partial(keep, ours)}
            makers |= peers(torch_model, tokens, not options.skip_compile)
            for name, make in makers.items():
                try:
                    steps[name] = compared(measure(make(), batch, options.seconds, joules), steps.get(OURS))
                except RuntimeError as error:  # of torch; the engine's own are QslmErrors
                    steps[name] = {"unavailable": str(error).partition("\n")[0]}
                print_row(name, steps[name])
            ours.close()
        result["batches"][str(batch)] = {**rows, "steps": steps}
        if options.output:
            options.output.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 128], help="streams side by side")
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--channels", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=50277)
    parser.add_argument(
        "--seconds", type=float, default=6.0, help="length of an energy measurement (5 or more)"
    )
    parser.add_argument(
        "--skip-compile", action="store_true", help="leave torch.compile out: it takes half a minute"
    )
    parser.add_argument("--output", type=Path, help="file for the result as JSON")
    options = parser.parse_args()
    try:
        run(options)
    except QslmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
