"""The session: what it refuses, the state it starts with, and that it computes what torch computes."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.bundle.reader import Bundle, open_bundle
from qslm_edge.errors import RuntimeFault
from qslm_edge.runner.runtime import (
    CPU,
    bundle_path_of,
    import_onnxruntime,
    uses_gpu,
    version_tuple,
)
from qslm_edge.runner.sessions.base import SessionOptions
from qslm_edge.runner.sessions.portable import PortableSession
from tests.helpers.bundle_fixtures import CopyBundle


class FakeRuntime(types.ModuleType):
    """An onnxruntime of another version, with other providers, or one that fails in some way."""

    def __init__(self, version: str | None = "1.31.1", providers: tuple[str, ...] = (CPU,)) -> None:
        super().__init__("onnxruntime")
        if version is not None:
            self.__version__ = version
        self.providers = providers
        self.obtained = list(providers)
        self.options: Any = None
        self.fault: Exception | None = None
        outer = self

        class SessionOptions:
            def __init__(self) -> None:
                self.entries: dict[str, str] = {}
                self.intra_op_num_threads = self.inter_op_num_threads = 0
                self.log_severity_level = 2
                outer.options = self

            def add_session_config_entry(self, key: str, value: str) -> None:
                self.entries[key] = value

        class InferenceSession:
            def __init__(self, _path: str, _options: Any, providers: list[str]) -> None:
                outer.asked = providers
                if outer.fault is not None:
                    raise outer.fault

            def get_providers(self) -> list[str]:
                return outer.obtained

        self.SessionOptions, self.InferenceSession = SessionOptions, InferenceSession

    asked: list[str]

    def get_available_providers(self) -> list[str]:
        return list(self.providers)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts another module in the place of onnxruntime."""

    def put(runtime: types.ModuleType | None) -> Any:
        monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
        return runtime

    return put


def one_line(error: RuntimeFault) -> str:
    line = error.line()
    assert "\n" not in line
    assert error.exit_code == 4
    return line


# ---- the runtime


@given(st.lists(st.integers(0, 999), min_size=1, max_size=3))
def test_versions_compare_by_number(numbers: list[int]) -> None:
    text = ".".join(str(number) for number in numbers)
    assert version_tuple(text) == tuple(numbers)
    assert version_tuple(f"{text}+cu124") == tuple(numbers) + ((124,) if len(numbers) < 3 else ())


def test_versions_of_ten_and_more_come_after_nine() -> None:
    assert version_tuple("1.9.0") < version_tuple("1.22.1") < version_tuple("1.23") < version_tuple("1.23.2")


def test_a_missing_runtime_is_one_line(install: Any) -> None:
    install(None)  # as if it were not installed
    with pytest.raises(RuntimeFault, match="onnxruntime cannot be imported") as caught:
        import_onnxruntime("1.22.1")
    assert "Install onnxruntime (or the board vendor's build of it), 1.22.1 or newer" in one_line(
        caught.value
    )
    with pytest.raises(RuntimeFault) as caught:
        import_onnxruntime()
    assert one_line(caught.value).endswith("Install onnxruntime (or the board vendor's build of it)")


def test_a_broken_runtime_is_one_line(install: Any) -> None:
    install(FakeRuntime(version=None))  # what is left of two packages when one of them was removed
    with pytest.raises(RuntimeFault, match="onnxruntime cannot be imported; found .*__version__"):
        import_onnxruntime()


@pytest.mark.parametrize("error", [ImportError("libcudart.so.12: no such file\nsecond"), OSError("bad ELF")])
def test_a_runtime_that_fails_while_it_loads_is_one_line(
    error: Exception, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "onnxruntime.py").write_text(f"raise {error!r}", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    with pytest.raises(RuntimeFault) as caught:
        import_onnxruntime()
    assert str(error).splitlines()[0] in one_line(caught.value)


@pytest.mark.parametrize(
    ("version", "minimum", "enough"),
    [
        *(("1.22.0", "1.22.1", False), ("1.22.1", "1.22.1", True), ("1.9.9", "1.22.1", False)),
        *(("1.23.0", "1.22.1", True), ("2.0.0", "1.22.1", True), ("1.31.1", "1.22.1", True)),
    ],
)
def test_an_old_runtime_is_refused(version: str, minimum: str, enough: bool, install: Any) -> None:
    runtime = install(FakeRuntime(version))
    if enough:
        assert import_onnxruntime(minimum) is runtime
        return
    with pytest.raises(RuntimeFault, match="too old for this bundle") as caught:
        import_onnxruntime(minimum)
    assert f"found {version}; allowed: {minimum} or newer" in one_line(caught.value)


@pytest.mark.parametrize(("given", "kept"), [(None, "1"), ("0", "0")])
def test_telemetry_of_the_runtime_is_off_unless_it_is_asked_for(
    given: str | None, kept: str, tmp_path: Path, root: Path
) -> None:
    env = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | {"TMPDIR": str(tmp_path)}
    if given is not None:
        env["ORT_DISABLE_TELEMETRY"] = given
    code = (
        "import os; from qslm_edge.runner.runtime import import_onnxruntime as load; load();"
        "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == kept
    if kept == "1":
        assert list(tmp_path.iterdir()) == []


def test_providers_that_work_on_an_nvidia_gpu() -> None:
    assert uses_gpu("CUDAExecutionProvider")
    assert uses_gpu("TensorrtExecutionProvider")
    assert not uses_gpu(CPU)
    assert not uses_gpu("OpenVINOExecutionProvider")


# ---- opening


def test_a_provider_that_is_not_there_is_refused(lm_bundle: Bundle, install: Any) -> None:
    install(FakeRuntime(providers=("AzureExecutionProvider", CPU)))
    with pytest.raises(RuntimeFault, match="lacks the execution provider") as caught:
        PortableSession(lm_bundle, SessionOptions(provider="CUDAExecutionProvider"))
    line = one_line(caught.value)
    assert "found AzureExecutionProvider, CPUExecutionProvider; allowed: CUDAExecutionProvider" in line
    assert "--provider CPUExecutionProvider" in line


def test_a_provider_that_was_listed_but_not_obtained_is_refused(lm_bundle: Bundle, install: Any) -> None:
    runtime = install(FakeRuntime(providers=("CUDAExecutionProvider", CPU)))
    runtime.obtained = [CPU]  # its library does not load: onnxruntime only warns
    with pytest.raises(
        RuntimeFault, match="fell back to another provider; found CPUExecutionProvider"
    ) as caught:
        PortableSession(lm_bundle, SessionOptions(provider="CUDAExecutionProvider"))
    one_line(caught.value)
    runtime.obtained = ["CUDAExecutionProvider", CPU]
    PortableSession(lm_bundle, SessionOptions(provider="CUDAExecutionProvider"))
    assert runtime.asked == ["CUDAExecutionProvider"]


def test_a_model_that_the_runtime_refuses_is_one_line(lm_bundle: Bundle, install: Any) -> None:
    runtime = install(FakeRuntime("1.23.2"))
    runtime.fault = RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Only 4b\nstack\nstack")
    with pytest.raises(RuntimeFault, match="refuses the model; found .*NOT_IMPLEMENTED : Only 4b") as caught:
        PortableSession(lm_bundle)
    assert "This is onnxruntime 1.23.2; the bundle was made for 1.22.1 and newer" in one_line(caught.value)


def test_a_damaged_graph_is_one_line(lm_bundle: Bundle, copy_bundle: CopyBundle) -> None:
    bundle = open_bundle(copy_bundle(lm_bundle))
    (bundle.path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(RuntimeFault, match="onnxruntime refuses the model") as caught:
        PortableSession(bundle)
    one_line(caught.value)


@pytest.mark.parametrize(("threads", "spinning"), [(1, False), (2, True)])
def test_options_are_set_and_told(threads: int, spinning: bool, lm_bundle: Bundle, install: Any) -> None:
    runtime = install(FakeRuntime())
    session = PortableSession(lm_bundle, SessionOptions(threads=threads, spinning=spinning))
    assert runtime.options.intra_op_num_threads == threads
    assert runtime.options.inter_op_num_threads == 1
    assert runtime.options.entries == {"session.intra_op.allow_spinning": "1" if spinning else "0"}
    assert session.describe() == {
        "engine": "onnxruntime",
        "onnxruntime": "1.31.1",
        "provider": CPU,
        "threads": threads,
        "spinning": spinning,
    }


def test_one_thread_without_spinning_is_the_default(lm_bundle: Bundle, install: Any) -> None:
    install(FakeRuntime())
    described = PortableSession(lm_bundle).describe()
    assert (described["threads"], described["spinning"]) == (1, False)


# ---- running


def test_the_state_of_a_new_stream(lm_bundle: Bundle) -> None:
    state = PortableSession(lm_bundle).initial_state(3)
    n_layer = lm_bundle.manifest["state"]["n_layer"]
    assert (state.shape, state.dtype.name) == ((7 * n_layer, 3, 64), "float32")
    layers = state.reshape(n_layer, 7, 3, 64)
    assert (layers[:, 4] == np.float32(-1e38)).all()
    assert not np.delete(layers, 4, axis=1).any()


def test_golden_outputs_come_from_the_session(lm_bundle: Bundle, classifier_bundle: Bundle) -> None:
    golden, session = lm_bundle.golden(), PortableSession(lm_bundle)
    tokens = golden["tokens"].astype(np.int64)
    logits, state = session.logits(tokens, session.initial_state(tokens.shape[1]), len(tokens))
    assert np.mean(np.abs(logits - golden["expected"]).max(-1) < 1e-3) > 0.7
    again, _ = session.logits(tokens, session.initial_state(tokens.shape[1]), 1)
    np.testing.assert_allclose(again, logits[-1:], atol=1e-5)
    assert state.shape == session.initial_state(tokens.shape[1]).shape
    other = PortableSession(classifier_bundle)
    tokens = classifier_bundle.golden()["tokens"].astype(np.int64)
    mask = np.ones(tokens.shape, np.float32)
    pooled, count, _ = other.pooled(tokens, other.initial_state(tokens.shape[1]), mask)
    assert pooled.shape == (tokens.shape[1], 64)
    assert (count == len(tokens)).all()


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (np.full((1, 1), 10**6), "outside the vocabulary; found 1000000; allowed: 0 to"),
        (np.array([[3], [-1]]), "outside the vocabulary; found -1"),
        (np.zeros((0, 1), np.int64), "no tokens to run"),
        (np.zeros(3, np.int64), "no tokens to run"),
    ],
)
def test_tokens_are_checked_before_the_runtime_sees_them(
    tokens: Any, said: str, lm_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = PortableSession(lm_bundle)
    monkeypatch.setattr(session, "_session", None)
    with pytest.raises(RuntimeFault, match=said) as caught:
        session.logits(tokens, session.initial_state(1), 1)
    one_line(caught.value)


@pytest.mark.parametrize("last", [0, -1, 3])
def test_logits_of_tokens_that_are_not_there_are_refused(last: int, lm_bundle: Bundle) -> None:
    session = PortableSession(lm_bundle)
    with pytest.raises(RuntimeFault, match="logits of too many tokens"):
        session.logits(np.zeros((2, 1), np.int64), session.initial_state(1), last)


def test_a_state_of_another_model_or_batch_is_refused(lm_bundle: Bundle, classifier_bundle: Bundle) -> None:
    session, other = PortableSession(lm_bundle), PortableSession(classifier_bundle)
    tokens = np.zeros((1, 1), np.int64)
    for state in (session.initial_state(1)[:-1], session.initial_state(2), session.initial_state(1)[..., 1:]):
        with pytest.raises(RuntimeFault, match="state is of another model or another number of") as caught:
            session.logits(tokens, state, 1)
        one_line(caught.value)
        with pytest.raises(RuntimeFault, match="state is of another model or another number of"):
            other.pooled(tokens, state, np.ones((1, 1), np.float32))
    with pytest.raises(RuntimeFault, match="found float64"):
        session.logits(tokens, session.initial_state(1).astype(np.float64), 1)


def test_what_fails_while_running_is_one_line(lm_bundle: Bundle) -> None:
    session = PortableSession(lm_bundle)
    with pytest.raises(RuntimeFault, match="failed while running the model") as caught:
        session.logits(np.zeros((1, 1), np.int32), session.initial_state(1), 1)
    one_line(caught.value)


def test_the_bundle_of_a_pyz_is_its_folder(tmp_path: Path) -> None:
    assert bundle_path_of(str(tmp_path / "run.pyz")) == tmp_path
    assert bundle_path_of("qslm-edge") is None
    assert bundle_path_of("run.pyz") == Path.cwd()
    (tmp_path / "inner").mkdir()
    (tmp_path / "link.pyz").symlink_to(tmp_path / "inner" / "run.pyz")
    assert bundle_path_of(str(tmp_path / "link.pyz")) == tmp_path / "inner"
