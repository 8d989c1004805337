"""The exported graph computes what the quantised torch model does: outputs, state, chunks and streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from qslm_edge.exporters import ExportJob
from qslm_edge.quantize.levels import SIGN
from qslm_edge.spikegpt import SpikeGPT
from qslm_edge.spikegpt.model import initial_state
from tests.helpers.onnx_runs import LEVELS, Array, exported, run_lm
from tests.helpers.tiny import (
    CHANNELS,
    MIXED,
    N_LAYER,
    VOCABULARY,
    make_job,
    make_model,
    quantised,
    random_tokens,
)

EXACT = ("32", "16", "8g64f", "4g64f", "2g64mf")
"""Levels with float activations. With int8 activations another processor may round a code the other way."""
CPU_FLAGS = Path("/proc/cpuinfo")
KERNELS_KNOWN = CPU_FLAGS.is_file() and "avx512_vnni" in CPU_FLAGS.read_text("utf-8")
"""Whether this processor's kernels are those that were seen to multiply one row as they do many."""


@pytest.fixture(scope="module")
def binary() -> SpikeGPT:
    return make_model("binary")


def torch_logits(job: ExportJob, tokens: Array) -> Array:
    logits: Array = quantised(job)(torch.from_numpy(tokens.T.copy())).transpose(0, 1).numpy()
    return logits


def assert_close(got: Array, expected: Array, exact: bool) -> None:
    """Equal but for the last bits; with int8 activations one stream in four may part after a flip."""
    assert got.shape == expected.shape
    near = np.abs(got - expected).max(-1) < 1e-3
    assert near.all() if exact else near.mean() >= 0.75


@pytest.mark.parametrize("level", LEVELS)
def test_logits_equal_those_of_torch(level: str, dense: SpikeGPT, tmp_path: Path) -> None:
    job = make_job(dense, level)
    tokens = random_tokens(24, 4)
    logits, _ = run_lm(exported(job, tmp_path), job, tokens)
    expected = torch_logits(job, tokens)
    assert_close(logits, expected, level in EXACT)
    assert not np.allclose(expected[5, 0], expected[5, 1], atol=0.1)  # the model does say different things


@pytest.mark.parametrize("head", ["lm", "classifier"])
@pytest.mark.parametrize("embedding", ["dense", "binary"])
def test_mixed_widths_in_one_model(embedding: Any, head: Any, tmp_path: Path) -> None:
    model = make_model(embedding)
    changes = {name: level for name, level in MIXED.items() if name != "head" or head == "lm"}
    if embedding == "binary":
        changes["emb"] = "1"
    job = make_job(model, "4g64", head, changes)
    assert len({str(level) for _, level in job.setting.levels}) >= 9
    session = exported(job, tmp_path)
    tokens = random_tokens(24, 4)
    if head == "lm":
        assert_close(run_lm(session, job, tokens)[0], torch_logits(job, tokens), exact=False)
    else:
        got = run_classifier(session, job, tokens, np.ones(tokens.shape, np.float32))
        features = quantised(job).features(torch.from_numpy(tokens)).sum(0).numpy()
        near = np.abs(got[0] - features).max(-1) < 1e-2
        assert near.mean() >= 0.75
        assert got[1].tolist() == [24, 24, 24, 24]


def run_classifier(
    session: Any,
    job: ExportJob,
    tokens: Array,
    mask: Array,
    state: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Sum of features [B, C], number of tokens [B], new state."""
    if state is None:
        state = initial_state(job.store.model.config, tokens.shape[1]).numpy()
    pooled, count, new = session.run(
        ["pooled", "n_tokens", "state_out"], {"tokens": tokens, "state": state, "mask": mask}
    )
    return pooled, count, new


@pytest.mark.parametrize("level", ["16", "8g32f", "8g64f", "4g32f", "4g64f", "2g32f", "2g64f"])
def test_dense_embedding_is_packed_exactly(level: str, dense: SpikeGPT, tmp_path: Path) -> None:
    job = make_job(dense, "32", changes={"emb": level})
    tokens = np.arange(VOCABULARY).reshape(-1, 1)  # every row of the table
    logits, state = run_lm(exported(job, tmp_path), job, tokens)
    expected_state = initial_state(dense.config, 1)
    expected = quantised(job)(torch.from_numpy(tokens.T.copy()), expected_state).transpose(0, 1).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-3)
    np.testing.assert_allclose(state, expected_state.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("level", ["1", "32"])
def test_binary_embedding_is_one_bit_and_zero_is_a_spike(level: str, tmp_path: Path) -> None:
    model = make_model("binary")
    model.tensors["emb.weight"][:, ::5] = 0.0
    model.tensors["emb.weight"][:, 1::7] = -0.0
    assert make_job(model, "32").setting["emb"] == SIGN
    job = make_job(model, "32", changes={"emb": level})
    tokens = np.arange(VOCABULARY).reshape(-1, 1)
    logits, _ = run_lm(exported(job, tmp_path), job, tokens)
    np.testing.assert_allclose(logits, model(torch.from_numpy(tokens.T)).transpose(0, 1).numpy(), atol=1e-3)
    table = next(t for t in onnx.load(tmp_path / "model.onnx").graph.initializer if t.name == "emb")
    assert list(table.dims) == [VOCABULARY, CHANNELS // 8 if level == "1" else CHANNELS]


@pytest.mark.parametrize("level", ["32", "8g64"])
@pytest.mark.parametrize("lengths", [(5, 1, 10, 8), (1,) * 24])
def test_state_over_chunks_and_steps_equals_one_run(
    level: str, lengths: tuple[int, ...], binary: SpikeGPT, tmp_path: Path
) -> None:
    job = make_job(binary, level)
    session = exported(job, tmp_path)
    tokens = random_tokens(24, 3)
    whole, whole_state = run_lm(session, job, tokens)
    state, parts, begin = None, [], 0
    for length in lengths:
        logits, state = run_lm(session, job, tokens[begin : begin + length], state)
        parts.append(logits)
        begin += length
    assert begin == 24
    assert state is not None
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)
    np.testing.assert_allclose(state, whole_state, rtol=1e-3, atol=1e-4)
    assert np.abs(whole[1:] - run_lm(session, job, tokens[1:])[0]).max() > 0.1  # the state does matter


@pytest.mark.parametrize(
    ("level", "equal"),
    [
        *((level, True) for level in ("32", "16", "8g32", "8g64", "4g32", "2g32", "2g64", "2g32m")),
        *((level, False) for level in ("4g64", "4g64f", "4g32f", "8g128")),
    ],
)
def test_steps_equal_a_run_bit_for_bit_where_the_kernels_do(
    level: str, equal: bool, dense: SpikeGPT, tmp_path: Path
) -> None:
    """onnxruntime multiplies one row and many by the same sums at some levels, in another order at the rest."""
    job = make_job(dense, level)
    session = exported(job, tmp_path)
    tokens = random_tokens(24, 1)
    whole, whole_state = run_lm(session, job, tokens)
    state, steps = None, []
    for token in tokens:
        logits, state = run_lm(session, job, token[None], state)
        steps.append(logits)
    assert state is not None
    np.testing.assert_allclose(np.concatenate(steps), whole, atol=1e-4)
    if equal and KERNELS_KNOWN:
        assert np.concatenate(steps).tobytes() == whole.tobytes()
        assert state.tobytes() == whole_state.tobytes()


def test_state_is_that_of_torch(dense: SpikeGPT, tmp_path: Path) -> None:
    job = make_job(dense, "32")
    tokens = random_tokens(20, 2)
    _, state = run_lm(exported(job, tmp_path), job, tokens)
    expected = initial_state(dense.config, 2)
    dense(torch.from_numpy(tokens.T.copy()), expected)
    assert state.shape == (7 * N_LAYER, 2, CHANNELS)
    np.testing.assert_allclose(state, expected.numpy(), rtol=1e-3, atol=1e-4)


def test_streams_of_a_batch_do_not_mix(dense: SpikeGPT, tmp_path: Path) -> None:
    job = make_job(dense, "4g64f")
    session = exported(job, tmp_path)
    tokens = random_tokens(16, 5)
    together, _ = run_lm(session, job, tokens)
    for stream in range(5):
        alone, _ = run_lm(session, job, np.ascontiguousarray(tokens[:, stream : stream + 1]))
        np.testing.assert_allclose(together[:, stream], alone[:, 0], atol=1e-4)


@pytest.mark.parametrize("last", [1, 3, 16])
def test_last_gives_the_last_logits_only(last: int, dense: SpikeGPT, tmp_path: Path) -> None:
    job = make_job(dense, "8g64")
    session = exported(job, tmp_path)
    tokens = random_tokens(16, 2)
    every, state = run_lm(session, job, tokens)
    few, state_of_few = run_lm(session, job, tokens, last=last)
    assert few.shape == (last, 2, VOCABULARY)
    np.testing.assert_allclose(few, every[-last:], atol=1e-4)
    np.testing.assert_array_equal(state, state_of_few)


def test_classifier_pools_real_tokens_only_and_carries_on(dense: SpikeGPT, tmp_path: Path) -> None:
    job = make_job(dense, "8g64", "classifier")
    session = exported(job, tmp_path)
    tokens = random_tokens(20, 2)
    mask = np.ones((20, 2), np.float32)
    mask[13:, 1] = 0
    pooled, count, _ = run_classifier(session, job, tokens, mask)
    assert count.tolist() == [20, 13]
    short = np.ascontiguousarray(tokens[:13, 1:])
    alone, _, _ = run_classifier(session, job, short, np.ones((13, 1), np.float32))
    np.testing.assert_allclose(pooled[1:], alone, atol=1e-3)
    first = run_classifier(session, job, tokens[:7], mask[:7])
    second = run_classifier(session, job, tokens[7:], mask[7:], first[2])
    np.testing.assert_allclose(first[0] + second[0], pooled, atol=1e-3)
    assert (first[1] + second[1]).tolist() == [20, 13]
