"""The machine that this program runs on: the same runner as on a board, in processes of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qslm_edge.runner.verify import VerifyOptions, verify_bundle
from qslm_edge.targets.base import Target

__all__ = ["LocalTarget"]


class LocalTarget(Target):
    """This machine."""

    def verify(
        self, bundle: Path, options: VerifyOptions, on_progress: Callable[[str, float], None]
    ) -> dict[str, Any]:
        return verify_bundle(bundle, options, on_progress)
