"""What the export writes: the same bytes every time, files, operators and attributes."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qslm_edge.bundle.tensors import read_tensors
from qslm_edge.errors import OutputError, UsageError
from qslm_edge.exporters import ExportJob, get_exporter
from qslm_edge.exporters.onnx_exporter import OnnxExporter
from qslm_edge.exporters.onnx_graph import ALIGNMENT, WeightFile
from qslm_edge.exporters.parity import check_parity
from qslm_edge.quantize.accounting import weight_bytes
from qslm_edge.quantize.levels import Setting, parse_level
from qslm_edge.quantize.scales import with_scale_bits
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.spikegpt import SpikeGPT
from qslm_edge.spikegpt.hierarchy import Head
from tests.helpers.onnx_runs import LEVELS, Array, exported, onnxruntime, open_session, run_lm
from tests.helpers.tiny import (
    CHANNELS,
    MIXED,
    N_LAYER,
    VOCABULARY,
    make_job,
    make_model,
    packed_levels,
    random_tokens,
)

ONNX_OPERATORS = {
    *("Add", "BitShift", "BitwiseAnd", "Cast", "Concat", "Div", "Exp", "Gather", "GreaterOrEqual"),
    *("LayerNormalization", "MatMul", "Max", "Mul", "Neg", "ReduceSum", "Relu", "Reshape", "Scan"),
    *("Shape", "Sigmoid", "Slice", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where"),
}
"""Everything that the graph may use of the standard: each has a CPU kernel since onnxruntime 1.18."""


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize("head", ["lm", "classifier"])
def test_equal_jobs_give_equal_bytes(head: Any, tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        directory = tmp_path / name
        directory.mkdir()
        job = make_job(make_model(seed=3), "4g64", head, {"blocks.1.ffn.key": "2g32", "emb": "8g32f"})
        OnnxExporter().export(job, directory)
        found.append(digests(directory))
    assert found[0] == found[1]
    assert sorted(found[0]) == ["model.bin", "model.onnx", "tensors.json"]


def test_export_over_an_older_export_leaves_nothing_of_it(dense: SpikeGPT, tmp_path: Path) -> None:
    OnnxExporter().export(make_job(dense, "32"), tmp_path)
    job = make_job(dense, "4g64")
    OnnxExporter().export(job, tmp_path)
    assert (tmp_path / "model.bin").stat().st_size < 1.1 * weight_bytes(job.store.hierarchy, job.setting)


def test_tapped_graph_uses_the_same_weights(dense: SpikeGPT, tmp_path: Path) -> None:
    job = make_job(dense, "4g64")
    exporter = OnnxExporter()
    exporter.export(job, tmp_path)
    before = digests(tmp_path)
    tapped = exporter.export_tapped(job, tmp_path)
    assert {k: v for k, v in digests(tmp_path).items() if k != tapped.name} == before
    tensors = [
        {
            t.name: [(e.key, e.value) for e in t.external_data]
            for t in onnx.load(p, load_external_data=False).graph.initializer
        }
        for p in (tmp_path / "model.onnx", tapped)
    ]
    assert tensors[0] == tensors[1]


@pytest.mark.parametrize("head", ["lm", "classifier"])
@pytest.mark.parametrize("level", [*LEVELS, "mixed"])
def test_weight_file_holds_the_counted_bytes_and_padding(
    level: str, head: Any, dense: SpikeGPT, tmp_path: Path
) -> None:
    changes = {name: text for name, text in MIXED.items() if name != "head" or head == "lm"}
    job = make_job(dense, "4g64", head, changes) if level == "mixed" else make_job(dense, level, head)
    done = OnnxExporter().export(job, tmp_path)
    counted = weight_bytes(job.store.hierarchy, job.setting)
    beside = 4 * 2 * CHANNELS if head == "classifier" else 0  # classifier.npy, a file of the bundle
    assert done.weight_bytes == counted - beside
    assert done.files == ("model.onnx", "model.bin", "tensors.json")
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    outside = [t for t in graph.initializer if t.external_data]
    size = (tmp_path / "model.bin").stat().st_size
    assert done.weight_bytes <= size < done.weight_bytes + ALIGNMENT * len(outside)
    # constants inside the graph are small: no weight hides there
    assert sum(len(t.raw_data) for t in graph.initializer if not t.external_data) < 2048


def test_external_data_is_aligned_and_does_not_overlap(dense: SpikeGPT, tmp_path: Path) -> None:
    OnnxExporter().export(make_job(dense, "2g32"), tmp_path)
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    spans = []
    table = read_tensors(tmp_path / "tensors.json", (tmp_path / "model.bin").stat().st_size).tensors
    for tensor in graph.initializer:
        entry = {item.key: item.value for item in tensor.external_data}
        if entry:
            assert entry["location"] == "model.bin"
            spans.append((int(entry["offset"]), int(entry["offset"]) + int(entry["length"])))
            listed = table.pop(tensor.name)  # tensors.json says the same of it
            assert (listed.offset, listed.offset + listed.nbytes) == spans[-1]
            assert listed.shape == tuple(tensor.dims)
            assert np.dtype(listed.dtype) == onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    assert not table
    assert all(begin % ALIGNMENT == 0 for begin, _ in spans)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
    assert spans[-1][1] == (tmp_path / "model.bin").stat().st_size


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from every_node(attribute.g)


@pytest.mark.parametrize("head", ["lm", "classifier"])
@pytest.mark.parametrize("embedding", ["dense", "binary"])
def test_only_known_operators_of_two_domains(embedding: Any, head: Any, tmp_path: Path) -> None:
    changes = {"blocks.1.att.key": "16", "blocks.1.att.value": "32", "blocks.1.ffn.value": "2g64m"}
    job = make_job(make_model(embedding), "4g64", head, changes)
    done = OnnxExporter().export(job, tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    assert model.ir_version == 10
    assert {(item.domain, item.version) for item in model.opset_import} == {("", 21), ("com.microsoft", 1)}
    nodes = list(every_node(model.graph))
    assert {node.op_type for node in nodes if node.domain == ""} <= ONNX_OPERATORS
    theirs = {node.op_type for node in nodes if node.domain == "com.microsoft"}
    assert theirs == {"MatMulNBits", "SkipLayerNormalization"}
    assert len(theirs) + len({n.op_type for n in nodes if n.domain == ""}) == len(done.operators)
    assert done.operators["com.microsoft::MatMulNBits"] == len(packed_levels(job.setting)) - (
        embedding == "dense"
    )
    assert done.requirements["operators"] == [
        "com.microsoft::MatMulNBits",
        "com.microsoft::SkipLayerNormalization",
    ]
    names = [output for node in nodes for output in node.output if output]
    assert len(set(names)) == len(names)  # older runtimes need names unique over all bodies
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=False)


def test_opset_and_ir_are_those_of_the_job(dense: SpikeGPT, tmp_path: Path) -> None:
    job = make_job(dense, "32")
    OnnxExporter().export(ExportJob(job.store, job.setting, opset=22, ir_version=11), tmp_path)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    assert model.ir_version == 11
    assert {item.domain: item.version for item in model.opset_import}[""] == 22


def test_inputs_and_outputs_are_named_and_dynamic(dense: SpikeGPT, tmp_path: Path) -> None:
    cases: tuple[tuple[Head, dict[str, Any], dict[str, Any]], ...] = (
        ("lm", {"last": [1]}, {"logits": ["t", "B", VOCABULARY]}),
        ("classifier", {"mask": ["T", "B"]}, {"pooled": ["B", CHANNELS], "n_tokens": ["B"]}),
    )
    for head, extra, outputs in cases:
        session = exported(make_job(dense, "32", head), tmp_path)
        state = [7 * N_LAYER, "B", CHANNELS]
        assert {i.name: i.shape for i in session.get_inputs()} == {
            "tokens": ["T", "B"],
            "state": state,
        } | extra
        assert {o.name: o.shape for o in session.get_outputs()} == outputs | {"state_out": state}


def test_matmul_nbits_attributes_follow_the_setting(dense: SpikeGPT, tmp_path: Path) -> None:
    job = make_job(dense, "8g64", changes={k: v for k, v in MIXED.items() if k not in ("emb", "head")})
    OnnxExporter().export(job, tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    found = {node.name: node for node in every_node(graph) if node.op_type == "MatMulNBits"}
    linear = {m.name: m for m in job.store.hierarchy.modules if m.kind == "linear"}
    assert found.keys() == {name for name in linear if job.setting[name].is_packed}
    for name, node in found.items():
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        level = job.setting[name]
        assert given == {
            "K": linear[name].columns,
            "N": linear[name].rows,
            "bits": level.bits,
            "block_size": level.group_size,
            "accuracy_level": level.accuracy_level,
        }
        # explicit zero points but for mid-rise levels, no g_idx, no bias
        assert len(node.input) == (3 if level.midrise else 4)


def test_every_node_runs_on_the_cpu_provider_in_its_own_kernel(
    dense: SpikeGPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime's own record: a packed matrix that it unpacked into other nodes would show here."""
    monkeypatch.chdir(tmp_path)
    job = make_job(dense, "4g64", changes={"blocks.0.att.key": "8g64", "blocks.0.ffn.key": "2g64"})
    OnnxExporter().export(job, tmp_path)
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
    run_lm(session, job, random_tokens(3, 1))
    events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    nodes = [event["args"] for event in events if event.get("cat") == "Node" and "op_name" in event["args"]]
    assert {args["provider"] for args in nodes} == {"CPUExecutionProvider"}
    linear = [m for m in job.store.hierarchy.modules if m.kind == "linear"]
    assert sum(args["op_name"] == "MatMulNBits" for args in nodes) == len(linear)
    assert not any("Dequantize" in args["op_name"] or args["op_name"] == "MatMul" for args in nodes)


def test_simulated_levels_are_refused(dense: SpikeGPT, tmp_path: Path) -> None:
    job = make_job(dense, "8g64", changes={"blocks.0.att.key": "q6"})
    with pytest.raises(
        UsageError, match=r"blocks\.0\.att\.key: simulated levels cannot be exported; found q6"
    ):
        OnnxExporter().export(job, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(
    dense: SpikeGPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(dense, "8g64")
    with pytest.raises(OutputError, match="the model cannot be written; found No such file or directory"):
        OnnxExporter().export(job, tmp_path / "absent")

    def full(_self: WeightFile, _name: str, _array: Array) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(WeightFile, "add", full)
    with pytest.raises(OutputError, match="found No space left on device") as caught:
        OnnxExporter().export(job, tmp_path)
    assert caught.value.exit_code == 4


def test_registry_knows_its_names() -> None:
    assert isinstance(get_exporter("onnx"), OnnxExporter)
    with pytest.raises(
        UsageError, match="unknown export format; found onxx; allowed: onnx. Did you mean onnx?"
    ):
        get_exporter("onxx")


def test_setting_text_goes_into_the_model(dense: SpikeGPT, tmp_path: Path) -> None:
    setting = Setting.uniform([m.name for m in make_job(dense).store.hierarchy.modules], parse_level("16"))
    OnnxExporter().export(ExportJob(make_job(dense).store, setting), tmp_path)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    assert {item.key: item.value for item in model.metadata_props} == {"setting": "16"}
    assert (model.producer_name, model.graph.name) == ("qslm-edge", "spikegpt")


@pytest.mark.parametrize("level", ["8g64", "4g32", "4g64f", "2g64", "2g32", "2g32m", "mixed"])
def test_float16_scales_change_no_bit_and_take_half_the_bytes(
    level: str, dense: SpikeGPT, tmp_path: Path
) -> None:
    wide = make_job(dense, "4g64", changes=MIXED) if level == "mixed" else make_job(dense, level)
    hierarchy = with_scale_bits(wide.store.hierarchy, lambda module: dense.tensors[module.key].numpy())
    assert {module.scale_bits for module in hierarchy.modules} == {16}
    narrow = ExportJob(WeightStore(dense, hierarchy), wide.setting)
    outputs, sizes = [], []
    for job, name in ((wide, "wide"), (narrow, "narrow")):
        (tmp_path / name).mkdir()
        done = OnnxExporter().export(job, tmp_path / name)
        assert done.weight_bytes == weight_bytes(job.store.hierarchy, job.setting)
        outputs.append(run_lm(open_session(tmp_path / name), job, random_tokens(9, 2)))
        sizes.append(done.weight_bytes)
    for one, other in zip(*outputs, strict=True):
        assert one.tobytes() == other.tobytes()
    groups = sum(
        m.n_params // (wide.setting[m.name].group_size or 1)
        for m in hierarchy.modules
        if wide.setting[m.name].is_packed
    )
    assert sizes[0] - sizes[1] == 2 * groups
    parity = check_parity(
        narrow, OnnxExporter().export_tapped(narrow, tmp_path / "narrow"), random_tokens(9, 2)
    )
    assert parity.fault is None
