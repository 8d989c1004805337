"""The native GPU engine beside torch on the same weights: time and energy of a token, one stream and many.

Random 4-bit weights of the shape of SpikeGPT-216M go packed into the engine and, as the very same values in float16,
into torch: eager, eager in a CUDA graph, compiled and captured in a CUDA graph. All of them leave logits on the GPU and
are waited for after every token. Energy is the counter of NVML over --seconds. Ratios are printed; JSON with --output.

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
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from qslm_edge.errors import QslmError, RuntimeFault
from qslm_edge.runner.native.build import build
from qslm_edge.runner.native.interface import ABI, Layer, Library, Matrix, Spec

GAIN = 1.6
BITS, GROUP = 4, 64
SPREAD = 4.6
"""Standard deviation of a random 4-bit code."""
P_INIT = -1e38
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
            {name: Packed(rng, size[shape[0]], size[shape[1]]) for name, shape in MATRICES} for _ in range(layers)
        ]
        self.mixes: list[NDArray[np.float32]] = [
            rng.random((5, channels), np.float32) for _ in range(layers)
        ]

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


class Engine:
    """The native engine over a model, as a step that leaves logits on the GPU."""

    def __init__(self, model: Model) -> None:
        self.library = Library(build(cuda=True).path)
        spec, self._kept = model.spec()
        self._model, self._vocabulary = ctypes.c_void_p(), model.vocabulary
        self.library.call("qslm_open", ctypes.byref(spec), ctypes.byref(self._model))

    def step(self, tokens: Tensor) -> tuple[Callable[[], None], Tensor]:
        batch = len(tokens)
        state = ctypes.c_void_p()
        self.library.call("qslm_state_new", self._model, batch, ctypes.byref(state))
        ids, logits = tokens.cpu().numpy().copy(), torch.empty(batch, self._vocabulary, device="cuda")
        place, out = ids.ctypes.data, logits.data_ptr()

        def run(_: Any = ids) -> None:  # the ids live as long as the step
            self.library.call("qslm_run", self._model, state, place, 1, None, 1, out)

        return run, logits


class TorchModel:
    """The same model in torch: float16 matrices, float32 state and elementwise operations, state in place."""

    def __init__(self, model: Model) -> None:
        def vector(values: NDArray[np.float32]) -> Tensor:
            return torch.from_numpy(values).cuda()

        self.channels = model.channels
        self.embedding, self.head = model.embedding.values(), model.head.values()
        self.matrices = [{name: m.values() for name, m in layer.items()} for layer in model.matrices]
        self.mixes = [vector(mix) for mix in model.mixes]
        self.first, self.decay = vector(model.first), vector(model.decay)

    def state(self, batch: int) -> Tensor:
        state = torch.zeros(len(self.matrices), 7, batch, self.channels, device="cuda")
        state[:, 4] = P_INIT
        return state

    def forward(self, tokens: Tensor, state: Tensor) -> Tensor:
        """Logits of one token a stream; the state [L, 7, B, C] is moved on in place."""

        def product(x: Tensor, weight: Tensor) -> Tensor:
            return F.linear(x.half(), weight).float()

        def norm(x: Tensor) -> Tensor:
            return F.layer_norm(x, (self.channels,))

        def spikes(current: Tensor, membrane: Tensor) -> Tensor:
            u = membrane + (current - membrane) * 0.5
            fired = u >= 1
            membrane.copy_(torch.where(fired, 0.0, u))
            return fired.float()

        x = norm(F.embedding(tokens, self.embedding).float())
        for layer, (w, mix) in enumerate(zip(self.matrices, self.mixes, strict=True)):
            att_x, ffn_x, a, b, p, v1, v2 = state[layer]
            h = norm(x)
            k, v, r = (
                product(h * mix[i] + att_x * (1 - mix[i]), w[name])
                for i, name in enumerate(("att_key", "att_value", "att_receptance"))
            )
            att_x.copy_(h)
            uk = k + self.first
            q = torch.maximum(p, uk)
            e1, e2 = torch.exp(p - q), torch.exp(uk - q)
            y = (e1 * a + e2 * v) / (e1 * b + e2)
            pw = p + self.decay
            q = torch.maximum(pw, k)
            e1, e2 = torch.exp(pw - q), torch.exp(k - q)
            a.copy_(e1 * a + e2 * v)
            b.copy_(e1 * b + e2)
            p.copy_(q)
            x = x + spikes(product(torch.sigmoid(r) * y, w["att_output"]), v1)
            h = norm(x)
            hidden = product(h * mix[3] + ffn_x * (1 - mix[3]), w["ffn_key"])
            gate = torch.sigmoid(product(h * mix[4] + ffn_x * (1 - mix[4]), w["ffn_receptance"]))
            ffn_x.copy_(h)
            x = x + spikes(gate * product(torch.relu(hidden).square(), w["ffn_value"]), v2)
        return F.linear(norm(x).half(), self.head)


def captured(forward: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, state: Tensor) -> Callable[[], None]:
    """The step as a CUDA graph, after a warm-up on a stream of its own as torch asks for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            forward(tokens, state)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward(tokens, state)
    return lambda: graph.replay()


def energy_counter() -> Callable[[], float]:
    """Joules that the board has taken since some moment, from NVML."""
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3


def measure(step: Callable[[], None], batch: int, seconds: float, joules: Callable[[], float]) -> dict[str, float]:
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


def peers(model: TorchModel, tokens: Tensor, compile_too: bool) -> dict[str, Callable[[], Callable[[], None]]]:
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


def void(_: object) -> None:
    """Drop a result."""


def agreement(engine: Engine, torch_model: TorchModel, tokens: Tensor) -> float:
    """Mean KL divergence of the first token's distribution, torch to engine, in nats: the same model?"""
    run, logits = engine.step(tokens)
    run()
    expected = torch_model.forward(tokens, torch_model.state(len(tokens))).float().log_softmax(-1)
    return float(F.kl_div(logits.log_softmax(-1), expected, log_target=True, reduction="batchmean"))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, printed as it comes."""
    if not torch.cuda.is_available():
        raise RuntimeFault(
            "no NVIDIA GPU for torch", found=f"torch {torch.__version__}", hint="run it on a GPU with torch for CUDA"
        )
    joules, model = energy_counter(), Model(options.layers, options.channels, options.vocabulary)
    engine, torch_model = Engine(model), TorchModel(model)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "engine": engine.library.describe(),
        "shape": [options.layers, options.channels, options.vocabulary],
        "batches": {},
    }
    print(f"{result['engine']}\n{result['device']}, torch {torch.__version__}")
    for batch in options.batch:
        tokens = torch.randint(0, options.vocabulary, (batch,), device="cuda")
        with torch.inference_mode():
            rows: dict[str, Any] = {"kl_nats": agreement(engine, torch_model, tokens)}
            print(f"\n{batch} streams; first token agrees to {rows['kl_nats']:.1e} nats")
            ours = measure(engine.step(tokens)[0], batch, options.seconds, joules)
            steps = {"native-cuda": ours}
            for name, make in peers(torch_model, tokens, not options.skip_compile).items():
                steps[name] = measure(make(), batch, options.seconds, joules)
        for name, found in steps.items():
            found["time_ratio"] = found["step_s"] / ours["step_s"]
            found["energy_ratio"] = found["energy_j_per_token"] / ours["energy_j_per_token"]
            print(
                f"  {name:30} {found['step_s'] * 1e3:8.3f} ms/step {found['tokens_per_s']:10.0f} tokens/s"
                f" {found['energy_j_per_token'] * 1e3:9.3f} mJ/token {found['power_w']:5.0f} W"
                f"   {found['time_ratio']:6.2f} × time {found['energy_ratio']:6.2f} × energy"
            )
        result["batches"][str(batch)] = {**rows, "steps": steps}
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 128], help="streams side by side")
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--channels", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=50277)
    parser.add_argument("--seconds", type=float, default=6.0, help="length of an energy measurement (5 or more)")
    parser.add_argument("--skip-compile", action="store_true", help="leave torch.compile out: it takes a minute")
    parser.add_argument("--output", type=Path, help="file for the result as JSON")
    options = parser.parse_args()
    try:
        result = run(options)
    except QslmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
