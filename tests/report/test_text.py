"""The closing table at any width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qslm_edge.errors import OutputError
from qslm_edge.report.markdown import render_markdown
from qslm_edge.report.text import render_text, write_text

Report = dict[str, Any]


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 120, 200])
def test_lines_keep_to_the_width(any_report: Report, columns: int) -> None:
    lines = render_text(any_report, columns).splitlines()
    assert max(len(line) for line in lines) <= columns


def test_a_terminal_of_80_columns_gets_a_table_with_marks(any_report: Report) -> None:
    text = render_text(any_report, 80)
    (head,) = [line for line in text.splitlines() if line.startswith("figure")]
    assert head.split() == ["figure", "before", "after", "change", "limit", "verdict"]
    assert "latency *" in text
    assert "\n* Rehearsal: this host is " in text


def test_wide_and_unlimited_say_the_status(any_report: Report) -> None:
    for columns in (120, None):
        text = render_text(any_report, columns)
        assert "measured, this host" in text
        assert " *" not in text
        assert "\nRehearsal: this host is " in text


def test_narrow_has_a_line_a_figure(small: Report) -> None:
    assert "→" in render_text(small, 50)
    assert "figure " not in render_text(small, 50)


def test_a_long_reason_stands_below_the_table(small: Report) -> None:
    reason = "no source of power here " * 20
    for row in small["summary"]:
        if row["figure"] == "energy a token":
            row["note"] = reason
    text = render_text(small, None)
    table, _, below = text.partition("\n\nRehearsal")
    assert max(len(line) for line in table.splitlines()) < 120
    assert f"energy a token: unavailable: {reason.strip()}" in below


def test_the_last_line_is_the_bundle_and_is_never_broken(small: Report) -> None:
    small["bundle"]["path"] = "runs/" + "a long name " * 12 + "/bundle"
    for columns in (40, 80, None):
        assert render_text(small, columns).splitlines()[-1] == f"Bundle: {small['bundle']['path']}"


def test_a_failed_check_says_what_failed(small: Report) -> None:
    check = next(c for c in small["verification"]["checks"] if c["name"] == "peak RSS")
    check.update(verdict="fail", detail="108 % of the limit")
    assert "peak RSS: fail: 108 % of the limit" in render_text(small, 80)


def test_flags_are_shown(small: Report) -> None:
    small["verification"]["conditions"]["flags"] = ["other load: 0.98 cores on average"]
    text = render_text(small)
    assert "Flagged: other load: 0.98 cores on average" in text
    assert "\nVerdict: pass (rehearsal), 1 flagged condition\n" in text


@given(name=st.text(max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_name_cannot_add_lines_or_colours(small: Report, name: str) -> None:
    plain = len(render_text({**small, "model": {**small["model"], "name": "x"}}).splitlines())
    text = render_text({**small, "model": {**small["model"], "name": name}})
    assert len(text.splitlines()) == plain
    assert text.replace("\n", "").isprintable()


def test_write_text_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    write_text(tmp_path / "report.md", "one\n")
    write_text(tmp_path / "report.md", "two\n")
    assert (tmp_path / "report.md").read_text("utf-8") == "two\n"
    with pytest.raises(OutputError):
        write_text(tmp_path / "no" / "report.md", "three\n")
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


def test_cuts_are_said_beside_the_quantiser(small: Report) -> None:
    assert "Cut: " not in render_text(small, 200)
    small["cuts"] = {"rule": "obs/1", "hidden_units": [768, 1024], "share": 0.125}
    small["model"]["ffn_dim"] = 1024
    line = "Cut: 12.5 % of the hidden units; of 1024 a layer keeps 768, 1024"
    assert line in render_text(small, 200)
    assert line in render_markdown(small)
