"""Generating token ids from a bundle: the prompt in chunks, then token by token, the state carried over.

The next token is the most likely one, or is drawn from softmax(logits / temperature), cut to the k most
likely if asked. Draws come from numpy's PCG64 with a seed, so that equal seeds give equal ids on one machine.
Rows of the vocabulary that the tokenizer has no entry for are never chosen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qslm_edge.errors import RuntimeFault, UsageError
from qslm_edge.runner.sessions.base import Session

__all__ = ["Generation", "Sampling", "choose_token"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most likely token; above, logits are divided by it.
        top_k: draw from so many of the most likely tokens; None draws from all.
        seed: of the draws.
    """

    temperature: float = 0.0
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values without a meaning.

        Raises:
            UsageError: out of range, or a cut of what is not drawn.
        """
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(
                "impossible temperature", where="--temperature", found=self.temperature, allowed="0 or more"
            )
        if self.top_k is not None and (self.top_k < 1 or not self.temperature):
            raise UsageError(
                "the cut needs a draw of one token or more",
                where="--top-k",
                found=f"top k {self.top_k}, temperature {self.temperature:g}",
                allowed="1 or more, with a temperature above 0",
                hint="add --temperature, e.g. 0.8",
            )


def choose_token(logits: NDArray[Any], sampling: Sampling, draw: np.random.Generator) -> int:
    """The next token.

    Args:
        logits: [V], of the tokens that may be chosen.
        sampling: how.
        draw: source of the draws; one number is taken from it for every token that is drawn.

    Raises:
        RuntimeFault: the logits are not finite.
    """
    if not np.isfinite(logits).all():
        raise RuntimeFault(
            "the model gives values that are not finite", hint="`qslm-edge verify` shows where it parts"
        )
    if not sampling.temperature:
        return int(logits.argmax())
    ids = np.arange(len(logits))
    if sampling.top_k is not None and sampling.top_k < len(logits):
        ids = np.sort(np.argpartition(-logits, sampling.top_k - 1)[: sampling.top_k])
    scaled = logits[ids].astype(np.float64)
    weights = np.exp((scaled - scaled.max()) / sampling.temperature)
    bounds = np.cumsum(weights)
    place = int(np.searchsorted(bounds, draw.random() * bounds[-1], side="right"))
    return int(ids[min(place, len(ids) - 1)])


class Generation:
    """One stream of tokens out of a language model.

    Args:
        session: the loaded bundle.
        sampling: how tokens are chosen.
        n_ids: ids below it may be chosen.

    Attributes:
        first_token_s: from the start of the prompt until the first token was chosen; None before.
        decode_s: time of the model for the tokens after the first.
        n_tokens: tokens chosen so far.
    """

    def __init__(self, session: Session, sampling: Sampling, n_ids: int) -> None:
        self.session, self.sampling, self.n_ids = session, sampling, n_ids
        self.first_token_s: float | None = None
        self.decode_s, self.n_tokens = 0.0, 0
        self._draw = np.random.default_rng(sampling.seed)

    @property
    def tokens_per_s(self) -> float | None:
        """Speed of the tokens after the first; None when there is none."""
        return (self.n_tokens - 1) / self.decode_s if self.n_tokens > 1 else None

    def run(self, prompt: NDArray[np.integer[Any]], max_tokens: int) -> Iterator[int]:
        """Feed the prompt and yield up to `max_tokens` ids, each as soon as it is known.

        Args:
            prompt: ids [n], at least one, all within the model's vocabulary.
            max_tokens: how many to generate.

        Raises:
            UsageError: an empty prompt.
            RuntimeFault: the runtime fails, or the model's values are not finite.
        """
        if not len(prompt):
            raise UsageError("the prompt is empty", where="--prompt", hint="give a word to begin with")
        begun = time.perf_counter()
        state = self.session.initial_state(1)
        column = prompt.astype(np.int64)[:, None]
        chunk = self.session.options.prefill_chunk
        for start in range(0, len(column), chunk):
            logits, state = self.session.logits(column[start : start + chunk], state, 1)
        while self.n_tokens < max_tokens:
            token = choose_token(logits[-1, 0, : self.n_ids], self.sampling, self._draw)
            spent = time.perf_counter() - begun
            if self.n_tokens:
                self.decode_s += spent
            else:
                self.first_token_s = spent
            self.n_tokens += 1
            yield token
            if self.n_tokens < max_tokens:
                begun = time.perf_counter()
                logits, state = self.session.logits(np.array([[token]], np.int64), state, 1)
