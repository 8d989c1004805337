"""Whole tuning runs on a tiny model: they help, repeat, resume, and refuse what cannot work."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qslm_edge.errors import DataError, GateError, OutputError, RunError
from qslm_edge.items import Items
from qslm_edge.quantize.levels import Setting, parse_level
from qslm_edge.quantize.weights import QuantisedWeights, WeightStore
from qslm_edge.search.space import LevelMap
from qslm_edge.tuning import tuner
from qslm_edge.tuning.checkpoint import load_state, save_state
from qslm_edge.tuning.feed import Feed
from qslm_edge.tuning.options import TuneOptions
from qslm_edge.tuning.stored import TunedModel, load_tuned, save_tuned
from qslm_edge.tuning.student import features
from qslm_edge.tuning.tuner import Tuned, tune

OPTIONS = TuneOptions(tokens=12 * 96, batch_tokens=96, learning_rate=2e-2, warmup_steps=2)


def setting(store: WeightStore, level: str = "2g64") -> Setting:
    return LevelMap(store.model.config).setting(store.hierarchy, parse_level(level))


def run(store: WeightStore, items: Items, options: TuneOptions = OPTIONS, **extra: Any) -> Tuned:
    return tune(store, setting(store), items, options, model_digest="m", **extra)


def same(one: Tuned, other: Tuned) -> bool:
    packed = all(
        np.array_equal(one.packed[name].dequantise(), other.packed[name].dequantise()) for name in one.packed
    )
    floats = all(torch.equal(one.tensors[key], other.tensors[key]) for key in one.tensors)
    return packed and floats and one.trained == other.trained and one.held_out == other.held_out


def test_the_answers_come_nearer_to_the_teachers(store: WeightStore, windows: Items) -> None:
    found = run(store, windows)
    assert found.trained[1] < 0.9 * found.trained[0]
    assert found.held_out[1] < found.held_out[0]
    assert (found.steps, found.tokens) == (12, 12 * 96)
    assert set(found.packed) == {module.name for module in store.hierarchy.modules}


def test_sentences_are_tuned_on_their_classes(classifier_store: WeightStore, sentences: Items) -> None:
    options = dataclasses.replace(OPTIONS, tokens=40 * 96, learning_rate=5e-3)
    found = run(classifier_store, sentences, options)
    assert found.trained[1] < 0.9 * found.trained[0]
    assert "classifier.weight" in found.tensors
    assert "head" not in found.packed


def test_the_float_model_is_not_changed(store: WeightStore, windows: Items) -> None:
    before = {key: tensor.clone() for key, tensor in store.model.tensors.items()}
    run(store, windows)
    assert all(torch.equal(tensor, before[key]) for key, tensor in store.model.tensors.items())


def test_the_same_run_gives_the_same_weights(store: WeightStore, windows: Items) -> None:
    first = run(store, windows)
    assert same(first, run(store, windows))
    assert not same(first, run(store, windows, dataclasses.replace(OPTIONS, seed=1)))


def test_parts_of_a_step_change_nothing_but_rounding(
    store: WeightStore, windows: Items, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = dataclasses.replace(OPTIONS, tokens=2 * 96)
    whole = run(store, windows, short)
    monkeypatch.setattr(tuner, "MICRO_BYTES", {"cpu": 1})  # one window at a time
    parts = run(store, windows, short)
    assert parts.trained == pytest.approx(whole.trained, rel=1e-2)


def test_a_killed_run_ends_with_the_same_weights(
    store: WeightStore, windows: Items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner, "SAVE_EVERY_S", -1.0)  # after every step
    state = tmp_path / "tuning.safetensors"
    done: list[str] = []

    def stop(_share: float, text: str) -> None:
        done.append(text)
        if len(done) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store, windows, state=state, advance=stop)
    seen: list[str] = []
    resumed = run(store, windows, state=state, advance=lambda _share, text: seen.append(text))
    assert len(seen) == 12 - 5  # a step is told, and the state saved, when the next was taken
    assert same(resumed, run(store, windows))
    again: list[str] = []
    assert same(resumed, run(store, windows, state=state, advance=lambda _share, text: again.append(text)))
    assert again == []


@pytest.mark.parametrize("change", ["seed", "digest", "setting"])
def test_the_state_of_another_run_is_refused(
    store: WeightStore, windows: Items, tmp_path: Path, change: str
) -> None:
    state = tmp_path / "tuning.safetensors"
    short = dataclasses.replace(OPTIONS, tokens=96)
    run(store, windows, short, state=state)
    options = dataclasses.replace(short, seed=9) if change == "seed" else short
    with pytest.raises(RunError, match="another tuning run. Delete it"):
        tune(
            store,
            setting(store, "4g64" if change == "setting" else "2g64"),
            windows,
            options,
            model_digest="other" if change == "digest" else "m",
            state=state,
        )


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", b"\xff" * 64])
def test_a_damaged_state_is_one_line(tmp_path: Path, content: bytes) -> None:
    state = tmp_path / "tuning.safetensors"
    state.write_bytes(content)
    with pytest.raises(RunError, match="damaged state of tuning"):
        load_state(state, {"x": torch.zeros(1)}, "f")


def test_a_state_that_lacks_a_tensor_is_damaged(tmp_path: Path) -> None:
    state = tmp_path / "tuning.safetensors"
    save_state(state, {"x": torch.ones(2)}, 3, "f")
    into = {"x": torch.zeros(2)}
    assert load_state(state, into, "f") == 3
    assert into["x"].tolist() == [1, 1]
    with pytest.raises(RunError, match="damaged state"):
        load_state(state, {"y": torch.zeros(2)}, "f")
    with pytest.raises(RunError, match="damaged state"):
        load_state(state, {"x": torch.zeros(3)}, "f")


def test_a_state_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        save_state(tmp_path / "missing" / "state.safetensors", {"x": torch.ones(1)}, 1, "f")
    assert list(tmp_path.iterdir()) == []


def test_too_little_data_is_refused(store: WeightStore, windows: Items) -> None:
    with pytest.raises(DataError, match="too little training data.*found 20 items.*64 or more"):
        run(store, windows.subset(np.arange(20)))


def test_a_diverging_run_stops(store: WeightStore, windows: Items) -> None:
    with pytest.raises(GateError, match="step 2 of 12: tuning diverged"):
        run(store, windows, dataclasses.replace(OPTIONS, learning_rate=1e30, clip_norm=1e30))


def test_held_out_items_are_never_trained_on(windows: Items) -> None:
    feed = Feed(windows, 8, seed=0)
    held_out = {tuple(row) for row in feed.held_out().tokens.reshape(-1, 12).tolist()}
    assert len(held_out) == feed.n_held_out == 8
    seen: set[tuple[int, ...]] = set()
    for step in range(30):
        rows = feed.items_of(step).tokens.reshape(-1, 12).tolist()
        assert len(rows) == 8
        seen |= {tuple(row) for row in rows}
    assert not seen & held_out
    assert len(seen) == feed.n_trained  # 30 steps pass over all of them


def test_every_pass_takes_every_item_once(windows: Items) -> None:
    feed = Feed(windows, 9, seed=3)
    taken = [tuple(row) for step in range(8) for row in feed.items_of(step).tokens.reshape(-1, 12).tolist()]
    assert len(taken) == feed.n_trained == 72
    assert len(set(taken)) == 72


@pytest.mark.parametrize("level", ["2g64m@64", "2g64@96"])
def test_a_cut_model_is_tuned_kept_and_read_back(
    cut_store: WeightStore, windows: Items, tmp_path: Path, level: str
) -> None:
    chosen = setting(cut_store, level)
    found = tune(cut_store, chosen, windows, OPTIONS, model_digest="m")
    assert found.trained[1] < found.trained[0]
    kept = TunedModel(chosen, found.tensors, found.packed, {"mark": "k"})
    save_tuned(tmp_path / "t.safetensors", kept, "m")
    again = load_tuned(tmp_path / "t.safetensors", cut_store, "m")
    tokens = torch.arange(24).view(12, 2) * 7 % 211
    one, other = (
        features(QuantisedWeights(model.store(cut_store), chosen), cut_store, tokens)
        for model in (kept, again)
    )
    assert torch.equal(one, other)
    value = "blocks.0.ffn.value"
    assert again.store(cut_store).dense(value, chosen[value]).shape == (64, parse_level(level).units)


def test_a_tuned_model_of_another_cut_is_refused(
    cut_store: WeightStore, windows: Items, tmp_path: Path
) -> None:
    options = dataclasses.replace(OPTIONS, tokens=96, learning_rate=1e-3)
    found = tune(cut_store, setting(cut_store, "16@96"), windows, options, model_digest="m")
    kept = TunedModel(setting(cut_store, "16@96"), found.tensors, found.packed, {"mark": "k"})
    save_tuned(tmp_path / "t.safetensors", kept, "m")
    assert load_tuned(tmp_path / "t.safetensors", cut_store, "m").setting == kept.setting
    other = TunedModel(setting(cut_store, "16@64"), found.tensors, found.packed, {"mark": "k"})
    save_tuned(tmp_path / "t.safetensors", other, "m")
    with pytest.raises(RunError, match="damaged tuned model"):
        load_tuned(tmp_path / "t.safetensors", cut_store, "m")
