"""The torch model against outputs of the published code, and its invariants over chunks, batches, padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from qslm_edge.spikegpt import SpikeGPT, load_checkpoint
from qslm_edge.spikegpt.model import FloatWeights, initial_state

MODES = ("plain", "binary")
Arrays = dict[str, NDArray[Any]]
Double = NDArray[np.float64]
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)


class RowWeights(FloatWeights):
    """Products summed row by row, so that a result cannot depend on how many rows stand beside it.

    BLAS takes another kernel for one row than for many: bit equality would be a statement about BLAS.
    """

    def linear(self, module: str, x: Tensor) -> Tensor:
        matrix = self.tensors[f"{module}.weight"]
        return torch.stack([(row * matrix).sum(-1) for row in x.reshape(-1, x.shape[-1])]).view(
            *x.shape[:-1], -1
        )


def open_golden(golden: Path, mode: str) -> tuple[SpikeGPT, Arrays]:
    with np.load(golden / f"small_{mode}.npz") as file:
        arrays = {name: file[name] for name in file.files}
    embedding = "binary" if arrays["binary_embedding"] else "dense"
    return load_checkpoint(golden / f"small_{mode}.pth", embedding), arrays


@pytest.fixture(params=MODES)
def case(golden: Path, request: pytest.FixtureRequest) -> tuple[SpikeGPT, Arrays]:
    return open_golden(golden, request.param)


@pytest.fixture(scope="module")
def exact(golden: Path) -> tuple[SpikeGPT, Tensor]:
    """A model whose products do not depend on the batch, and its tokens."""
    model, arrays = open_golden(golden, "plain")
    model.weights = RowWeights(model.tensors, model.config)
    return model, torch.from_numpy(arrays["idx"][:, :12])


@pytest.fixture(scope="module")
def classifier(make_tensors: Callable[..., dict[str, Tensor]], golden: Path) -> SpikeGPT:
    model, _ = open_golden(golden, "plain")
    weight = torch.randn(3, model.config.n_embd, generator=torch.Generator().manual_seed(1))
    return SpikeGPT(replace(model.config, num_labels=3), {**model.tensors, "classifier.weight": weight})


def spike_trains(model: SpikeGPT, idx: Tensor, state: Tensor | None = None) -> dict[str, Tensor]:
    trains: dict[str, Tensor] = {}

    def observe(name: str, value: Tensor) -> None:
        if name.endswith(".spikes"):
            trains[name] = value

    model(idx, state, observe)
    return trains


def test_logits_match_the_published_code(case: tuple[SpikeGPT, Arrays]) -> None:
    model, arrays = case
    logits = model(torch.from_numpy(arrays["idx"]))
    assert logits.shape == arrays["logits"].shape
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits.numpy(), arrays["logits"], rtol=0, atol=1e-4)


def test_loss_matches_the_published_code(case: tuple[SpikeGPT, Arrays]) -> None:
    model, arrays = case
    logits = model(torch.from_numpy(arrays["idx"]))
    loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(arrays["targets"]).flatten())
    assert float(loss) == pytest.approx(float(arrays["loss"]), abs=1e-5)


def test_spikes_match_the_published_code_exactly(case: tuple[SpikeGPT, Arrays]) -> None:
    model, arrays = case
    trains = spike_trains(model, torch.from_numpy(arrays["idx"]))
    parts = ("att", "ffn")
    assert list(trains) == [f"blocks.{layer}.{part}.spikes" for layer in range(3) for part in parts]
    for train, rate in zip(trains.values(), arrays["spike_rates"], strict=True):
        assert set(train.flatten().tolist()) == {0.0, 1.0}
        assert int(train.sum()) == round(rate * train.numel())


def test_the_embedding_mode_is_not_a_detail(golden: Path) -> None:
    model, arrays = open_golden(golden, "plain")
    other = load_checkpoint(golden / "small_plain.pth", "binary")
    idx = torch.from_numpy(arrays["idx"])
    assert float((model(idx) - other(idx)).abs().max()) > 0.1


def test_heaviside_of_zero_is_one(golden: Path) -> None:
    model, _ = open_golden(golden, "binary")
    tensors = {**model.tensors, "emb.weight": torch.zeros_like(model.tensors["emb.weight"])}
    tensors["emb.weight"][1] = -1e-30
    rows = FloatWeights(tensors, model.config).embedding(torch.tensor([0, 1]))
    assert set(rows[0].tolist()) == {1.0}
    assert set(rows[1].tolist()) == {0.0}


def in_chunks(model: SpikeGPT, idx: Tensor, cuts: list[int], state: Tensor) -> Tensor:
    edges = [0, *sorted(cuts), idx.shape[1]]
    return torch.cat([model(idx[:, a:b], state) for a, b in pairwise(edges) if b > a], dim=1)


@SHARED
@given(cuts=st.lists(st.integers(1, 11), max_size=11, unique=True))
def test_chunks_with_carried_state_equal_one_run_bit_for_bit(
    exact: tuple[SpikeGPT, Tensor], cuts: list[int]
) -> None:
    model, idx = exact
    whole_state, state = initial_state(model.config, 2), initial_state(model.config, 2)
    assert torch.equal(in_chunks(model, idx, cuts, state), model(idx, whole_state))
    assert torch.equal(state, whole_state)


def test_chunks_on_real_products_flip_no_spike(golden: Path) -> None:
    model, arrays = open_golden(golden, "plain")
    idx = torch.from_numpy(arrays["idx"])
    whole = model(idx)
    for cuts in ([1], [16, 32], [47], list(range(1, 48))):
        logits = in_chunks(model, idx, cuts, initial_state(model.config, 2))
        np.testing.assert_allclose(logits.numpy(), whole.numpy(), rtol=0, atol=1e-4)


def test_a_state_given_is_updated_and_one_not_given_is_fresh(exact: tuple[SpikeGPT, Tensor]) -> None:
    model, idx = exact
    state = initial_state(model.config, 2)
    before = state.clone()
    first = model(idx, state)
    assert torch.equal(model(idx), first)
    assert torch.equal(model(idx), first)
    changed = (state != before).flatten(1).any(1)
    assert changed.all()  # each of the seven states of each layer
    assert not torch.equal(model(idx, state), first)


def test_initial_state_is_zero_but_for_the_running_maximum(golden: Path) -> None:
    model, _ = open_golden(golden, "plain")
    state = initial_state(model.config, 5)
    assert state.shape == (21, 5, 64)
    rows = [float(value) for value in state[:, 0, 0]]
    assert rows == pytest.approx([0, 0, 0, 0, -1e38, 0, 0] * 3)
    assert torch.equal(state, state[:, :1, :1].expand_as(state))


def test_items_of_a_batch_do_not_touch_each_other(exact: tuple[SpikeGPT, Tensor]) -> None:
    model, idx = exact
    together = model(idx)
    assert torch.equal(together[1:], model(idx[1:]))
    other = torch.stack([idx[0].flip(0), idx[1]])
    assert torch.equal(model(other)[1], together[1])
    assert not torch.equal(model(other)[0], together[0])


def test_a_token_has_no_influence_on_the_past(exact: tuple[SpikeGPT, Tensor]) -> None:
    model, idx = exact
    changed = idx.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 211
    a, b = model(idx), model(changed)
    assert torch.equal(a[:, :6], b[:, :6])
    assert not torch.equal(a[:, 6], b[:, 6])


def test_observers_see_every_product_once_and_change_nothing(case: tuple[SpikeGPT, Arrays]) -> None:
    model, arrays = case
    idx = torch.from_numpy(arrays["idx"][:, :5])
    seen: dict[str, tuple[int, ...]] = {}

    def observe(name: str, value: Tensor) -> None:
        assert name not in seen
        seen[name] = tuple(value.shape)

    assert torch.equal(model(idx, observe=observe), model(idx))
    products = {name.removesuffix(".input"): shape for name, shape in seen.items() if name.endswith(".input")}
    assert len(products) == 3 * 7
    for name, shape in products.items():
        rows, columns = model.tensors[f"{name}.weight"].shape
        assert shape == (5, 2, columns)
        assert seen[f"{name}.output"] == (5, 2, rows)


def test_features_are_what_the_head_multiplies(case: tuple[SpikeGPT, Arrays]) -> None:
    model, arrays = case
    idx = torch.from_numpy(arrays["idx"])
    features = model.features(idx.t())
    assert features.shape == (48, 2, 64)
    # ln_out leaves each channel vector with the statistics of its weight and bias
    plain = (features - model.tensors["ln_out.bias"]) / model.tensors["ln_out.weight"]
    np.testing.assert_allclose(plain.mean(-1).numpy(), 0, atol=1e-3)
    torch.testing.assert_close(
        F.linear(features, model.tensors["head.weight"]).transpose(0, 1), model(idx), rtol=0, atol=1e-5
    )


def class_scores_by_hand(model: SpikeGPT, sentence: Tensor) -> Tensor:
    return model.features(sentence.unsqueeze(1)).mean(0) @ model.tensors["classifier.weight"].t()


@SHARED
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), padding=st.integers(0, 210))
def test_classifier_takes_the_mean_over_real_tokens_only(
    classifier: SpikeGPT, lengths: list[int], padding: int
) -> None:
    generator = torch.Generator().manual_seed(len(lengths))
    sentences = [torch.randint(0, 211, (n,), generator=generator) for n in lengths]
    idx = torch.full((len(lengths), max(lengths) + 2), padding)
    mask = torch.zeros(idx.shape)
    for row, sentence in enumerate(sentences):
        idx[row, : len(sentence)] = sentence
        mask[row, : len(sentence)] = 1
    scores = classifier.classify(idx, mask)
    assert scores.shape == (len(lengths), 3)
    for row, sentence in enumerate(sentences):
        expected = class_scores_by_hand(classifier, sentence)[0]
        np.testing.assert_allclose(scores[row].numpy(), expected.numpy(), atol=1e-4)


def test_classifier_without_a_mask_uses_every_token(classifier: SpikeGPT) -> None:
    idx = torch.arange(12).view(2, 6)
    expected = torch.cat([class_scores_by_hand(classifier, row) for row in idx])
    np.testing.assert_allclose(classifier.classify(idx).numpy(), expected.numpy(), atol=1e-4)


def test_a_model_on_another_device_is_a_new_object(golden: Path) -> None:
    model, arrays = open_golden(golden, "plain")
    moved = model.to("meta")
    assert (moved.device.type, model.device.type) == ("meta", "cpu")
    assert moved.config == model.config
    assert model(torch.from_numpy(arrays["idx"][:, :2])).device.type == "cpu"


def norm(p: dict[str, Double], name: str, x: Double) -> Double:
    centred = x - x.mean()
    scale: Double = centred / np.sqrt((centred**2).mean() + 1e-5)
    return scale * p[f"{name}.weight"] + p[f"{name}.bias"]


def sigmoid(x: Double) -> Double:
    result: Double = 1 / (1 + np.exp(-x))
    return result


def fire(s: dict[str, Double], v: str, current: Double) -> Double:
    h = s[v] + (current - s[v]) / 2
    spikes = (h >= 1).astype(np.float64)
    s[v] = h * (1 - spikes)
    return spikes


def scalar_forward(tensors: Mapping[str, Tensor], n_layer: int, tokens: list[int]) -> Double:
    """Logits of one stream, token by token in float64, written from the formulas of the model."""
    p = {key: value.double().numpy().squeeze() for key, value in tensors.items()}
    names = ("att", "ffn", "a", "b", "v1", "v2")
    past = [{n: np.zeros(len(p["ln_out.bias"])) for n in names} for _ in range(n_layer)]
    logits = []
    for token in tokens:
        x = norm(p, "blocks.0.ln0", p["emb.weight"][token])
        for layer in range(n_layer):
            s, att, ffn = past[layer], f"blocks.{layer}.att", f"blocks.{layer}.ffn"
            h, last = norm(p, f"blocks.{layer}.ln1", x), s["att"]
            xk, xv, xr = (h * m + last * (1 - m) for m in (p[f"{att}.time_mix_{n}"] for n in "kvr"))
            k, v = p[f"{att}.key.weight"] @ xk, p[f"{att}.value.weight"] @ xv
            r = sigmoid(p[f"{att}.receptance.weight"] @ xr)
            now, decay = np.exp(p[f"{att}.time_first"] + k), np.exp(-np.exp(p[f"{att}.time_decay"]))
            y = (s["a"] + now * v) / (s["b"] + now)
            s |= {"att": h, "a": decay * s["a"] + np.exp(k) * v, "b": decay * s["b"] + np.exp(k)}
            x = x + fire(s, "v1", p[f"{att}.output.weight"] @ (r * y))
            h, last = norm(p, f"blocks.{layer}.ln2", x), s["ffn"]
            xk, xr = (h * m + last * (1 - m) for m in (p[f"{ffn}.time_mix_{n}"] for n in "kr"))
            r = sigmoid(p[f"{ffn}.receptance.weight"] @ xr)
            s["ffn"] = h
            hidden = np.maximum(p[f"{ffn}.key.weight"] @ xk, 0) ** 2
            x = x + fire(s, "v2", r * (p[f"{ffn}.value.weight"] @ hidden))
        logits.append(p["head.weight"] @ norm(p, "ln_out", x))
    return np.array(logits)


def test_the_model_is_the_formulas(golden: Path) -> None:
    model, arrays = open_golden(golden, "plain")
    tokens = arrays["idx"][0].tolist()
    logits = model(torch.tensor([tokens]))[0].numpy()
    np.testing.assert_allclose(logits, scalar_forward(model.tensors, 3, tokens), rtol=0, atol=1e-4)
