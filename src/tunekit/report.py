"""The report of a run: one HTML file without scripts, fonts or links to elsewhere. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit import _facts as facts
from tunekit import storage

if TYPE_CHECKING:
    from tunekit.artifacts import Score
    from tunekit.results import RunResult, StepResult

__all__ = ["render_report", "write_report"]

_POINTS = 800
"""Most points one curve is drawn with; a longer history keeps the lowest and highest value of every stretch."""

_MORE_CURVES = ("rewards/accuracies", "rewards/margins", "mean_token_accuracy", "grad_norm", "learning_rate")
"""Histories that are drawn small beside the loss, where a step logged them."""

_STYLE = """
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
figure { margin: 1rem 0 0; } figure.wide { overflow-x: auto; } figure.wide svg { min-width: 34rem; } svg { display: block; width: 100%; height: auto; }
.more { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 0 1.25rem; }
svg text { fill: var(--soft); font-size: 12px; font-family: inherit; } svg text.title { fill: var(--ink); font-weight: 600; }
svg .grid { stroke: var(--line); stroke-width: 1; } svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .curve { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .dot { fill: var(--accent); } svg .ci { stroke: var(--accent); stroke-width: 3; stroke-linecap: round; opacity: .55; }
svg .is-sample .dot { fill: var(--warn); } svg .is-sample .ci { stroke: var(--warn); } svg text.name { fill: var(--ink); }
@media print { body { background: none; } section { break-inside: avoid; } }
"""


def write_report(path: Path, result: RunResult, plan_text: str) -> None:
    """Write the report of ``result`` to ``path``; an older one there is replaced in one go.

    Args:
        path: the HTML file.
        result: what the run left.
        plan_text: the plan in words, as ``explain()`` gives it.

    Raises:
        ArtifactError: if the file cannot be written.
    """
    storage.write_text(path, render_report(result, plan_text))


def render_report(result: RunResult, plan_text: str) -> str:
    """The report as one HTML document. Every text of the run is escaped."""
    title = f"tunekit run {result.run_id}"
    tone = {"finished": "good", "failed": "bad"}.get(result.status, "warn")
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f'<h1>{escape(title)} <span class="tag {tone}">{escape(result.status)}</span></h1>',
        _definitions(
            [
                facts.Fact("steps", " → ".join(step.name for step in result.steps) or "none"),
                facts.Fact("seed", str(result.seed)),
                facts.Fact("time", facts.duration(sum(step.seconds for step in result.steps if not step.reused))),
                facts.Fact("work folder", str(result.workdir)),
            ]
        ),
    ]
    if result.scores:
        parts += ["<h2>Scores</h2>", _scores(result.scores)]
    if result.notices:
        items = "".join(f"<li>{escape(str(text))}</li>" for text in result.notices)
        parts += ["<h2>Notices</h2>", f'<section class="box"><ul class="notices">{items}</ul></section>']
    parts.append("<h2>Steps</h2>")
    parts += [_step(number, step) for number, step in enumerate(result.steps, 1)]
    parts += ["<h2>Plan</h2>", f'<section class="box"><pre>{escape(plan_text)}</pre></section>', "</body></html>", ""]
    return "\n".join(parts)


def _definitions(items: Iterable[facts.Fact]) -> str:
    rows = "".join(f"<dt>{escape(item.label)}</dt><dd{_class(item.tone)}>{escape(item.value)}</dd>" for item in items)
    return f"<dl>{rows}</dl>"


def _class(tone: str) -> str:
    return f' class="{escape(tone)}"' if tone else ""


def _step(number: int, step: StepResult) -> str:
    history = step.history
    known = [*facts.step_facts(step, history), facts.Fact("in", str(step.folder))]
    kind = "" if step.kind == step.name else f"<small>{escape(step.kind)}</small>"
    parts = [
        '<section class="step">',
        f"<h3>{number} {escape(step.name)} {kind}</h3>",
        _definitions(known),
    ]
    if step.artifact.scores:
        parts.append(_score_rows(step.artifact.scores))
    curve = facts.losses(history)
    if len(curve) > 1:
        parts.append(
            f'<figure class="wide">{_line_chart(curve, "loss", "optimizer step", width=880, height=280)}</figure>'
        )
        small = [
            _line_chart(series, name, "optimizer step", width=300, height=190)
            for name in _MORE_CURVES
            if len(series := _series(history, name)) > 1
        ]
        if small:
            parts.append('<div class="more">' + "".join(f"<figure>{svg}</figure>" for svg in small) + "</div>")
    parts.append("</section>")
    return "".join(parts)


def _series(history: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return facts.losses([{**row, "loss": row.get(name)} for row in history])


def _scores(scores: Mapping[str, Score]) -> str:
    return f'<section class="box"><figure class="wide" style="margin-top:0">{_dot_plot(scores)}</figure>{_score_rows(scores)}</section>'


def _score_rows(scores: Mapping[str, Score]) -> str:
    rows = []
    for name, score in scores.items():
        source = escape(score.source)
        if not score.comparable:
            source = f'<span class="sample">{escape(facts.SAMPLE_LABEL)}</span>'
        rows.append(
            f"<tr><td>{escape(name)}</td><td>{escape(score.metric)}</td>"
            f'<td class="n">{score.value:.4f}</td><td class="n">{score.ci_low:.3f} to {score.ci_high:.3f}</td>'
            f'<td class="n">{facts.count(score.n)}</td><td>{source}</td></tr>'
        )
    return (
        '<div class="scroll"><table><thead><tr><th>benchmark</th><th>metric</th><th class="n">value</th>'
        f'<th class="n">95% CI</th><th class="n">n</th><th>source</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round values from below ``low`` to above ``high``, 1, 2 or 5 times a power of ten apart."""
    span = high - low
    rough = span / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    gap = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    return [index * gap for index in range(first, last + 1)]


def _tick_text(value: float, gap: float) -> str:
    if value and (abs(value) >= 1e5 or gap < 1e-4):
        return f"{value:.0e}" if math.isclose(value, float(f"{value:.0e}")) else f"{value:.1e}"
    places = max(0, -math.floor(math.log10(gap) + 1e-9))
    return f"{value:,.{places}f}"


def _thin(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most about ``_POINTS`` points with the extremes of every stretch, in order."""
    if len(points) <= _POINTS:
        return list(points)
    stretch = math.ceil(len(points) / (_POINTS // 2))
    kept = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        finite = [point for point in part if math.isfinite(point[1])]
        if finite:
            kept += sorted({min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])})
        if len(finite) < len(part):
            kept.append(next(point for point in part if not math.isfinite(point[1])))
    return kept


def _line_chart(points: Sequence[tuple[int, float]], name: str, x_name: str, *, width: int, height: int) -> str:
    """A curve with both axes as inline SVG; values that are not finite leave a gap and are counted in the title."""
    finite = [point for point in points if math.isfinite(point[1])]
    if not finite:
        return ""
    low, high = min(y for _, y in finite), max(y for _, y in finite)
    if low == high:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    y_ticks = _ticks(low, high, max(2, height // 60))
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)
    x_ticks = [
        tick for tick in _ticks(first, last, max(3, width // 130)) if first <= tick <= last and tick == round(tick)
    ]
    y_gap = y_ticks[1] - y_ticks[0]
    y_labels = [_tick_text(tick, y_gap) for tick in y_ticks]
    left, right, top, bottom = 16 + 7 * max(map(len, y_labels)), width - 16, 30, height - 38

    def at_x(value: float) -> float:
        return left + (value - first) / (last - first) * (right - left)

    def at_y(value: float) -> float:
        return bottom - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - top)

    lost = len(points) - len(finite)
    title = name + (f" ({lost} values not finite)" if lost else "")
    summary = f"{name} from {facts.number(finite[0][1])} to {facts.number(finite[-1][1])} over {len(points)} values"
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(summary)}">',
        f'<text class="title" x="{left}" y="16">{escape(title)}</text>',
    ]
    course = f"{facts.number(finite[0][1])} → {facts.number(finite[-1][1])}"
    if 7.5 * len(title) + 6.5 * len(course) < right - left:
        parts.append(f'<text x="{right}" y="16" text-anchor="end">{course}</text>')
    for tick, label in zip(y_ticks, y_labels, strict=True):
        y = at_y(tick)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    parts.append(f'<line class="axis" x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
    for tick in x_ticks:
        x = at_x(tick)
        parts.append(f'<line class="axis" x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{facts.count(tick)}</text>')
    parts.append(f'<text x="{(left + right) / 2:.1f}" y="{height - 4}" text-anchor="middle">{escape(x_name)}</text>')
    stretch: list[str] = []
    for x, y in [*_thin(points), (last, math.nan)]:
        if math.isfinite(y):
            stretch.append(f"{at_x(x):.1f},{at_y(y):.1f}")
            continue
        if len(stretch) > 1:
            parts.append(f'<polyline class="curve" points="{" ".join(stretch)}"/>')
        elif stretch:
            cx, cy = stretch[0].split(",")
            parts.append(f'<circle class="dot" cx="{cx}" cy="{cy}" r="3"/>')
        stretch = []
    end_x, end_y = finite[-1]
    parts.append(f'<circle class="dot" cx="{at_x(end_x):.1f}" cy="{at_y(end_y):.1f}" r="3.5"/></svg>')
    return "".join(parts)


def _dot_plot(scores: Mapping[str, Score]) -> str:
    """Each score as a dot with its 95% interval, on one axis from 0 to 1."""
    width, row, top = 880, 46, 10
    names = [f"{name} · {score.metric}" for name, score in scores.items()]
    left = min(340, 24 + 7 * max(map(len, names)))
    right, bottom = width - 110, top + row * len(scores)
    parts = [
        f'<svg viewBox="0 0 {width} {bottom + 40}" role="img" aria-label="scores with 95% intervals">',
    ]

    def at_x(value: float) -> float:
        return left + min(max(value, 0.0), 1.0) * (right - left)

    for step in range(6):
        x = at_x(step / 5)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{step / 5:.1f}</text>')
    parts.append(f'<line class="axis" x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
    parts.append(
        f'<text x="{(left + right) / 2:.1f}" y="{bottom + 34}" text-anchor="middle">value, 95% interval</text>'
    )
    for index, (name, score) in enumerate(zip(names, scores.values(), strict=True)):
        y = top + row * (index + 0.5)
        shown = name if len(name) * 7 <= left - 24 else name[: (left - 24) // 7 - 1] + "…"
        sample = "" if score.comparable else ' class="is-sample"'
        parts.append(f"<g{sample}>")
        parts.append(f'<text class="name" x="{left - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(shown)}</text>')
        parts.append(
            f'<line class="ci" x1="{at_x(score.ci_low):.1f}" y1="{y:.1f}" x2="{at_x(score.ci_high):.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<circle class="dot" cx="{at_x(score.value):.1f}" cy="{y:.1f}" r="6"/>')
        parts.append(
            f'<text class="name" x="{right + 12}" y="{y + (0 if sample else 4):.1f}">{score.value:.3f}, n={score.n}</text>'
        )
        if sample:
            parts.append(f'<text x="{right + 12}" y="{y + 15:.1f}" class="is-sample">sample</text>')
        parts.append("</g>")
    parts.append("</svg>")
    return "".join(parts)
