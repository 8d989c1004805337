"""From --cut-hidden to a bundle that is smaller: what is refused, what is written, and that the graph agrees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qslm_edge.bundle.reader import Bundle
from qslm_edge.errors import QslmError, UsageError
from qslm_edge.metrics import paired, quality
from qslm_edge.progress import Silent
from qslm_edge.quantize.accounting import weight_bytes
from qslm_edge.quantize.levels import Setting, parse_level
from qslm_edge.recipe import make_recipe
from qslm_edge.search.space import LevelMap
from qslm_edge.steps.export import export_bundle
from qslm_edge.steps.find import find_setting
from qslm_edge.steps.found import describe_search, journaled_scores
from qslm_edge.steps.plan import Plan
from qslm_edge.steps.setting import given_setting, setting_from_levels
from tests.helpers.bundles import MakePlan, make_plan
from tests.helpers.directory import make_text, write_sentences

KEY, VALUE = "blocks.0.ffn.key", "blocks.0.ffn.value"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuts")
    (folder / "train.txt").write_text(make_text(2000, seed=7), "utf-8")
    write_sentences(folder / "train.tsv", 400, seed=8)
    return folder


@pytest.fixture(scope="module")
def plan(cache: Path, folder: Path) -> MakePlan:
    def make(task: str = "wikitext2", **choices: Any) -> Plan:
        ending = "txt" if task == "wikitext2" else "tsv"
        values: dict[str, Any] = {"calibration_data": str(folder / f"train.{ending}")}
        return make_plan(folder, task, search_windows=12, report_windows=6, **(values | choices))

    return make


def test_sizes_are_made_from_the_share(plan: MakePlan) -> None:
    assert plan().options.cuts == ()
    assert plan(cut_hidden=0.5).options.cuts == (128,)
    assert plan(cut_hidden=0.9, levels=("4g32", "2g64")).options.cuts == (192, 128, 64)
    assert plan(cut_hidden=0.2, levels=("4g32",)).options.cuts == (224,)
    assert plan(cut_hidden=0.5, quantiser="rtn").choice.items is not None
    assert plan(cut_hidden=0.5, quantiser="hqq", method="pareto").choice.to_dict()["calibration"] is not None


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"cut_hidden": 0.0}, r"recipe: cut_hidden: .*greater than 0"),
    ({"cut_hidden": 1.0}, r"recipe: cut_hidden: .*less than 1"),
    ({"cut_hidden": float("nan")}, r"recipe: cut_hidden"),
    ({"cut_hidden": 0.1}, r"--cut-hidden: the share is too small .*found 0\.1 of 256 units; allowed: 0\.5"),
    (
        {"cut_hidden": 0.5, "method": "tiered"},
        r"--cut-hidden, --method: .*found tiered; allowed: budgeted, pareto",
    ),
    ({"cut_hidden": 0.5, "method": "qslm"}, r"--cut-hidden, --method: .*found qslm"),
    ({"cut_hidden": 0.5, "calibration_data": None}, r"no calibration data; found --cut-hidden"),
    ({"cut_hidden": 0.5, "calibration_data": None, "quantiser": "rtn"}, r"no calibration data; found --cut"),
    ({"levels": ("4g64@128",)}, r"--levels: a level of a cut matrix; found 4g64@128.*--cut-hidden SHARE"),
]


@pytest.mark.parametrize(("choices", "message"), REFUSED)
def test_what_cannot_be_cut_is_refused_before_work(
    plan: MakePlan, choices: dict[str, Any], message: str
) -> None:
    with pytest.raises(QslmError, match=message) as caught:
        plan(**choices)
    assert "\n" not in str(caught.value)


def test_a_recipe_keeps_the_share() -> None:
    recipe = make_recipe(profile="host", cut_hidden=0.25)
    assert recipe.model_dump(exclude_none=True)["cut_hidden"] == 0.25


# A given setting.


def levels_of(plan: Plan, text: str, **changes: str) -> dict[str, str]:
    return dict.fromkeys((m.name for m in plan.hierarchy.modules), text) | {
        name.replace("_", "."): level for name, level in changes.items()
    }


def test_a_level_with_a_cut_is_taken_by_every_srffn(plan: MakePlan) -> None:
    made = plan()
    setting = given_setting("4g64@128", made)
    cut = {name for name, level in setting.levels if level.units == 128}
    assert cut == {f"blocks.{i}.ffn.{side}" for i in range(2) for side in ("key", "value")}
    assert weight_bytes(made.hierarchy, setting) < weight_bytes(made.hierarchy, given_setting("4g64", made))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({KEY: "4g64@128"}, r"must keep the same hidden units; found 4g64@128, 4g64"),
        ({KEY: "4g64@128", VALUE: "4g64@64"}, r"ffn\.key, blocks\.0\.ffn\.value: .*found 4g64@128, 4g64@64"),
        ({"head": "4g64@128"}, r"head: only key and value of an SRFFN have hidden units to cut"),
        ({KEY: "4g64@512", VALUE: "4g64@512"}, r"more hidden units than the model has; .*256 or fewer"),
        (
            {KEY: "4g64@96", VALUE: "4g64@96"},
            r"matrix of 96 columns cannot take the level; found 4g64@96; allowed: 4g32@96",
        ),
        ({KEY: "4g64@0", VALUE: "4g64@0"}, r"not a precision level"),
    ],
)
def test_bad_cuts_name_the_module(plan: MakePlan, changes: dict[str, str], message: str) -> None:
    made = plan()
    with pytest.raises(UsageError, match=message):
        setting_from_levels(levels_of(made, "4g64", **changes), made, "mine.json")


def test_a_cut_without_calibration_data_is_refused(plan: MakePlan) -> None:
    made = plan(calibration_data=None)
    with pytest.raises(UsageError, match=r"--setting: hidden units cannot be cut without calibration data"):
        given_setting("4g64@128", made)


# The bundle.


def written(plan: Plan, setting: Setting, target: Path) -> tuple[Bundle, dict[str, Any]]:
    bundle, parity, facts = export_bundle(plan, setting, plan.items("search"), None, target, Silent())
    assert parity.ok, parity.fault
    return bundle, facts


@pytest.mark.parametrize(("task", "text"), [("wikitext2", "4g64@128"), ("sst2", "2g64m@64")])
def test_the_bundle_is_smaller_and_its_graph_computes_the_cut_model(
    plan: MakePlan, tmp_path: Path, task: str, text: str
) -> None:
    made = plan(task)
    level = parse_level(text)
    setting = LevelMap(made.model.config).setting(made.hierarchy, level)
    bundle, facts = written(made, setting, tmp_path / "cut")
    whole, _ = written(
        made, LevelMap(made.model.config).setting(made.hierarchy, level.whole), tmp_path / "whole"
    )
    assert bundle.manifest["setting"][VALUE] == text
    share = 1 - (level.units or 0) / 256
    assert bundle.manifest["cuts"] == {"rule": "obs/1", "hidden_units": [level.units] * 2, "share": share}
    assert whole.manifest["cuts"] is None
    assert bundle.manifest["weights"]["float32_bytes"] == made.hierarchy.float32_bytes
    assert (
        facts["weight_bytes"] == weight_bytes(made.hierarchy, setting) == bundle.manifest["weights"]["bytes"]
    )
    assert facts["model_bin_bytes"] < whole.file_bytes["model.bin"]
    graph = onnx.load(str(tmp_path / "cut" / "model.onnx"), load_external_data=False).graph
    sizes = {
        node.name: {a.name: a.i for a in node.attribute}
        for node in graph.node
        if node.op_type == "MatMulNBits"
    }
    assert (sizes[KEY]["N"], sizes[VALUE]["K"]) == (level.units, level.units)


def test_a_search_with_cuts_is_resumed_and_described(plan: MakePlan, tmp_path: Path) -> None:
    made = plan(cut_hidden=0.75, levels=("8g64", "4g64"), max_degradation=1e5)
    items = made.items("search")
    (tmp_path / "run").mkdir()
    result, evaluator, tuned = find_setting(made, items, tmp_path / "run", Silent())
    chosen = result.chosen.setting
    assert chosen[VALUE].units == chosen[KEY].units == 64
    found = describe_search(made, items, result, evaluator, tuned)
    assert found["cuts"]["hidden_units"] == [64, 64]
    assert found["recipe"]["cut_hidden"] == 0.75
    again, _, _ = find_setting(made, items, tmp_path / "run", Silent())
    assert again.chosen.setting == chosen
    assert again.cost.evaluations == 0
    scores = journaled_scores(made, items, chosen, tmp_path / "run")
    assert scores is not None
    # quality is that against the whole float model
    change = paired(result.reference.scores, scores, quality(result.reference.scores).value)
    assert change == result.chosen.comparison
    np.testing.assert_array_equal(
        evaluator.evaluate(evaluator.float_setting()).loss, result.reference.scores.loss
    )
    table = json.loads((tmp_path / "run" / "sensitivity.json").read_text("utf-8"))["modules"]
    assert {cell["level"] for cell in table if cell["module"] == VALUE} == {
        f"{level}{cut}" for level in ("8g64", "4g64") for cut in ("", "@192", "@128", "@64")
    }
