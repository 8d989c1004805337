"""What a loaded bundle does, whatever runs it: tokens and state in, logits or features and state out."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from qslm_edge.bundle.reader import Bundle
from qslm_edge.metrics import Kind
from qslm_edge.runner.runtime import CPU, uses_gpu

__all__ = ["DEFAULT", "ONNXRUNTIME", "Array", "Session", "SessionOptions", "State"]

Array = NDArray[Any]
State = Any
"""Recurrent state of some streams. Only its session knows what it is. The one that goes into a call is used up by it:
go on with the one that comes back."""
ONNXRUNTIME = "onnxruntime"


@dataclass(frozen=True)
class SessionOptions:
    """How a bundle is loaded: every choice that decides speed or memory.

    Attributes:
        engine: "onnxruntime", or one of the runner's own.
        provider: execution provider of onnxruntime that must run it.
        threads: that compute; 1 is the default for decoding, since a second spinning thread loses more with a busy
            core than it gains with an idle one.
        spinning: let waiting threads spin.
        allow_fallback: accept that the provider leaves nodes to the CPU.
    """

    engine: str = ONNXRUNTIME
    provider: str = CPU
    threads: int = 1
    spinning: bool = False
    allow_fallback: bool = False

    @property
    def place(self) -> str:
        """The provider, or the engine where that is the runner's own."""
        return self.provider if self.engine == ONNXRUNTIME else self.engine

    @property
    def uses_gpu(self) -> bool:
        """Whether it works on an NVIDIA GPU."""
        return uses_gpu(self.place)

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Flags by which a measuring process is told them."""
        parser.add_argument("--engine", default=ONNXRUNTIME)
        parser.add_argument("--provider", default=CPU)
        parser.add_argument("--threads", type=int, default=1)
        parser.add_argument("--spinning", action="store_true")
        parser.add_argument("--allow-fallback", action="store_true")

    @classmethod
    def from_arguments(cls, parsed: argparse.Namespace) -> SessionOptions:
        """Of the flags that `add_arguments` defined."""
        return cls(parsed.engine, parsed.provider, parsed.threads, parsed.spinning, parsed.allow_fallback)

    def to_arguments(self) -> list[str]:
        """As flags for a measuring process."""
        words = [f"--engine={self.engine}", f"--provider={self.provider}", f"--threads={self.threads}"]
        words += ["--spinning"] if self.spinning else []
        return words + (["--allow-fallback"] if self.allow_fallback else [])


DEFAULT = SessionOptions()


class Session(ABC):
    """A loaded bundle.

    Args:
        bundle: what to load.
        options: how.

    Attributes:
        kind: of its task.
        options: as given.

    Raises:
        RuntimeFault: runtime missing, too old, without the provider, or refusing the model.
    """

    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        self.kind: Kind = bundle.kind
        self.options = options

    @abstractmethod
    def initial_state(self, batch: int) -> State:
        """State of `batch` streams that have seen nothing."""

    @abstractmethod
    def logits(self, tokens: Array, state: State, last: int) -> tuple[Array, State]:
        """Run tokens [T, B] of a language model.

        Args:
            tokens: int64 ids, time-major.
            state: used up by this call.
            last: logits are computed for this many last tokens, at least 1.

        Returns:
            Logits [last, B, V], float32, and the new state.

        Raises:
            RuntimeFault: the runtime fails, e.g. out of memory or at an id beyond the vocabulary.
        """

    @abstractmethod
    def pooled(self, tokens: Array, state: State, mask: Array) -> tuple[Array, Array, State]:
        """Run tokens [T, B] of a classifier with its mask [T, B], 1 on tokens.

        Returns:
            The masked sum of features [B, C], the number of tokens [B], and the new state.

        Raises:
            RuntimeFault: as for `logits`.
        """

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """What was set, for the report: at least engine, onnxruntime (null where it is not used), provider, threads
        and spinning."""

    @staticmethod
    @abstractmethod
    def load_library() -> None:
        """Import what the engine stands on, so that it is not taken for loading a model."""
