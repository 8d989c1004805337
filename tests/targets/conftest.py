"""One tiny bundle of each kind for all tests of this folder."""

from __future__ import annotations

from tests.helpers.bundle_fixtures import classifier_bundle, copy_bundle, lm_bundle
from tests.helpers.bundles import cache

__all__ = ["cache", "classifier_bundle", "copy_bundle", "lm_bundle"]
