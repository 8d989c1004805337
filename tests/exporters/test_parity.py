"""Parity: nothing to report on a right graph, and every planted fault is named where it is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qslm_edge.exporters import ExportJob, onnx_embedding, onnx_matrix, onnx_spikegpt
from qslm_edge.exporters import parity as parity_module
from qslm_edge.exporters.onnx_graph import Graph
from qslm_edge.exporters.onnx_spikegpt import SpikeGPTGraph
from qslm_edge.exporters.parity import MODULE_TOLERANCE, PIECE_TOLERANCE, Parity, check_parity
from qslm_edge.quantize.packed import PackedMatrix
from qslm_edge.spikegpt import SpikeGPT, SpikeGPTConfig
from tests.helpers.tiny import (
    N_LAYER,
    export_tapped,
    hierarchy_of,
    make_job,
    make_model,
    quantised,
    random_tokens,
)

TOKENS = random_tokens(24, 2)


@pytest.fixture(scope="module")
def model() -> SpikeGPT:
    return make_model()


def parity_of(job: ExportJob, directory: Path) -> Parity:
    return check_parity(job, export_tapped(job, directory), TOKENS)


@pytest.mark.parametrize(
    ("embedding", "level", "head"),
    [
        ("dense", "32", "lm"),
        ("binary", "32", "classifier"),
        ("dense", "16", "classifier"),
        ("dense", "8g64", "lm"),
        ("binary", "8g32", "classifier"),
        ("binary", "4g32", "lm"),
        ("dense", "4g64f", "classifier"),
        ("dense", "2g64", "lm"),
        ("binary", "2g32", "classifier"),
    ],
)
def test_every_piece_of_a_right_graph_agrees(embedding: Any, level: str, head: Any, tmp_path: Path) -> None:
    job = make_job(make_model(embedding), level, head)
    parity = parity_of(job, tmp_path)
    assert parity.ok
    assert parity.fault is None
    linear = [m.name for m in hierarchy_of(job.store.model, head).modules if m.kind == "linear"]
    assert sorted(parity.modules) == sorted(linear)
    inner = [name for name in linear if name != "head"]
    # what feeds each matrix, per layer two spike trains, state, membranes; first and last norm, pooled features
    assert len(parity.pieces) == len(inner) + 4 * N_LAYER + 2 + (head == "classifier")
    assert max(parity.modules.values()) <= MODULE_TOLERANCE
    values = {n: v for n, v in parity.pieces.items() if not n.endswith((".spikes", ".membranes"))}
    assert max(values.values()) <= PIECE_TOLERANCE["values"]
    assert parity.n_tokens == TOKENS.size
    assert 0.02 < parity.firing_rate_torch < 0.9
    assert abs(parity.firing_rate_torch - parity.firing_rate_graph) < 0.02
    assert parity.spike_flip_rate < 0.05
    assert (parity.perplexity_torch is None) == (parity.perplexity_graph is None) == (head == "classifier")


def test_free_running_figures_are_those_of_the_two_sides(model: SpikeGPT, tmp_path: Path) -> None:
    job = make_job(model, "4g64f")
    parity = parity_of(job, tmp_path)
    logits = quantised(job)(torch.from_numpy(TOKENS.T.copy())).transpose(0, 1)
    nll = torch.nn.functional.cross_entropy(
        logits[:-1].flatten(0, 1), torch.from_numpy(TOKENS[1:].copy()).flatten()
    )
    assert parity.perplexity_torch == pytest.approx(float(nll.exp()), rel=1e-4)
    assert parity.perplexity_graph == pytest.approx(float(nll.exp()), rel=1e-3)
    assert parity.max_abs_output < 1e-3


def test_parity_is_json_with_its_tolerances(model: SpikeGPT, tmp_path: Path) -> None:
    data = parity_of(make_job(model, "8g64"), tmp_path).to_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["ok"] is True
    assert data["tolerance"] == {"modules": MODULE_TOLERANCE, "pieces": PIECE_TOLERANCE}
    assert data["worst_module"] in data["modules"]
    assert data["worst_piece"] in data["pieces"]


# ---- planted faults: the graph is built wrong, the torch side is right


@pytest.mark.parametrize(
    ("level", "module"),
    [
        ("8g64", "blocks.0.att.key"),
        ("8g64", "head"),
        ("4g32", "blocks.1.att.output"),
        ("4g64f", "blocks.2.ffn.receptance"),
        ("2g64", "blocks.2.ffn.value"),
    ],
)
def test_a_wrong_zero_point_is_found_in_its_module(
    level: str, module: str, model: SpikeGPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = onnx_matrix.multiply

    def wrong(g: Graph, packed: PackedMatrix, x: str, output: str) -> None:
        if packed.module.name == module and packed.zeros is not None:
            zeros = packed.zeros.copy()
            zeros[0, 0] ^= 2  # one row, one group
            packed = dataclasses.replace(packed, zeros=zeros)
        right(g, packed, x, output)

    monkeypatch.setattr(onnx_spikegpt, "multiply", wrong)
    parity = parity_of(make_job(model, level), tmp_path)
    assert parity.fault is not None
    assert parity.fault.startswith(f"{module}: difference ")
    assert parity.worst_module == module
    beyond = [name for name, value in parity.modules.items() if value > MODULE_TOLERANCE]
    assert beyond == [module]


@pytest.mark.parametrize("part", ["data", "scales", "zeros"])
def test_a_wrong_embedding_is_found(
    part: str, model: SpikeGPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(model, "8g64", changes={"emb": "4g32f"})
    right = job.store.packed("emb", job.setting["emb"])
    array = getattr(right, part).copy()
    array[int(TOKENS[0, 0])] = array[int(TOKENS[0, 0])][::-1].copy() if part == "data" else array[0, 0] + 1
    bad = dataclasses.replace(right, **{part: array})
    export = onnx_embedding.embed

    def wrong(g: Graph, packed: PackedMatrix, config: SpikeGPTConfig, tokens: str) -> str:
        return export(g, bad, config, tokens)

    monkeypatch.setattr(onnx_spikegpt, "embed", wrong)
    parity = parity_of(job, tmp_path)
    assert parity.fault is not None
    assert parity.fault.startswith("blocks.0.ln0: difference ")


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("blocks.0.ln0.weight", "blocks.0.ln0"),
        ("blocks.1.ln1.bias", "blocks.1.att.xk"),
        ("blocks.1.ln2.weight", "blocks.1.ffn.xr"),
        ("blocks.2.att.time_mix_v", "blocks.2.att.xv"),
        ("blocks.0.ffn.time_mix_k", "blocks.0.ffn.xk"),
        ("blocks.1.att.time_first", "blocks.1.att.gated"),
        ("blocks.1.att.time_decay", "blocks.1.state"),
        ("ln_out.bias", "ln_out"),
    ],
)
def test_a_wrong_vector_is_found_where_it_is_used(
    key: str, place: str, model: SpikeGPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = SpikeGPTGraph._vector

    def wrong(self: SpikeGPTGraph, name: str) -> NDArray[np.float32]:
        values = right(self, name)
        return np.roll(values, 1) if name == key else values

    monkeypatch.setattr(SpikeGPTGraph, "_vector", wrong)
    parity = parity_of(make_job(model, "8g64"), tmp_path)
    assert parity.fault is not None
    assert parity.pieces[place] > 100 * PIECE_TOLERANCE["values"]
    block = ".".join(place.split(".")[:2])
    assert parity.fault.startswith(block)
    # nothing else is blamed: every piece was given the graph's own input
    wrong_pieces = [name for name, value in parity.pieces.items() if value > PIECE_TOLERANCE["membranes"]]
    assert all(name.startswith(block) for name in wrong_pieces)


def scaled_input(right: Callable[..., tuple[str, str]]) -> Callable[..., tuple[str, str]]:
    def wrong(self: SpikeGPTGraph, part: str, x: str, v: str) -> tuple[str, str]:
        if part == "blocks.1.ffn":
            x = self.graph.one("Mul", [x, self.graph.constant(0.9, np.float32)], name="planted")
        return right(self, part, x, v)

    return wrong


def test_a_wrong_neuron_is_found_in_its_spikes(
    model: SpikeGPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpikeGPTGraph, "_lif", scaled_input(SpikeGPTGraph._lif))
    parity = parity_of(make_job(model, "8g64"), tmp_path)
    assert parity.fault is not None
    assert parity.worst_piece in ("blocks.1.ffn.spikes", "blocks.1.membranes")
    others = [v for name, v in parity.pieces.items() if name.endswith(".spikes") and "1.ffn" not in name]
    assert max(others) <= PIECE_TOLERANCE["spikes"]


@pytest.mark.parametrize(
    ("one", "other", "place"),
    [(0, 1, "blocks.2.state"), (2, 3, "blocks.2.state"), (5, 6, "blocks.2.membranes")],
)
def test_state_in_the_wrong_order_is_found(
    one: int, other: int, place: str, model: SpikeGPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = SpikeGPTGraph._block

    def wrong(
        self: SpikeGPTGraph, layer: int, x: str, spikes: str | None, state: list[str]
    ) -> tuple[str, str, list[str]]:
        x, fired, new = right(self, layer, x, spikes, state)
        if layer == 2:
            new[one], new[other] = new[other], new[one]
        return x, fired, new

    monkeypatch.setattr(SpikeGPTGraph, "_block", wrong)
    parity = parity_of(make_job(model, "8g64"), tmp_path)
    assert parity.worst_piece == place
    assert parity.fault is not None
    assert parity.fault.startswith(place)


def test_pooling_that_loses_a_token_is_found(
    model: SpikeGPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = SpikeGPTGraph._skip_norm

    def wrong(self: SpikeGPTGraph, x: str, spikes: str, name: str, residual: bool = True) -> tuple[str, str]:
        out = right(self, x, spikes, name, residual)
        if name != "ln_out":
            return out
        g = self.graph
        begin, end, axis = g.constant([1]), g.constant([2**63 - 1]), g.constant([0])
        kept = g.one("Slice", [out[0], begin, end, axis], name="planted.kept")
        again = g.one("Slice", [out[0], begin, g.constant([2]), axis], name="planted.again")
        return g.one("Concat", [again, kept], name="planted", axis=0), out[1]

    monkeypatch.setattr(SpikeGPTGraph, "_skip_norm", wrong)
    parity = parity_of(make_job(model, "8g64", "classifier"), tmp_path)
    assert parity.fault is not None
    assert parity.fault.startswith("pooled: ")


def test_not_a_number_is_a_fault(model: SpikeGPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = SpikeGPTGraph._vector

    def wrong(self: SpikeGPTGraph, name: str) -> NDArray[np.float32]:
        values = right(self, name).copy()
        if name == "ln_out.bias":
            values[0] = np.nan
        return values

    monkeypatch.setattr(SpikeGPTGraph, "_vector", wrong)
    parity = parity_of(make_job(model, "32"), tmp_path)
    assert parity.fault == "head: difference nan, allowed 0.0001"


# ---- codes at a tie


def test_tokens_with_a_code_at_a_tie_are_left_out() -> None:
    x = np.zeros((3, 2, 64), np.float32)
    x[..., 0], x[..., 32] = 127, 127  # codes are the values themselves
    x[0, 0, 5] = 10.5
    x[1, 1, 40] = -3.5
    x[2, 0, 7] = 10.5 + 1e-3  # near a tie, but far beyond the last bit
    x[2, 1] = 0  # a group of zeros has no codes
    clear = parity_module._without_ties(x, 32)
    assert clear.tolist() == [[False, True], [True, False], [True, True]]


def test_a_code_rounded_the_other_way_is_no_fault_and_a_wrong_token_is() -> None:
    expected = torch.ones(6, 1, 4)
    flipped = expected.numpy().copy()
    flipped[2, 0] += 0.01
    clear = np.ones((6, 1), np.bool_)
    assert parity_module._difference(expected, flipped, clear) > 10 * MODULE_TOLERANCE
    clear[2] = False
    assert parity_module._difference(expected, flipped, clear) == 0
    # without one clear token the median stands for all: a flip is one token, a fault is in every one
    nothing = np.zeros((6, 1), np.bool_)
    assert parity_module._difference(expected, flipped, nothing) == 0
    assert parity_module._difference(expected, flipped + np.float32(0.01), nothing) == pytest.approx(0.01)


def test_one_wrong_channel_is_not_averaged_away() -> None:
    expected = torch.ones(8, 2, 50_000)
    wrong = expected.numpy().copy()
    wrong[..., 77] += 1e-3
    assert parity_module._difference(expected, wrong) == pytest.approx(1e-3, rel=1e-3)
