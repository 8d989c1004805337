"""The step graph for CUDA, run on the CPU: the portable graph's values, token by token, from the same weights.

In float32 the builder must give what the portable graph gives. In float16, what it exports, rounding flips spikes;
there the first tokens are compared, before streams part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from qslm_edge.exporters import ExportJob
from qslm_edge.exporters.onnx_cuda import FUSED_MINIMUM, MAX_PARTS, NEVER, STATES, CudaStepGraph
from qslm_edge.exporters.onnx_exporter import OnnxExporter
from qslm_edge.exporters.onnx_graph import WeightFile
from qslm_edge.exporters.onnx_spikegpt import SpikeGPTGraph
from qslm_edge.runner.runtime import CPU, import_onnxruntime
from qslm_edge.spikegpt.model import initial_state
from tests.helpers.tiny import CHANNELS, N_LAYER, VOCABULARY, make_job, make_model, random_tokens

onnxruntime = import_onnxruntime()
Array = NDArray[Any]
LEVELS = ("32", "16", "8g64", "4g32", "4g64f", "2g64", "2g64m")
CUDA_OPERATORS = {
    *("Add", "Cast", "Concat", "Gather", "GreaterOrEqual", "HardSigmoid"),
    *("Less", "MatMul", "Mul", "ReduceSum", "Relu", "Reshape", "Sigmoid", "Slice", "Softplus", "Split"),
    *("Sub", "Transpose", "Unsqueeze", "Where"),
    *("com.microsoft::GatedAdd", "com.microsoft::MatMulNBits", "com.microsoft::SkipLayerNormalization"),
}
"""Each has a CUDA kernel for the types that the graph gives it: seen by running it there."""


def both_graphs(
    job: ExportJob, directory: Path, *, half: bool = False, fused: bool = True
) -> tuple[Any, Any, onnx.ModelProto]:
    """Sessions of the portable graph and of the step graph over one weight file, and the step model."""
    with WeightFile(directory / "model.bin") as weights:
        portable = SpikeGPTGraph(job.store, job.setting, weights).build(21, 10, {})
        end = weights.offset
        step = CudaStepGraph(job.store, job.setting, weights, fused=fused, half=half).build(21, 10, {})
        assert weights.offset == end  # it adds nothing to the file
    sessions = []
    for name, model in (("model.onnx", portable), ("step.onnx", step)):
        (directory / name).write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(directory / name), full_check=True)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        sessions.append(onnxruntime.InferenceSession(str(directory / name), options, providers=[CPU]))
    return sessions[0], sessions[1], step


def first_state(session: Any, batch: int) -> dict[str, Array]:
    dtypes = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    shapes = {value.name: (value.shape, dtypes.get(value.type)) for value in session.get_inputs()}
    return {
        state.name: np.full((shapes[state.name][0][0], batch, CHANNELS), state.start, shapes[state.name][1])
        for state in STATES
    }


def run_steps(
    session: Any, tokens: Array, state: dict[str, Array] | None = None
) -> tuple[Array, dict[str, Array]]:
    """Outputs [T, B, N] and the last state."""
    state = first_state(session, tokens.shape[1]) if state is None else state
    names = [output.name for output in session.get_outputs()]
    outputs = []
    for row in tokens:
        found = dict(zip(names, session.run(names, {"tokens": row[None], **state}), strict=True))
        outputs.append(found[names[0]][0])
        state = {name: found[f"{name}_out"] for name in state}
    return np.stack(outputs), state


def run_portable(session: Any, job: ExportJob, tokens: Array) -> Array:
    feed = {"tokens": tokens, "state": initial_state(job.store.model.config, tokens.shape[1]).numpy()}
    if job.store.hierarchy.head == "lm":
        feed["last"] = np.array([len(tokens)], np.int64)
        logits: Array = session.run(["logits"], feed)[0]
        return logits
    feed["mask"] = np.ones(tokens.shape, np.float32)
    pooled: Array = session.run(["pooled"], feed)[0]
    return pooled


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("head", ["lm", "classifier"])
@pytest.mark.parametrize("level", LEVELS)
def test_steps_give_the_values_of_the_portable_graph(
    level: str, head: Any, fused: bool, tmp_path: Path
) -> None:
    job = make_job(make_model(), level, head)
    portable, step, _ = both_graphs(job, tmp_path, fused=fused)
    tokens = random_tokens(24, 3)
    expected = run_portable(portable, job, tokens)
    got, _ = run_steps(step, tokens)
    np.testing.assert_allclose(got if head == "lm" else got.sum(0), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("embedding", "level"),
    [
        *(("dense", level) for level in ("32", "16", "8g32f", "4g32f", "4g64f", "2g32f", "2g64f", "2g64m")),
        *(("binary", level) for level in ("1", "32")),
    ],
)
def test_every_stored_embedding_is_unpacked(embedding: Any, level: str, tmp_path: Path) -> None:
    job = make_job(make_model(embedding), "32", changes={"emb": level})
    portable, step, _ = both_graphs(job, tmp_path)
    tokens = np.arange(VOCABULARY)[None]  # every row of the table, one a stream
    np.testing.assert_allclose(run_steps(step, tokens)[0], run_portable(portable, job, tokens), atol=1e-3)


@pytest.mark.parametrize(
    "level", ["16", "4g64f"]
)  # the others round activations to int8 on a CPU, on CUDA none do
def test_float16_activations_are_near_until_spikes_flip(level: str, tmp_path: Path) -> None:
    job = make_job(make_model(), level)
    portable, step, _ = both_graphs(job, tmp_path, half=True)
    tokens = random_tokens(1, 64)
    expected, got = run_portable(portable, job, tokens)[0], run_steps(step, tokens)[0][0]
    near = np.abs(got - expected).max(-1) < 0.05
    assert near.mean() > 0.75
    assert got.dtype == np.float32


def test_streams_of_a_batch_do_not_mix_and_state_goes_on(tmp_path: Path) -> None:
    _, step, _ = both_graphs(make_job(make_model(), "4g64f"), tmp_path)
    tokens = random_tokens(12, 4)
    together, _ = run_steps(step, tokens)
    for stream in range(4):
        alone, _ = run_steps(step, np.ascontiguousarray(tokens[:, stream : stream + 1]))
        np.testing.assert_allclose(alone[:, 0], together[:, stream], atol=1e-4)
    first, state = run_steps(step, tokens[:5])
    rest, _ = run_steps(step, tokens[5:], state)
    np.testing.assert_array_equal(np.concatenate([first, rest]), together)
    assert np.abs(rest - run_steps(step, tokens[5:])[0]).max() > 0.1  # the state does matter


def test_a_spike_needs_a_membrane_of_one_exactly(tmp_path: Path) -> None:
    types: tuple[tuple[bool, Any], ...] = ((True, np.float16), (False, np.float32))
    for half, dtype in types:
        job = make_job(make_model(), "4g64")
        _, _, model = both_graphs(job, tmp_path, half=half)
        node = next(node for node in model.graph.node if node.name == "blocks.0.att.spikes")
        alpha, beta = (dtype(attribute.f) for attribute in sorted(node.attribute, key=lambda a: a.name))
        below = np.nextafter(dtype(2), dtype(0))
        z = np.array([-300, -2, 0, 1, below, 2, 2.5, 300], dtype)
        with np.errstate(over="ignore"):
            spikes = np.clip(alpha * z + beta, dtype(0), dtype(1))
        assert spikes.dtype == dtype
        assert spikes.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("n_layer", [1, 2, MAX_PARTS + 3])
def test_any_depth_keeps_within_what_a_graph_can_capture(n_layer: int, tmp_path: Path) -> None:
    job = make_job(make_model(n_layer=n_layer), "4g64f")
    portable, step, model = both_graphs(job, tmp_path)
    for node in model.graph.node:
        if node.op_type in ("Concat", "Split") and not _only_weights(node, model.graph):
            assert len(node.input) <= MAX_PARTS
            assert len(node.output) <= MAX_PARTS
    tokens = random_tokens(4, 2)
    np.testing.assert_allclose(run_steps(step, tokens)[0], run_portable(portable, job, tokens), atol=1e-3)


def _only_weights(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    """Whether a node depends on weights alone, so that it is gone once the model is loaded."""
    known = {tensor.name for tensor in graph.initializer}
    for earlier in graph.node:
        if set(earlier.input) <= known:
            known |= set(earlier.output)
    return set(node.input) <= known


def test_only_operators_with_cuda_kernels_and_no_constants_of_size(tmp_path: Path) -> None:
    changes = {
        "emb": "2g32f",
        "blocks.1.att.key": "16",
        "blocks.1.att.value": "32",
        "blocks.2.ffn.key": "2g64m",
    }
    _, _, model = both_graphs(make_job(make_model(), "4g64", changes=changes), tmp_path, half=True)
    used = {f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in model.graph.node}
    assert used <= CUDA_OPERATORS
    assert sum(len(t.raw_data) for t in model.graph.initializer if not t.external_data) < 16384
    assert {(item.domain, item.version) for item in model.opset_import} == {("", 21), ("com.microsoft", 1)}


def test_the_export_names_the_step_graph_and_its_first_state(tmp_path: Path) -> None:
    job = make_job(make_model(), "4g64")
    plain = OnnxExporter().export(job, tmp_path)
    assert "step-cuda.onnx" not in plain.files
    assert plain.parts == {}
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    found = []
    for _ in range(2):
        done = OnnxExporter().export(ExportJob(job.store, job.setting, cuda=True, fused_cuda=True), tmp_path)
        found.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert found[0] == found[1]
    assert done.files == (*plain.files, "step-cuda.onnx")
    assert {name: found[0][name] for name in before} == before  # the portable graph is as without it
    assert done.parts["cuda"]["graph"] == "step-cuda.onnx"
    assert done.parts["cuda"]["onnxruntime_min"] == FUSED_MINIMUM
    assert done.parts["cuda"]["state"]["log_sum"] == NEVER
    inputs = [value.name for value in onnx.load(tmp_path / "step-cuda.onnx").graph.input]
    assert inputs == ["tokens", *done.parts["cuda"]["state"]]
    assert N_LAYER == 3
