"""A bundle run by the runner's own engine: weights of model.bin used as they are packed.

Neither onnxruntime nor the graph is touched. The state lives in the engine and is moved on in place.
"""

from __future__ import annotations

import ctypes
from ctypes import c_void_p
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qslm_edge.bundle.reader import Bundle
from qslm_edge.bundle.tensors import TENSORS, MatrixEntry, TensorEntry, TensorTable, read_tensors
from qslm_edge.errors import RuntimeFault
from qslm_edge.runner.native.build import build
from qslm_edge.runner.native.interface import ABI, CLASSIFIER, LANGUAGE_MODEL, Layer, Library, Matrix, Spec
from qslm_edge.runner.native.weights import WeightMemory, copies_weights
from qslm_edge.runner.runtime import NATIVE_CUDA
from qslm_edge.runner.sessions.base import Array, Session, SessionOptions

__all__ = ["NativeCudaSession", "NativeSession", "NativeState", "native_library"]

WEIGHTS = "model.bin"
N_STATE = 7


@lru_cache(maxsize=2)
def native_library(cuda: bool) -> Library:
    """The engine for this machine, compiled if need be and loaded once.

    Raises:
        RuntimeFault: no compiler, it fails, or the library does not load.
    """
    return Library(build(cuda).path)


class NativeState:
    """State of some streams inside the engine; used up by a call, which gives a new one back.

    Args:
        library: whose state it is.
        model: likewise.
        batch: streams.
    """

    def __init__(self, library: Library, model: c_void_p, batch: int) -> None:
        self._library, self.model, self.batch = library, model, batch
        self.handle = c_void_p()
        library.call("qslm_state_new", model, batch, ctypes.byref(self.handle))

    def __del__(self) -> None:
        if self.handle:
            self._library.free_state(self.handle)

    def moved(self) -> NativeState:
        """What stands for the state after a call; this one has nothing any more."""
        after = object.__new__(NativeState)
        after._library, after.model, after.batch = self._library, self.model, self.batch
        after.handle, self.handle = self.handle, c_void_p()
        return after


class NativeSession(Session):
    """A bundle in the engine of qslm_edge/runner/native, on the CPU or a GPU."""

    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        super().__init__(bundle, options)
        self._library = native_library(options.engine == NATIVE_CUDA)
        self._copied = options.engine != NATIVE_CUDA and copies_weights()  # a GPU has its own copy anyway
        self._weights = _Weights(bundle, self._copied)
        state = bundle.manifest["state"]
        self._n_layer, self._channels = int(state["n_layer"]), int(state["n_embd"])
        self._vocab_size = int(bundle.manifest["model"]["vocab_size"])
        spec = self._weights.spec(bundle, options.threads)
        self._model = c_void_p()
        self._library.call("qslm_open", ctypes.byref(spec), ctypes.byref(self._model))

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._library.close(self._model)

    def initial_state(self, batch: int) -> NativeState:
        return NativeState(self._library, self._model, batch)

    def logits(self, tokens: Array, state: NativeState, last: int) -> tuple[NDArray[np.float32], NativeState]:
        out = np.empty((last, state.batch, self._vocab_size), np.float32)
        return out, self._run(tokens, state, None, last, out)

    def pooled(self, tokens: Array, state: NativeState, mask: Array) -> tuple[Array, Array, NativeState]:
        given = np.ascontiguousarray(mask, np.float32)
        if given.shape != tokens.shape:
            raise RuntimeFault(
                "mask of another shape than the tokens", found=given.shape, allowed=tokens.shape
            )
        out = np.empty((state.batch, self._channels), np.float32)
        after = self._run(tokens, state, given, 0, out)
        return out, given.sum(0), after

    def _run(
        self, tokens: Array, state: NativeState, mask: Array | None, last: int, out: NDArray[np.float32]
    ) -> NativeState:
        ids = np.ascontiguousarray(tokens, np.int64)
        if state.model is not self._model:
            raise RuntimeFault("the state belongs to another session")
        if not state.handle:
            raise RuntimeFault("the state was used up", hint="go on with the one that came back")
        if ids.ndim != 2 or ids.shape[1] != state.batch:
            raise RuntimeFault(
                "tokens of another shape than the state", found=list(ids.shape), allowed=f"[T, {state.batch}]"
            )
        place = None if mask is None else mask.ctypes.data
        self._library.call(
            "qslm_run", self._model, state.handle, ids.ctypes.data, len(ids), place, last, out.ctypes.data
        )
        return state.moved()

    def read_state(self, state: NativeState) -> NDArray[np.float32]:
        """Copy of a state as the portable graph has it: [7L, B, C]."""
        values = np.empty((N_STATE * self._n_layer, state.batch, self._channels), np.float32)
        self._library.call("qslm_state_read", state.handle, values.ctypes.data)
        return values

    def write_state(self, state: NativeState, values: Array) -> None:
        """Set a state from [7L, B, C]."""
        shape = (N_STATE * self._n_layer, state.batch, self._channels)
        given = np.ascontiguousarray(values, np.float32)
        if given.shape != shape:
            raise RuntimeFault(
                "state of another model or batch", found=list(given.shape), allowed=list(shape)
            )
        self._library.call("qslm_state_write", state.handle, given.ctypes.data)

    def describe(self) -> dict[str, object]:
        return {
            "engine": self.options.engine,
            "onnxruntime": None,
            "provider": self.options.place,
            "threads": self.options.threads,
            "spinning": False,
            "native": self._library.describe() + (", weights copied" if self._copied else ""),
        }

    @staticmethod
    def load_library() -> None:
        native_library(cuda=False)


class NativeCudaSession(NativeSession):
    """The same on an NVIDIA GPU: the engine copies the weights to it."""

    @staticmethod
    def load_library() -> None:
        native_library(cuda=True)


class _Weights:
    """model.bin in memory, and what the engine is told of it."""

    def __init__(self, bundle: Bundle, copied: bool) -> None:
        self._memory = WeightMemory(bundle.file(WEIGHTS))
        if TENSORS in bundle.file_bytes or not bundle.file(TENSORS).exists():
            self.table: TensorTable = read_tensors(bundle.file(TENSORS), self._memory.size)
        else:  # a file that the manifest has no digest for is never used
            raise RuntimeFault(
                "the manifest does not name the table of the weights", where=bundle.file(TENSORS)
            )
        self._layers: Any = None
        # of the embedding only the rows in use are ever touched
        rest = (t.offset for name, t in self.table.tensors.items() if not name.startswith("emb"))
        self._memory.bring_in(min(rest, default=0), copied)

    def spec(self, bundle: Bundle, threads: int) -> Spec:
        """The whole model, every shape held against the manifest.

        Raises:
            BundleError: a tensor is missing or has another shape.
        """
        state, model = bundle.manifest["state"], bundle.manifest["model"]
        c, n_layer, vocab = int(state["n_embd"]), int(state["n_layer"]), int(model["vocab_size"])
        is_lm = bundle.kind == "language_model"
        self._layers = (Layer * n_layer)(*(self._layer(f"blocks.{i}", c) for i in range(n_layer)))
        spec = Spec(
            abi=ABI,
            n_layer=n_layer,
            n_embd=c,
            vocab_size=vocab,
            kind=LANGUAGE_MODEL if is_lm else CLASSIFIER,
            binary_embedding=model.get("embedding") == "binary",
            threads=threads,
            p_init=float(state["p_init"]),
            embedding=self._matrix("emb", vocab, c),
            ln0_weight=self._vector("blocks.0.ln0.weight", c),
            ln0_bias=self._vector("blocks.0.ln0.bias", c),
            ln_out_weight=self._vector("ln_out.weight", c),
            ln_out_bias=self._vector("ln_out.bias", c),
            layers=self._layers,
        )
        if is_lm:
            spec.head = self._matrix("head", vocab, c)
        return spec

    def _layer(self, name: str, c: int) -> Layer:
        hidden = self.table.matrix(f"{name}.ffn.key", None, c).rows
        matrices = {
            f"{part}_{kind}": self._matrix(f"{name}.{part}.{kind}", rows, columns)
            for part, kind, rows, columns in (
                *(("att", kind, c, c) for kind in ("key", "value", "receptance", "output")),
                *(("ffn", "key", hidden, c), ("ffn", "receptance", c, c), ("ffn", "value", c, hidden)),
            )
        }
        norms = {
            f"{norm}_{part}": self._vector(f"{name}.{norm}.{part}", c)
            for norm in ("ln1", "ln2")
            for part in ("weight", "bias")
        }
        return Layer(
            **norms,
            **matrices,
            att_mix=self._vector(f"{name}.att.mix", 3, c),
            ffn_mix=self._vector(f"{name}.ffn.mix", 2, c),
            time_first=self._vector(f"{name}.att.time_first", c),
            decay=self._vector(f"{name}.att.decay", c),
        )

    def _vector(self, name: str, *shape: int) -> int:
        return self._place(self.table.floats(name, shape))

    def _matrix(self, name: str, rows: int, columns: int) -> Matrix:
        entry: MatrixEntry = self.table.matrix(name, rows, columns)
        return Matrix(
            rows=rows,
            columns=columns,
            bits=entry.bits,
            group=entry.group or 0,
            scale_bits=0 if entry.scales is None else int(entry.scales.dtype.removeprefix("float")),
            midrise=entry.midrise,
            float_activations=entry.float_activations,
            codes=self._place(entry.codes),
            scales=None if entry.scales is None else self._place(entry.scales),
            zeros=None if entry.zeros is None else self._place(entry.zeros),
        )

    def _place(self, tensor: TensorEntry) -> int:
        return self._memory.address(tensor.offset)
