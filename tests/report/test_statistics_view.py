"""The section and the line on what quantisation changed."""

from __future__ import annotations

from typing import Any

import pytest

from qslm_edge.report.document import Table
from qslm_edge.report.markdown import render_markdown
from qslm_edge.report.statistics_view import statistics_line, statistics_section
from qslm_edge.report.text import render_text

Report = dict[str, Any]


def rows(report: Report) -> list[tuple[str, ...]]:
    return [
        row for block in statistics_section(report).blocks if isinstance(block, Table) for row in block.rows
    ]


def test_both_conventions_stand_side_by_side(any_report: Report) -> None:
    found = {row[0]: row[1:] for row in rows(any_report)}
    assert found["Effective_ACs, as built"] == ("0", "0")  # counted, and there are none
    assert "0" not in found["Effective_ACs, spike-driven"]
    assert found["Dense"][0] == found["Dense"][1]
    assert found["connection sparsity"][0] == "0 %"


def test_layers_have_two_rows(any_report: Report) -> None:
    parts = [row for row in rows(any_report) if row[1] in ("att", "ffn")]
    assert [row[:2] for row in parts] == [("0", "att"), ("0", "ffn")]
    assert parts[0][-1] == ""
    assert parts[1][-1].endswith(" %")


def test_an_absent_p99_says_why(small: Report) -> None:
    small["search"]["statistics"]["divergence"].update(
        kl_p99_nats=None, kl_p99_reason="64 predictions, 100 needed"
    )
    assert "unavailable: 64 predictions, 100 needed" in render_markdown(small)
    assert "p99" not in statistics_line(small["search"]["statistics"])


@pytest.mark.parametrize("way", ["older", "given"])
def test_absent_statistics_are_said(small: Report, way: str) -> None:
    if way == "given":
        small["search"] = None
    else:
        del small["search"]["statistics"]
    assert not rows(small)
    assert "Statistics against the float model\n\nNot computed:" in render_markdown(small)


def test_the_terminal_has_one_line_of_it(any_report: Report) -> None:
    (line,) = [line for line in render_text(any_report).splitlines() if line.startswith("Against float")]
    assert line == statistics_line(any_report["search"]["statistics"])
    for word in ("KL ", "spikes flipped ", "firing rate ", "effective MACs a token "):
        assert word in line
