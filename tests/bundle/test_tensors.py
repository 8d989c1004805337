"""tensors.json decides which memory native code reads: whatever contradicts the file is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.bundle.tensors import TensorTable, read_tensors
from qslm_edge.errors import BundleError
from qslm_edge.exporters.onnx_exporter import OnnxExporter
from tests.helpers.tiny import CHANNELS, HIDDEN, VOCABULARY, make_job, make_model

Edit = Callable[[dict[str, Any]], object]
LEVELS = {
    "blocks.0.att.key": "32",
    "blocks.0.att.value": "8g32",
    "blocks.1.att.output": "16",
    "blocks.1.ffn.key": "4g64f",
    "blocks.2.ffn.value": "2g128m",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model; not to be changed."""
    target = tmp_path_factory.mktemp("tensors")
    OnnxExporter().export(make_job(make_model(), "4g32", "lm", LEVELS), target)
    return target


@pytest.fixture(scope="module")
def data(folder: Path) -> dict[str, Any]:
    """Its table."""
    table: dict[str, Any] = json.loads((folder / "tensors.json").read_text("utf-8"))
    return table


def size_of(folder: Path) -> int:
    return (folder / "model.bin").stat().st_size


def read(data: Any, tmp_path: Path, size: int) -> TensorTable:
    path = tmp_path / "tensors.json"
    path.write_text(json.dumps(data), "utf-8")
    return read_tensors(path, size)


def entry(data: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(item for item in data[kind] if item["name"] == name)
    return found


def test_what_the_exporter_wrote_is_read(folder: Path) -> None:
    table = read_tensors(folder / "tensors.json", size_of(folder))
    key = table.matrix("blocks.0.att.key", CHANNELS, CHANNELS)
    assert (key.bits, key.group, key.scales, key.zeros, key.float_activations) == (32, None, None, None, True)
    value = table.matrix("blocks.0.att.value", CHANNELS, CHANNELS)
    assert (value.bits, value.group, value.float_activations, value.midrise) == (8, 32, False, False)
    assert value.scales is not None
    assert value.zeros is not None
    assert table.matrix("blocks.1.ffn.key", None, CHANNELS).rows == HIDDEN
    assert table.matrix("blocks.1.ffn.key", HIDDEN, CHANNELS).float_activations
    middle = table.matrix("blocks.2.ffn.value", CHANNELS, HIDDEN)
    assert (middle.midrise, middle.zeros) == (True, None)
    assert table.matrix("emb", VOCABULARY, CHANNELS).codes.name == "emb"
    assert table.floats("blocks.0.att.mix", (3, CHANNELS)).shape == (3, 1, 1, CHANNELS)
    assert all(tensor.offset % 64 == 0 for tensor in table.tensors.values())
    for name, rows, columns in (("absent", 1, 1), ("head", VOCABULARY, 2), ("head", 2, CHANNELS)):
        with pytest.raises(BundleError, match=f"tensors.json: {name}: table that contradicts its file"):
            table.matrix(name, rows, columns)
    for name, shape in (("absent", (1,)), ("ln_out.bias", (2,)), ("head.codes", (1,))):
        with pytest.raises(BundleError, match=name):
            table.floats(name, shape)


def put(kind: str, name: str, **values: Any) -> Edit:
    return lambda data: entry(data, kind, name).update(values)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda d: d.pop("schema"), "another schema"),
        (lambda d: d.update(schema="qslm-edge/tensors/2"), "another schema"),
        (lambda d: d.pop("tensors"), "tensors: table that"),
        (lambda d: d.update(matrices={}), "matrices: table that"),
        (lambda d: d["tensors"].append(3), "tensors: table that"),
        (lambda d: d["tensors"].append({"dtype": "uint8"}), "tensors: table that"),
        (lambda d: d["tensors"].append(d["tensors"][0]), "a name twice"),
        (lambda d: d["matrices"].append(d["matrices"][0]), "a name twice"),
        (put("tensors", "ln_out.bias", dtype="float64"), "ln_out.bias: dtype"),
        (put("tensors", "ln_out.bias", shape=[]), "ln_out.bias: shape"),
        (put("tensors", "ln_out.bias", shape=[64.0]), "ln_out.bias: shape"),
        (put("tensors", "ln_out.bias", shape=[2**40]), "ln_out.bias: shape"),
        (put("tensors", "ln_out.bias", shape=[-64]), "ln_out.bias: shape"),
        (put("tensors", "ln_out.bias", shape=[True] * 3), "ln_out.bias: shape"),
        (put("tensors", "ln_out.bias", bytes=255), "ln_out.bias: bytes"),
        (put("tensors", "ln_out.bias", bytes=None), "ln_out.bias: bytes"),
        (put("tensors", "ln_out.bias", offset=3), "ln_out.bias: offset"),
        (put("tensors", "ln_out.bias", offset=-64), "ln_out.bias: offset"),
        (put("tensors", "ln_out.bias", offset=False), "ln_out.bias: offset"),
        (put("tensors", "ln_out.bias", offset="0"), "ln_out.bias: offset"),
        (put("tensors", "ln_out.bias", offset=2**60), "ln_out.bias: offset"),
        (put("matrices", "head", rows=0), "head: shape"),
        (put("matrices", "head", rows=VOCABULARY + 1), "head.codes: table that"),
        (put("matrices", "head", columns=128), "head.codes: table that"),
        (put("matrices", "head", bits=3), "head: bits"),
        (put("matrices", "head", bits=1, group=None), "head: bits"),
        (put("matrices", "head", bits=True), "head: bits"),
        (put("matrices", "head", bits=8), "head.codes: table that"),
        (put("matrices", "head", bits=32, group=None), "head.weight: table that"),
        (put("matrices", "head", group=48), "head: group"),
        (put("matrices", "head", group=128), "head: group"),
        (put("matrices", "head", group=64), "head.codes: table that"),
        (put("matrices", "head", group=None), "head: group"),
        (put("matrices", "blocks.0.att.key", group=32), "blocks.0.att.key: group"),
        (put("matrices", "head", midrise=True), "head: midrise"),
        (put("matrices", "head", midrise=0), "midrise 0"),
        (put("matrices", "head", float_activations=None), "float_activations None"),
        (put("matrices", "blocks.2.ffn.value", midrise=False), "blocks.2.ffn.value.zeros: table that"),
        (put("tensors", "head.scales", dtype="uint8"), "head.scales: bytes"),
        (lambda d: d["tensors"].remove(entry(d, "tensors", "head.zeros")), "head.zeros: table that"),
    ],
)
def test_what_contradicts_the_file_is_refused(
    edit: Edit, match: str, data: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    changed = json.loads(json.dumps(data))
    edit(changed)
    with pytest.raises(BundleError, match=match) as caught:
        read(changed, tmp_path, size_of(folder))
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.line()


def test_a_file_that_ends_too_early_is_refused(data: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="where the file ends"):
        read(data, tmp_path, size_of(folder) - 1)


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="says nothing of where its weights lie"):
        read_tensors(tmp_path / "tensors.json", 64)
    for text, match in (
        ("[", "cannot be read"),
        ("[]", "another schema"),
        ('{"a": NaN}', "NaN is no JSON number"),
    ):
        (tmp_path / "tensors.json").write_text(text, "utf-8")
        with pytest.raises(BundleError, match=match):
            read_tensors(tmp_path / "tensors.json", 64)


@given(draw=st.data())
def test_no_edit_makes_a_table_that_leaves_the_file(draw: st.DataObject, data: Any, folder: Path) -> None:
    """Whatever one value becomes: refused as a bundle, or every tensor still lies inside the file."""
    changed = json.loads(json.dumps(data))
    item = draw.draw(st.sampled_from(changed["tensors"] + changed["matrices"]))
    key = draw.draw(st.sampled_from(sorted(set(item) - {"name"})))
    numbers = st.integers(-(2**70), 2**70) | st.sampled_from([0, 1, 2, 4, 8, 16, 32, 64, 128])
    item[key] = draw.draw(
        numbers | st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.lists(numbers)
    )
    target = folder.with_name("edited.json")
    target.write_text(json.dumps(changed), "utf-8")
    try:
        table = read_tensors(target, size_of(folder))
    except BundleError:
        return
    assert all(t.offset >= 0 and t.offset + t.nbytes <= size_of(folder) for t in table.tensors.values())
    for matrix in table.matrices.values():
        used = sum(t.nbytes for t in (matrix.codes, matrix.scales, matrix.zeros) if t is not None)
        assert used * 8 >= matrix.rows * matrix.columns * matrix.bits
