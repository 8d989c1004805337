"""The bundle's own graph in onnxruntime: runs on every provider, and is what the others are held against.

A provider is believed only when the session really got it; a missing or old runtime is one clear line.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import RuntimeFault
from qslm_edge.runner.runtime import CPU, import_onnxruntime
from qslm_edge.runner.sessions.base import DEFAULT, Array, Session, SessionOptions
from qslm_edge.runner.sessions.opening import failed_run, import_for, open_graph, option_values
from qslm_edge.runner.sessions.placement import Placement, profiled

__all__ = ["PortableSession"]


class PortableSession(Session):
    """A bundle's graph, loaded by onnxruntime; its state is one array [7L, B, C]."""

    def __init__(self, bundle: Bundle, options: SessionOptions = DEFAULT) -> None:
        super().__init__(bundle, options)
        runtime = import_for(bundle, options.provider)
        given = option_values(runtime, options)
        self.runtime_version: str = runtime.__version__
        state = bundle.manifest["state"]
        self._state_shape = (7 * int(state["n_layer"]), int(state["n_embd"]))
        self._p_init = np.float32(state["p_init"])
        self.placement: Placement | None = None  # of the CPU provider nothing is to be asked
        with profiled(given, options.provider != CPU) as read:
            self._session = open_graph(runtime, bundle, bundle.file("model.onnx"), given, options.provider)
            if options.provider != CPU:
                self._run_one_token()
                self.placement = read(self._session)
                self.placement.check(options.provider, options.allow_fallback)

    def _run_one_token(self) -> None:
        tokens, state = np.zeros((1, 1), np.int64), self.initial_state(1)
        if self.kind == "language_model":
            self.logits(tokens, state, 1)
        else:
            self.pooled(tokens, state, np.ones((1, 1), np.float32))

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
            raise failed_run(error, self.options.provider) from None

    def describe(self) -> dict[str, object]:
        described: dict[str, object] = {
            "engine": self.options.engine,
            "onnxruntime": self.runtime_version,
            "provider": self.options.provider,
            "threads": self.options.threads,
            "spinning": self.options.spinning,
        }
        if self.placement is not None:
            described["placement"] = self.placement.to_dict()
        return described

    @staticmethod
    def load_library() -> None:
        import_onnxruntime()
