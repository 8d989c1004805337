"""The native engine compiled once for all tests of a process, one library for each instruction set that runs here."""

from __future__ import annotations

import atexit
import json
import platform
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import pytest

from qslm_edge.bundle.reader import Bundle
from qslm_edge.exporters import ExportJob
from qslm_edge.exporters.onnx_exporter import OnnxExporter
from qslm_edge.runner.native.build import LIBRARY_VARIABLE, Built, build
from qslm_edge.runner.runtime import NATIVE
from qslm_edge.runner.sessions.base import SessionOptions
from qslm_edge.runner.sessions.native import NativeSession, native_library

__all__ = ["ISAS", "engine", "exported_bundle", "library", "native_session", "needs_compiler"]

_HAS_COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
needs_compiler = pytest.mark.skipif(
    not _HAS_COMPILER, reason="no C++ compiler (c++, g++, clang++) is installed"
)


def _older() -> tuple[str, ...]:
    """Instruction sets between the best of this processor and none."""
    if platform.machine() == "aarch64":
        return ("neon",)
    text = Path("/proc/cpuinfo")
    has_avx2 = platform.machine() == "x86_64" and text.exists() and " avx2 " in text.read_text("utf-8")
    return ("avx2",) if has_avx2 else ()


ISAS = ("native", *_older(), "portable")


@lru_cache(maxsize=1)
def _libraries() -> dict[str, Path]:
    folder = Path(tempfile.mkdtemp(prefix="qslm-native-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QSLM_EDGE_CACHE", str(folder))
        patch.delenv(LIBRARY_VARIABLE, raising=False)
        with ThreadPoolExecutor(2) as pool:
            return {isa: built.path for isa, built in zip(ISAS, pool.map(_built, ISAS), strict=True)}


def _built(isa: str) -> Built:
    return build(isa=isa)


def library(isa: str = "native") -> Path:
    """The compiled engine."""
    return _libraries()[isa]


@contextmanager
def engine(isa: str = "native") -> Iterator[None]:
    """Sessions opened within it use the engine of an instruction set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LIBRARY_VARIABLE, str(library(isa)))
        native_library.cache_clear()
        yield
    native_library.cache_clear()


def native_session(bundle: Bundle, isa: str = "native", threads: int = 1) -> NativeSession:
    """A session of the engine of an instruction set."""
    with engine(isa):
        return NativeSession(bundle, SessionOptions(engine=NATIVE, threads=threads))


def exported_bundle(job: ExportJob, directory: Path) -> Bundle:
    """Graph, weights and as much of a manifest as a session reads."""
    exported = OnnxExporter().export(job, directory)
    config, is_lm = job.store.model.config, job.store.hierarchy.head == "lm"
    manifest = {
        "model": {"vocab_size": config.vocab_size, "n_embd": config.n_embd, "embedding": config.embedding},
        "task": {"kind": "language_model" if is_lm else "classification"},
        "state": {"n_layer": config.n_layer, "n_embd": config.n_embd, "p_init": -1e38},
        "runtime": {"onnxruntime_min": "1.18.1"},
        "files": [
            {"path": name, "bytes": (directory / name).stat().st_size, "sha256": ""}
            for name in exported.files
        ],
    }
    (directory / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return Bundle(directory, manifest)
