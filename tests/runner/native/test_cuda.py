"""The GPU engine: it compiles, says where it cannot run, and on a GPU computes what the portable graph computes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import RuntimeFault
from qslm_edge.runner.gpu_memory import first_device
from qslm_edge.runner.native.build import LIBRARY_VARIABLE, build, gpu_flag
from qslm_edge.runner.runtime import NATIVE_CUDA
from qslm_edge.runner.sessions import ENGINES, open_session
from qslm_edge.runner.sessions.base import SessionOptions
from qslm_edge.runner.sessions.native import NativeCudaSession, native_library
from qslm_edge.runner.sessions.portable import PortableSession
from tests.helpers.native import exported_bundle
from tests.helpers.tiny import VOCABULARY, make_job, make_model, random_tokens

Array = NDArray[Any]
LEVELS = ("32", "16", "8g64f", "4g32f", "4g64f", "2g64f", "2g64mf")
HAS_NVCC = shutil.which("nvcc") is not None
HAS_GPU = first_device().value is not None
needs_nvcc = pytest.mark.skipif(not HAS_NVCC, reason="no CUDA compiler (nvcc) is installed")
needs_gpu = pytest.mark.skipif(not (HAS_NVCC and HAS_GPU), reason="no NVIDIA GPU, or no nvcc")
GPU = SessionOptions(engine=NATIVE_CUDA)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of compiled engines for this module alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QSLM_EDGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv(f"{LIBRARY_VARIABLE}_CUDA", raising=False)
        native_library.cache_clear()
        yield
        native_library.cache_clear()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    job = make_job(make_model("dense"), "4g64f", "lm", {"emb": "4g32"})
    return exported_bundle(job, tmp_path_factory.mktemp("cuda"))


def test_it_is_an_engine_that_works_on_a_gpu() -> None:
    assert NATIVE_CUDA in ENGINES
    assert GPU.uses_gpu
    assert GPU.place == NATIVE_CUDA


@needs_nvcc
def test_it_compiles_for_the_oldest_gpu_that_it_supports(tmp_path: Path) -> None:
    with as_file(files("qslm_edge.runner.native")) as folder:
        command = ["nvcc", "-std=c++17", "-ptx", "-arch=compute_80", "-I", str(folder)]
        unit = folder / "cuda" / "qslm_cuda.cu"
        done = subprocess.run(
            [*command, str(unit), "-o", str(tmp_path / "engine.ptx")],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr


@needs_nvcc
@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_without_a_gpu_the_build_says_so(cache: None) -> None:
    with pytest.raises(RuntimeFault, match=r"compute capability 8\.0 or newer") as caught:
        build(cuda=True)
    assert caught.value.exit_code == 4


class Driver:
    """libcuda as far as it is asked for the GPU."""

    def __init__(self, code: int, capability: tuple[int, int]) -> None:
        self.code, self.capability = code, capability

    def cuInit(self, *_: Any) -> int:  # noqa: N802 - the driver's name
        return self.code

    def cuDeviceGet(self, *_: Any) -> int:  # noqa: N802
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, *_: Any) -> int:  # noqa: N802
        value._obj.value = self.capability[attribute - 75]
        return 0


def test_the_flags_and_so_the_place_in_the_cache_name_the_gpu() -> None:
    assert gpu_flag(Driver(0, (9, 0))) == "-arch=sm_90"
    assert gpu_flag(Driver(0, (12, 1))) == "-arch=sm_121"
    assert gpu_flag(Driver(100, (0, 0))) == "-arch=native"


def kl(a: Array, b: Array) -> Array:
    """Of distributions b from a, in nats."""
    logs = [
        x.astype(np.float64) - np.log(np.exp(x.astype(np.float64)).sum(-1, keepdims=True)) for x in (a, b)
    ]
    divergence: Array = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1)
    return divergence


def gpu_session(bundle: Bundle) -> NativeCudaSession:
    session = open_session(bundle, GPU)
    assert isinstance(session, NativeCudaSession)
    return session


@needs_gpu
@pytest.mark.parametrize("level", LEVELS)
def test_it_computes_what_the_graph_computes(level: str, cache: None, tmp_path: Path) -> None:
    """Inputs of matrices are float16 there, so that a spike flips now and then: of the first tokens most are held
    closely, all by their divergence. Rounding the inputs in torch gave 1.5e-4 and 0.002 to 0.017 nats."""
    given = exported_bundle(make_job(make_model("dense"), level, "lm", {}), tmp_path)
    tokens, portable, gpu = random_tokens(24, 9), PortableSession(given), gpu_session(given)
    wanted, _ = portable.logits(tokens, portable.initial_state(9), 24)
    found, _ = gpu.logits(tokens, gpu.initial_state(9), 24)
    assert np.median(np.abs(found[0] - wanted[0]).max(-1)) < 1e-3 * np.abs(wanted).max()
    assert kl(wanted, found).mean() < 0.1
    assert "cuda" in str(gpu.describe()["native"])


def in_steps(gpu: NativeCudaSession, tokens: Array) -> Array:
    """Logits of tokens [T, B], one token at a time."""
    state, steps = gpu.initial_state(tokens.shape[1]), []
    for row in tokens:
        logits, state = gpu.logits(row[None], state, 1)
        steps.append(logits)
    return np.concatenate(steps)


@needs_gpu
@pytest.mark.parametrize("batch", [1, 4, 8, 16, 20, 40, 70, 200, 600])
def test_steps_agree_with_a_prompt_at_every_number_of_streams(
    batch: int, cache: None, bundle: Bundle
) -> None:
    """Steps have a kernel of their own, a prompt goes through others; 600 streams take their turns in it."""
    tokens, gpu = random_tokens(4, batch), gpu_session(bundle)
    wanted, _ = gpu.logits(tokens, gpu.initial_state(batch), 4)
    assert np.median(kl(wanted, in_steps(gpu, tokens))) < 1e-4


@needs_gpu
@pytest.mark.parametrize("level", [*LEVELS, "2g32f"])
@pytest.mark.parametrize("batch", [3, 9])
def test_steps_agree_with_a_prompt_at_every_level(
    level: str, batch: int, cache: None, tmp_path: Path
) -> None:
    given = exported_bundle(make_job(make_model("dense"), level, "lm", {}), tmp_path)
    tokens, gpu = random_tokens(4, batch), gpu_session(given)
    wanted, _ = gpu.logits(tokens, gpu.initial_state(batch), 4)
    assert np.median(kl(wanted, in_steps(gpu, tokens))) < 1e-4


@needs_gpu
def test_a_state_comes_back_as_it_was_set(cache: None, bundle: Bundle) -> None:
    gpu = gpu_session(bundle)
    _, state = gpu.logits(random_tokens(5, 2), gpu.initial_state(2), 1)
    values, other = gpu.read_state(state), gpu.initial_state(2)
    gpu.write_state(other, values)
    assert (gpu.read_state(other) == values).all()


@needs_gpu
def test_a_token_beyond_the_vocabulary_is_refused(cache: None, bundle: Bundle) -> None:
    gpu = gpu_session(bundle)
    with pytest.raises(RuntimeFault, match="the vocabulary does not hold"):
        gpu.logits(np.full((1, 1), VOCABULARY), gpu.initial_state(1), 1)


@needs_gpu
def test_a_classifier_pools_what_the_graph_pools(cache: None, tmp_path: Path) -> None:
    given = exported_bundle(make_job(make_model("dense"), "4g64f", "classifier", {}), tmp_path)
    tokens, mask = random_tokens(6, 9), np.ones((6, 9), np.float32)
    mask[4:, 1] = 0
    portable, gpu = PortableSession(given), gpu_session(given)
    wanted, counts, _ = portable.pooled(tokens, portable.initial_state(9), mask)
    found, gpu_counts, _ = gpu.pooled(tokens, gpu.initial_state(9), mask)
    assert (counts == gpu_counts).all()
    assert np.median(np.abs(found - wanted).max(-1)) < 1e-3 * np.abs(wanted).max()
