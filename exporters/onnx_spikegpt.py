"""The SpikeGPT graph: tokens and state in, logits (or pooled features) and state out, any number of tokens.

Everything is time-major [T, B, C]. Matrices run over all tokens at once, the recurrences are Scan nodes whose
bodies hold the operations of the torch model in the same order. Decoding pays for every node that runs, a
microsecond or two since the weights drive code and data of all others out of the caches: so nodes are few, and
plain (broadcasting ones cost several). State is one tensor [7 L, B, C] (per layer att_x, ffn_x, a, b, p, v1,
v2); a state tensor keeps its leading 1 inside the bodies, so that no squeezing is needed around them. Opset 21 and
IR 10 load from 1.18 on; the widths set the real minimum.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from qslm_edge.exporters.onnx_embedding import embed
from qslm_edge.exporters.onnx_graph import MICROSOFT, Graph, ShapeLike, WeightFile, float_value
from qslm_edge.exporters.onnx_matrix import multiply
from qslm_edge.quantize.levels import Setting
from qslm_edge.quantize.weights import WeightStore

__all__ = ["SpikeGPTGraph"]

Float = NDArray[np.float32]
N_STATE = 7
EPSILON = 1e-5


class SpikeGPTGraph:
    """Builds the graph of one model under one setting.

    Args:
        store: the model's matrices at any level.
        setting: a level for every module.
        weights: external data file.
        taps: also give every matrix's input and output, every spike tensor and the normed input and output
            streams as graph outputs, for parity checks.
    """

    def __init__(self, store: WeightStore, setting: Setting, weights: WeightFile, taps: bool = False) -> None:
        self.store, self.setting, self.taps = store, setting, taps
        self.config = store.model.config
        self.graph = Graph(weights)
        self.tapped: list[onnx.ValueInfoProto] = []

    def build(self, opset: int, ir_version: int, metadata: dict[str, str]) -> onnx.ModelProto:
        """The whole model."""
        g, c, layers = self.graph, self.config.n_embd, self.config.n_layer
        is_lm = self.store.hierarchy.head == "lm"
        n_state = N_STATE * layers
        tokens = onnx.helper.make_tensor_value_info(
            "tokens", onnx.TensorProto.INT64, ["T", "B"], "token ids, time-major"
        )
        state = float_value("state", [n_state, "B", c])
        state.doc_string = (
            "recurrent state: per layer att_x, ffn_x, a, b, p, v1, v2; p starts at -1e38, the rest at 0"
        )
        parts = g.node(
            "Split",
            ["state"],
            [f"state.{i}" for i in range(n_state)],
            name="state.split",
            axis=0,
            num_outputs=n_state,
        )

        embedded = embed(g, self.store.packed("emb", self.setting["emb"]), self.config, "tokens")
        x = self._norm(embedded, "blocks.0.ln0")
        self._tap(x, ["T", "B", c])
        spikes: str | None = None
        after: list[str] = []
        for layer in range(layers):
            x, spikes, new = self._block(layer, x, spikes, parts[layer * N_STATE : (layer + 1) * N_STATE])
            after += new
        g.node("Concat", after, ["state_out"], name="state.concat", axis=0)
        state_out = float_value("state_out", [n_state, "B", c])
        if spikes is None:
            raise ValueError("a SpikeGPT has at least one block")
        if is_lm:
            inputs, outputs = self._language_model(x, spikes)
        else:
            inputs, outputs = self._classifier(x, spikes)
        return g.model(
            "spikegpt",
            [tokens, state, *inputs],
            [*outputs, state_out, *self.tapped],
            opset=opset,
            ir_version=ir_version,
            metadata=metadata,
        )

    # ---- output blocks

    def _language_model(
        self, x: str, spikes: str
    ) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
        g = self.graph
        last = onnx.helper.make_tensor_value_info(
            "last", onnx.TensorProto.INT64, [1], "logits are computed for this many last tokens (at least 1)"
        )
        start, end, axis = g.one("Neg", ["last"], name="last.start"), g.constant([2**63 - 1]), g.constant([0])
        x = g.one("Slice", [x, start, end, axis], name="last.x")
        spikes = g.one("Slice", [spikes, start, end, axis], name="last.spikes")
        features, _ = self._skip_norm(x, spikes, "ln_out", residual=False)
        self._tap("ln_out", ["t", "B", self.config.n_embd])
        logits = self._linear("head", features, "logits")
        return [last], [float_value(logits, ["t", "B", self.config.vocab_size])]

    def _classifier(self, x: str, spikes: str) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
        g = self.graph
        mask = float_value("mask", ["T", "B"])
        mask.doc_string = "1 on real tokens, 0 on padding (at the end)"
        features, _ = self._skip_norm(x, spikes, "ln_out", residual=False)
        self._tap("ln_out", ["T", "B", self.config.n_embd])
        weight = g.one("Unsqueeze", ["mask", g.constant([-1])], name="mask.column")
        masked = g.one("Mul", [features, weight], name="pooled.masked")
        g.node("ReduceSum", [masked, g.constant([0])], ["pooled"], name="pooled.sum", keepdims=0)
        g.node("ReduceSum", ["mask", g.constant([0])], ["n_tokens"], name="n_tokens.sum", keepdims=0)
        return [mask], [float_value("pooled", ["B", self.config.n_embd]), float_value("n_tokens", ["B"])]

    # ---- one attention block

    def _block(self, layer: int, x: str, spikes: str | None, state: list[str]) -> tuple[str, str, list[str]]:
        """Residual stream, the spikes still to be added to it, and the new state tensors of this layer."""
        g = self.graph
        att, ffn = f"blocks.{layer}.att", f"blocks.{layer}.ffn"
        att_x, ffn_x, a, b, p, v1, v2 = state
        if spikes is None:
            h = self._norm(x, f"blocks.{layer}.ln1")
        else:
            h, x = self._skip_norm(x, spikes, f"blocks.{layer}.ln1")
        (xk, xv, xr), att_x = self._mixed(att, h, att_x, "kvr")
        key, value = self._linear(f"{att}.key", xk), self._linear(f"{att}.value", xv)
        gate = g.one("Sigmoid", [self._linear(f"{att}.receptance", xr)], name=f"{att}.gate")
        y, a, b, p = self._wkv(att, key, value, a, b, p)
        gated = g.one("Mul", [gate, y], name=f"{att}.gated")
        spikes, v1 = self._lif(att, self._linear(f"{att}.output", gated), v1)

        h, x = self._skip_norm(x, spikes, f"blocks.{layer}.ln2")
        (xk, xr), ffn_x = self._mixed(ffn, h, ffn_x, "kr")
        hidden = g.one("Relu", [self._linear(f"{ffn}.key", xk)], name=f"{ffn}.relu")
        squared = g.one("Mul", [hidden, hidden], name=f"{ffn}.squared")
        gate = g.one("Sigmoid", [self._linear(f"{ffn}.receptance", xr)], name=f"{ffn}.gate")
        current = g.one("Mul", [gate, self._linear(f"{ffn}.value", squared)], name=f"{ffn}.gated")
        spikes, v2 = self._lif(ffn, current, v2)
        return x, spikes, [att_x, ffn_x, a, b, p, v1, v2]

    def _mixed(self, part: str, h: str, last: str, kinds: str) -> tuple[list[str], str]:
        """h*m + hp*(1-m) of each kind, and the last token of h for the state.

        One kind after the other: stacked they would be fewer nodes, but broadcasting costs more than it saves.
        """
        g = self.graph
        vectors = [self._vector(f"{part}.time_mix_{kind}") for kind in kinds]
        mix = g.weight(f"{part}.mix", np.stack(vectors).reshape(len(kinds), 1, 1, -1))
        both = g.one("Concat", [last, h], name=f"{part}.both", axis=0)
        previous, kept = g.node(
            *("Split", [both, self._all_but_one()], [f"{part}.previous", f"{part}.last"]),
            name=f"{part}.shift",
            axis=0,
        )
        mixed = []
        for i, kind in enumerate(kinds):
            name = f"{part}.x{kind}"
            # m and 1 - m are folded when the model loads: a few kilobytes that the file need not hold twice
            m = g.one("Gather", [mix, g.constant(i)], name=f"{name}.mix", axis=0)
            rest = g.one("Sub", [g.constant(1.0, np.float32), m], name=f"{name}.unmix")
            now = g.one("Mul", [h, m], name=f"{name}.now")
            before = g.one("Mul", [previous, rest], name=f"{name}.before")
            mixed.append(g.one("Add", [now, before], name=name))
        return mixed, kept

    def _wkv(self, part: str, k: str, v: str, a: str, b: str, p: str) -> tuple[str, str, str, str]:
        """The two halves of a step, its output (u) and its new state (w), differ in what is added to k and p only:
        they run stacked, [2, B, C]. Adding 0 to the other half changes no bit."""
        g, c = self.graph, self.config.n_embd
        first = g.weight(f"{part}.time_first", self._vector(f"{part}.time_first"))
        decay = g.weight(f"{part}.decay", -np.exp(self._vector(f"{part}.time_decay")))
        halves, zero = g.constant([[[True]], [[False]]], np.bool_), g.constant(0.0, np.float32)
        added_k = g.one("Where", [halves, first, zero], name=f"{part}.added_k")  # folded when the model loads
        added_p = g.one("Where", [halves, zero, decay], name=f"{part}.added_p")
        body = Graph(g.weights, f"{part}.wkv/")
        n = body.prefix

        def add(op: str, *inputs: str) -> str:
            return body.one(op, inputs)

        pw, uk = add("Add", f"{n}p", added_p), add("Add", f"{n}k", added_k)
        q = add("Max", pw, uk)
        e1, e2 = add("Exp", add("Sub", pw, q)), add("Exp", add("Sub", uk, q))
        numerators = add("Add", add("Mul", e1, f"{n}a"), add("Mul", e2, f"{n}v"))
        denominators = add("Add", add("Mul", e1, f"{n}b"), e2)
        for both, outputs in (
            (numerators, ("numerator", "a_out")),
            (denominators, ("denominator", "b_out")),
            (q, ("exponent", "p_out")),
        ):
            body.node("Split", [both], [f"{n}{output}" for output in outputs], axis=0, num_outputs=2)
        body.node("Div", [f"{n}numerator", f"{n}denominator"], [f"{n}y"])
        row: ShapeLike = [1, "B", c]
        step: ShapeLike = ["B", c]
        graph = body.subgraph(
            f"{part}.wkv",
            [float_value(f"{n}{s}", row) for s in "abp"] + [float_value(f"{n}{s}", step) for s in "kv"],
            [float_value(f"{n}{s}_out", row) for s in "abp"] + [float_value(f"{n}y", row)],
        )
        out = g.node("Scan", [a, b, p, k, v], 4, name=f"{part}.wkv", body=graph, num_scan_inputs=2)
        y = g.one("Squeeze", [out[3], g.constant([1])], name=f"{part}.y")
        return y, out[0], out[1], out[2]

    def _lif(self, part: str, x: str, v: str) -> tuple[str, str]:
        g, c = self.graph, self.config.n_embd
        body = Graph(g.weights, f"{part}.lif/")
        n = body.prefix
        half, one, zero = (body.constant(value, np.float32) for value in (0.5, 1.0, 0.0))
        difference = body.one("Sub", [f"{n}x", f"{n}v"])
        membrane = body.one("Add", [body.one("Mul", [difference, half]), f"{n}v"])
        fired = body.one("GreaterOrEqual", [membrane, one])
        body.node("Where", [fired, zero, membrane], [f"{n}v_out"])
        body.node("Cast", [fired], [f"{n}s"], to=onnx.TensorProto.FLOAT)
        row: ShapeLike = [1, "B", c]
        step: ShapeLike = ["B", c]
        graph = body.subgraph(
            f"{part}.lif",
            [float_value(f"{n}v", row), float_value(f"{n}x", step)],
            [float_value(f"{n}v_out", row), float_value(f"{n}s", row)],
        )
        out = g.node("Scan", [v, x], 2, name=f"{part}.lif", body=graph, num_scan_inputs=1)
        spikes = g.one("Squeeze", [out[1], g.constant([1])], name=f"{part}.spikes")
        self._tap(spikes, ["T", "B", c])
        return spikes, out[0]

    # ---- pieces

    def _all_but_one(self) -> str:
        """Sizes [T, 1] that split T + 1 tokens into those before each of T and the last; made once."""
        g, name = self.graph, "tokens.shift"
        if name not in {node.name for node in g.nodes}:
            count = g.one("Shape", ["tokens"], name="tokens.count", start=0, end=1)
            g.one("Concat", [count, g.constant([1])], name=name, axis=0)
        return name

    def _vector(self, key: str) -> Float:
        return np.asarray(self.store.model.tensors[key].detach().cpu().numpy(), np.float32).reshape(-1)

    def _norm_inputs(self, name: str) -> list[str]:
        return [
            self.graph.weight(f"{name}.{part}", self._vector(f"{name}.{part}")) for part in ("weight", "bias")
        ]

    def _norm(self, x: str, name: str) -> str:
        return self.graph.one(
            "LayerNormalization", [x, *self._norm_inputs(name)], name=name, axis=-1, epsilon=EPSILON
        )

    def _skip_norm(self, x: str, spikes: str, name: str, residual: bool = True) -> tuple[str, str]:
        """LayerNorm(x + spikes), and x + spikes."""
        outputs = [name, "", "", f"{name}.residual"] if residual else [name]
        self.graph.node(
            "SkipLayerNormalization",
            [x, spikes, *self._norm_inputs(name)],
            outputs,
            name=name,
            domain=MICROSOFT,
            epsilon=EPSILON,
        )
        return name, outputs[-1]

    def _linear(self, module: str, x: str, output: str | None = None) -> str:
        packed = self.store.packed(module, self.setting[module])
        name = output or f"{module}.output"
        multiply(self.graph, packed, x, name)
        if module != "head":
            self._tap(x, ["T", "B", packed.module.columns])
            self._tap(name, ["T", "B", packed.module.rows])
        return name

    def _tap(self, name: str, shape: list[int | str]) -> None:
        if self.taps and name not in {value.name for value in self.tapped}:
            self.tapped.append(float_value(name, shape))
