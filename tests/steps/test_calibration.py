"""Which quantiser a recipe gets, on what data, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qslm_edge import reference
from qslm_edge.array_cache import cache_directory
from qslm_edge.errors import DataError, UsageError
from qslm_edge.items import Items
from qslm_edge.quantize.calibrate import measure_statistics
from qslm_edge.quantize.levels import parse_level
from qslm_edge.recipe import make_recipe
from qslm_edge.steps import calibration
from qslm_edge.steps.calibration import load_statistics, minimum_tokens
from qslm_edge.steps.plan import Plan
from qslm_edge.steps.prepare import prepare
from tests.helpers.bundles import MakePlan
from tests.helpers.directory import make_text, write_model, write_sentences


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with data of its own, for three purposes."""
    folder = tmp_path_factory.mktemp("calibration")
    write_model(folder / "model")
    for seed, name in enumerate(("search", "report", "train")):
        (folder / f"{name}.txt").write_text(make_text(2000, seed=seed), "utf-8")
        write_sentences(folder / f"{name}.tsv", 200, seed=seed)
    return folder


def train(folder: Path, ending: str = "txt") -> str:
    return str(folder / f"train.{ending}")


def test_without_data_rounding_to_nearest_is_taken_and_said(plan: MakePlan) -> None:
    choice = plan().choice
    assert choice.to_dict() == {
        "name": "rtn",
        "version": 1,
        "options": {},
        "why": "no calibration data; with --calibration-data the default is gptq",
        "calibration": None,
    }
    assert plan().statistics == {}


@pytest.mark.parametrize(("task", "ending"), [("wikitext2", "txt"), ("sst2", "tsv")])
def test_with_data_it_is_gptq_on_as_many_tokens_as_asked_for(
    task: str, ending: str, plan: MakePlan, folder: Path
) -> None:
    made = plan(task, calibration_data=train(folder, ending), calibration_tokens=1100)
    told = made.choice.to_dict()
    assert (told["name"], told["options"]["damping"], told["why"]) == (
        "gptq",
        0.1,
        "default with calibration data",
    )
    assert 1100 <= told["calibration"]["n_tokens"] < 1140
    assert f"train.{ending}" in told["calibration"]["source"]
    assert made.choice.items is not None
    assert made.choice.items.split == "train"
    linear = {module.name for module in made.hierarchy.modules if module.kind == "linear"}
    assert made.statistics.keys() == linear
    assert ("head" in linear) == (task == "wikitext2")


def test_the_embedded_model_brings_its_own_training_data() -> None:
    made = prepare(make_recipe(profile="x86-laptop", calibration_tokens=8192), device="cpu")
    told = made.choice.to_dict()
    assert (told["name"], told["calibration"]["n_tokens"]) == ("gptq", 8192)
    assert told["calibration"]["source"].startswith("WikiText-2 (wiki.train.tokens)")
    search, report = made.items("search"), made.items("report")
    assert told["calibration"]["digest"] not in (search.digest, report.digest)


def test_embedded_data_that_was_deleted_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = reference.data_path

    def without(name: str) -> Path:
        if "train" in name:
            raise DataError("this data set is not part of the installation")
        return real(name)

    monkeypatch.setattr(reference, "data_path", without)
    choice = prepare(make_recipe(profile="x86-laptop", task="sst2"), device="cpu").choice
    assert choice.quantiser.name == "rtn"
    assert choice.why == "no calibration data: this data set is not part of the installation"
    with pytest.raises(DataError, match="not part of the installation"):
        prepare(make_recipe(profile="x86-laptop", task="sst2", quantiser="gptq"), device="cpu")


def test_fingerprints_tell_quantisers_and_data_apart(plan: MakePlan, folder: Path) -> None:
    plans = [
        plan(),
        plan(quantiser="hqq"),
        plan(calibration_data=train(folder)),
        plan(calibration_data=train(folder), calibration_tokens=1100),
    ]
    items = plans[0].items("search")
    prints = [made.fingerprint_parts(items) for made in plans]
    assert len({repr(parts) for parts in prints}) == 4
    assert [parts["quantiser"] for parts in prints] == ["rtn/1", "hqq/1", "gptq/1", "gptq/1"]
    asked = plan(quantiser="rtn")
    assert asked.fingerprint_parts(items) == prints[0]
    assert asked.choice.why == "asked for"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"quantiser": "gptq"}, r"--calibration-data: no calibration data; found --quantiser gptq.*FILE"),
    ({"calibration_tokens": 5000}, r"--calibration-data: no calibration data; found --calibration-tokens"),
    ({"quantiser": "rtn", "calibration_data": "train"}, r"--calibration-data: rtn uses no calibration data"),
    ({"quantiser": "hqq", "calibration_tokens": 5000}, r"--calibration-tokens: hqq uses no calibration data"),
    ({"calibration_data": "search"}, r"--calibration-data, --search-data: the same data would calibrate"),
    ({"calibration_data": "report"}, r"--calibration-data, --report-data: the same data would calibrate"),
    ({"method": "qslm", "quantiser": "gptq"}, r"--quantiser: the paper's simulation has its own quantiser"),
]


@pytest.mark.parametrize(("choices", "message"), REFUSED)
def test_contradictions_are_refused(
    choices: dict[str, Any], message: str, plan: MakePlan, folder: Path
) -> None:
    if "calibration_data" in choices:
        choices = choices | {"calibration_data": str(folder / f"{choices['calibration_data']}.txt")}
    with pytest.raises(UsageError, match=message):
        plan(**choices)


def test_too_little_data_says_how_much_is_there_and_needed(
    plan: MakePlan, folder: Path, tmp_path: Path
) -> None:
    assert minimum_tokens(plan().hierarchy) == 4 * 256
    with pytest.raises(
        DataError, match=r"too little calibration data; found 512 tokens; allowed: 1024 or more"
    ):
        plan(calibration_data=train(folder), calibration_tokens=500)
    short = tmp_path / "short.txt"
    short.write_text(make_text(30, seed=9), "utf-8")
    with pytest.raises(DataError, match=r"short\.txt.*too little calibration data"):
        plan(calibration_data=str(short))
    with pytest.raises(DataError, match="no such file"):
        plan(calibration_data=str(tmp_path / "absent.txt"))


def gram_by_hand(made: Plan, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Each item alone, so that no padding can enter."""
    items = made.choice.items
    assert items is not None
    total = np.zeros(())
    for first, last in zip(items.offsets[:-1], items.offsets[1:], strict=True):
        seen: dict[str, torch.Tensor] = {}
        tokens = torch.from_numpy(items.tokens[first:last].astype(np.int64)).unsqueeze(1)
        features = made.model.features(tokens, observe=seen.__setitem__)
        X = (features if name == "head" else seen[f"{name}.input"])[:, 0].double().numpy()
        total = total + X.T @ X
    gram: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = total / items.n_tokens
    return gram


@pytest.mark.parametrize(("task", "name"), [("wikitext2", "head"), ("sst2", "blocks.1.ffn.value")])
def test_statistics_are_of_real_tokens_only(task: str, name: str, plan: MakePlan, folder: Path) -> None:
    ending = "txt" if task == "wikitext2" else "tsv"
    made = plan(task, calibration_data=train(folder, ending), calibration_tokens=1030)
    moments = made.statistics[name]
    assert moments.n_rows == made.choice.to_dict()["calibration"]["n_tokens"]
    np.testing.assert_allclose(moments.gram, gram_by_hand(made, name), rtol=2e-3, atol=2e-4)


def test_statistics_are_kept_and_never_trusted(
    plan: MakePlan, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QSLM_EDGE_CACHE", str(tmp_path))
    made = plan(calibration_data=train(folder), calibration_tokens=1024)
    first = made.statistics
    (kept,) = cache_directory().glob("calibration-*.npz")
    measured = []

    def counted(*arguments: Any) -> Any:
        measured.append(1)
        return original(*arguments)

    original = measure_statistics
    monkeypatch.setattr(calibration, "measure_statistics", counted)

    def load(items: Items) -> Any:
        return load_statistics(made.model, made.hierarchy, items, made.digest)

    assert made.choice.items is not None
    again = load(made.choice.items)
    assert not measured
    for name, moments in first.items():
        np.testing.assert_array_equal(moments.gram, again[name].gram)
    kept.write_bytes(kept.read_bytes()[:2000])
    load(made.choice.items)
    assert len(measured) == 1
    load(made.choice.items.subset(range(5)))
    assert len(measured) == 2


def test_inputs_that_overflow_name_the_module(plan: MakePlan, folder: Path) -> None:
    made = plan(calibration_data=train(folder))
    made.model.tensors["blocks.1.ln2.weight"] = torch.full((64,), 1e30)
    with pytest.raises(DataError, match=r"blocks\.1\.ffn\.\w+: inputs that are not finite"):
        _ = made.statistics


def test_the_store_uses_quantiser_and_statistics(plan: MakePlan, folder: Path) -> None:
    made = plan(calibration_data=train(folder))
    level, name = parse_level("2g64"), "blocks.0.ffn.value"
    stored = made.store().packed(name, level)
    nearest = plan().store().packed(name, level)
    assert stored.data.tobytes() != nearest.data.tobytes()
    H = made.statistics[name].gram.astype(np.float64)
    W = made.model.tensors[f"{name}.weight"].numpy().astype(np.float64)
    losses = [
        float(np.einsum("nk,kl,nl->", E, H, E)) for E in (W - stored.dequantise(), W - nearest.dequantise())
    ]
    assert losses[0] < 0.9 * losses[1]
    assert made.store() is made.store()
