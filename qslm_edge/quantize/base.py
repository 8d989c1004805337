"""What a quantiser is: a pure function from a matrix to codes, scales and zero points, with a name and a version.

    w[n, k] ~ (codes[n, k] - zeros[n, k // g]) * scales[n, k // g]

is all that the runtime multiplies, so every quantiser ends in this form, or in that of mid-rise values, where every
zero point is (2^bits - 1) / 2; they differ in what they minimise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Codes", "Float", "InputStatistics", "Quantised", "Quantiser"]

Float = NDArray[np.float32]
Codes = NDArray[np.uint8]
Quantised = tuple[Codes, Float, Codes]
"""Codes [N, K], scales [N, K / g] exact in bfloat16, zero points [N, K / g]. A group of zeros has scale 0."""


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """Second moments of what enters one matrix.

    Attributes:
        gram: X^T X / n for inputs X [n, K]: float32 [K, K], symmetric.
        n_rows: tokens that it was summed over.
    """

    gram: Float
    n_rows: int


@dataclass(frozen=True)
class Quantiser(ABC):
    """One way to choose codes, scales and zero points. Options are the fields of the subclass.

    Attributes:
        name: registered name, as given to `--quantiser`.
        version: raised whenever equal input may give other output: part of every fingerprint.
        needs_statistics: whether `quantise` must be given input statistics.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    needs_statistics: ClassVar[bool] = False

    @abstractmethod
    def quantise(
        self, matrix: Float, bits: int, group_size: int, statistics: InputStatistics | None = None
    ) -> Quantised:
        """Quantise a matrix [N, K] in groups of `group_size` columns. No row may depend on another.

        Args:
            matrix: float32 [N, K], finite.
            bits: 8, 4 or 2.
            group_size: columns that share a scale and a zero point; divides K.
            statistics: of the inputs, where the quantiser needs them; None where there are none (an embedding, whose
                rows are looked up).

        Raises:
            ValueError: a group size that does not divide K, or statistics of another shape or not finite.
        """

    @abstractmethod
    def quantise_midrise(
        self, matrix: Float, bits: int, group_size: int, statistics: InputStatistics | None = None
    ) -> tuple[Codes, Float]:
        """Quantise to values that lie symmetrically about zero, e.g. s {-1.5, -0.5, 0.5, 1.5}; see `quantise`.

        Returns:
            codes [N, K] and scales [N, K / group_size], exact in bfloat16.
        """

    @property
    def identity(self) -> str:
        """Name and version, e.g. gptq/1."""
        return f"{self.name}/{self.version}"

    @property
    def options(self) -> dict[str, Any]:
        """The options in force, JSON-able."""
        return asdict(self)
