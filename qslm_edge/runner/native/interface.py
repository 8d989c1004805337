"""qslm.h in ctypes: the structures, the functions, and error codes as errors."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int32, c_size_t, c_void_p
from pathlib import Path

from qslm_edge.errors import RuntimeFault

__all__ = ["ABI", "CLASSIFIER", "LANGUAGE_MODEL", "Layer", "Library", "Matrix", "Spec"]

ABI = 1
LANGUAGE_MODEL, CLASSIFIER = 0, 1
ERROR_BYTES = 512
_OUT_OF_MEMORY = 2
_HINTS = {_OUT_OF_MEMORY: "see `conditions` for the memory that was free"}


class Matrix(Structure):
    """qslm_matrix."""

    _fields_ = (
        *((name, c_int32) for name in ("rows", "columns", "bits", "group", "scale_bits", "midrise")),
        *((name, c_int32) for name in ("float_activations", "reserved")),
        *((name, c_void_p) for name in ("codes", "scales", "zeros")),
    )


class Layer(Structure):
    """qslm_layer."""

    _fields_ = (
        *((name, c_void_p) for name in ("ln1_weight", "ln1_bias", "ln2_weight", "ln2_bias", "att_mix")),
        *((name, c_void_p) for name in ("time_first", "decay", "ffn_mix")),
        *((name, Matrix) for name in ("att_key", "att_value", "att_receptance", "att_output")),
        *((name, Matrix) for name in ("ffn_key", "ffn_receptance", "ffn_value")),
    )


class Spec(Structure):
    """qslm_spec."""

    _fields_ = (
        *((name, c_int32) for name in ("abi", "n_layer", "n_embd", "vocab_size", "kind")),
        *((name, c_int32) for name in ("binary_embedding", "threads")),
        ("p_init", c_float),
        ("embedding", Matrix),
        ("head", Matrix),
        *((name, c_void_p) for name in ("ln0_weight", "ln0_bias", "ln_out_weight", "ln_out_bias")),
        ("layers", POINTER(Layer)),
    )


_HANDLE = POINTER(c_void_p)
_FUNCTIONS: dict[str, tuple[object, ...]] = {
    "qslm_open": (POINTER(Spec), _HANDLE),
    "qslm_state_new": (c_void_p, c_int32, _HANDLE),
    "qslm_state_read": (c_void_p, c_void_p),
    "qslm_state_write": (c_void_p, c_void_p),
    "qslm_run": (c_void_p, c_void_p, c_void_p, c_int32, c_void_p, c_int32, c_void_p),
}


class Library:
    """A compiled engine.

    Args:
        path: the library.

    Raises:
        RuntimeFault: it does not load, or has another interface.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._dll = ctypes.CDLL(str(path))
            self._dll.qslm_abi.restype = c_int
            found = self._dll.qslm_abi()
            if found == ABI:
                self._declare()
        except (OSError, AttributeError) as error:
            raise RuntimeFault(
                "the native engine does not load",
                where=path,
                found=str(error)[:300],
                hint="delete it and run build-native again",
            ) from None
        if found != ABI:
            raise RuntimeFault(
                "the native engine has another interface",
                where=path,
                found=f"version {found}",
                allowed=f"version {ABI}",
                hint="run build-native with this program",
            )

    def _declare(self) -> None:
        for name, arguments in _FUNCTIONS.items():
            function = getattr(self._dll, name)
            function.argtypes = (*arguments, c_char_p, c_size_t)
            function.restype = c_int
        for name in ("qslm_close", "qslm_state_free"):
            getattr(self._dll, name).argtypes = (c_void_p,)
            getattr(self._dll, name).restype = None
        self._dll.qslm_describe.restype = c_char_p

    def describe(self) -> str:
        """What it computes with, e.g. "cpu avx512-vnni"."""
        text: bytes = self._dll.qslm_describe()
        return text.decode("utf-8", "replace")

    def call(self, name: str, *arguments: object) -> None:
        """Call a function that can fail.

        Raises:
            RuntimeFault: with the line that it gives.
        """
        text = ctypes.create_string_buffer(ERROR_BYTES)
        code = getattr(self._dll, name)(*arguments, text, ERROR_BYTES)
        if code:
            found = text.value.decode("utf-8", "replace")
            raise RuntimeFault("the native engine refuses", found=found, hint=_HINTS.get(code))

    def close(self, handle: c_void_p) -> None:
        """End a model."""
        self._dll.qslm_close(handle)

    def free_state(self, handle: c_void_p) -> None:
        """End a state."""
        self._dll.qslm_state_free(handle)
