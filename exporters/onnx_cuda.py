"""The step graph for onnxruntime's CUDA provider: one token of every stream, over the weights of the portable graph.

A step on a GPU is a chain of kernels that each take a microsecond or two whatever they compute, so their number is what
counts. The state therefore holds what a step left behind (inputs, currents, sums) and not what the next one needs: the
update of all layers is one chain of stacked operations at the start of a step, and a layer keeps only what must wait
for the layer before it. WKV is held as the mean m = a / b and the logarithm s = p + ln b, of which a step needs

    y  = v + sigmoid(s - u - k) (m - v)          with k, v of this token, u time_first, w = -exp(time_decay)
    m' = v + sigmoid(s + w - k) (m - v)
    s' = k + softplus(s + w - k)

A spike is a HardSigmoid so steep that no number lies on its slope. Activations are float16, sums float32. Every node
has a CUDA kernel, there is no Scan, and no Concat or Split is wider than a CUDA graph can capture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from qslm_edge.exporters.onnx_cuda_embedding import embed
from qslm_edge.exporters.onnx_graph import MICROSOFT, Graph, WeightFile
from qslm_edge.exporters.onnx_spikegpt import EPSILON
from qslm_edge.quantize.levels import Setting
from qslm_edge.quantize.packed import PackedMatrix
from qslm_edge.quantize.weights import WeightStore

__all__ = ["FUSED_MINIMUM", "PLAIN_MINIMUM", "STATES", "CudaStepGraph", "StateTensor"]

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
PLAIN_MINIMUM, FUSED_MINIMUM = "1.18.1", "1.31.0"
"""First onnxruntime that loads the opset; first with GatedAdd on CUDA, which is x + gate * y in one kernel."""
MAX_PARTS = 32
ROW_BLOCK = 8
"""Rows that one block of the kernel for a single stream computes: other numbers of rows miss it."""
NEVER = -30000.0
"""Logarithm of a sum of nothing: far below every key, and a float16."""
KINDS = {"att": "kvr", "ffn": "kr"}


@dataclass(frozen=True)
class StateTensor:
    """One tensor [L, B, C] of the state, and what it holds before the first token.

    Attributes:
        name: of the input; the output has `_out` behind it.
        start: initial value.
        wide: float32 whatever the activations are.
    """

    name: str
    start: float
    wide: bool = False


STATES = (
    *(
        StateTensor("att_x", 0.0),
        StateTensor("ffn_x", 0.0),
        StateTensor("key", NEVER),
        StateTensor("value", 0.0),
    ),
    *(StateTensor("log_sum", NEVER, wide=True), StateTensor("mean", 0.0, wide=True)),
    *(StateTensor("att_z", 0.0), StateTensor("ffn_z", 0.0)),
)
"""Of each layer: normalised inputs, key and value of the last token; sum and mean of those before it; twice the
membranes as the last token left them, before a spike empties them."""


class CudaStepGraph:
    """Builds the step graph of one model under one setting.

    Args:
        store: the model's matrices at any level.
        setting: a level for every module.
        weights: external data file, into which the portable graph was written before.
        fused: use GatedAdd.
        half: float16 activations; False computes in float32, which a test can hold against the portable graph.
    """

    def __init__(
        self, store: WeightStore, setting: Setting, weights: WeightFile, *, fused: bool, half: bool = True
    ) -> None:
        self.store, self.setting, self.fused, self.half = store, setting, fused, half
        self.config = store.model.config
        self.graph = Graph(weights)
        self.dtype: Any = np.float16 if half else np.float32

    def build(self, opset: int, ir_version: int, metadata: dict[str, str]) -> onnx.ModelProto:
        """The whole model."""
        g, c, layers = self.graph, self.config.n_embd, self.config.n_layer
        embedded = embed(g, self.store.packed("emb", self.setting["emb"]), self.config, "tokens")
        x = self._narrow(self._norm(embedded, embedded, "blocks.0.ln0", wide=True)[0], "blocks.0.x")
        before = self._before()
        spikes: str | None = None
        after: dict[str, list[str]] = {}
        for layer in range(layers):
            own = {name: values[layer] for name, values in before.items()}
            x, spikes, new = self._block(layer, x, spikes, own)
            for name, value in new.items():
                after.setdefault(name, []).append(value)
        if spikes is None:
            raise ValueError("a SpikeGPT has at least one block")
        for name, values in after.items():
            self._stack(values, f"{name}_out")
        features, _ = self._norm(x, spikes, "ln_out", residual=False)
        if self.store.hierarchy.head == "lm":
            output, width, values_name = "logits", self.config.vocab_size, self._linear("head", features)
        else:
            output, width, values_name = "features", c, features
        g.node("Cast", [values_name], [output], name=f"{output}.float", to=FLOAT)

        def described(state: StateTensor, name: str) -> onnx.ValueInfoProto:
            kind = HALF if self.half and not state.wide else FLOAT
            return onnx.helper.make_tensor_value_info(name, kind, [layers, "B", c])

        tokens = onnx.helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, "B"], "one id a stream")
        return g.model(
            "spikegpt-step",
            [tokens, *(described(state, state.name) for state in STATES)],
            [
                onnx.helper.make_tensor_value_info(output, FLOAT, [1, "B", width]),
                *(described(state, f"{state.name}_out") for state in STATES),
            ],
            opset=opset,
            ir_version=ir_version,
            metadata=metadata,
        )

    # ---- all layers at once, before the first

    def _before(self) -> dict[str, list[str]]:
        """What each layer needs of the tokens before, from the state: by name, one value a layer."""
        g = self.graph
        key, value = self._widen("key", "key.float"), self._widen("value", "value.float")
        aged = g.one("Add", ["log_sum", self._vectors("decay")], name="wkv.aged")
        lead = g.one("Sub", [aged, key], name="wkv.lead")
        keep = g.one("Sigmoid", [lead], name="wkv.keep")
        kept = g.one("Mul", [keep, g.one("Sub", ["mean", value], name="wkv.apart")], name="wkv.kept")
        g.node("Add", [value, kept], ["mean_out"], name="wkv.mean")
        g.node("Add", [key, g.one("Softplus", [lead], name="wkv.grown")], ["log_sum_out"], name="wkv.log_sum")
        rival = g.one("Sub", ["log_sum_out", self._vectors("time_first")], name="wkv.rival")
        found = {
            "rival": self._unstack(self._narrow(rival, "wkv.rival_half"), "rival"),
            "mean": self._unstack(self._narrow("mean_out", "wkv.mean_half"), "mean"),
        }
        for part in KINDS:
            below = g.one("Less", [f"{part}_z", g.constant(2.0, self.dtype)], name=f"{part}.below")
            left = g.one("Where", [below, f"{part}_z", g.constant(0.0, self.dtype)], name=f"{part}.left")
            membrane = g.one("Mul", [left, g.constant(0.5, self.dtype)], name=f"{part}.membrane")
            found[f"{part}_v"] = self._unstack(membrane, f"{part}_v")
        for part in KINDS:
            self._shifted(part, found)
        return found

    def _shifted(self, part: str, found: dict[str, list[str]]) -> None:
        """Add (1 - m) times the input of the token before, and, for GatedAdd, m for every stream."""
        g, c, layers, kinds = self.graph, self.config.n_embd, self.config.n_layer, KINDS[part]
        parts = [
            g.one(
                "Reshape",
                [g.stored(f"blocks.{i}.{part}.mix"), g.constant([1, len(kinds), 1, c])],
                name=f"blocks.{i}.{part}.mix_row",
            )
            for i in range(layers)
        ]
        # [L, kinds, 1, C]; folded when the model loads
        mix = g.one("Concat", parts, name=f"{part}.mixes", axis=0)
        unmix = g.one("Sub", [g.constant(1.0, np.float32), mix], name=f"{part}.unmix")
        rows = g.one("Unsqueeze", [f"{part}_x", g.constant([1])], name=f"{part}.x_rows")
        before = g.one("Mul", [rows, self._narrow(unmix, f"{part}.unmix_half")], name=f"{part}.before")
        self._by_kind(before, f"{part}_before", kinds, found)
        if (
            self.fused
        ):  # a constant 1 of the shape of the state: a factor for every stream without knowing their number
            ones = g.one("HardSigmoid", [rows], name=f"{part}.ones", alpha=0.0, beta=1.0)
            factors = g.one("Mul", [ones, self._narrow(mix, f"{part}.mix_half")], name=f"{part}.factors")
            self._by_kind(factors, f"{part}_mix", kinds, found)

    def _by_kind(self, x: str, name: str, kinds: str, found: dict[str, list[str]]) -> None:
        """Take [L, kinds, B, C] apart: [1, B, C] by kind where each is used alone, else [kinds, B, C]."""
        g, c, layers = self.graph, self.config.n_embd, self.config.n_layer
        flat = g.one("Reshape", [x, g.constant([layers * len(kinds), -1, c])], name=f"{name}.flat")
        if not self.fused:
            found[name] = self._unstack(flat, name, rows=len(kinds))
            return
        single = self._unstack(flat, name, parts=layers * len(kinds))
        for place, kind in enumerate(kinds):
            found[f"{name}_{kind}"] = single[place :: len(kinds)]

    # ---- one layer

    def _block(
        self, layer: int, x: str, spikes: str | None, own: dict[str, str]
    ) -> tuple[str, str, dict[str, str]]:
        """Residual stream, the spikes still to be added to it, and what the state keeps of this layer."""
        g, att, ffn = self.graph, f"blocks.{layer}.att", f"blocks.{layer}.ffn"
        new: dict[str, str] = {}
        if spikes is None:
            h, _ = self._norm(x, x, f"blocks.{layer}.ln1")
        else:
            h, x = self._norm(x, spikes, f"blocks.{layer}.ln1")
        new["att_x"] = h
        xk, xv, xr = self._mixed("att", att, h, own)
        new["key"] = key = self._linear(f"{att}.key", xk)
        new["value"] = value = self._linear(f"{att}.value", xv)
        keep = g.one("Sigmoid", [g.one("Sub", [own["rival"], key], name=f"{att}.lead")], name=f"{att}.keep")
        apart = g.one("Sub", [own["mean"], value], name=f"{att}.apart")
        y = self._plus_gated(value, keep, apart, f"{att}.y")
        gate = g.one("Sigmoid", [self._linear(f"{att}.receptance", xr)], name=f"{att}.gate")
        current = self._linear(f"{att}.output", g.one("Mul", [gate, y], name=f"{att}.gated"))
        new["att_z"] = z = g.one("Add", [current, own["att_v"]], name=f"{att}.z")

        h, x = self._norm(x, self._spikes(z, att), f"blocks.{layer}.ln2")
        new["ffn_x"] = h
        xk, xr = self._mixed("ffn", ffn, h, own)
        key = self._linear(f"{ffn}.key", xk)
        squared = g.one("Mul", [g.one("Relu", [key], name=f"{ffn}.relu"), key], name=f"{ffn}.squared")
        gate = g.one("Sigmoid", [self._linear(f"{ffn}.receptance", xr)], name=f"{ffn}.gate")
        current = self._linear(f"{ffn}.value", squared)
        new["ffn_z"] = z = self._plus_gated(own["ffn_v"], gate, current, f"{ffn}.z")
        return x, self._spikes(z, ffn), new

    def _mixed(self, part: str, base: str, h: str, own: dict[str, str]) -> list[str]:
        """h*m + hp*(1-m) of each kind, [1, B, C]."""
        g, c, kinds = self.graph, self.config.n_embd, KINDS[part]
        names = [f"{base}.x{kind}" for kind in kinds]
        if self.fused:
            return [
                self._plus_gated(own[f"{part}_before_{kind}"], own[f"{part}_mix_{kind}"], h, name)
                for kind, name in zip(kinds, names, strict=True)
            ]
        mix = self._narrow(g.stored(f"{base}.mix"), f"{base}.mix_half")
        row = g.one("Reshape", [mix, g.constant([len(kinds), 1, c])], name=f"{base}.mix_rows")
        now = g.one("Mul", [h, row], name=f"{base}.now")
        mixed = g.one("Add", [now, own[f"{part}_before"]], name=f"{base}.mixed")
        return g.node("Split", [mixed], names, name=f"{base}.split", axis=0, num_outputs=len(kinds))

    def _plus_gated(self, x: str, gate: str, y: str, name: str) -> str:
        """x + gate * y, all [1, B, C]."""
        g = self.graph
        if not self.fused:
            return g.one("Add", [x, g.one("Mul", [gate, y], name=f"{name}.part")], name=name)
        # GatedAdd has one gate a row: rows of one number
        column = g.constant([-1, 1])
        flat = [
            g.one("Reshape", [v, column], name=f"{name}.{i}")
            for i, v in zip("xyg", (x, y, gate), strict=True)
        ]
        total = g.one("GatedAdd", flat, name=f"{name}.sum", domain=MICROSOFT)
        return g.one("Reshape", [total, g.constant([1, -1, self.config.n_embd])], name=name)

    def _spikes(self, z: str, base: str) -> str:
        """1 where z, twice the membrane, reaches 2, else 0: the slope lies between 2 and the number below it."""
        steps = 2.0**10 if self.half else 2.0**23
        return self.graph.one("HardSigmoid", [z], name=f"{base}.spikes", alpha=steps, beta=1 - 2 * steps)

    def _norm(
        self, x: str, skip: str, name: str, *, residual: bool = True, wide: bool = False
    ) -> tuple[str, str]:
        """LayerNorm(x + skip), and x + skip; with skip = x LayerNorm(x), whose own kernel takes twice as long."""
        outputs = [name, "", "", f"{name}.residual"] if residual and skip != x else [name]
        weights = [self.graph.stored(f"{name}.{part}") for part in ("weight", "bias")]
        if not wide:
            weights = [self._narrow(weight, f"{weight}_half") for weight in weights]
        self.graph.node(
            "SkipLayerNormalization",
            [x, skip, *weights],
            outputs,
            name=name,
            domain=MICROSOFT,
            epsilon=EPSILON * (4 if skip == x else 1),
        )
        return name, outputs[-1]

    # ---- matrices

    def _linear(self, module: str, x: str) -> str:
        """One matrix product: float16 where its stored form is exact in it, else float32."""
        g, packed = self.graph, self.store.packed(module, self.setting[module])
        level, name = packed.level, f"{module}.output"
        narrow = self.half and (
            level.bits == 16 or (packed.scales is not None and packed.scales.dtype == np.float16)
        )
        if self.half and not narrow:
            x = g.one("Cast", [x], name=f"{module}.input", to=FLOAT)
        product = name if narrow or not self.half else f"{module}.product"
        if level.is_float:
            weight = g.stored(f"{module}.weight")
            if level.bits == 16 and not narrow:
                weight = g.one("Cast", [weight], name=f"{module}.float", to=FLOAT)
            g.node("MatMul", [x, weight], [product], name=module)
        else:
            whole = packed.module.rows // ROW_BLOCK * ROW_BLOCK
            ends = (
                [0, whole, packed.module.rows] if 0 < whole < packed.module.rows else [0, packed.module.rows]
            )
            spans = list(pairwise(ends))
            names = [product] if len(spans) == 1 else [f"{module}.rows{start}" for start, _ in spans]
            for span, output in zip(spans, names, strict=True):
                self._rows(packed, span, x, output, narrow)
            if len(names) > 1:
                g.node("Concat", names, [product], name=f"{module}.joined", axis=-1)
        return g.one("Cast", [product], name=name, to=HALF) if product != name else name

    def _rows(self, packed: PackedMatrix, span: tuple[int, int], x: str, output: str, narrow: bool) -> None:
        """Product with some rows of a packed matrix."""
        g, module, level = self.graph, packed.module, packed.level
        codes, scales = (g.stored(f"{module.name}.{part}", span) for part in ("codes", "scales"))
        if packed.scales is not None and packed.scales.dtype == np.float16 and not narrow:
            scales = g.one("Cast", [scales], name=f"{output}.scales_float", to=FLOAT)
        zeros = [] if packed.zeros is None else [g.stored(f"{module.name}.zeros", span)]
        product = f"{output}.whole_steps" if level.midrise else output
        g.node(
            "MatMulNBits",
            [x, codes, scales, *zeros],
            [product],
            name=f"{output}.matmul",
            domain=MICROSOFT,
            K=module.columns,
            N=span[1] - span[0],
            bits=level.bits,
            block_size=level.group_size,
            accuracy_level=level.accuracy_level,
        )
        if level.midrise:
            half_steps = self._half_steps(packed, x, scales, output, narrow)
            g.node("Add", [product, half_steps], [output], name=f"{output}.sum")

    def _half_steps(self, packed: PackedMatrix, x: str, scales: str, name: str, narrow: bool) -> str:
        """Half a scale times the block sums of x: what mid-rise values add to codes minus 2^(bits - 1)."""
        g, groups = self.graph, packed.module.columns // (packed.level.group_size or 1)
        blocks = g.one("Reshape", [x, g.constant([0, 0, groups, -1])], name=f"{name}.blocks")
        sums = g.one("ReduceSum", [blocks, g.constant([-1])], name=f"{name}.block_sums", keepdims=0)
        # folded when the model loads
        wide = g.one("Cast", [scales], name=f"{name}.scales_wide", to=FLOAT) if narrow else scales
        columns = g.one("Transpose", [wide], name=f"{name}.scale_columns", perm=[1, 0])
        halves = g.one("Mul", [columns, g.constant(0.5, np.float32)], name=f"{name}.half_scales")
        halves = g.one("Cast", [halves], name=f"{name}.halves", to=HALF) if narrow else halves
        return g.one("MatMul", [sums, halves], name=f"{name}.half_steps")

    # ---- pieces

    def _vectors(self, name: str) -> str:
        """A vector of the attention parts of all layers, [L, 1, C] float32; folded when the model loads."""
        g = self.graph
        shape = g.constant([1, 1, self.config.n_embd])
        sources = [g.stored(f"blocks.{i}.att.{name}") for i in range(self.config.n_layer)]
        return g.one(
            "Concat",
            [g.one("Reshape", [v, shape], name=f"{v}_row") for v in sources],
            name=f"{name}.all",
            axis=0,
        )

    def _narrow(self, x: str, name: str) -> str:
        return self.graph.one("Cast", [x], name=name, to=HALF) if self.half else x

    def _widen(self, x: str, name: str) -> str:
        return self.graph.one("Cast", [x], name=name, to=FLOAT) if self.half else x

    def _stack(self, names: Sequence[str], output: str) -> None:
        """Concat along the layers."""
        if len(names) > MAX_PARTS:
            names = [
                self.graph.one("Concat", names[i : i + MAX_PARTS], name=f"{output}.from{i}", axis=0)
                for i in range(0, len(names), MAX_PARTS)
            ]
        self.graph.node("Concat", names, [output], name=f"{output}.concat", axis=0)

    def _unstack(self, x: str, name: str, *, rows: int = 1, parts: int | None = None) -> list[str]:
        """Split along the first axis into `parts` of `rows` each; by default one part a layer."""
        total = self.config.n_layer if parts is None else parts
        names = [f"{name}.{i}" for i in range(total)]
        groups = [names[i : i + MAX_PARTS] for i in range(0, total, MAX_PARTS)]
        pieces = [x] if len(groups) == 1 else [f"{name}.group{i}" for i in range(len(groups))]
        if len(groups) > 1:
            self._split(x, pieces, [rows * len(group) for group in groups])
        for piece, group in zip(pieces, groups, strict=True):
            self._split(piece, group, [rows] * len(group))
        return names

    def _split(self, x: str, outputs: Sequence[str], sizes: Sequence[int]) -> None:
        self.graph.node("Split", [x, self.graph.constant(sizes)], outputs, name=f"{outputs[0]}.split", axis=0)
