"""Rows of the closing table."""

from __future__ import annotations

from typing import Any

import pytest

from qslm_edge.report.markdown import render_markdown
from qslm_edge.report.summary import MEASURED, MEASURED_HERE, ROW_KEYS, summary_rows, title_line, where_line

Report = dict[str, Any]
SPEED = ("latency", "decode tokens/s", "first token", "prefill tokens/s")


def rows_of(report: Report) -> dict[str, dict[str, str]]:
    return {row["figure"]: row for row in summary_rows(report)}


def test_rows_have_the_same_keys_and_are_text(any_report: Report) -> None:
    for row in summary_rows(any_report):
        assert tuple(row) == ROW_KEYS
        assert all(isinstance(cell, str) for cell in row.values())
        assert row["after"]
        assert row["status"]


def test_the_stored_rows_are_these_rows(any_report: Report) -> None:
    assert any_report["summary"] == summary_rows(any_report)


def test_a_rehearsal_says_whose_speed_it_is(any_report: Report) -> None:
    rows = rows_of(any_report)
    assert {rows[name]["status"] for name in SPEED} == {MEASURED_HERE}
    any_report["rehearsal"] = False
    rows = rows_of(any_report)
    assert {rows[name]["status"] for name in SPEED} == {MEASURED}


def test_where_line_tells_a_rehearsal_from_a_board(small: Report) -> None:
    assert where_line(small).startswith("Rehearsal: this host is ")
    assert where_line(small).endswith("belong to this host, not to the board.")
    small["verification"]["host"].update(is_board=True, why="the device tree says Jetson Orin Nano")
    small["verification"]["placement"]["note"] = "CUDAExecutionProvider is missing"
    assert "but CUDAExecutionProvider is missing" in where_line(small)
    assert where_line(small).endswith("belong to this provider, not to the planned one.")
    small["rehearsal"] = False
    assert where_line(small) == "Verified on the board: the device tree says Jetson Orin Nano."


def test_the_title_names_the_data_that_judged(small: Report) -> None:
    assert title_line(small).endswith(", WikiText-2")
    small["recipe"]["report_data"] = "mine.txt"
    assert title_line(small).endswith(", own data")


def test_accuracy_falls_where_perplexity_rises(load: Any) -> None:
    report = load("sst2")
    found = report["verification"]["scoring"]["splits"]["report"]["comparison"]
    found.update(degradation=1.25, lower=0.5, upper=2.0, standard_error=0.4)
    row = rows_of(report)["accuracy, report"]
    assert row["change"] == "-1.25 ± 0.40"
    assert row["constraint"] == "≥ -5 points"
    assert "bounds -2.000 to -0.500 points" in row["note"]


def test_no_change_is_no_signed_zero(load: Any) -> None:
    report = load("sst2")
    report["verification"]["scoring"]["splits"]["report"]["comparison"]["degradation"] = 0.0
    assert rows_of(report)["accuracy, report"]["change"].startswith("0 ±")


def test_a_single_item_has_no_error(small: Report) -> None:
    found = small["verification"]["scoring"]["splits"]["report"]
    found["n_items"] = 1
    found["comparison"].update(standard_error=None, lower=-25.0, upper=2.8e302)
    row = rows_of(small)["perplexity, report"]
    assert "±" not in row["change"]
    assert row["note"].endswith("too few for an error")


def test_absent_figures_carry_their_reason(small: Report) -> None:
    decode = small["verification"]["decode"]
    decode["latency"].update(p50_s=None, tokens_per_s_total=None, reasons={"p50_s": "no samples"})
    decode["prefill"] = {"tokens": 0, "tokens_per_s": None, "reason": "not asked for"}
    decode["memory"]["decode_peak_rss_bytes"] = None
    decode["memory"]["steady"]["reason"] = "/proc/self/status: permission denied"
    rows = rows_of(small)
    for name, why in {
        "latency": "no samples",
        "decode tokens/s": "no reason given",
        "prefill tokens/s": "not asked for",
        "energy a token": "not supported by this version",
        "peak RSS": "permission denied",
    }.items():
        assert rows[name]["after"] == rows[name]["status"] == "unavailable"
        assert why in rows[name]["note"]


def test_nothing_is_left_out_when_the_golden_vectors_fail(small: Report) -> None:
    verification = small["verification"]
    verification["decode"] = None
    verification["scoring"]["splits"] = {}
    verification["scoring"]["golden"]["ok"] = False
    verification["checks"] = [check for check in verification["checks"] if check["name"] == "golden vectors"]
    rows = rows_of(small)
    for name in ("perplexity, report", "peak RSS", "latency", "energy a token"):
        assert rows[name]["after"] == "unavailable"
        assert "golden vectors failed" in rows[name]["note"]


def test_measured_energy_states_scope_and_net(measured_energy: Report) -> None:
    row = rows_of(measured_energy)["energy a token"]
    assert row["after"] == "11.000 mJ"
    assert row["status"] == MEASURED_HERE
    assert "rapl (processor packages with dram)" in row["note"]
    assert "net of idle: unavailable: below resolution" in row["note"]


def test_a_rejected_window_is_no_figure(measured_energy: Report) -> None:
    energy = measured_energy["verification"]["decode"]["energy"]
    energy.update(status="rejected", reason="a gap of 1.2 s", gross_j_per_token=None)
    row = rows_of(measured_energy)["energy a token"]
    assert row["after"] == "unavailable"
    assert row["note"] == "rejected: a gap of 1.2 s"


@pytest.mark.parametrize(("limit", "text"), [(1.0, "≤ +1"), (0.0, "≤ 0")])
def test_limit_of_the_metric(small: Report, limit: float, text: str) -> None:
    for check in small["verification"]["checks"]:
        if check["name"] == "perplexity increase":
            check["limit"] = limit
    assert rows_of(small)["perplexity, report"]["constraint"] == text


def test_limits_of_speed_and_energy_stand_beside_their_figures(measured_energy: Report) -> None:
    verification = measured_energy["verification"]
    for name, limit, unit, verdict in (
        ("latency", 0.02, "s", "pass"),
        ("decode speed", 50.0, "tokens/s", "fail"),
        ("energy a token", 0.005, "J", "inconclusive"),
        ("conditions", 0.0, "flags", "pass"),
    ):
        verification["checks"].append(
            {"name": name, "verdict": verdict, "value": 0.0, "limit": limit, "unit": unit, "detail": "why"}
        )
    rows = rows_of(measured_energy)
    for figure, constraint, verdict in (
        ("latency, p95", "≤ 20 ms", "pass"),
        ("decode tokens/s", "≥ 50", "fail"),
        ("energy a token", "≤ 5 mJ", "inconclusive"),
        ("conditions", "none flagged", "pass"),
    ):
        assert (rows[figure]["constraint"], rows[figure]["verdict"]) == (constraint, verdict)
    assert rows["latency"]["constraint"] == ""


def test_a_report_of_an_earlier_version_is_still_shown(small: Report) -> None:
    """Without intervals, GPU, control group, versions and clocks."""
    decode, conditions = small["verification"]["decode"], small["verification"]["conditions"]
    for key in ("gpu", "available", "cgroup", "load_peak_rss_bytes"):
        del decode["memory"][key]
    for key in [
        key for key in decode["latency"] if key.startswith(("p9", "outlier", "mad")) and "ci95" in key
    ]:
        del decode["latency"][key]
    del conditions["clocks"], conditions["not_read"], small["verification"]["versions"]
    for key in ("max_latency_s", "min_decode_tokens_per_s", "max_energy_j_per_token"):
        del small["constraints"][key]
    assert "latency, p95" in rows_of(small)
    assert render_markdown(small)
