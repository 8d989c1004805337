"""The drawings: every setting once, constraints as lines, shapes beside colours, axes that always hold."""

from __future__ import annotations

import copy
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qslm_edge.report.charts import _Axis, sensitivity_chart, trials_chart

Report = dict[str, Any]
LEGEND = {"good": 2, "bad": 1}


def panels(drawing: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(f"<all>{drawing}</all>"))  # noqa: S314 - our own text


def marks(panel: ElementTree.Element, css: str) -> int:
    return len(panel.findall(f"*[@class='{css}']"))


def test_each_evaluated_setting_is_drawn_once(any_report: Report) -> None:
    trials = any_report["search"]["trials"]
    panel = panels(trials_chart(any_report))[0]
    feasible = sum(trial["feasible"] for trial in trials)
    assert marks(panel, "good") == feasible + LEGEND["good"]
    assert marks(panel, "bad") == len(trials) - feasible + LEGEND["bad"]
    assert len(panel.findall("*/title")) == len(trials)


def test_the_limit_and_the_budget_are_lines(small: Report) -> None:
    small["constraints"].update(max_degradation=1.0, weights_budget_bytes=5_000_000)
    drawing = trials_chart(small)
    bound = small["search"]["float"]["value"] + 1
    assert f"limit {bound:.2f}" in drawing
    assert "budget 5.00 MB" in drawing


def test_accuracy_has_its_limit_below(load: Any) -> None:
    report = load("sst2")
    assert f"limit {report['search']['float']['value'] - 5:.2f}" in trials_chart(report)


def test_settings_near_the_chosen_one_are_drawn_again(small: Report) -> None:
    chosen = small["search"]["chosen"]
    near = []
    for step in range(6):
        trial = copy.deepcopy(chosen)
        trial["weight_bytes"] += 1000 * step
        near.append(trial)
    small["search"]["trials"] += near
    first, second = panels(trials_chart(small))
    assert marks(first, "good") > marks(second, "good") >= 6 + LEGEND["good"]


def test_one_setting_alone_is_no_trouble(small: Report) -> None:
    small["search"]["trials"] = [small["search"]["chosen"]]
    assert len(panels(trials_chart(small))) == 1


def test_without_a_metric_there_is_no_point(small: Report) -> None:
    for trial in small["search"]["trials"]:
        trial["metric"] = None
    assert trials_chart(small) == ""


def test_every_block_and_level_has_a_cell(any_report: Report) -> None:
    cells = any_report["search"]["sensitivity"]
    (panel,) = panels(sensitivity_chart(any_report))
    assert len(panel.findall("g/rect")) == len(cells)
    assert sensitivity_chart({**any_report, "search": None}) == ""


def test_the_worst_cell_is_the_darkest(small: Report) -> None:
    worst = max(small["search"]["sensitivity"], key=lambda cell: cell["degradation"])
    (panel,) = panels(sensitivity_chart(small))
    shades = {
        str(group.findtext("title")): float(str(group.find("rect").get("fill-opacity")))  # type: ignore[union-attr]
        for group in panel.findall("g")
    }
    darkest = max(shades, key=lambda title: shades[title])
    assert darkest.startswith(f"{worst['block']} at {worst['level']}:")
    assert max(shades.values()) <= 1


def test_texts_are_escaped(small: Report) -> None:
    for cell in small["search"]["sensitivity"]:
        cell["block"] = "<script>"
    for trial in small["search"]["trials"]:
        trial["step"] = '"><script>'
    assert "<script" not in sensitivity_chart(small) + trials_chart(small)


@pytest.mark.parametrize("log", [False, True])
@given(values=st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=8))
def test_axis_holds_every_value_and_ticks_inside(log: bool, values: list[float]) -> None:
    axis = _Axis(values, 0.0, 100.0, log=log)
    assert all(-1e-6 <= axis.place(value) <= 100 + 1e-6 for value in values)
    ticks = axis.ticks()
    assert len(ticks) <= 9
    assert all(-1 <= axis.place(tick) <= 101 for tick in ticks)


def test_numbers_on_the_drawing_are_numbers(any_report: Report) -> None:
    drawing = trials_chart(any_report) + sensitivity_chart(any_report)
    assert not re.search(r'"[^"]*(nan|inf)[^"]*"', re.sub(r"<title>.*?</title>", "", drawing))
