"""One tiny bundle for all tests of this folder."""

from __future__ import annotations

from tests.helpers.bundle_fixtures import lm_bundle
from tests.helpers.bundles import cache

__all__ = ["cache", "lm_bundle"]
