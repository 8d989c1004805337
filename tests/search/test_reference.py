"""Float scores kept between runs: reused where they fit, computed again where anything is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qslm_edge.array_cache import cache_directory
from qslm_edge.items import Items
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.search.evaluator import Evaluator
from qslm_edge.search.reference import float_reference, model_digest
from qslm_edge.spikegpt import SpikeGPT

MakeItems = Callable[..., Items]


@pytest.fixture
def evaluator(golden_store: WeightStore, make_windows: MakeItems) -> Evaluator:
    return Evaluator(golden_store, make_windows(5, 4, 211, last=2), batch_items=3)


def the_file(cache: Path) -> Path:
    (path,) = cache.iterdir()
    return path


def test_scores_are_computed_once(evaluator: Evaluator, cache: Path) -> None:
    first = float_reference(evaluator, "model")
    assert not first.cached
    assert evaluator.cost.evaluations == 1
    shares: list[float] = []
    second = float_reference(evaluator, "model", shares.append)
    assert second.cached
    assert evaluator.cost.evaluations == 1
    assert shares == [1.0]
    assert first.top is not None
    assert second.top is not None
    np.testing.assert_array_equal(first.top, second.top)
    for name in ("index", "loss", "count", "correct"):
        np.testing.assert_array_equal(getattr(first.scores, name), getattr(second.scores, name))
    assert cache_directory() == cache
    assert the_file(cache).name.startswith("float-")


def test_most_likely_tokens_stand_in_the_order_of_the_items(evaluator: Evaluator) -> None:
    reference, items = float_reference(evaluator, "model"), evaluator.items
    assert reference.top is not None
    assert reference.top.dtype == np.int32
    assert len(reference.top) == items.n_tokens
    for i in range(items.n_items):
        tokens = torch.from_numpy(items.tokens[items.offsets[i] : items.offsets[i + 1]].astype(np.int64))
        expected = evaluator.store.model(tokens[None])[0].argmax(-1).tolist()
        assert reference.top[items.offsets[i] : items.offsets[i + 1]].tolist() == expected


def test_sentences_have_no_tokens(classifier_store: WeightStore, make_sentences: MakeItems) -> None:
    evaluator = Evaluator(classifier_store, make_sentences(5, 211, 3))
    assert float_reference(evaluator, "m").top is None
    assert float_reference(evaluator, "m").cached


def test_another_model_items_or_head_is_never_mixed_in(
    golden_store: WeightStore, classifier_store: WeightStore, make_windows: MakeItems, cache: Path
) -> None:
    items = make_windows(5, 4, 211)
    float_reference(Evaluator(golden_store, items), "model")
    others = [
        (Evaluator(golden_store, items), "other"),
        (Evaluator(golden_store, make_windows(6, 4, 211)), "model"),
        (Evaluator(golden_store, replace(items, split="report")), "model"),
    ]
    for evaluator, digest in others:
        assert not float_reference(evaluator, digest).cached
    assert len(list(cache.iterdir())) == 4


def test_a_file_under_the_name_of_another_is_not_believed(evaluator: Evaluator, cache: Path) -> None:
    float_reference(evaluator, "model")
    stolen = the_file(cache).read_bytes()
    the_file(cache).unlink()
    float_reference(evaluator, "other")
    the_file(cache).write_bytes(stolen)
    assert not float_reference(evaluator, "other").cached


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_computed_again_and_never_believed(
    evaluator: Evaluator, cache: Path, data: st.DataObject
) -> None:
    for path in cache.iterdir() if cache.exists() else ():
        path.unlink()
    right = float_reference(evaluator, "model")
    path = the_file(cache)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    again = float_reference(evaluator, "model")
    for name in ("index", "loss", "count", "correct"):
        np.testing.assert_array_equal(getattr(again.scores, name), getattr(right.scores, name))
    assert again.top is not None
    assert right.top is not None
    np.testing.assert_array_equal(again.top, right.top)
    assert float_reference(evaluator, "model").cached


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss", np.array([1.0, 2.0])),
        ("loss", np.array([1.0, 2.0, np.nan, 4.0, 5.0])),
        ("count", np.array([4, 4, 4])),
        ("correct", np.array(3)),
        ("index", np.arange(4)),
        ("index", np.array([0, 1, 2, 4, 3])),
        ("top", np.arange(3, dtype=np.int32)),
        ("name", np.frombuffer(b"another", np.uint8)),
    ],
)
def test_a_whole_file_with_other_contents_is_not_believed(
    evaluator: Evaluator, cache: Path, name: str, value: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
) -> None:
    float_reference(evaluator, "model")
    with np.load(the_file(cache)) as file:
        arrays = {key: file[key] for key in file.files}
    np.savez(the_file(cache), **{**arrays, name: value})
    assert not float_reference(evaluator, "model").cached


def test_a_cache_that_cannot_be_written_costs_time_only(
    evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("QSLM_EDGE_CACHE", str(tmp_path / "file"))
    assert not float_reference(evaluator, "model").cached
    assert not float_reference(evaluator, "model").cached
    assert evaluator.cost.evaluations == 2


def test_the_users_cache_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QSLM_EDGE_CACHE")
    assert cache_directory().name == "qslm-edge"


def test_digests_of_models(golden_model: SpikeGPT) -> None:
    digest = model_digest(golden_model)
    assert digest == model_digest(SpikeGPT(golden_model.config, dict(reversed(golden_model.tensors.items()))))
    changed = {key: tensor.clone() for key, tensor in golden_model.tensors.items()}
    changed["head.weight"][0, 0] += 1e-6
    others = [
        SpikeGPT(golden_model.config, changed),
        SpikeGPT(replace(golden_model.config, embedding="binary"), golden_model.tensors),
    ]
    assert len({digest, *(model_digest(other) for other in others)}) == 3
    assert len(digest) == 64
