"""``python -m qslm_edge`` is the same as ``qslm-edge``."""

from __future__ import annotations

from qslm_edge.cli.app import main

if __name__ == "__main__":
    main()
