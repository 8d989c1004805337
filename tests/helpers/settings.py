"""The `run_settings` of a verification without flags and without run-settings.json."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from qslm_edge.runner.run_settings import InForce, RunSettings

__all__ = ["DEFAULT_SETTINGS"]

DEFAULT_SETTINGS: dict[str, Any] = InForce(
    RunSettings(), dict.fromkeys(asdict(RunSettings()), "default"), None, None
).to_dict()
