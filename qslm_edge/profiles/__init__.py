"""Device profiles: what a board has, what its runtime runs, how it measures itself; and how sure that is.

A profile is one TOML file, specified in docs/profile.md. It is a default: the runner reads the real board
and reports a difference.
"""

from __future__ import annotations

from qslm_edge.profiles.facts import Fact, Grade
from qslm_edge.profiles.loading import list_profiles, load_profile, read_profile
from qslm_edge.profiles.profile import Profile
from qslm_edge.profiles.sections import Width

__all__ = ["Fact", "Grade", "Profile", "Width", "list_profiles", "load_profile", "read_profile"]
