"""What the scoring process says: golden vectors first, then raw scores that give each statistic again."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qslm_edge.bundle.reader import Bundle
from qslm_edge.bundle.writer import save_arrays, save_scores
from qslm_edge.items import Items
from qslm_edge.metrics import Scores, paired, quality
from qslm_edge.runner import checks, split
from qslm_edge.runner.checks import check_golden, score_bundle
from qslm_edge.runner.scoring import Scored
from qslm_edge.runner.sessions.base import DEFAULT
from qslm_edge.runner.sessions.portable import PortableSession
from tests.helpers.bundle_fixtures import CopyBundle
from tests.helpers.bundles import make_bundle

Result = dict[str, Any]


def score(bundle: Bundle, *splits: Any, told: list[tuple[str, float]] | None = None) -> Result:
    notes = [] if told is None else told
    return score_bundle(bundle, options=DEFAULT, splits=list(splits), note=lambda t, s: notes.append((t, s)))


@pytest.fixture(scope="module")
def lm_result(lm_bundle: Bundle) -> Result:
    return score(lm_bundle, "search", "report")


@pytest.fixture(scope="module")
def classifier_result(classifier_bundle: Bundle) -> Result:
    return score(classifier_bundle, "search", "report")


@pytest.fixture
def changed(copy_bundle: CopyBundle) -> Any:
    """A copy of a bundle with a manifest that may be changed too; the scoring process checks no digests."""

    def make(bundle: Bundle) -> Bundle:
        return Bundle(copy_bundle(bundle), copy.deepcopy(bundle.manifest))

    return make


# ---- golden vectors


def test_golden_vectors_of_a_language_model(lm_bundle: Bundle) -> None:
    session, golden = PortableSession(lm_bundle), lm_bundle.golden()
    result = check_golden(session, lm_bundle)
    tokens = golden["tokens"].astype(np.int64)
    logits, _ = session.logits(tokens, session.initial_state(tokens.shape[1]), len(tokens))
    p = torch.from_numpy(golden["expected"]).double().log_softmax(-1)
    q = torch.from_numpy(logits).double().log_softmax(-1)
    divergence = float((p.exp() * (p - q)).sum(-1).mean())
    assert result["value"] == pytest.approx(divergence, abs=1e-12)
    assert result["ok"] is True
    assert result["tolerance"] == lm_bundle.manifest["golden"]["tolerance"] == 0.15
    assert result["n_tokens"] == tokens.size
    assert 0.7 <= result["top1_agreement"] <= 1
    assert result["measure"] == "mean KL divergence, nats"


def test_golden_vectors_of_a_classifier(classifier_bundle: Bundle) -> None:
    result = check_golden(PortableSession(classifier_bundle), classifier_bundle)
    assert result["ok"] is True
    assert 0 <= result["value"] < 0.1
    assert result["measure"] == "largest difference of a class probability"


def other_outputs(bundle: Bundle, change: Any) -> None:
    golden = bundle.golden()
    save_arrays(bundle.path / "golden.npz", {**golden, "expected": change(golden["expected"])})


@pytest.mark.parametrize("kind", ["lm", "classifier"])
def test_other_golden_outputs_are_found(
    kind: str, lm_bundle: Bundle, classifier_bundle: Bundle, changed: Any
) -> None:
    bundle = changed(lm_bundle if kind == "lm" else classifier_bundle)
    other_outputs(
        bundle, lambda x: np.roll(x, 1, -1) + np.float32(3) * np.arange(x.shape[-1], dtype=np.float32)
    )
    assert check_golden(PortableSession(bundle), bundle)["ok"] is False


def test_the_tolerance_of_the_manifest_decides(lm_bundle: Bundle, changed: Any) -> None:
    bundle = changed(lm_bundle)
    other_outputs(bundle, lambda x: x * np.float32(0.5))
    value = check_golden(PortableSession(bundle), bundle)["value"]
    assert value > 1e-3
    for tolerance, ok in ((value, True), (0.99 * value, False)):
        bundle.manifest["golden"]["tolerance"] = tolerance
        assert check_golden(PortableSession(bundle), bundle)["ok"] is ok


def test_not_a_number_is_no_agreement(lm_bundle: Bundle, changed: Any) -> None:
    bundle = changed(lm_bundle)

    def poison(x: Any) -> Any:
        x[0, 0, 0] = np.nan
        return x

    other_outputs(bundle, poison)
    result = check_golden(PortableSession(bundle), bundle)
    assert result["ok"] is False
    assert math.isnan(result["value"])


def test_after_a_golden_mismatch_nothing_is_scored(
    lm_bundle: Bundle, changed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = changed(lm_bundle)
    bundle.manifest["golden"]["tolerance"] = -1.0
    monkeypatch.setattr(checks, "score_items", lambda *_a, **_k: pytest.fail("must not score"))
    result = score(bundle, "search", "report")
    assert result["golden"]["ok"] is False
    assert result["splits"] == {}
    assert result["memory"]["peak_rss_bytes"] > 0


# ---- splits


def rebuilt(bundle: Bundle, entry: Result) -> Scores:
    """Scores from the raw figures in the result, as a validator would."""
    raw = {key: np.asarray(values) for key, values in entry["scores"].items()}
    return Scores(bundle.kind, raw["index"], raw["loss"], raw["count"], raw["correct"])


@pytest.mark.parametrize("split", ["search", "report"])
@pytest.mark.parametrize("kind", ["lm", "classifier"])
def test_every_statistic_can_be_made_again_from_the_raw_scores(
    split: Any,
    kind: str,
    lm_bundle: Bundle,
    classifier_bundle: Bundle,
    lm_result: Result,
    classifier_result: Result,
) -> None:
    bundle, result = (lm_bundle, lm_result) if kind == "lm" else (classifier_bundle, classifier_result)
    entry = json.loads(json.dumps(result["splits"][split]))
    items, scores = bundle.items(split), rebuilt(bundle, entry)
    reference, _ = bundle.float_scores(split)
    assert (entry["n_items"], entry["n_tokens"]) == (items.n_items, items.n_tokens)
    assert (entry["digest"], entry["source"]) == (items.digest, items.source)
    assert scores.n_items == items.n_items
    assert entry["bundle"] == quality(scores).__dict__
    assert entry["float"] == quality(reference).__dict__
    assert entry["comparison"] == paired(reference, scores).__dict__
    assert ("against_search" in entry) == (split == "search")


def test_text_figures_follow_from_the_loss(lm_bundle: Bundle, lm_result: Result) -> None:
    entry, items = lm_result["splits"]["report"], lm_bundle.items("report")
    loss = sum(entry["scores"]["loss"])
    assert items.n_words
    assert items.n_bytes
    assert entry["word_perplexity"] == pytest.approx(math.exp(loss / items.n_words))
    assert entry["bits_per_byte"] == pytest.approx(loss / math.log(2) / items.n_bytes)
    assert (entry["n_words"], entry["n_bytes"]) == (items.n_words, items.n_bytes)


def test_text_that_was_not_counted_gives_no_figure(lm_result: Result, lm_bundle: Bundle) -> None:
    entry, items = lm_result["splits"]["report"], lm_bundle.items("report")
    bare = Items("tiny", "report", items.tokens, items.offsets, targets=items.targets)
    found = split._per_text(rebuilt(lm_bundle, entry), bare.n_words, bare.n_bytes)
    assert found == {"word_perplexity": None, "bits_per_byte": None, "n_words": None, "n_bytes": None}


def test_a_classifier_has_no_text_figures(classifier_result: Result) -> None:
    assert "word_perplexity" not in classifier_result["splits"]["report"]


def test_agreement_counts_equal_top_tokens(lm_bundle: Bundle, lm_result: Result, changed: Any) -> None:
    entry = lm_result["splits"]["report"]["top1_agreement"]
    items = lm_bundle.items("report")
    assert entry["n"] == items.n_tokens
    assert 0.3 < entry["value"] <= 1
    bundle = changed(lm_bundle)
    scores, top = bundle.float_scores("report")
    assert top is not None
    changed_top = top.copy()
    changed_top[::2] = (changed_top[::2] + 1) % 300  # half of the answers of the float model become others
    save_scores(bundle.path / bundle.manifest["items"]["report"]["float"], scores, changed_top)
    found = score(bundle, "report")["splits"]["report"]["top1_agreement"]["value"]
    assert found == pytest.approx(entry["value"] / 2, abs=0.1)


def test_a_model_agrees_with_itself(cache: Path, tmp_path: Path) -> None:
    """At 32 bits the bundle is the float model: every answer agrees, and nothing degrades."""
    bundle = make_bundle(tmp_path, level="32", levels=("32",), report_windows=6, search_windows=6)
    result = score(bundle, "search", "report")
    for entry in result["splits"].values():
        assert entry["top1_agreement"]["value"] > 0.98
        assert abs(entry["comparison"]["delta_nll"]) < 1e-4
    assert abs(result["splits"]["search"]["against_search"]["value"]) < 1e-4
    assert result["golden"]["tolerance"] == 0.02
    assert bundle.manifest["expected"]["arithmetic"] == "float"


def test_agreement_of_sentences(classifier_bundle: Bundle, classifier_result: Result) -> None:
    entry = classifier_result["splits"]["report"]
    reference, _ = classifier_bundle.float_scores("report")
    same = np.asarray(entry["scores"]["correct"]) == reference.correct
    assert entry["top1_agreement"] == {"value": same.mean(), "n": len(same), "of": "sentences"}


def test_agreement_of_three_classes_is_not_known(
    classifier_result: Result, classifier_bundle: Bundle
) -> None:
    scores = rebuilt(classifier_bundle, classifier_result["splits"]["report"])
    three = Items(
        "tiny", "report", np.arange(3, dtype=np.int32), np.arange(4), labels=np.array([0, 1, 2], np.int8)
    )
    found = checks._agreement(Scored(scores, np.zeros(3, np.int32)), scores, None, three)
    assert found == {"value": None, "reason": "float answers are only known for two classes"}


# ---- the search's own scores


def test_the_search_measured_the_same(lm_result: Result, classifier_result: Result) -> None:
    for result, unit in ((lm_result, "relative perplexity"), (classifier_result, "points")):
        found = result["splits"]["search"]["against_search"]
        assert found["ok"] is True
        assert abs(found["value"]) <= found["allowed"]
        assert found["unit"] == unit
        assert found["allowed"] == pytest.approx(found["tolerance"] + 3 * found["standard_error"])


@pytest.mark.parametrize(("kind", "sign"), [("lm", 1), ("lm", -1), ("classifier", 1), ("classifier", -1)])
def test_scores_of_the_search_that_part_are_found(
    kind: str, sign: int, lm_bundle: Bundle, classifier_bundle: Bundle, changed: Any
) -> None:
    bundle = changed(lm_bundle if kind == "lm" else classifier_bundle)
    expected = bundle.expected_scores()
    loss = expected.loss + sign * 0.01 * expected.count
    right = np.zeros_like(expected.correct) if sign < 0 else np.ones_like(expected.correct)
    save_scores(
        bundle.path / "eval" / "search-expected.npz",
        Scores(bundle.kind, expected.index, loss, expected.count, right),
    )
    found = score(bundle, "search")["splits"]["search"]["against_search"]
    assert found["ok"] is False
    if kind == "lm":
        assert found["value"] == pytest.approx(math.expm1(-sign * 0.01), abs=2e-3)


def test_one_item_has_no_error_and_the_tolerance_stands_alone(lm_bundle: Bundle) -> None:
    expected = lm_bundle.expected_scores()
    one = expected.select(np.array([0]))
    for shift, ok in ((0.0015, True), (0.0025, False)):
        moved = Scores(one.kind, one.index, one.loss + shift * one.count, one.count, one.correct)
        found = split._against_search(expected.select(moved.index), moved, 0.002)
        assert found["allowed"] == found["tolerance"] == 0.002
        assert math.isinf(found["standard_error"])
        assert found["ok"] is ok


def test_a_model_that_diverged_gives_a_number(lm_bundle: Bundle) -> None:
    expected = lm_bundle.expected_scores()
    wild = Scores(expected.kind, expected.index, expected.loss + 1e6, expected.count, expected.correct)
    found = split._against_search(expected, wild, 0.002)
    assert found["ok"] is False
    assert math.isfinite(found["value"])


# ---- the whole


def test_progress_names_the_splits_and_adds_up(classifier_bundle: Bundle) -> None:
    told: list[tuple[str, float]] = []
    score(classifier_bundle, "search", "report", told=told)
    for title in ("search items", "report items"):
        assert sum(share for name, share in told if name == title) == pytest.approx(1)
    assert {name for name, _ in told} == {"search items", "report items"}


def test_only_what_was_asked_for_is_scored(classifier_bundle: Bundle) -> None:
    assert score(classifier_bundle)["splits"] == {}
    assert score(classifier_bundle, "report")["splits"].keys() == {"report"}


def test_the_session_and_the_memory_are_told(lm_result: Result) -> None:
    assert lm_result["session"]["threads"] == 1
    assert lm_result["session"]["provider"] == DEFAULT.provider
    assert lm_result["memory"]["peak_rss_bytes"] >= lm_result["memory"]["rss_bytes"] > 10**7
