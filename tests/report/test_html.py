"""The HTML view: one file, well-formed, harmless, with both charts."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from qslm_edge.report.html import render_html

Report = dict[str, Any]
VOID = {"meta"}
HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)> \"' & <!-- \x1b[31m"


class Page(HTMLParser):
    """Tags, attributes and text; fails on a tag that is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def poison(value: Any) -> Any:
    """The same report with every text replaced by a hostile one, but for those that the views branch on."""
    if isinstance(value, dict):
        return {
            key: value[key]
            if key in {"metric", "kind", "verdict", "status", "block", "level", "schema"}
            else poison(below)
            for key, below in value.items()
        }
    if isinstance(value, list):
        return [poison(below) for below in value]
    return HOSTILE if isinstance(value, str) else value


def test_the_page_is_well_formed_and_has_both_charts(any_report: Report) -> None:
    page = Page(render_html(any_report))
    assert page.open == []
    assert [tag for tag, _ in page.tags].count("svg") >= 2
    assert "pass" in page.words


def test_nothing_is_loaded_from_anywhere(any_report: Report) -> None:
    text = render_html(any_report)
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "img", "iframe", "object", "base", "form"}
        assert not {"src", "href", "xlink:href", "action", "style"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"@import|url\(", text)


def test_every_text_of_a_report_is_harmless(any_report: Report) -> None:
    page = Page(render_html(poison(any_report)))
    assert page.open == []
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert "<script>alert(1)</script>" in page.words
    assert "\x1b" not in page.words


def test_a_name_that_is_a_tag_is_shown_as_it_is(small: Report) -> None:
    small["model"]["name"] = "<script>"
    text = render_html(small)
    assert "<script>" not in text
    assert "<h1>&lt;script&gt; on " in text


@pytest.mark.parametrize("rule", ["prefers-color-scheme: dark", "@media print", "max-width: 44rem"])
def test_dark_print_and_phone_are_styled(small: Report, rule: str) -> None:
    text = render_html(small)
    assert rule in text
    assert 'name="viewport"' in text


def test_a_run_without_search_has_no_charts(small: Report) -> None:
    small["search"] = None
    text = render_html(small)
    assert "<svg" not in text
    assert "<figure>" not in text


def test_an_unknown_verdict_adds_no_class(small: Report) -> None:
    small["verdict"] = 'x" onclick="alert(1)'
    page = Page(render_html(small))
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]


FLAG = "counter.oc2: moved from 1 to 2"


def test_a_flagged_condition_stands_out_below_the_verdict(small: Report) -> None:
    small["verification"]["conditions"]["flags"] = [FLAG]
    text = render_html(small)
    assert f'<p class="flagged">Flagged: {FLAG}</p>' in text
    assert '<span class="verdict pass">pass (rehearsal), 1 flagged condition</span>' in text
    assert text.index("Flagged:") < text.index("<h2>")


def test_clocks_of_the_run_are_shown_with_their_range(small: Report) -> None:
    clocks = [{"cpu.policy0.clock_hz": hz, "cpu.policy0.max_clock_hz": 2e9} for hz in (1_500_000_000, 2e9)]
    small["verification"]["conditions"]["clocks"] = [clocks]
    words = Page(render_html(small)).words
    assert "cpu.policy0.clock_hz1500\u00a0MHz" in words.replace(" MHz", "\u00a0MHz")
    assert "max_clock_hz" not in words
