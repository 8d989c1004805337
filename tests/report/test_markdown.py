"""The Markdown view, against a golden file and against hostile names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from qslm_edge.report.markdown import render_markdown

Report = dict[str, Any]
HOSTILE = "<script>alert(1)</script> | [x](http://evil.example) `code` *bold* _it_\n# heading"


def tables(markdown: str) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for line in markdown.splitlines():
        if line.startswith("|"):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [lines for lines in found if lines]


@pytest.mark.parametrize("name", ["small", "sst2"])
def test_golden_file(load: Any, fixtures: Path, name: str) -> None:
    """After a wanted change write the new text with `qslm-edge report NAME.json -f markdown`; read it."""
    assert render_markdown(load(name)) == (fixtures / f"{name}.md").read_text("utf-8")


def test_every_row_has_as_many_cells_as_its_head(any_report: Report) -> None:
    any_report["model"]["name"] = HOSTILE
    for lines in tables(render_markdown(any_report)):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_hostile_names_stay_text(small: Report) -> None:
    small["model"]["name"] = HOSTILE
    small["profile"]["name"] = HOSTILE
    small["verification"]["scoring"]["splits"]["report"]["source"] = HOSTILE
    markdown = render_markdown(small)
    assert "<script" not in markdown
    assert "\n# heading" not in markdown
    assert not re.search(r"(?<!\\)\[x", markdown)
    assert not re.search(r"(?<!\\)`code", markdown)


def test_commands_are_quoted_and_fenced(small: Report) -> None:
    small["bundle"]["path"] = "runs/it's ``` here; rm -rf /"
    markdown = render_markdown(small)
    assert "````sh\nscp -r 'runs/it'\"'\"'s ``` here; rm -rf /' user@board:" in markdown


def test_absent_parts_are_said(small: Report) -> None:
    small["search"] = small["export"] = None
    small["verification"]["decode"] = None
    small["verification"]["scoring"]["splits"] = {}
    markdown = render_markdown(small)
    assert markdown.count("No search was run") == 2
    assert "Nothing was exported" in markdown
    assert "No items were scored" in markdown
    assert markdown.count("nothing is decoded") == 3


def test_values_that_are_null_are_unavailable_and_not_zero(small: Report) -> None:
    decode = small["verification"]["decode"]
    for key in ("p90_s", "p99_s", "ci95_low_s", "drift", "drifted"):
        decode["latency"][key] = None
        decode["latency"]["reasons"][key] = f"no {key}"
    decode["memory"]["bare"]["pss_bytes"] = None
    decode["memory"]["bare"]["reason"] = "smaps_rollup: permission denied"
    small["verification"]["scoring"]["splits"]["report"]["word_perplexity"] = None
    markdown = render_markdown(small)
    assert "| p99 | unavailable: no p99\\_s |" in markdown or "| p99 | unavailable: no p99_s |" in markdown
    assert "| drift, second half against first | unavailable: no drift |" in markdown
    assert "Unavailable: smaps_rollup: permission denied." in markdown
    assert "| word perplexity, bundle | unavailable: the tokenizer" in markdown


def test_energy_with_interval_and_what_was_passed_over(measured_energy: Report) -> None:
    markdown = render_markdown(measured_energy)
    assert "| gross a token | 11.000 mJ |" in markdown
    assert "| 95 % interval of 3 runs | 10.800 mJ to 11.200 mJ |" in markdown
    assert "| net of idle a token | unavailable: below resolution" in markdown
    assert "| passed over | ina3221: not supported by this version |" in markdown


def test_an_older_parity_record_is_still_shown(small: Report) -> None:
    for key in ("pieces", "worst_piece", "fault", "perplexity_torch", "perplexity_graph"):
        del small["export"]["parity"][key]
    assert "| matrix products |" in render_markdown(small)


def test_flags_stand_in_the_title_and_below_it(small: Report) -> None:
    small["verification"]["conditions"]["flags"] = ["counter.oc2: moved from 1 to 2", "other load: 1.0 cores"]
    lines = render_markdown(small).splitlines()
    assert lines[0].endswith(": pass (rehearsal), 2 flagged conditions")
    assert lines.index("Flagged: counter.oc2: moved from 1 to 2") < lines.index("## Result")


def test_memory_of_a_gpu_has_its_context_apart(small: Report) -> None:
    gpu = small["verification"]["decode"]["memory"]["gpu"]
    gpu.update(status="measured", reason=None, total_bytes=680_000_000, context_bytes=380_000_000)
    gpu.update(model_bytes=300_000_000, method="memory of this process")
    markdown = render_markdown(small)
    assert "| GPU memory | 680.0 MB | memory of this process |" in markdown
    assert "| GPU memory, context of the driver | 380.0 MB |" in markdown
    assert "| GPU memory, above the context | 300.0 MB |" in markdown
