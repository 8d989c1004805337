"""Sizes and constants that a model declares: the rule for the embedding, and what config.json may say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qslm_edge.errors import CheckpointError
from qslm_edge.spikegpt.config import SpikeGPTConfig, decide_embedding, declared_values, state_shape

PLAIN = SpikeGPTConfig(2, 32, 64, 11, "dense")


@pytest.mark.parametrize(
    ("flag", "declared", "vocab", "expected"),
    [
        (None, None, 77, "binary"),
        (None, None, 50277, "dense"),
        (None, "binary", 50277, "binary"),
        (None, "dense", 77, "dense"),
        ("dense", "binary", 77, "dense"),
        ("binary", "dense", 50277, "binary"),
        ("binary", None, 4096, "binary"),
    ],
)
def test_flag_then_file_then_vocabulary_decide_the_embedding(
    flag: str | None, declared: str | None, vocab: int, expected: str
) -> None:
    assert decide_embedding(flag, declared, vocab, "m.pth") == expected


@pytest.mark.parametrize("vocab", [76, 78, 4096, 50276, 50278])
def test_an_embedding_that_nothing_decides_names_the_flag(vocab: int) -> None:
    with pytest.raises(CheckpointError, match=f"vocabulary {vocab}.*--embedding dense or --embedding binary"):
        decide_embedding(None, None, vocab, "m.pth")


@pytest.mark.parametrize(("flag", "declared"), [("sparse", None), (None, "sparse"), ("", None)])
def test_an_unknown_embedding_is_refused(flag: str | None, declared: str | None) -> None:
    with pytest.raises(CheckpointError, match="unknown embedding mode.*allowed: dense, binary"):
        decide_embedding(flag, declared, 77, "m.pth")


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ({"model_type": "gpt2"}, "model_type = 'gpt2'"),
        ({"lif": {"tau": 4.0}}, "lif.tau = 4.0"),
        ({"lif": {"v_threshold": 0.5}}, "lif.v_threshold = 0.5"),
        ({"lif": {"v_reset": None}}, "lif.v_reset = None"),
        ({"lif": {"decay_input": False}}, "lif.decay_input = False"),
        ({"lif": {"tau": float("nan")}}, "lif.tau = nan"),
        ({"lif": {"refractory": 3}}, "lif.refractory = 3"),
        ({"lif": [2.0]}, "lif must be a table"),
        ({"layer_norm_eps": 1e-6}, "1e-06"),
        ({"layer_norm_eps": "1e-5"}, "LayerNorm epsilon"),
        ({"layer_norm_eps": float("nan")}, "nan"),
        ({"ctx_len": 1}, "ctx_len = 1;"),
        ({"ctx_len": 65_537}, "ctx_len = 65537"),
        ({"ctx_len": "512"}, "ctx_len = '512'"),
        ({"ctx_len": True}, "ctx_len = True"),
        ({"id2label": ["negative", "positive"]}, "id2label"),
        ({"id2label": {"zero": "negative"}}, "id2label"),
    ],
)
def test_declarations_that_this_implementation_does_not_have(raw: dict[str, Any], found: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        declared_values(raw, "config.json")
    assert found in str(caught.value)
    assert "config.json" in str(caught.value)


def test_declarations_as_the_reference_writes_them() -> None:
    raw = {
        "model_type": "spikegpt",
        "embedding": "dense",
        "ctx_len": 256,
        "lif": {"tau": 2, "v_threshold": 1, "v_reset": 0, "decay_input": True, "surrogate": "atan"},
        "layer_norm_eps": 1e-05,
        "id2label": {"0": "negative", "1": "positive"},
    }
    assert declared_values(raw, "c") == ("dense", 256, ("negative", "positive"))
    assert declared_values({}, "c") == (None, 512, ())


def test_class_names_follow_their_numbers() -> None:
    names = {str(i): f"class {i}" for i in reversed(range(12))}
    assert declared_values({"id2label": names}, "c")[2] == tuple(f"class {i}" for i in range(12))


@pytest.mark.parametrize(
    "changes",
    [
        {"n_layer": 0},
        {"n_layer": 257},
        {"n_embd": 0},
        {"n_embd": 16_385},
        {"ffn_dim": 65_537},
        {"vocab_size": 0},
        {"vocab_size": 2**20 + 1},
        {"num_labels": 1},
        {"num_labels": 129},
        {"has_lm_head": False},
    ],
)
def test_impossible_sizes(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="impossible size|no head"):
        replace(PLAIN, **changes).check("m.pth")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_layer": 256},
        {"n_embd": 16_384},
        {"vocab_size": 2**20},
        {"num_labels": 128, "has_lm_head": False},
    ],
)
def test_possible_sizes(changes: dict[str, Any]) -> None:
    replace(PLAIN, **changes).check("m.pth")


def test_state_is_seven_rows_a_layer() -> None:
    assert state_shape(PLAIN, 3) == (14, 3, 32)
