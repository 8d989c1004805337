"""What a target does: take a bundle, verify it there, bring the result back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qslm_edge.runner.verify import VerifyOptions

__all__ = ["Target"]


class Target(ABC):
    """One place that can verify a bundle."""

    @abstractmethod
    def verify(
        self, bundle: Path, options: VerifyOptions, on_progress: Callable[[str, float], None]
    ) -> dict[str, Any]:
        """Verify a bundle and return the runner's result.

        Raises:
            BundleError: the bundle is not whole.
            EnvironmentFault: the target cannot run it.
        """
