"""Loading a bundle: one session class for each way of running it."""

from __future__ import annotations

from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import UsageError
from qslm_edge.runner.runtime import NATIVE, NATIVE_CUDA
from qslm_edge.runner.sessions.base import ONNXRUNTIME, Session, SessionOptions
from qslm_edge.runner.sessions.native import NativeCudaSession, NativeSession
from qslm_edge.runner.sessions.portable import PortableSession

__all__ = ["ENGINES", "check_engine", "load_library", "open_session"]

_CLASSES: dict[str, type[Session]] = {
    ONNXRUNTIME: PortableSession,
    NATIVE: NativeSession,
    NATIVE_CUDA: NativeCudaSession,
}
ENGINES = tuple(_CLASSES)


def check_engine(name: str) -> None:
    """Refuse an engine that does not exist, and make one ready that must be compiled first.

    Raises:
        UsageError: with those that do.
        RuntimeFault: no compiler, or it fails.
    """
    if name not in ENGINES:
        raise UsageError("unknown engine", where="--engine", found=name, allowed=", ".join(ENGINES))
    if name != ONNXRUNTIME:
        _CLASSES[name].load_library()


def load_library(options: SessionOptions) -> None:
    """Import what the engine stands on, so that it is not taken for loading a model.

    Raises:
        RuntimeFault: it cannot be imported.
    """
    _class_of(options).load_library()


def open_session(bundle: Bundle, options: SessionOptions) -> Session:
    """Load a bundle.

    Raises:
        UsageError: unknown engine.
        RuntimeFault: runtime missing, too old, without the provider, or refusing the model.
    """
    return _class_of(options)(bundle, options)


def _class_of(options: SessionOptions) -> type[Session]:
    check_engine(options.engine)
    return _CLASSES[options.engine]
