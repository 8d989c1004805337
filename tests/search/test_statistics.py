"""Both models side by side: exact where nothing changed, and equal to what separate runs show."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from qslm_edge.exporters import ExportJob
from qslm_edge.items import Items
from qslm_edge.quantize.levels import Setting
from qslm_edge.quantize.weights import WeightStore
from qslm_edge.runner.text import json_ready
from qslm_edge.search import statistics as module
from qslm_edge.search.evaluator import Evaluator
from qslm_edge.search.statistics import Statistics, measure_statistics
from qslm_edge.spikegpt.hierarchy import Head
from tests.helpers import tiny

LENGTHS = (9, 24, 24, 13, 24)


def prepared(level: str, head: Head = "lm") -> tuple[WeightStore, Setting, Items]:
    model = tiny.make_model()
    store = WeightStore(model, tiny.hierarchy_of(model, head))
    items = tiny.make_items(lengths=LENGTHS, labelled=head == "classifier")
    return store, tiny.uniform_setting(model, level, head), items


@pytest.mark.parametrize("head", ["lm", "classifier"])
def test_a_setting_that_changes_nothing_differs_in_nothing(head: Head) -> None:
    found = measure_statistics(*prepared("32", head))
    divergence, spikes = found.divergence, found.spikes
    assert (divergence.kl_mean_nats, divergence.kl_max_nats, divergence.rms_delta_p) == (0, 0, 0)
    assert divergence.top1_agreement == 1
    assert (divergence.comparison.degradation, divergence.comparison.delta_nll) == (0, 0)
    assert (spikes.flip_rate, spikes.membrane_drift) == (0, 0)
    assert all(layer.flip_rate == layer.membrane_drift == 0 for layer in spikes.layers)
    assert spikes.firing_rate == spikes.firing_rate_float > 0.05
    assert found.operations == found.float_operations
    assert found.operations.footprint_bytes == prepared("32", head)[0].hierarchy.float32_bytes


@pytest.mark.parametrize("level", ["8g64", "2g32", "4g32f", "q4"])
def test_spikes_are_those_of_separate_runs(level: str) -> None:
    store, setting, items = prepared(level)
    found = measure_statistics(store, setting, items).spikes
    models = store.model, tiny.quantised(ExportJob(store, setting))
    flips: dict[str, list[Tensor]] = {}
    drift: dict[str, list[Tensor]] = {}
    for begin, end in zip(items.offsets, items.offsets[1:], strict=False):
        tokens = torch.from_numpy(items.tokens[begin:end].astype(np.int64)).unsqueeze(1)
        seen: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
        for model, values in zip(models, seen, strict=True):
            model.features(tokens, observe=tiny.keeping(values))
        for layer in found.layers:
            name = f"blocks.{layer.layer}.{layer.part}"
            flips.setdefault(name, []).append(seen[0][f"{name}.spikes"] != seen[1][f"{name}.spikes"])
            change = seen[0][f"{name}.potential"] - seen[1][f"{name}.potential"]
            drift.setdefault(name, []).append(change.abs())
    assert [(layer.layer, layer.part) for layer in found.layers] == [
        (i, part) for i in range(3) for part in ("att", "ffn")
    ]
    for layer in found.layers:
        name = f"blocks.{layer.layer}.{layer.part}"
        # alone and in a batch a product may round otherwise, and a spike at the threshold flip with it
        assert layer.flip_rate == pytest.approx(float(torch.cat(flips[name]).float().mean()), abs=2e-3)
        assert layer.membrane_drift == pytest.approx(float(torch.cat(drift[name]).mean()), rel=0.02)
    assert found.flip_rate == pytest.approx(np.mean([layer.flip_rate for layer in found.layers]))
    assert 0 < found.flip_rate < 0.5


@pytest.mark.parametrize("head", ["lm", "classifier"])
@pytest.mark.parametrize("level", ["8g64", "2g32"])
def test_losses_are_those_of_the_search(head: Head, level: str) -> None:
    store, setting, items = prepared(level, head)
    evaluator = Evaluator(store, items)
    one, two = evaluator.evaluate(evaluator.float_setting()), evaluator.evaluate(setting)
    found = measure_statistics(store, setting, items)
    compared = found.divergence.comparison
    assert compared.delta_nll == pytest.approx((two.loss - one.loss).sum() / one.count.sum(), abs=1e-5)
    if head == "classifier":
        assert compared.degradation == 100 * (one.correct.sum() - two.correct.sum()) / len(LENGTHS)
    assert found.divergence.n_predictions == (sum(LENGTHS) if head == "lm" else len(LENGTHS))
    assert (found.n_items, found.n_tokens) == (len(LENGTHS), sum(LENGTHS))
    assert found.divergence.kl_mean_nats > 1e-6


@pytest.mark.parametrize("head", ["lm", "classifier"])
def test_smaller_pieces_change_nothing_but_rounding(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    store, setting, items = prepared("8g64", head)
    whole = measure_statistics(store, setting, items)
    monkeypatch.setattr(module, "ACTIVATION_BYTES", 4 * tiny.HIDDEN * 30)  # one or two items a batch
    monkeypatch.setattr(module, "LOGIT_BYTES", 8 * tiny.VOCABULARY * 5)
    shares: list[float] = []
    pieces = measure_statistics(store, setting, items, shares.append)
    assert len(shares) >= 4
    assert sum(shares) == pytest.approx(1)
    assert pieces.divergence.kl_mean_nats == pytest.approx(whole.divergence.kl_mean_nats, rel=0.02)
    assert pieces.spikes.flip_rate == pytest.approx(whole.spikes.flip_rate, rel=0.05)
    assert pieces.operations.dense == whole.operations.dense
    assert pieces.operations.as_built.effective_macs == pytest.approx(
        whole.operations.as_built.effective_macs, rel=1e-3
    )


def test_finer_levels_part_less() -> None:
    store, _, items = prepared("32")
    found = [
        measure_statistics(store, tiny.uniform_setting(store.model, level), items)
        for level in ("16", "8g64", "4g64", "2g64")
    ]
    kl = [statistics.divergence.kl_mean_nats for statistics in found]
    flips = [statistics.spikes.flip_rate for statistics in found]
    assert kl == sorted(kl)
    assert flips == sorted(flips)


def test_the_classifier_counts_once_a_sentence() -> None:
    store, setting, items = prepared("4g64", "classifier")
    found = measure_statistics(store, setting, items).operations
    matrices = sum(m.n_params for m in store.hierarchy.modules if m.name != "emb")
    assert found.dense == pytest.approx(matrices + 2 * 64 * len(LENGTHS) / sum(LENGTHS))


def test_a_single_item_has_figures_without_an_error() -> None:
    store, setting, items = prepared("8g64")
    found = json_ready(measure_statistics(store, setting, items.subset([1])).to_dict())
    assert found["divergence"]["comparison"]["delta_nll_se"] is None
    assert found["divergence"]["kl_p99_reason"] == "24 predictions, 100 needed"
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_equal_inputs_give_equal_figures() -> None:
    def run() -> Statistics:
        return measure_statistics(*prepared("4g32"))

    assert run() == run()


def test_items_of_the_wrong_kind() -> None:
    store, setting, items = prepared("8g64")
    with pytest.raises(ValueError, match="windows need targets"):
        measure_statistics(store, setting, replace(items, targets=None, labels=np.zeros(5, np.int8)))
    store, setting, _ = prepared("8g64", "classifier")
    with pytest.raises(ValueError, match="sentences need labels"):
        measure_statistics(store, setting, items)
