"""Trees of boards in tests/fixtures/power, and openers of their sources."""

from __future__ import annotations

from pathlib import Path

from qslm_edge.runner.power.base import Opener, PowerPlan, PowerSource, Unavailable

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "power"


def opened(opener: Opener, root: Path, plan: PowerPlan | None = None) -> PowerSource:
    """The source of a tree, which must be there."""
    source = opener(root, plan or PowerPlan())
    assert isinstance(source, PowerSource), source
    return source


def refused(opener: Opener, root: Path, plan: PowerPlan | None = None) -> str:
    """The reason why a tree has no such source."""
    source = opener(root, plan or PowerPlan())
    assert isinstance(source, Unavailable)
    return source.reason
