"""A bundle's step graph in onnxruntime's CUDA provider: buffers that stay where they are, and one captured CUDA graph.

A step is some hundred small kernels, and starting them one by one would take longer than running them. So tokens,
state and output of each batch size have buffers of their own on the GPU; the first step captures the whole chain and
later ones replay it. Two sets of state buffers take turns as input and output, since a captured graph knows addresses:
one graph for either turn. onnxruntime runs a step more than once while it captures, which does no harm where no input
is overwritten.

Long inputs are steps one after the other: memory does not depend on their length.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import RuntimeFault
from qslm_edge.runner.sessions.base import Array, Session, SessionOptions
from qslm_edge.runner.sessions.opening import CUDA, failed_run, import_for, open_graph, option_values
from qslm_edge.runner.sessions.placement import Placement, profiled

__all__ = ["CudaSession", "CudaState"]

DEVICE = "cuda"
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class CudaState:
    """State of some streams: in the buffers of its batch size, or set aside on the host.

    Attributes:
        batch: number of streams.
        aside: its values by name while other streams of this batch size use the buffers; None for streams that
            have seen nothing, and while it is in the buffers.
        spent: it went into a call.
    """

    def __init__(self, batch: int) -> None:
        self.batch, self.spent = batch, False
        self.aside: dict[str, Array] | None = None


class _Slot:
    """Buffers and captured graphs of one batch size.

    Args:
        runtime: the onnxruntime module.
        session: the loaded step graph.
        batch: number of streams.
        start: initial value of each state tensor.
        first_graph: number of the first of its two captured graphs.
    """

    def __init__(
        self, runtime: Any, session: Any, batch: int, start: dict[str, float], first_graph: int
    ) -> None:
        self._session, self._start = session, start
        self.owner: weakref.ref[CudaState] | None = None
        self._turn = 0
        shapes = {
            value.name: (
                [batch if isinstance(size, str) else size for size in value.shape],
                _TYPES[value.type],
            )
            for value in (*session.get_inputs(), *session.get_outputs())
        }

        def buffer(name: str) -> Any:
            shape, dtype = shapes[name]
            return runtime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, DEVICE, 0)

        self._output_name = session.get_outputs()[0].name
        self._shapes = {name: shapes[name] for name in start}
        self._tokens, self._output = buffer("tokens"), buffer(self._output_name)
        self._states = [{name: buffer(name) for name in start} for _ in range(2)]
        self._bindings, self._choices = [], []
        for turn in range(2):
            binding, choice = session.io_binding(), runtime.RunOptions()
            binding.bind_ortvalue_input("tokens", self._tokens)
            binding.bind_ortvalue_output(self._output_name, self._output)
            for name in start:
                binding.bind_ortvalue_input(name, self._states[turn][name])
                binding.bind_ortvalue_output(f"{name}_out", self._states[1 - turn][name])
            choice.add_run_config_entry("gpu_graph_id", str(first_graph + turn))
            self._bindings.append(binding)
            self._choices.append(choice)

    def step(self, tokens: NDArray[np.int64]) -> None:
        """Run one token of every stream, [1, B]."""
        self._tokens.update_inplace(tokens)
        self._session.run_with_iobinding(self._bindings[self._turn], self._choices[self._turn])
        self._turn = 1 - self._turn

    def output(self) -> NDArray[np.float32]:
        """Logits or features [1, B, N] of the last step, in memory of their own."""
        values: NDArray[np.float32] = self._output.numpy()
        return values if values.flags.owndata else values.copy()

    def hold(self, state: CudaState) -> None:
        """Bring a state into the buffers; what is there is set aside if somebody may go on with it."""
        held = self.owner() if self.owner is not None else None
        if held is state:
            return
        current = self._states[self._turn]
        if held is not None and not held.spent:
            held.aside = {name: np.array(value.numpy()) for name, value in current.items()}
        for name, value in current.items():
            shape, dtype = self._shapes[name]
            fresh = np.full(shape, self._start[name], dtype) if state.aside is None else state.aside[name]
            value.update_inplace(fresh)
        state.aside = None
        self.owner = weakref.ref(state)


class CudaSession(Session):
    """A bundle's step graph on an NVIDIA GPU."""

    batch_items = 128

    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        super().__init__(bundle, options)
        described = bundle.manifest["cuda"]
        self._runtime = import_for(bundle, CUDA, str(described["onnxruntime_min"]))
        self.runtime_version = str(self._runtime.__version__)
        self.graph = str(described["graph"])
        self._start = {str(name): float(value) for name, value in described["state"].items()}
        self._channels = int(bundle.manifest["state"]["n_embd"])
        self._slots: dict[int, _Slot] = {}
        self.captured = True
        self.placement = self._load(bundle)

    def _load(self, bundle: Bundle) -> Placement:
        """Open the graph and run one step of one stream, profiled; where that cannot be captured, without."""
        given = option_values(self._runtime, self.options)
        with profiled(given) as read:
            try:
                self._open(bundle, given)
            except RuntimeFault as fault:
                if "graph capture" not in fault.line():
                    raise
                self.captured = False  # nodes are on the CPU: count them
                self._open(bundle, given)
            self.advance(np.zeros((1, 1), np.int64), self.initial_state(1))
            placement = read(self._session)
        placement.check(CUDA, self.options.allow_fallback)
        return placement

    def _open(self, bundle: Bundle, given: Any) -> None:
        settings = {"enable_cuda_graph": "1" if self.captured else "0"}
        path = bundle.file(self.graph)
        self._session = open_graph(self._runtime, bundle, path, given, CUDA, settings)

    def initial_state(self, batch: int) -> CudaState:
        return CudaState(batch)

    def logits(self, tokens: Array, state: CudaState, last: int) -> tuple[NDArray[np.float32], CudaState]:
        self._check(tokens, state)
        if not 1 <= last <= len(tokens):
            raise RuntimeFault("logits of too many tokens", found=last, allowed=f"1 to {len(tokens)}")
        slot, new = self._enter(state)
        kept = []
        for position, row in enumerate(tokens):
            self._step(slot, row)
            if position >= len(tokens) - last:
                kept.append(self._read(slot))
        # one step is not copied once more: at many streams its logits are megabytes
        return (kept[0] if len(kept) == 1 else np.concatenate(kept)), new

    def pooled(
        self, tokens: Array, state: CudaState, mask: Array
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], CudaState]:
        self._check(tokens, state)
        slot, new = self._enter(state)
        total = np.zeros((state.batch, self._channels), np.float32)
        for row, weight in zip(tokens, mask, strict=True):
            self._step(slot, row)
            total += self._read(slot)[0] * weight[:, None]
        return total, mask.sum(0), new

    def advance(self, tokens: Array, state: CudaState) -> CudaState:
        """Run tokens [T, B] for their state alone; the output stays on the GPU."""
        self._check(tokens, state)
        slot, new = self._enter(state)
        for row in tokens:
            self._step(slot, row)
        return new

    def _enter(self, state: CudaState) -> tuple[_Slot, CudaState]:
        """The buffers with the state in them, and the state that the call returns."""
        try:
            slot = self._slot(state.batch)
            slot.hold(state)
        except Exception as error:  # noqa: BLE001 - the binding's own classes have no public base
            raise failed_run(error, CUDA) from None
        state.spent = True
        new = CudaState(state.batch)
        slot.owner = weakref.ref(new)
        return slot, new

    def _check(self, tokens: Array, state: CudaState) -> None:
        self.check_tokens(tokens)
        if state.spent:
            raise RuntimeFault(
                "this state was used up by an earlier call", hint="go on with the one it returned"
            )
        if tokens.shape[1] != state.batch:
            raise RuntimeFault(
                "the state is of another number of streams",
                found=f"tokens {list(tokens.shape)}",
                allowed=f"[T, {state.batch}]",
                hint="begin with initial_state, and go on with the state that the last call gave",
            )

    def _slot(self, batch: int) -> _Slot:
        if batch not in self._slots:
            first_graph = 1 + 2 * len(self._slots)
            self._slots[batch] = _Slot(self._runtime, self._session, batch, self._start, first_graph)
        return self._slots[batch]

    def _step(self, slot: _Slot, row: Array) -> None:
        try:
            slot.step(np.ascontiguousarray(row[None], np.int64))
        except Exception as error:  # noqa: BLE001 - see above
            raise failed_run(error, CUDA) from None

    def _read(self, slot: _Slot) -> NDArray[np.float32]:
        try:
            return slot.output()
        except Exception as error:  # noqa: BLE001 - see above
            raise failed_run(error, CUDA) from None

    def describe(self) -> dict[str, object]:
        return {
            "engine": self.options.engine,
            "onnxruntime": self.runtime_version,
            "provider": CUDA,
            "threads": self.options.threads,
            "spinning": self.options.spinning,
            "graph": self.graph,
            "cuda_graph": self.captured,
            "placement": self.placement.to_dict(),
        }

    @staticmethod
    def load_library() -> None:
        from qslm_edge.runner.runtime import import_onnxruntime

        import_onnxruntime()
