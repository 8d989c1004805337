"""The two embedded tokenizers, read once."""

from __future__ import annotations

import pytest

from qslm_edge import reference
from qslm_edge.tasks.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(reference.model_path() / "tokenizer.json")


@pytest.fixture(scope="session")
def tokenizer_20b() -> Tokenizer:
    return load_tokenizer(reference.tokenizer_20b())
