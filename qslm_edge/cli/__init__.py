"""The command line. The program is ``qslm_edge.cli.app``; this file loads nothing."""

from __future__ import annotations

__all__: list[str] = []
