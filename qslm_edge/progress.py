"""What a long computation tells about itself, without knowing who listens.

The pipeline talks to ``Progress``; the command line brings the implementation that draws
(``qslm_edge.cli.console``), a library user passes ``Silent`` or an own one. Nothing here prints, so
numerics never depend on a terminal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["Progress", "Silent", "runner_stages"]


class Progress(Protocol):
    """A listener. One stage runs at a time: beginning one ends the one before."""

    def stage(self, title: str, total: float | None = None) -> None:
        """Begin a stage.

        Args:
            title: a few words, e.g. "sensitivity".
            total: steps until the end; None where nobody knows.
        """

    def advance(self, steps: float = 1.0, note: str = "") -> None:
        """Count steps of the stage.

        Args:
            steps: how many steps were done since the last call.
            note: the present figure or item, shown beside the stage; empty keeps the last one.
        """

    def note(self, text: str) -> None:
        """Keep one line, such as a decision and its reason."""

    def done(self) -> None:
        """End the last stage. Calling it twice is harmless."""


class Silent:
    """A ``Progress`` that says nothing."""

    def stage(self, title: str, total: float | None = None) -> None:
        """Ignore the stage."""

    def advance(self, steps: float = 1.0, note: str = "") -> None:
        """Ignore the steps."""

    def note(self, text: str) -> None:
        """Ignore the line."""

    def done(self) -> None:
        """Do nothing."""


_COUNTED = ("items", "running nodes", "tuning")
"""In titles of the runner whose shares add up to 1."""


def runner_stages(progress: Progress, prefix: str = "verify: ") -> Callable[[str, float], None]:
    """A listener for the runner, which tells (title, share of it), that begins a stage at each new title."""
    current: list[str] = []

    def tell(title: str, share: float) -> None:
        if current[-1:] != [title]:
            current.append(title)
            counted = any(words in title for words in _COUNTED)
            progress.stage(f"{prefix}{title}", 1.0 if counted else None)
        if share:
            progress.advance(share)

    return tell
