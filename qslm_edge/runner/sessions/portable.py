"""The bundle's own graph in onnxruntime: runs on every provider, and is what the others are held against.

A provider is believed only when the session really got it; a missing or old runtime is one clear line.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import RuntimeFault
from qslm_edge.runner.child import MEMORY_HINT
from qslm_edge.runner.runtime import first_line, import_onnxruntime
from qslm_edge.runner.sessions.base import DEFAULT, Array, Session, SessionOptions

__all__ = ["PortableSession"]


class PortableSession(Session):
    """A bundle's graph, loaded by onnxruntime; its state is one array [7L, B, C]."""

    def __init__(self, bundle: Bundle, options: SessionOptions = DEFAULT) -> None:
        super().__init__(bundle, options)
        provider = options.provider
        runtime = import_onnxruntime(bundle.manifest["runtime"]["onnxruntime_min"])
        if provider not in runtime.get_available_providers():
            raise RuntimeFault(
                "onnxruntime lacks the execution provider",
                found=", ".join(runtime.get_available_providers()),
                allowed=provider,
                hint="install a build that has it, or verify with --provider CPUExecutionProvider",
            )
        given = runtime.SessionOptions()
        given.intra_op_num_threads = options.threads
        given.inter_op_num_threads = 1
        given.log_severity_level = 3
        given.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spinning else "0")
        path = bundle.file("model.onnx")
        try:
            self._session = runtime.InferenceSession(str(path), given, providers=[provider])
        except Exception as error:  # noqa: BLE001 - the binding's own classes have no public base
            raise RuntimeFault(
                "onnxruntime refuses the model",
                where=path,
                found=first_line(error),
                hint=_hint(
                    error,
                    f"this is onnxruntime {runtime.__version__}; the bundle was made for "
                    f"{bundle.manifest['runtime']['onnxruntime_min']} and newer",
                ),
            ) from None
        obtained = self._session.get_providers()
        if provider not in obtained:
            raise RuntimeFault(
                "the session fell back to another provider",
                found=", ".join(obtained),
                allowed=provider,
                hint="the provider's library does not load: check the driver and the build",
            )
        self.runtime_version: str = runtime.__version__
        state = bundle.manifest["state"]
        self._state_shape = (7 * int(state["n_layer"]), int(state["n_embd"]))
        self._p_init = np.float32(state["p_init"])

    def initial_state(self, batch: int) -> NDArray[np.float32]:
        rows, channels = self._state_shape
        state = np.zeros((rows, batch, channels), np.float32)
        state[4::7] = self._p_init
        return state

    def logits(
        self, tokens: Array, state: Array, last: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self._check(tokens, state)
        if not 1 <= last <= len(tokens):
            raise RuntimeFault("logits of too many tokens", found=last, allowed=f"1 to {len(tokens)}")
        feed = {"tokens": tokens, "state": state, "last": np.array([last], np.int64)}
        logits, new_state = self._run(["logits", "state_out"], feed)
        return logits, new_state

    def pooled(self, tokens: Array, state: Array, mask: Array) -> tuple[Array, Array, NDArray[np.float32]]:
        self._check(tokens, state)
        pooled, count, new_state = self._run(
            ["pooled", "n_tokens", "state_out"], {"tokens": tokens, "state": state, "mask": mask}
        )
        return pooled, count, new_state

    def _check(self, tokens: Array, state: Array) -> None:
        self.check_tokens(tokens)
        rows, channels = self._state_shape
        wanted = (rows, tokens.shape[1], channels)
        if state.shape != wanted or state.dtype != np.float32:
            raise RuntimeFault(
                "the state is of another model or another number of streams",
                found=f"{state.dtype} {list(state.shape)}",
                allowed=f"float32 {list(wanted)}",
                hint="begin with initial_state, and go on with the state that the last call gave",
            )

    def _run(self, outputs: list[str], feed: dict[str, Array]) -> list[Any]:
        try:
            return list(self._session.run(outputs, feed))
        except Exception as error:  # noqa: BLE001 - see above
            raise RuntimeFault(
                "onnxruntime failed while running the model",
                found=first_line(error),
                hint=_hint(error, "see `conditions` for the memory that was free"),
            ) from None

    def describe(self) -> dict[str, object]:
        return {
            "engine": self.options.engine,
            "onnxruntime": self.runtime_version,
            "provider": self.options.provider,
            "threads": self.options.threads,
            "spinning": self.options.spinning,
        }

    @staticmethod
    def load_library() -> None:
        import_onnxruntime()


def _hint(error: Exception, other: str) -> str:
    """What to do next: about memory where that is what onnxruntime says it lacks."""
    return MEMORY_HINT if re.search(r"bad_alloc|[Ff]ailed to allocate", str(error)) else other
