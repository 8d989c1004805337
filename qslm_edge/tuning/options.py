"""How to tune: every choice, with the default that was measured to serve."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["TuneOptions"]


@dataclass(frozen=True)
class TuneOptions:
    """Choices of a tuning run; equal ones on equal data and device give the same weights.

    Attributes:
        tokens: training tokens to see; data is passed over again where it is shorter.
        batch_tokens: tokens a step.
        learning_rate: of weights and vectors (Adam), after the warm-up; falls to 0 by a cosine.
        scale_learning_rate: of log scales.
        warmup_steps: steps in which the rates rise.
        clip_norm: largest gradient norm.
        seed: order of the training items.
    """

    tokens: int = 3_000_000
    batch_tokens: int = 16_384
    learning_rate: float = 1.5e-3
    scale_learning_rate: float = 2e-3
    warmup_steps: int = 20
    clip_norm: float = 1.0
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
