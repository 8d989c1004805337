"""What a loaded bundle does, whatever runs it: tokens and state in, logits or features and state out."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import RuntimeFault
from qslm_edge.metrics import Kind
from qslm_edge.runner.runtime import CPU, uses_gpu

__all__ = ["DEFAULT", "ONNXRUNTIME", "PREFILL_CHUNK", "Array", "Session", "SessionOptions", "State"]

Array = NDArray[Any]
State = Any
"""Recurrent state of some streams. Only its session knows what it is. The one that goes into a call is used up by it:
go on with the one that comes back."""
ONNXRUNTIME = "onnxruntime"
PREFILL_CHUNK = 128
"""Tokens of a prompt that run together: bounds the memory, whatever the length of the prompt."""


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
        prefill_chunk: tokens of a prompt that whoever feeds the session runs together.
    """

    engine: str = ONNXRUNTIME
    provider: str = CPU
    threads: int = 1
    spinning: bool = False
    allow_fallback: bool = False
    prefill_chunk: int = PREFILL_CHUNK

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
        parser.add_argument("--prefill-chunk", type=int, default=PREFILL_CHUNK)

    @classmethod
    def from_arguments(cls, parsed: argparse.Namespace) -> SessionOptions:
        """Of the flags that `add_arguments` defined."""
        chosen = (parsed.engine, parsed.provider, parsed.threads, parsed.spinning, parsed.allow_fallback)
        return cls(*chosen, parsed.prefill_chunk)

    def to_arguments(self) -> list[str]:
        """As flags for a measuring process."""
        words = [f"--engine={self.engine}", f"--provider={self.provider}", f"--threads={self.threads}"]
        words += [f"--prefill-chunk={self.prefill_chunk}"]
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
        vocab_size: ids that its tokens may have.

    Raises:
        RuntimeFault: runtime missing, too old, without the provider, or refusing the model.
    """

    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        self.kind: Kind = bundle.kind
        self.options = options
        self.vocab_size = int(bundle.manifest["model"]["vocab_size"])

    def check_tokens(self, tokens: Array) -> None:
        """Refuse tokens that no runtime must see: some read whatever lies beyond their table.

        Raises:
            RuntimeFault: not [T, B], none at all, or an id outside the vocabulary.
        """
        if tokens.ndim != 2 or not tokens.size:
            raise RuntimeFault(
                "there are no tokens to run", found=f"shape {list(tokens.shape)}", allowed="[T, B], 1 or more"
            )
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.vocab_size:
            raise RuntimeFault(
                "a token id is outside the vocabulary",
                found=low if low < 0 else high,
                allowed=f"0 to {self.vocab_size - 1}",
                hint="encode the text with the bundle's own tokenizer",
            )

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
            RuntimeFault: tokens that are none or outside the vocabulary, a state of another model or number of
                streams, or the runtime fails, e.g. out of memory.
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
