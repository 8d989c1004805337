"""A setting becomes a bundle: what is in it, what is not, and what stops it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import DisagreementError, OutputError, UsageError
from qslm_edge.exporters.onnx_spikegpt import SpikeGPTGraph
from qslm_edge.items import Items
from qslm_edge.metrics import Scores, quality
from qslm_edge.progress import Silent
from qslm_edge.quantize.accounting import predict_peak_rss_bytes, weight_bytes
from qslm_edge.quantize.levels import Level, Setting, parse_level
from qslm_edge.quantize.weights import QuantisedWeights
from qslm_edge.search.evaluator import Evaluator
from qslm_edge.search.space import LevelMap
from qslm_edge.spikegpt import SpikeGPT
from qslm_edge.steps import export
from qslm_edge.steps.export import GOLDEN_BYTES, export_bundle
from qslm_edge.steps.plan import Plan
from tests.helpers.bundles import make_bundle, make_plan

Facts = dict[str, Any]


def setting_of(plan: Plan, level: str, **changes: str) -> Setting:
    names = {name.replace("_", "."): parse_level(text) for name, text in changes.items()}
    return LevelMap(plan.model.config).setting(plan.hierarchy, parse_level(level)).with_levels(names)


def written(
    plan: Plan, setting: Setting, target: Path, expected: Scores | None = None
) -> tuple[Bundle, Facts]:
    bundle, parity, facts = export_bundle(plan, setting, plan.items("search"), expected, target, Silent())
    assert facts["parity"] == parity.to_dict()
    return bundle, facts


@pytest.fixture(scope="module")
def lm_plan(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return make_plan(tmp_path_factory.mktemp("plan"), search_windows=8, report_windows=6)


@pytest.fixture(scope="module")
def classifier_plan(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return make_plan(tmp_path_factory.mktemp("plan"), "sst2", search_windows=16)


OWN = ("max_latency_s", "min_decode_tokens_per_s", "max_energy_j_per_token")


# ---- what is in a bundle


def test_the_manifest_says_what_the_bundle_is(lm_plan: Plan, tmp_path: Path) -> None:
    setting = setting_of(lm_plan, "4g32", head="8g64")
    bundle, facts = written(lm_plan, setting, tmp_path / "bundle")
    m = bundle.manifest
    hierarchy = lm_plan.hierarchy
    assert m["setting"] == setting.to_dict()
    assert m["setting"]["head"] == "8g64"
    weights = weight_bytes(hierarchy, setting)
    assert m["weights"]["bytes"] == weights == facts["weight_bytes"]
    assert m["weights"]["float32_bytes"] == hierarchy.float32_bytes
    assert m["weights"]["reduction"] == round(1 - weights / hierarchy.float32_bytes, 6)
    assert m["weights"]["predicted_peak_rss_bytes"] == predict_peak_rss_bytes(hierarchy, setting)
    assert m["constraints"]["max_degradation"] == 1e5
    assert m["constraints"]["memory_budget_bytes"] == lm_plan.profile.memory.budget_mib * 2**20
    assert {key: m["constraints"][key] for key in OWN} == dict.fromkeys(OWN)
    assert m["task"] == {
        "name": "wikitext2",
        "kind": "language_model",
        "metric": "perplexity",
        "unit": "",
        "direction": "increase",
        "window": 24,
    }
    assert m["profile"]["id"] == "x86-laptop"
    assert m["model"]["digest"] == lm_plan.digest
    assert (m["model"]["vocab_size"], m["model"]["head"]) == (lm_plan.model.config.vocab_size, "lm")
    assert m["state"] == {
        "layout": ["att_x", "ffn_x", "a", "b", "p", "v1", "v2"],
        "n_layer": 2,
        "n_embd": 64,
        "p_init": -1e38,
    }
    assert m["runtime"]["providers"] == ["CPUExecutionProvider"]
    assert (m["runtime"]["opset"], m["runtime"]["ir_version"]) == (21, 10)
    assert m["runtime"]["bits"] == [4, 8]
    assert m["items"]["search"]["n_items"] == 8
    assert m["items"]["report"]["n_items"] == 6
    assert facts["model_bin_bytes"] == bundle.file_bytes["model.bin"]
    assert facts["files"] == bundle.file_bytes
    assert facts["operators"]["com.microsoft::MatMulNBits"] == 15


def test_the_items_and_float_scores_are_those_of_the_plan(lm_plan: Plan, tmp_path: Path) -> None:
    bundle, _ = written(lm_plan, setting_of(lm_plan, "8g64"), tmp_path / "bundle")
    for split in ("search", "report"):
        items = lm_plan.items(split)
        assert bundle.items(split).digest == items.digest
        evaluator = Evaluator(lm_plan.store(), items)
        scores = evaluator.evaluate(evaluator.float_setting())
        found, top = bundle.float_scores(split)
        np.testing.assert_allclose(found.loss, scores.loss, rtol=1e-6)
        assert top is not None
        assert len(top) == items.n_tokens
    assert bundle.items("search").digest != bundle.items("report").digest


def test_the_float_answers_are_those_of_the_float_model(lm_plan: Plan, tmp_path: Path) -> None:
    bundle, _ = written(lm_plan, setting_of(lm_plan, "8g64"), tmp_path / "bundle")
    items = lm_plan.items("report")
    _, top = bundle.float_scores("report")
    assert top is not None
    for i in range(items.n_items):
        part = slice(int(items.offsets[i]), int(items.offsets[i + 1]))
        logits = lm_plan.model(torch.from_numpy(items.tokens[part].astype(np.int64))[None])[0]
        assert np.mean(logits.argmax(-1).numpy() == top[part]) > 0.95


def test_golden_outputs_are_those_of_the_quantised_torch_model(
    lm_plan: Plan, classifier_plan: Plan, tmp_path: Path
) -> None:
    for plan in (lm_plan, classifier_plan):
        setting = setting_of(plan, "4g64")
        bundle, _ = written(plan, setting, tmp_path / plan.task.name)
        golden = bundle.golden()
        quantised = SpikeGPT(plan.model.config, plan.model.tensors)
        quantised.weights = QuantisedWeights(plan.store(), setting)
        idx = torch.from_numpy(golden["tokens"].T.astype(np.int64))
        if plan is lm_plan:
            expected = quantised(idx).transpose(0, 1).numpy()
            assert (
                np.abs(expected - plan.model(idx).transpose(0, 1).numpy()).max() > 0.01
            )  # not the float model
        else:
            expected = quantised.classify(idx).numpy()
        np.testing.assert_allclose(golden["expected"], expected, rtol=1e-4, atol=1e-4)
        assert golden["mask"].min() == 1


def test_each_task_ships_its_own_head_only(lm_plan: Plan, classifier_plan: Plan, tmp_path: Path) -> None:
    lm, _ = written(lm_plan, setting_of(lm_plan, "16"), tmp_path / "lm")
    other, _ = written(classifier_plan, setting_of(classifier_plan, "16"), tmp_path / "classifier")
    names = [{t.name for t in onnx.load(b.path / "model.onnx").graph.initializer} for b in (lm, other)]
    assert "head.weight" in names[0]
    assert not any("head" in name for name in names[1])
    assert not any("classifier" in name for name in names[0] | names[1])
    assert "classifier.npy" not in lm.file_bytes
    weight = classifier_plan.model.tensors["classifier.weight"].numpy()
    np.testing.assert_array_equal(other.classifier_weight(), weight)
    vocabulary = lm_plan.model.config.vocab_size
    assert lm.file_bytes["model.bin"] - other.file_bytes["model.bin"] >= 2 * 64 * vocabulary
    # counted: all that is in model.bin and the classifier's matrix
    assert other.manifest["weights"]["bytes"] == weight_bytes(
        classifier_plan.hierarchy, setting_of(classifier_plan, "16")
    )
    assert other.manifest["weights"]["bytes"] == other.file_bytes["model.bin"] + weight.nbytes


def test_tokenizer_and_notice_are_there_and_no_tool_of_ours(lm_plan: Plan, tmp_path: Path) -> None:
    bundle, _ = written(lm_plan, setting_of(lm_plan, "8g64"), tmp_path / "bundle")
    assert (bundle.path / "tokenizer.json").read_bytes() == lm_plan.tokenizer.raw
    notice = (bundle.path / "NOTICE.txt").read_text("utf-8")
    assert "WikiText-2" in notice
    assert "SST-2" in notice
    assert not (bundle.path / "tapped.onnx").exists()


@pytest.mark.parametrize(
    ("level", "changes", "minimum", "arithmetic"),
    [
        ("32", {}, "1.18.1", "float"),
        ("16", {}, "1.18.1", "float"),
        ("4g64", {}, "1.22.1", "int8"),
        ("8g64", {}, "1.22.1", "int8"),
        ("32", {"blocks_0_ffn_value": "2g128"}, "1.29.0", "int8"),
        ("4g64f", {}, "1.22.1", "float"),
    ],
)
def test_requirements_follow_the_levels(
    level: str, changes: dict[str, str], minimum: str, arithmetic: str, lm_plan: Plan, tmp_path: Path
) -> None:
    bundle, _ = written(lm_plan, setting_of(lm_plan, level, **changes), tmp_path / "bundle")
    m = bundle.manifest
    assert m["runtime"]["onnxruntime_min"] == minimum
    assert m["expected"]["arithmetic"] == arithmetic
    assert m["golden"]["tolerance"] == {"float": 0.02, "int8": 0.15}[arithmetic]


def test_a_bundle_for_cuda_keeps_float_activations_and_allows_for_float16(
    cache: Path, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path, level="8g64f", profile="h100")
    m = bundle.manifest
    assert set(m["setting"].values()) == {"8g64f"}
    assert (m["expected"]["arithmetic"], m["golden"]["tolerance"]) == ("float16", 0.15)
    nodes = onnx.load(str(bundle.path / "model.onnx"), load_external_data=False).graph.node
    levels = [a.i for node in nodes for a in node.attribute if a.name == "accuracy_level"]
    assert levels == [0] * (7 * 2 + 1)


# ---- expected scores


def test_expected_scores_are_measured_when_the_search_has_none(lm_plan: Plan, tmp_path: Path) -> None:
    setting = setting_of(lm_plan, "8g64")
    bundle, _ = written(lm_plan, setting, tmp_path / "bundle")
    scores = Evaluator(lm_plan.store(), lm_plan.items("search")).evaluate(setting)
    np.testing.assert_allclose(bundle.expected_scores().loss, scores.loss, rtol=1e-6)
    expected = bundle.manifest["expected"]
    assert expected["search"]["value"] == pytest.approx(quality(scores).value, rel=1e-6)
    assert expected["tolerance"] == 0.002
    assert expected["search"]["n_items"] == 8


def test_whole_scores_of_the_search_are_taken_and_partial_ones_are_not(lm_plan: Plan, tmp_path: Path) -> None:
    setting = setting_of(lm_plan, "8g64")
    whole = Evaluator(lm_plan.store(), lm_plan.items("search")).evaluate(setting)
    told = dataclasses.replace(whole, loss=whole.loss + 1.0)
    bundle, _ = written(lm_plan, setting, tmp_path / "whole", told)
    assert bundle.expected_scores().loss.tolist() == told.loss.tolist()
    part = told.select(np.arange(5))
    bundle, _ = written(lm_plan, setting, tmp_path / "part", part)
    np.testing.assert_allclose(bundle.expected_scores().loss, whole.loss, rtol=1e-6)


def test_a_classifier_is_expected_within_points(classifier_plan: Plan, tmp_path: Path) -> None:
    bundle, _ = written(classifier_plan, setting_of(classifier_plan, "8g64"), tmp_path / "bundle")
    assert bundle.manifest["expected"]["tolerance"] == 0.2
    assert bundle.manifest["task"]["direction"] == "drop"
    assert bundle.manifest["task"]["unit"] == "points"
    assert bundle.manifest["model"]["num_labels"] == 2


# ---- golden tokens


@pytest.mark.parametrize(("vocabulary", "longest"), [(300, 64), (4096, 32), (50277, 4)])
def test_golden_tokens_stay_near_a_mebibyte(
    vocabulary: int, longest: int, lm_plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = dataclasses.replace(lm_plan)
    config = dataclasses.replace(plan.model.config, vocab_size=vocabulary)
    monkeypatch.setattr(plan.model, "config", config)
    items = Items("tiny", "search", np.arange(300, dtype=np.int32), np.arange(0, 301, 100))
    tokens = export._golden_tokens(plan, items)
    assert tokens.shape == (longest, 2)
    assert tokens.dtype.name == "int64"
    assert tokens.size * vocabulary * 4 <= max(GOLDEN_BYTES, 4 * 8 * vocabulary)


def test_golden_tokens_come_from_the_longest_items_without_padding(lm_plan: Plan) -> None:
    lengths = [3, 9, 2, 7]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = Items("tiny", "search", np.arange(21, dtype=np.int32), offsets)
    tokens = export._golden_tokens(lm_plan, items)
    assert tokens.tolist() == np.stack([np.arange(3, 10), np.arange(14, 21)], 1).tolist()
    one = Items("tiny", "search", np.arange(5, dtype=np.int32), np.array([0, 5]))
    assert export._golden_tokens(lm_plan, one).tolist() == [[0], [1], [2], [3], [4]]


# ---- what stops it


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_graph_that_computes_something_else_is_not_written(
    lm_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = SpikeGPTGraph._vector

    def wrong(self: SpikeGPTGraph, key: str) -> Any:
        values = right(self, key)
        return values[::-1] if key == "blocks.1.att.time_mix_k" else values

    monkeypatch.setattr(SpikeGPTGraph, "_vector", wrong)
    with pytest.raises(DisagreementError, match=r"found blocks\.1\.att\.xk: difference") as caught:
        written(lm_plan, setting_of(lm_plan, "8g64"), tmp_path / "bundle")
    assert caught.value.exit_code == 1
    assert "the bundle was not written" in caught.value.line()
    assert listing(tmp_path) == []


def test_a_failed_export_leaves_the_bundle_before_it(
    lm_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = written(lm_plan, setting_of(lm_plan, "8g64"), tmp_path / "bundle")
    digest = before.digest

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "check_parity", stop)
    with pytest.raises(KeyboardInterrupt):
        written(lm_plan, setting_of(lm_plan, "4g64"), tmp_path / "bundle")
    assert listing(tmp_path) == ["bundle"]
    assert Bundle(tmp_path / "bundle", {}).digest == digest
    monkeypatch.undo()
    after, _ = written(lm_plan, setting_of(lm_plan, "4g64"), tmp_path / "bundle")
    assert after.digest != digest
    assert listing(tmp_path) == ["bundle"]


def no_work(*_: Any, **__: Any) -> Any:
    pytest.fail("must be refused before any work")


def test_simulated_levels_are_refused_before_any_work(
    lm_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "float_reference", no_work)
    names = [module.name for module in lm_plan.hierarchy.modules]
    setting = Setting.uniform(names, Level(6, simulated=True))
    with pytest.raises(UsageError, match="emb: simulated levels cannot be exported; found q6"):
        written(lm_plan, setting, tmp_path / "bundle")
    assert listing(tmp_path) == []


def test_something_in_the_way_is_refused_before_any_work(
    lm_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "float_reference", no_work)
    (tmp_path / "bundle").mkdir()
    with pytest.raises(OutputError, match="refusing to replace something that is not a bundle"):
        written(lm_plan, setting_of(lm_plan, "8g64"), tmp_path / "bundle")


def test_the_head_of_a_language_model_is_scored_as_the_search_scores_it(
    lm_plan: Plan, tmp_path: Path
) -> None:
    """An independent look at the whole path: the bundle's perplexity by torch on the bundle's own items."""
    setting = setting_of(lm_plan, "4g64f")
    bundle, _ = written(lm_plan, setting, tmp_path / "bundle")
    items = bundle.items("search")
    assert items.targets is not None
    quantised = SpikeGPT(lm_plan.model.config, lm_plan.model.tensors)
    quantised.weights = QuantisedWeights(lm_plan.store(), setting)
    rows = items.tokens.reshape(8, 24).astype(np.int64)
    goal = torch.from_numpy(items.targets.astype(np.int64))
    loss = F.cross_entropy(quantised(torch.from_numpy(rows)).flatten(0, 1), goal)
    assert bundle.manifest["expected"]["search"]["value"] == pytest.approx(math.exp(float(loss)), rel=1e-4)


def test_a_bundle_for_another_board_names_that_board(cache: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "sst2", profile="jetson-orin")
    assert bundle.manifest["profile"]["id"] == "jetson-orin-nano"
    assert bundle.manifest["runtime"]["opset"] <= 21
    assert json.loads((bundle.path / "manifest.json").read_text("utf-8")) == bundle.manifest
