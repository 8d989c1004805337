"""HTML view of a report: one file without links, scripts or fonts; for a phone, the dark and paper too.

Every text goes through `html.escape`, numbers and names alike, so that nothing in a report can become markup.
"""

from __future__ import annotations

import html
import re
from typing import Any

from qslm_edge.report.charts import sensitivity_chart, trials_chart
from qslm_edge.report.document import Block, Bullets, Chart, Code, Section, Table, Text
from qslm_edge.report.figures import FLAGGED, clean
from qslm_edge.report.sections import build_document

__all__ = ["render_html"]

_CHARTS = {"trials": trials_chart, "sensitivity": sensitivity_chart}
_UNIT = re.compile(r"(?<=\d) (?=%|(?:MB|ms|mJ|points)\b)")
_VERDICTS = ("pass", "fail", "inconclusive")

_STYLE = """
:root { color-scheme: light dark; --fg: #1c1e21; --soft: #5a6069; --bg: #ffffff; --panel: #f4f5f7;
  --line: #d9dce1; --pass: #17703a; --fail: #b3261e; --inconclusive: #8a5a00; --heat: #e08a3c;
  --accent: #1f5fbf; }
@media (prefers-color-scheme: dark) { :root { --fg: #e6e7e9; --soft: #a3a9b3; --bg: #16181c;
  --panel: #1f2227; --line: #363b43; --pass: #5fc98a; --fail: #ff8a80; --inconclusive: #f0b64a;
  --heat: #a8521a; --accent: #7fb0ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 4rem; background: var(--bg); color: var(--fg);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; padding-bottom: .25rem;
  border-bottom: 1px solid var(--line); }
p, ul { margin: .5rem 0; max-width: 56rem; }
.verdict { display: inline-block; padding: .15rem .8rem; border: 2px solid currentColor;
  border-radius: 1rem; font-weight: 700; font-size: 1.05rem; }
.pass { color: var(--pass); } .fail { color: var(--fail); } .inconclusive { color: var(--inconclusive); }
.flagged { border-left: 4px solid var(--inconclusive); padding-left: .6rem; font-weight: 600; }
td.pass, td.fail, td.inconclusive { font-weight: 700; }
.wide { overflow-x: auto; margin: .7rem 0; }
table { border-collapse: collapse; font-size: .875rem; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); white-space: nowrap; }
td { font-variant-numeric: tabular-nums; max-width: 36rem; }
td.r, th.r { text-align: right; white-space: nowrap; }
td:first-child { white-space: nowrap; }
td:last-child { min-width: 6rem; overflow-wrap: anywhere; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 4px; padding: .6rem .8rem;
  overflow-x: auto; font-size: .85rem; }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--soft); }
figure { margin: 1rem 0; }
figcaption { color: var(--soft); font-size: .85rem; }
svg { display: block; max-width: 100%; height: auto; margin: .5rem 0; font: 13px system-ui, sans-serif; }
svg text { fill: var(--fg); }
svg .small { font-size: 12px; }
svg .strong { font-weight: 600; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .line { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 5 4; }
svg .limit { stroke: var(--fail); }
svg .whisker { stroke: var(--soft); stroke-width: 1; stroke-opacity: .55; }
svg .good { fill: var(--accent); fill-opacity: .8; }
svg .bad { stroke: var(--fail); stroke-width: 1.8; fill: none; }
svg .chosen { fill: none; stroke: var(--fg); stroke-width: 2; }
svg .heat { fill: var(--heat); }
@media screen and (max-width: 44rem) {
  body { padding: 1rem .8rem 3rem; }
  svg { max-width: none; }
  td:first-child { white-space: normal; }
  .cards thead { display: none; }
  .cards, .cards tbody, .cards tr, .cards td { display: block; }
  .cards tr { padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .cards td { border: 0; padding: .05rem 0; text-align: left; }
  .cards td:first-child { font-weight: 600; }
  .cards td:empty { display: none; }
  .cards td:not(:first-child)::before { content: attr(data-label) ": "; color: var(--soft);
    font-weight: 400; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  h2 { break-after: avoid; }
  figure, svg, tr { break-inside: avoid; }
  table { font-size: 8.5pt; }
  th, td { padding-right: .5rem; }
  .wide { overflow: visible; }
  pre { white-space: pre-wrap; }
}
"""


def render_html(report: dict[str, Any]) -> str:
    """The report as one self-contained page.

    Args:
        report: as in report.json.
    """
    document = build_document(report)
    title = f"{document.title}: {document.verdict}"
    css = report["verdict"] if report["verdict"] in _VERDICTS else ""
    lead = "".join(_lead(words) for words in document.lead)
    body = "".join(_section(section, report) for section in document.sections)
    made = _escape(f"{report['schema']}, qslm-edge {report['tool_version']}")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_escape(document.title)}</h1>\n"
        f'<p><span class="verdict {css}">{_escape(document.verdict)}</span></p>\n'
        f"{lead}{body}<p><small>{made}</small></p>\n</body>\n</html>\n"
    )


def _escape(words: object) -> str:
    return html.escape(clean(words), quote=True)


def _lead(words: str) -> str:
    """A line below the verdict; a flagged condition stands out."""
    css = ' class="flagged"' if words.startswith(f"{FLAGGED}: ") else ""
    return f"<p{css}>{_escape(words)}</p>\n"


def _section(section: Section, report: dict[str, Any]) -> str:
    blocks = "".join(_block(block, report) for block in section.blocks)
    return f"<section>\n<h2>{_escape(section.title)}</h2>\n{blocks}</section>\n"


def _block(block: Block, report: dict[str, Any]) -> str:
    match block:
        case Text(words):
            return f"<p>{_escape(words)}</p>\n"
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{_escape(item)}</li>' for item in items)}</ul>\n" if items else ""
        case Code(lines):
            return f"<pre>{chr(10).join(_escape(line) for line in lines)}</pre>\n"
        case Table():
            shown = _table(block)
            return f"<details><summary>As a table</summary>{shown}</details>\n" if block.folded else shown
        case Chart(name, caption):
            drawn = _CHARTS[name](report)
            head = f"<figcaption>{_escape(caption)}</figcaption>"
            return f'<figure>\n{head}\n<div class="wide">{drawn}</div>\n</figure>\n' if drawn else ""


def _table(block: Table) -> str:
    columns = block.columns
    head = "".join(
        f"<th{_css(columns[i], '', i in block.right)}>{_escape(columns[i])}</th>" for i in range(len(columns))
    )
    rows = "".join(
        f"<tr>{''.join(_cell(i, cell, block) for i, cell in enumerate(row))}</tr>\n" for row in block.rows
    )
    kind = ' class="cards"' if block.cards else ""
    body = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>"
    return f'<div class="wide"><table{kind}>\n{body}\n</table></div>\n'


def _cell(column: int, cell: str, block: Table) -> str:
    name = block.columns[column]
    label = f' data-label="{_escape(name)}"' if block.cards else ""
    words = _UNIT.sub("\u00a0", _escape(cell))
    return f"<td{_css(name, cell, column in block.right)}{label}>{words}</td>"


def _css(name: str, cell: str, right: bool) -> str:
    names = ["r"] if right else []
    if name == "verdict" and cell in _VERDICTS:
        names.append(cell)
    return f' class="{" ".join(names)}"' if names else ""
