"""Models written without the onnx package are what the onnx package reads, and hold what they say."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from qslm_edge.quantize.packing import pack_blocked
from qslm_edge.quantize.rtn import dequantise_groups
from qslm_edge.runner import probe_model
from qslm_edge.runner.probe import FORMS
from qslm_edge.runner.probe_model import Form, build_probe


def loaded(form: Form, rows: int = 6, columns: int = 128) -> tuple[onnx.ModelProto, probe_model.Probe]:
    probe = build_probe(form, rows=rows, columns=columns, seed=3)
    return onnx.load_from_string(probe.model), probe


@pytest.mark.parametrize("form", [Form(32), *FORMS], ids=lambda form: form.label)
def test_every_probe_is_a_valid_model_of_the_form_of_bundles(form: Form) -> None:
    model, _ = loaded(form)
    onnx.checker.check_model(model, full_check=form.block_size is None)  # the checker knows no com.microsoft
    assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == (
        10,
        [("", 21), ("com.microsoft", 1)],
    )
    (x,), (y,) = model.graph.input, model.graph.output
    for value, name, columns in ((x, "x", 128), (y, "y", 6)):
        assert value.name == name
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        free, fixed = value.type.tensor_type.shape.dim
        assert (free.dim_param, fixed.dim_value) == ("M", columns)


@pytest.mark.parametrize("form", [form for form in FORMS if form.block_size], ids=lambda form: form.label)
def test_a_packed_probe_holds_the_matrix_that_it_is_compared_with(form: Form) -> None:
    model, probe = loaded(form)
    (node,) = model.graph.node
    assert (node.op_type, node.domain) == ("MatMulNBits", "com.microsoft")
    assert list(node.input) == ["x", "codes", "scales", "zeros"]
    assert {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} == {
        "K": 128,
        "N": 6,
        "bits": form.bits,
        "block_size": form.block_size,
        "accuracy_level": form.accuracy_level,
    }
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    size = form.block_size or 0
    per_byte = 8 // form.bits
    assert arrays["codes"].shape == (6, 128 // size, size // per_byte)
    shifts = np.arange(0, 8, form.bits, dtype=np.uint8)
    codes = (arrays["codes"][..., None] >> shifts & (2**form.bits - 1)).reshape(6, 128)
    zeros = (arrays["zeros"][..., None] >> shifts & (2**form.bits - 1)).reshape(6, -1)[:, : 128 // size]
    right = dequantise_groups(codes, arrays["scales"], zeros.astype(np.uint8))
    np.testing.assert_allclose(probe.weights, right, rtol=1e-6)
    assert arrays["zeros"].any()  # asymmetric, as bundles are


def test_a_float_probe_holds_its_matrix_transposed() -> None:
    for bits, dtype in ((32, np.float32), (16, np.float16)):
        model, probe = loaded(Form(bits))
        (tensor,) = model.graph.initializer
        stored = numpy_helper.to_array(tensor)
        assert stored.dtype == dtype
        np.testing.assert_array_equal(stored.T.astype(np.float64), probe.weights)
    assert [node.op_type for node in model.graph.node] == ["Cast", "MatMul"]


def test_the_same_seed_gives_the_same_bytes() -> None:
    form = Form(4, 4, 32)
    assert build_probe(form, rows=4, columns=64).model == build_probe(form, rows=4, columns=64).model
    assert build_probe(form, rows=4, columns=64).model != build_probe(form, rows=4, columns=64, seed=1).model


@pytest.mark.parametrize("form", [Form(8), Form(3, 4, 32), Form(4, 4, 48)])
def test_a_form_that_no_bundle_has_is_refused(form: Form) -> None:
    with pytest.raises(ValueError, match="no (float|packed) form"):
        build_probe(form, rows=4, columns=128)


@given(number=st.integers(0, 2**63 - 1))
def test_numbers_of_any_size_are_read_back(number: int) -> None:
    node = onnx.NodeProto.FromString(probe_model._node("Op", ["a"], ["b"], attributes={"n": number}))
    assert onnx.helper.get_attribute_value(node.attribute[0]) == number
    assert (node.name, node.op_type, list(node.input), list(node.output)) == ("b", "Op", ["a"], ["b"])


@given(bits=st.sampled_from((2, 4, 8)), columns=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_codes_are_packed_as_the_exporter_packs_them(bits: int, columns: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (3, columns), dtype=np.uint8)
    np.testing.assert_array_equal(probe_model._pack(codes, bits), pack_blocked(codes, bits))
