"""One tiny model for the tests of a file."""

from __future__ import annotations

import pytest

from qslm_edge.spikegpt import SpikeGPT
from tests.helpers.tiny import make_model


@pytest.fixture(scope="module")
def dense() -> SpikeGPT:
    return make_model("dense")
