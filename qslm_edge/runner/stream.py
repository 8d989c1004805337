"""One stream of tokens through a loaded bundle: what each measuring process of `verify` works with.

Sentences of a classifier are measured as a stream of tokens, the same graph and state.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qslm_edge.bundle.reader import Bundle
from qslm_edge.items import Items
from qslm_edge.runner.power import PowerPlan
from qslm_edge.runner.sessions import open_session
from qslm_edge.runner.sessions.base import DEFAULT, Session, SessionOptions

__all__ = ["PROMPT_TOKENS", "WARMUP_STEPS", "DecodeOptions", "Stream", "load", "stream_tokens"]

PROMPT_TOKENS = 16
WARMUP_STEPS = 8
STREAM_TOKENS = 4096


@dataclass(frozen=True)
class DecodeOptions:
    """How to measure.

    Attributes:
        session: how the bundle is loaded.
        steps: decode steps to time; None times as many as fill some seconds.
        prefill_tokens: tokens of the prefill measurement.
        power: "smoke" or "release".
        power_source: interface named by the profile, or by the user.
        power_plan: what the profile says of power.
        power_marker: make a marker pulse for an external meter before the first run.
        only_source: the user named the interface: no other stands in.
        is_board: this host is the board of the profile.
        root: "/"; a folder with a recorded tree plays the board in a test.
    """

    session: SessionOptions = DEFAULT
    steps: int | None = None
    prefill_tokens: int = 512
    power: str = "smoke"
    power_source: str | None = None
    power_plan: PowerPlan | None = None
    power_marker: bool = False
    only_source: bool = False
    is_board: bool = False
    root: Path = Path("/")


class Stream:
    """One stream of tokens through the session, whatever the head.

    Args:
        session: the loaded bundle.
        tokens: ids to feed; they begin again at their end.
    """

    def __init__(self, session: Session, tokens: NDArray[np.int64]) -> None:
        self.session, self.tokens, self.position = session, tokens, 0
        self.state = session.initial_state(1)

    def feed(self, count: int) -> None:
        """Run the next `count` tokens; a language model gives the logits of the last."""
        taken = np.take(self.tokens, range(self.position, self.position + count), mode="wrap")[:, None]
        self.position += count
        if self.session.kind == "language_model":
            _, self.state = self.session.logits(taken, self.state, 1)
        else:
            _, _, self.state = self.session.pooled(taken, self.state, np.ones(taken.shape, np.float32))

    def warm_up(self) -> None:
        """Decode the steps that no measurement counts."""
        for _ in range(WARMUP_STEPS):
            self.feed(1)

    def run_for(self, seconds: float) -> int:
        """Decode for some seconds and return the exact number of tokens."""
        end, count = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            self.feed(1)
            count += 1
        return count


def stream_tokens(items: Items) -> NDArray[np.int64]:
    """Ids to feed, taken from evaluation items."""
    return items.tokens[:STREAM_TOKENS].astype(np.int64)


def load(bundle: Bundle, options: DecodeOptions) -> Session:
    """The session of a measurement.

    Raises:
        RuntimeFault: the runtime refuses.
    """
    return open_session(bundle, options.session)
