"""Two drawings as inline SVG, by own code: no library, no font, no script; for paper and the dark as well.

Colours are CSS variables of the page; shape tells what colour tells: feasible settings are filled discs, the
others crosses. All text is escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from qslm_edge.report.figures import clean, known, megabytes, number

__all__ = ["sensitivity_chart", "trials_chart"]

_WIDTH, _HEIGHT = 720, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 40, 48
_CELL_HEIGHT = 26
_LEAST_CELL_WIDTH = 62.0  # of "+0.00043" and "2g128mf"
_WIDE = 1.8
"""A larger ratio of the largest to the smallest setting gets a logarithmic axis."""
_MOST_TICKS = 9
_NEAR, _NEAR_COUNT = 1.2, 5
"""Settings up to this ratio of the chosen one's bytes are drawn once more alone, if there are so many."""


def _escape(words: object) -> str:
    return html.escape(clean(words), quote=True)


def _label(x: float, y: float, words: object, css: str = "", anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{_escape(words)}</text>'


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    box = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}"'
    return f'<svg {box} role="img" aria-label="{_escape(title)}">\n{body}\n</svg>'


class _Axis:
    """Values to places: linear or logarithmic, with ticks at round numbers."""

    def __init__(self, values: Sequence[float], begin: float, end: float, *, log: bool = False) -> None:
        low, high = min(values), max(values)
        self.log = log and low > 0 and high / low > _WIDE
        a, b = self._inner(low), self._inner(high)
        margin = 0.06 * (b - a) or abs(a) * 0.05 or 1.0
        self.low, self.high = a - margin, b + margin
        self.begin, self.end = begin, end

    def _inner(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def place(self, value: float) -> float:
        """Where a value lies on the drawing."""
        share = (self._inner(value) - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    def holds(self, value: float) -> bool:
        """Whether a value lies inside."""
        return not (self.log and value <= 0) and self.low <= self._inner(value) <= self.high

    def ticks(self) -> list[float]:
        """Round values inside, at most nine of them."""
        if self.log:
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            choices = [[m * 10.0**e for e in decades for m in some] for some in (range(1, 10), (1, 2, 5))]
            choices += [[10.0**e for e in decades[::step]] for step in (1, 2, 4, 8)]
            inside = [[value for value in values if self.holds(value)] for values in choices]
            return next((values for values in inside if len(values) <= _MOST_TICKS), inside[-1])
        span = self.high - self.low
        step = 10.0 ** math.floor(math.log10(span / 4))
        step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 8)
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step) + 1)]


def trials_chart(report: dict[str, Any]) -> str:
    """Weight bytes against the metric for every setting that the search evaluated; empty without a search."""
    search = report["search"]
    trials = [] if search is None else [trial for trial in search["trials"] if known(trial["metric"])]
    if not trials:
        return ""
    drawn = [_panel(report, trials, f"all {len(trials)}")]
    edge = _NEAR * search["chosen"]["weight_bytes"]
    near = [trial for trial in trials if trial["weight_bytes"] <= edge]
    if _NEAR_COUNT <= len(near) < len(trials):
        words = f"the {len(near)} of at most {100 * (_NEAR - 1):.0f} % more bytes than the chosen one"
        drawn.append(_panel(report, near, words))
    return "\n".join(drawn)


def _panel(report: dict[str, Any], trials: Sequence[dict[str, Any]], title: str) -> str:
    search, limits = report["search"], report["constraints"]
    sign = -1 if report["task"]["metric"] == "accuracy" else 1
    base, budget = search["float"]["value"], limits["weights_budget_bytes"]
    bound = base + sign * limits["max_degradation"]
    metrics = [trial["metric"] for trial in trials]
    # a line far from every point would squash them
    far = 4 * (max([*metrics, base]) - min([*metrics, base])) or math.inf
    lines = [value for value in (base, bound) if min(abs(value - metric) for metric in metrics) < far]
    sizes = [trial["weight_bytes"] / 1e6 for trial in trials]
    x = _Axis([*sizes, *([budget / 1e6] if budget else [])], _LEFT, _WIDTH - _RIGHT, log=True)
    if title.startswith("the"):  # the detail: what lies near the limit, not the float model
        lines = [value for value in lines if value != base]
    y = _Axis([*metrics, *lines], _HEIGHT - _BOTTOM, _TOP)
    parts = _frame(x, y, report["task"]["metric"])
    if y.holds(base):
        parts += _level(y, base, f"float {number(base)}", "line")
    if y.holds(bound):
        parts += _level(y, bound, f"limit {number(bound)}", "line limit")
    if budget and x.holds(budget / 1e6):
        at, bottom = x.place(budget / 1e6), _HEIGHT - _BOTTOM
        parts.append(f'<line x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{bottom}" class="line limit"/>')
        parts.append(_label(at - 4, _TOP + 12, f"budget {megabytes(budget)}", "small", "end"))
    ordered = sorted(trials, key=lambda trial: bool(trial["feasible"]))
    parts += [_whisker(trial, base, sign, x, y) for trial in ordered]
    parts += [
        _mark(trial, x.place(trial["weight_bytes"] / 1e6), y.place(trial["metric"])) for trial in ordered
    ]
    chosen = search["chosen"]
    if known(chosen["metric"]):
        at_x, at_y = x.place(chosen["weight_bytes"] / 1e6), y.place(chosen["metric"])
        parts.append(f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="9" class="chosen"/>')
    parts += [*_legend(), _label(_WIDTH - _RIGHT, 22, title, "small", "end")]
    return _svg(_WIDTH, _HEIGHT, f"weight bytes against the metric of evaluated settings: {title}", parts)


def _whisker(trial: dict[str, Any], base: float, sign: int, x: _Axis, y: _Axis) -> str:
    """From the metric to its 95 % bound, which is what must lie within the limit."""
    upper = trial["comparison"]["upper"]
    if not known(upper):
        return ""
    at, start = x.place(trial["weight_bytes"] / 1e6), y.place(trial["metric"])
    end = min(max(y.place(base + sign * upper), _TOP), _HEIGHT - _BOTTOM)
    return f'<line x1="{at:.1f}" y1="{start:.1f}" x2="{at:.1f}" y2="{end:.1f}" class="whisker"/>'


def _frame(x: _Axis, y: _Axis, metric: str) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for value in x.ticks():
        at = x.place(value)
        parts.append(f'<line x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{bottom}" class="grid"/>')
        parts.append(_label(at, bottom + 16, f"{value:g}", "small"))
    for value in y.ticks():
        at = y.place(value)
        parts.append(f'<line x1="{_LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}" class="grid"/>')
        parts.append(_label(_LEFT - 6, at + 4, f"{value:g}", "small", "end"))
    parts.append(_label((_LEFT + right) / 2, _HEIGHT - 10, f"weights, MB{' (logarithmic)' if x.log else ''}"))
    parts.append(
        f'<text transform="translate(16 {(_TOP + bottom) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{_escape(metric)} on the search items</text>"
    )
    return parts


def _level(y: _Axis, value: float, words: str, css: str) -> list[str]:
    at, right = y.place(value), _WIDTH - _RIGHT
    return [
        f'<line x1="{_LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}" class="{css}"/>',
        _label(right - 2, at - 5, words, "small", "end"),
    ]


def _mark(trial: dict[str, Any], at_x: float, at_y: float) -> str:
    words = (
        f"{trial['tier']}: {trial['step']}; {megabytes(trial['weight_bytes'])}, {number(trial['metric'])}, "
        f"{trial['n_items']} of {trial['n_items_total']} items; {'' if trial['feasible'] else 'not '}feasible"
    )
    title = f"<title>{_escape(words)}</title>"
    if trial["feasible"]:
        return f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="4" class="good">{title}</circle>'
    return f'<path d="{_cross(at_x, at_y)}" class="bad">{title}</path>'


def _cross(x: float, y: float, r: float = 4) -> str:
    return f"M{x - r:.1f} {y - r:.1f}L{x + r:.1f} {y + r:.1f}M{x - r:.1f} {y + r:.1f}L{x + r:.1f} {y - r:.1f}"


def _legend() -> list[str]:
    y = 18
    return [
        f'<circle cx="{_LEFT + 6}" cy="{y}" r="4" class="good"/>',
        _label(_LEFT + 16, y + 4, "feasible", "small", "start"),
        f'<path d="{_cross(_LEFT + 96, y)}" class="bad"/>',
        _label(_LEFT + 106, y + 4, "not feasible", "small", "start"),
        f'<circle cx="{_LEFT + 212}" cy="{y}" r="9" class="chosen"/>',
        f'<circle cx="{_LEFT + 212}" cy="{y}" r="4" class="good"/>',
        _label(_LEFT + 228, y + 4, "chosen", "small", "start"),
    ]


def sensitivity_chart(report: dict[str, Any]) -> str:
    """Blocks times levels, darker where quantising the block alone costs more; empty without a search."""
    search = report["search"]
    cells = [] if search is None else [c for c in search["sensitivity"] if known(c["degradation"])]
    if not cells:
        return ""
    blocks, levels = list(dict.fromkeys(cell["block"] for cell in cells)), list(search["levels"])
    left = max(90.0, 8.0 * max(len(clean(name)) for name in blocks) + 16)
    width = min(130.0, max(_LEAST_CELL_WIDTH, (_WIDTH - left - 4) / max(len(levels), 1)))
    most = max(cell["degradation"] for cell in cells)
    parts = [_label(left + width * (i + 0.5), 18, level, "small strong") for i, level in enumerate(levels)]
    for row, name in enumerate(blocks):
        parts.append(_label(left - 8, 28 + _CELL_HEIGHT * (row + 0.65), name, "small", "end"))
    for cell in cells:
        if cell["level"] in levels:
            at_x = left + width * levels.index(cell["level"])
            at_y = 28 + _CELL_HEIGHT * blocks.index(cell["block"])
            parts.append(_heat(cell, at_x, at_y, width, most))
    return _svg(
        left + width * len(levels) + 4,
        32 + _CELL_HEIGHT * len(blocks),
        "degradation when one block alone is quantised",
        parts,
    )


def _heat(cell: dict[str, Any], x: float, y: float, width: float, most: float) -> str:
    value = cell["degradation"]
    share = math.sqrt(max(value, 0) / most) if most > 0 else 0.0
    exact = cell["source"] == "exact"
    words = "exact" if exact else number(value, 3, signed=True)
    title = (
        f"{cell['block']} at {cell['level']}: {words}, standard error {number(cell['standard_error'], 3)}, "
        f"{cell['n_items']} items, {megabytes(cell['weight_bytes'])}"
    )
    return (
        f'<g><rect x="{x + 1:.1f}" y="{y + 1:.1f}" width="{width - 2:.1f}" height="{_CELL_HEIGHT - 2}" '
        f'rx="3" class="heat" fill-opacity="{0.04 + 0.86 * share:.3f}"/><title>{_escape(title)}</title>'
        f"{_label(x + width / 2, y + _CELL_HEIGHT * 0.65, words, 'small')}</g>"
    )
