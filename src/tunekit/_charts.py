"""Pictures of numbers as inline SVG, and the style sheet of the pages they stand on. Standard library only."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

__all__ = ["STYLE", "Bar", "Interval", "bars", "dumbbells", "intervals", "page", "standalone", "tick_text", "ticks"]

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d8dee4; --page: #f6f8fa; --card: #fff;
  --accent: #0b5fce; --warn: #8a5300; --warn-back: #fff4d6; --good: #18693a; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebef; --soft: #9aa5b1; --line: #343b44; --page: #0f1317;
  --card: #171c22; --accent: #7db3ff; --warn: #f2c261; --warn-back: #3a2f14; --good: #6fd08c; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
h3 { font-size: 1.05rem; margin: 0 0 .5rem; } h3 small { color: var(--soft); font-weight: 400; }
section.step, section.box { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1rem 1.25rem; margin: 0 0 1rem; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2rem 1rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.tag { display: inline-block; padding: 0 .5em; border-radius: 1em; border: 1px solid currentColor; font-size: .8rem; }
.sample { background: var(--warn-back); color: var(--warn); border-radius: 4px; padding: 0 .4em; white-space: nowrap; }
ul.notices { margin: 0; padding-left: 1.2rem; } ul.notices li { margin: .2rem 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem 1.25rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; } tr:last-child td { border-bottom: 0; } td.n, th.n { text-align: right; }
pre { margin: 0; overflow-x: auto; font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
td.n { white-space: nowrap; }
details { margin: 1rem 0 0; } summary { cursor: pointer; color: var(--soft); } img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
h4 { margin: 1.25rem 0 .4rem; font-size: .95rem; }
figure { margin: 1rem 0 0; } figure.wide { overflow-x: auto; } figure.wide svg { min-width: 34rem; } svg { display: block; width: 100%; height: auto; }
.more { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 0 1.25rem; }
svg text { fill: var(--soft); font-size: 12px; font-family: inherit; } svg text.title { fill: var(--ink); font-weight: 600; }
svg .grid { stroke: var(--line); stroke-width: 1; } svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .curve { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .dot { fill: var(--accent); } svg .ci { stroke: var(--accent); stroke-width: 3; stroke-linecap: round; opacity: .55; }
svg .good { fill: var(--good); } svg .bad { fill: var(--bad); } svg .none { fill: var(--soft); }
svg .ci.good { stroke: var(--good); } svg .ci.bad { stroke: var(--bad); } svg .ci.none { stroke: var(--soft); }
svg .bar { fill: var(--accent); opacity: .75; } svg .whisker { stroke: var(--ink); stroke-width: 1.2; } svg .open { fill: var(--card); stroke: var(--soft); stroke-width: 1.5; }
svg .is-sample .dot { fill: var(--warn); } svg .is-sample .ci { stroke: var(--warn); } svg text.name { fill: var(--ink); }
@media print { body { background: none; } section { break-inside: avoid; } }
"""


def page(title: str, heading: str, parts: Sequence[str]) -> str:
    """One HTML document without scripts, fonts or links to elsewhere.

    Args:
        title: plain text.
        heading: content of the ``h1``, as HTML.
        parts: what follows, as HTML.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{heading}</h1>",
            *parts,
            "</body></html>",
            "",
        ]
    )


def standalone(svg: str) -> str:
    """A picture that was drawn for a page, as a file of its own: in the light colours, on white."""
    colours = dict(re.findall(r"--([a-z-]+): ([^;]+);", STYLE.split("@media", 1)[0]))
    rules = "\n".join(line for line in STYLE.splitlines() if line.startswith("svg "))
    rules = re.sub(r"var\(--([a-z-]+)\)", lambda found: colours[found.group(1)], rules).replace("svg ", "")
    rules = rules.replace("font-family: inherit", "font-family: system-ui, 'DejaVu Sans', sans-serif")
    found = re.match(r'<svg viewBox="0 0 (\d+) (\d+)"', svg)
    if found is None:
        raise ValueError("not a picture of this module")
    width, height = found.groups()
    start = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    opened = svg.index(">") + 1
    inner = f'<style>{rules}</style><rect width="{width}" height="{height}" fill="#fff"/>'
    return start + svg[found.end() : opened] + inner + svg[opened:] + "\n"


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values from below ``low`` to above ``high``, 1, 2 or 5 times a power of ten apart; at least two.

    Values that are the same but for rounding get an axis around them.
    """
    size = max(abs(low), abs(high))
    if not high - low > max(1e-9 * size, 1e-300):
        # An axis of two values a digit apart would have no room between its ticks.
        pad = 0.1 * size if size > 1e-300 else 1.0
        low, high = min(low, high) - pad, max(low, high) + pad
    span = high - low
    rough = span / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    gap = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    return [index * gap for index in range(first, last + 1)]


def tick_text(value: float, gap: float) -> str:
    if value and (abs(value) >= 1e5 or gap < 1e-4):
        apart = math.floor(math.log10(abs(value)) + 1e-9) - math.floor(math.log10(gap) + 1e-9)
        return f"{value:.{max(apart, 0)}e}"
    places = max(0, -math.floor(math.log10(gap) + 1e-9))
    return f"{value:,.{places}f}"


class Interval(NamedTuple):
    """A line of a dot plot."""

    name: str
    value: float
    low: float
    high: float
    text: str
    """Stands to the right of it."""
    tone: str = ""
    """``good``, ``bad``, ``none``, ``sample``, or empty."""
    note: str = ""
    """Below ``text``, small."""


class Bar(NamedTuple):
    """A bar from 0 with an error on both sides."""

    name: str
    value: float
    error: float
    text: str


def _shown(name: str, left: float) -> str:
    room = int((left - 24) // 7)
    return name if len(name) <= room else name[: room - 1] + "…"


def _axis(
    parts: list[str],
    low: float,
    high: float,
    left: float,
    right: float,
    top: float,
    bottom: float,
    label: str,
    about: int,
) -> tuple[float, float]:
    """Grid, axis and their labels; gives the ends of the axis."""
    marks = ticks(low, high, about)
    gap = marks[1] - marks[0]
    for mark in marks:
        x = left + (mark - marks[0]) / (marks[-1] - marks[0]) * (right - left)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{tick_text(mark, gap)}</text>')
    parts.append(f'<line class="axis" x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
    middle = (left + right) / 2
    parts.append(f'<text x="{middle:.1f}" y="{bottom + 34}" text-anchor="middle">{escape(label)}</text>')
    return marks[0], marks[-1]


def intervals(
    lines: Sequence[Interval],
    *,
    label: str,
    summary: str,
    low: float | None = None,
    high: float | None = None,
    zero: bool = False,
) -> str:
    """Dots with their intervals on one axis.

    Args:
        lines: what is drawn, from the top.
        label: below the axis.
        summary: for screen readers.
        low: least value of the axis; None: from the data.
        high: largest value of the axis; None: from the data.
        zero: draw a heavy line at 0.
    """
    width, row, top = 880, 46, 10
    left = min(340, 24 + 7 * max(len(line.name) for line in lines))
    room = 24 + 7 * max(max(len(line.text), len(line.note)) for line in lines)
    right, bottom = width - max(110, min(330, room)), top + row * len(lines)
    least = min(line.low for line in lines) if low is None else low
    most = max(line.high for line in lines) if high is None else high
    if zero:
        least, most = min(least, 0.0), max(most, 0.0)
    if least == most:
        least, most = least - 0.01, most + 0.01
    parts = [f'<svg viewBox="0 0 {width} {bottom + 40}" role="img" aria-label="{escape(summary)}">']
    first, last = _axis(parts, least, most, left, right, top, bottom, label, 5)

    def at_x(value: float) -> float:
        return left + (min(max(value, first), last) - first) / (last - first) * (right - left)

    if zero:
        parts.append(f'<line class="axis" x1="{at_x(0):.1f}" y1="{top}" x2="{at_x(0):.1f}" y2="{bottom}"/>')
    for index, line in enumerate(lines):
        y = top + row * (index + 0.5)
        tone = "" if line.tone in ("", "sample") else f" {line.tone}"
        parts.append('<g class="is-sample">' if line.tone == "sample" else "<g>")
        parts.append(
            f'<text class="name" x="{left - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(_shown(line.name, left))}</text>'
        )
        parts.append(
            f'<line class="ci{tone}" x1="{at_x(line.low):.1f}" y1="{y:.1f}" x2="{at_x(line.high):.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<circle class="dot{tone}" cx="{at_x(line.value):.1f}" cy="{y:.1f}" r="6"/>')
        parts.append(
            f'<text class="name" x="{right + 12}" y="{y + (0 if line.note else 4):.1f}">{escape(line.text)}</text>'
        )
        if line.note:
            parts.append(f'<text x="{right + 12}" y="{y + 15:.1f}">{escape(line.note)}</text>')
        parts.append("</g>")
    parts.append("</svg>")
    return "".join(parts)


def bars(lines: Sequence[Bar], *, label: str, summary: str, mark: float | None = None) -> str:
    """Bars from 0, one below the other. ``mark``: a heavy line, such as the mean of all."""
    width, row, top = 880, 20, 6
    left = min(340, 24 + 7 * max(len(line.name) for line in lines))
    right, bottom = width - 130, top + row * len(lines)
    largest = max(line.value for line in lines)
    # Shares end at 1, whatever their errors.
    most = 1.0 if 0.5 < largest <= 1 else max(max(line.value + line.error for line in lines), mark or 0.0) or 1.0
    parts = [f'<svg viewBox="0 0 {width} {bottom + 40}" role="img" aria-label="{escape(summary)}">']
    first, last = _axis(parts, min(0.0, *(line.value for line in lines)), most, left, right, top, bottom, label, 5)

    def at_x(value: float) -> float:
        return left + (min(max(value, first), last) - first) / (last - first) * (right - left)

    for index, line in enumerate(lines):
        y = top + row * index
        x, end = sorted((at_x(0.0), at_x(line.value)))
        parts.append(
            f'<text class="name" x="{left - 12}" y="{y + 14}" text-anchor="end">{escape(_shown(line.name, left))}</text>'
        )
        parts.append(
            f'<rect class="bar" x="{x:.1f}" y="{y + 3}" width="{max(end - x, 0.5):.1f}" height="{row - 6}" rx="2"/>'
        )
        if line.error:
            low, high = at_x(line.value - line.error), at_x(line.value + line.error)
            parts.append(f'<line class="whisker" x1="{low:.1f}" y1="{y + 10}" x2="{high:.1f}" y2="{y + 10}"/>')
        parts.append(f'<text x="{right + 12}" y="{y + 14}">{escape(line.text)}</text>')
    if mark is not None:
        parts.append(f'<line class="axis" x1="{at_x(mark):.1f}" y1="{top}" x2="{at_x(mark):.1f}" y2="{bottom}"/>')
    parts.append("</svg>")
    return "".join(parts)


def dumbbells(lines: Sequence[tuple[str, float, float, str, str]], *, label: str, summary: str) -> str:
    """``(name, before, after, text, tone)``: an open dot before, a filled one after, a line between them."""
    width, row, top = 880, 24, 6
    left = min(340, 24 + 7 * max(len(name) for name, *_ in lines))
    right, bottom = width - 210, top + row * len(lines)
    values = [value for _, before, after, *_ in lines for value in (before, after)]
    low, high = (0.0, 1.0) if min(values) >= 0 and max(values) <= 1 else (min(values), max(values))
    parts = [f'<svg viewBox="0 0 {width} {bottom + 40}" role="img" aria-label="{escape(summary)}">']
    first, last = _axis(parts, low, high if high > low else low + 1, left, right, top, bottom, label, 5)

    def at_x(value: float) -> float:
        return left + (value - first) / (last - first) * (right - left)

    for index, (name, before, after, text, tone) in enumerate(lines):
        y = top + row * (index + 0.5)
        parts.append(
            f'<text class="name" x="{left - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(_shown(name, left))}</text>'
        )
        parts.append(
            f'<line class="ci {tone}" x1="{at_x(before):.1f}" y1="{y:.1f}" x2="{at_x(after):.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<circle class="open" cx="{at_x(before):.1f}" cy="{y:.1f}" r="4.5"/>')
        parts.append(f'<circle class="dot {tone}" cx="{at_x(after):.1f}" cy="{y:.1f}" r="5"/>')
        parts.append(f'<text x="{right + 12}" y="{y + 4:.1f}">{escape(text)}</text>')
    parts.append("</svg>")
    return "".join(parts)
