"""The CUDA session on the CPU provider: its buffers, turns and states are the same there; and what it refuses.

onnxruntime takes "cpu" where a GPU has "cuda" as the place of a buffer, so that all but the capture runs for real. On a
machine with a GPU one test runs the whole.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qslm_edge.bundle.reader import Bundle, open_bundle
from qslm_edge.errors import BundleError, RuntimeFault
from qslm_edge.runner.runtime import CPU, import_onnxruntime
from qslm_edge.runner.sessions import cuda, open_session, opening, placement
from qslm_edge.runner.sessions.base import SessionOptions
from qslm_edge.runner.sessions.cuda import CudaSession
from qslm_edge.runner.sessions.opening import CUDA
from qslm_edge.runner.sessions.placement import read_placement
from qslm_edge.runner.sessions.portable import PortableSession
from tests.helpers.bundles import edit_manifest, make_bundle

OPTIONS = SessionOptions(provider=CUDA)


@pytest.fixture(scope="session")
def cuda_bundle(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("cuda"), level="4g64", profile="h100")


@pytest.fixture(scope="session")
def cuda_classifier(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("cuda-classifier"), "sst2", "16", profile="h100")


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """CudaSession works on the CPU provider."""
    monkeypatch.setattr(cuda, "CUDA", CPU)
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    monkeypatch.setattr(cuda, "open_graph", _without_settings)


def _without_settings(
    runtime: Any, bundle: Bundle, path: Path, given: Any, provider: str, _settings: Any
) -> Any:
    return opening.open_graph(runtime, bundle, path, given, provider)


def _open_plainly(runtime: Any, _bundle: Bundle, path: Path, given: Any, _provider: str) -> Any:
    return runtime.InferenceSession(str(path), given)


def open_on_cpu(bundle: Bundle, **options: Any) -> CudaSession:
    return CudaSession(bundle, SessionOptions(provider=CUDA, **options))


def tokens_of(bundle: Bundle, length: int, batch: int) -> Any:
    vocabulary = bundle.manifest["model"]["vocab_size"]
    return np.random.default_rng(length).integers(0, vocabulary, (length, batch), np.int64)


# ---- which session


def test_a_bundle_for_cuda_has_the_step_graph_and_others_do_not(
    cuda_bundle: Bundle, lm_bundle: Bundle
) -> None:
    assert "step-cuda.onnx" in cuda_bundle.file_bytes
    assert cuda_bundle.manifest["cuda"]["graph"] == "step-cuda.onnx"
    assert "cuda" not in lm_bundle.manifest
    assert "step-cuda.onnx" not in lm_bundle.file_bytes


def test_the_step_graph_is_taken_on_cuda_only(cuda_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_session(cuda_bundle, SessionOptions()), PortableSession)
    taken: list[str] = []
    monkeypatch.setattr(CudaSession, "__init__", lambda *_: taken.append("cuda"))
    assert isinstance(open_session(cuda_bundle, OPTIONS), CudaSession)
    assert taken == ["cuda"]


@pytest.mark.parametrize(
    "part",
    [
        *([], {}, {"graph": "step-cuda.onnx"}, {"graph": 1}, {"graph": "elsewhere.onnx"}),
        *({"state": {"a": "0"}}, {"state": {}}, {"state": 1}, {"onnxruntime_min": None}),
    ],
)
def test_a_damaged_description_is_refused(part: Any, cuda_bundle: Bundle, copy_bundle: Any) -> None:
    folder = copy_bundle(cuda_bundle)
    whole = cuda_bundle.manifest["cuda"]
    changed = {**whole, **part} if part and len(part) == 1 and part != {"graph": "step-cuda.onnx"} else part
    edit_manifest(folder, lambda manifest: manifest.update(cuda=changed))
    with pytest.raises(BundleError, match="step graph|no digest") as caught:
        open_bundle(folder)
    assert caught.value.exit_code == 2


# ---- running


def test_logits_are_near_those_of_the_portable_graph(cuda_bundle: Bundle, on_cpu: None) -> None:
    session, portable = open_on_cpu(cuda_bundle), PortableSession(cuda_bundle)
    tokens = tokens_of(cuda_bundle, 1, 32)
    got, _ = session.logits(tokens, session.initial_state(32), 1)
    expected, _ = portable.logits(tokens, portable.initial_state(32), 1)
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    assert np.mean(np.abs(got - expected).max(-1) < 0.05) > 0.5  # float16: some spikes flip
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.9


def test_pieces_give_what_one_call_gives(cuda_bundle: Bundle, on_cpu: None) -> None:
    session, tokens = open_on_cpu(cuda_bundle), tokens_of(cuda_bundle, 9, 2)
    whole, _ = session.logits(tokens, session.initial_state(2), 9)
    few, _ = session.logits(tokens, session.initial_state(2), 2)
    np.testing.assert_array_equal(few, whole[-2:])
    state, parts = session.initial_state(2), []
    for begin, end in ((0, 1), (1, 5), (5, 9)):
        part, state = session.logits(tokens[begin:end], state, end - begin)
        parts.append(part)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    state = session.advance(tokens[:8], session.initial_state(2))
    np.testing.assert_array_equal(session.logits(tokens[8:], state, 1)[0], whole[-1:])


def test_streams_that_take_turns_keep_their_own_state(cuda_bundle: Bundle, on_cpu: None) -> None:
    session = open_on_cpu(cuda_bundle)
    first, second = tokens_of(cuda_bundle, 6, 1), tokens_of(cuda_bundle, 7, 1)[:6]
    alone = [session.logits(tokens, session.initial_state(1), 6)[0] for tokens in (first, second)]
    states = [session.initial_state(1), session.initial_state(1)]
    found: list[list[Any]] = [[], []]
    for step in range(6):
        for number, tokens in enumerate((first, second)):
            logits, states[number] = session.logits(tokens[step : step + 1], states[number], 1)
            found[number].append(logits)
    for number in range(2):
        np.testing.assert_array_equal(np.concatenate(found[number]), alone[number])


def test_a_classifier_sums_its_features_under_the_mask(cuda_classifier: Bundle, on_cpu: None) -> None:
    session, tokens = open_on_cpu(cuda_classifier), tokens_of(cuda_classifier, 5, 3)
    mask = np.ones((5, 3), np.float32)
    mask[2:, 1] = 0
    pooled, count, _ = session.pooled(tokens, session.initial_state(3), mask)
    assert count.tolist() == [5, 2, 5]
    short = np.ascontiguousarray(tokens[:2, 1:2])
    alone, _, _ = session.pooled(short, session.initial_state(1), np.ones((2, 1), np.float32))
    np.testing.assert_allclose(pooled[1:2], alone, atol=1e-2)


def test_what_it_is_is_told(cuda_bundle: Bundle, on_cpu: None) -> None:
    told = open_on_cpu(cuda_bundle).describe()
    assert (told["graph"], told["cuda_graph"]) == ("step-cuda.onnx", True)
    placed: Any = told["placement"]
    assert placed["nodes"][CPU] > 100
    assert json.loads(json.dumps(told)) == told


# ---- refusals


def line_of(caught: pytest.ExceptionInfo[RuntimeFault]) -> str:
    assert caught.value.exit_code == 4
    assert "\n" not in caught.value.line()
    return caught.value.line()


def test_ids_beyond_the_vocabulary_are_refused_before_they_run(cuda_bundle: Bundle, on_cpu: None) -> None:
    session, vocabulary = open_on_cpu(cuda_bundle), cuda_bundle.manifest["model"]["vocab_size"]
    for wrong in (-1, vocabulary):
        with pytest.raises(RuntimeFault, match="token id is outside the vocabulary") as caught:
            session.logits(np.array([[0], [wrong]]), session.initial_state(1), 1)
        assert f"found {wrong}; allowed: 0 to {vocabulary - 1}" in line_of(caught)


def test_a_state_of_other_streams_or_used_up_is_refused(cuda_bundle: Bundle, on_cpu: None) -> None:
    session, tokens = open_on_cpu(cuda_bundle), tokens_of(cuda_bundle, 2, 3)
    with pytest.raises(RuntimeFault, match="another number of streams") as caught:
        session.logits(tokens, session.initial_state(2), 1)
    assert "found tokens [2, 3]; allowed: [T, 2]." in line_of(caught)
    with pytest.raises(RuntimeFault, match="no tokens to run"):
        session.logits(tokens[:0], session.initial_state(3), 1)
    with pytest.raises(RuntimeFault, match="logits of too many tokens; found 3; allowed: 1 to 2"):
        session.logits(tokens, session.initial_state(3), 3)
    state = session.initial_state(3)
    session.logits(tokens, state, 1)
    with pytest.raises(RuntimeFault, match="used up by an earlier call") as caught:
        session.logits(tokens, state, 1)
    line_of(caught)


@pytest.mark.parametrize(
    "text",
    [
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : CUDA failure 2: out of memory ; GPU=0",
        "[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory for requested buffer of size 999",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 (CUDA)",
    ],
)
def test_a_gpu_without_memory_is_one_line(
    text: str, cuda_bundle: Bundle, on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_on_cpu(cuda_bundle)
    monkeypatch.setattr(cuda, "CUDA", CUDA)

    def fail(*_: Any) -> None:
        raise RuntimeError(f"{text}\nstack")

    monkeypatch.setattr(cuda._Slot, "step", fail)
    with pytest.raises(RuntimeFault, match="the GPU is out of memory; found") as caught:
        session.logits(tokens_of(cuda_bundle, 1, 1), session.initial_state(1), 1)
    assert "nvidia-smi" in line_of(caught)


@pytest.mark.parametrize(("release", "enough"), [("1.30.0", False), ("1.31.0", True)])
def test_two_bits_need_a_runtime_that_reads_them(
    release: str, enough: bool, lm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = import_onnxruntime()
    monkeypatch.setattr(runtime, "__version__", release)
    monkeypatch.setattr(runtime, "get_available_providers", lambda: [CUDA, CPU])
    only_table = {"setting": {"emb": "2g64", "head": "4g64"}}
    opening.import_for(Bundle(lm_bundle.path, {**lm_bundle.manifest, **only_table}), CUDA)
    matrices = Bundle(lm_bundle.path, {**lm_bundle.manifest, "setting": {"emb": "16", "head": "2g64m"}})
    opening.import_for(matrices, CPU)
    if enough:
        opening.import_for(matrices, CUDA)
        return
    with pytest.raises(RuntimeFault, match="2-bit matrices on CUDA as 4 bits") as caught:
        opening.import_for(matrices, CUDA)
    assert "found 1.30.0; allowed: 1.31.0 or newer" in line_of(caught)


def test_a_graph_that_cannot_be_captured_is_counted_and_refused(
    cuda_bundle: Bundle, on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def open_twice(runtime: Any, bundle: Bundle, path: Path, given: Any, provider: str, settings: Any) -> Any:
        asked.append(settings["enable_cuda_graph"])
        if settings["enable_cuda_graph"] == "1":
            raise RuntimeFault("onnxruntime refuses the model", found="cannot use the graph capture feature")
        return opening.open_graph(runtime, bundle, path, given, provider)

    monkeypatch.setattr(cuda, "open_graph", open_twice)
    found = placement.Placement({CUDA: 500, CPU: 3}, 7, {"BitShift": 2, "Scan": 1})
    monkeypatch.setattr(placement, "read_placement", lambda _path: found)
    monkeypatch.setattr(cuda, "CUDA", CUDA)
    monkeypatch.setattr(cuda, "import_for", lambda *_: import_onnxruntime())
    monkeypatch.setattr(opening, "open_graph", _open_plainly)
    with pytest.raises(RuntimeFault, match="leaves nodes to the CPU") as caught:
        CudaSession(cuda_bundle, OPTIONS)
    assert "found 3 of 503 nodes on the CPU (2 BitShift, 1 Scan)" in line_of(caught)
    assert "--allow-fallback" in line_of(caught)
    allowed = CudaSession(cuda_bundle, SessionOptions(provider=CUDA, allow_fallback=True))
    assert asked == ["1", "0"] * 2
    assert allowed.describe()["cuda_graph"] is False
    assert allowed.describe()["placement"] == found.to_dict()


# ---- placement


def node(
    name: str, provider: str, output: dict[str, list[int]], index: int = 0, op: str = "Add"
) -> dict[str, Any]:
    args = {"provider": provider, "op_name": op, "node_index": str(index), "output_type_shape": [output]}
    return {"cat": "Node", "name": f"{name}_kernel_time", "args": args}


def write_profile(folder: Path, events: list[Any]) -> Path:
    path = folder / "profile.json"
    path.write_text(json.dumps(events), "utf-8")
    return path


def test_nodes_are_counted_once_and_shapes_apart(tmp_path: Path) -> None:
    events: list[Any] = [
        {"cat": "Session", "name": "model_run", "args": {}},
        *[node("a", CUDA, {"float": [1, 2]})] * 3,
        node("b", CUDA, {"int64": [1]}, 1),
        node("c", CPU, {"int64": [4]}, 2, "Neg"),
        node("d", CPU, {"uint8": [1, 2]}, 3, "BitShift"),
        node("e", CPU, {"int64": [1, 100]}, 4, "Gather"),
        {"cat": "Node", "name": "a_fence_before", "args": {"op_name": "Add"}},
    ]
    found = read_placement(write_profile(tmp_path, events))
    assert found.to_dict() == {
        "nodes": {CUDA: 2, CPU: 2},
        "shape_nodes_on_cpu": 1,
        "operators_on_cpu": {"BitShift": 1, "Gather": 1},
    }
    with pytest.raises(RuntimeFault, match="2 of 4 nodes on the CPU"):
        found.check(CUDA, allow_fallback=False)
    found.check(CUDA, allow_fallback=True)
    found.check(CPU, allow_fallback=False)


@pytest.mark.parametrize("text", ["", "{", "[]", "[1]", '[{"cat": "Node"}]', '{"cat": 1}'])
def test_a_profile_that_says_nothing_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text, "utf-8")
    with pytest.raises(RuntimeFault, match="profile") as caught:
        read_placement(path)
    line_of(caught)


# ---- a real GPU


@pytest.mark.skipif(
    CUDA not in import_onnxruntime().get_available_providers(), reason="this onnxruntime has no CUDA provider"
)
def test_on_a_gpu_everything_runs_there(cuda_bundle: Bundle) -> None:
    session = open_session(cuda_bundle, OPTIONS)
    told: Any = session.describe()
    assert told["cuda_graph"] is True
    assert set(told["placement"]["nodes"]) == {CUDA}
    portable = PortableSession(cuda_bundle)
    tokens = tokens_of(cuda_bundle, 1, 32)
    got, _ = session.logits(tokens, session.initial_state(32), 1)
    expected, _ = portable.logits(tokens, portable.initial_state(32), 1)
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.9
