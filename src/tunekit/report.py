"""The report of a run: one HTML file without scripts, fonts or links to elsewhere. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit import _facts as facts
from tunekit import _report_rounds as turns
from tunekit import _report_samples as written
from tunekit import _report_scores as scores
from tunekit import storage
from tunekit._charts import page, tick_text, ticks

if TYPE_CHECKING:
    from tunekit.results import RunResult, StepResult

__all__ = ["render_report", "write_report"]

_POINTS = 800
"""Most points one curve is drawn with; a longer history keeps the lowest and highest value of every stretch."""

_MORE_CURVES = (
    "reward",
    "kl",
    "rewards/accuracies",
    "rewards/margins",
    "completion_length",
    "entropy",
    "clip_fraction",
    "explained_variance",
    "kl_coef",
    "mean_token_accuracy",
    "grad_norm",
    "learning_rate",
)
"""Histories that are drawn small beside the loss, where a step logged them."""


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
    heading = f'{escape(title)} <span class="tag {tone}">{escape(result.status)}</span>'
    parts = [
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
        parts += ["<h2>Scores</h2>", scores.overview(result.scores)]
    if result.notices:
        items = "".join(f"<li>{escape(str(text))}</li>" for text in result.notices)
        parts += ["<h2>Notices</h2>", f'<section class="box"><ul class="notices">{items}</ul></section>']
    parts.append("<h2>Steps</h2>")
    parts += [_step(number, step) for number, step in enumerate(result.steps, 1)]
    parts += ["<h2>Plan</h2>", f'<section class="box"><pre>{escape(plan_text)}</pre></section>']
    return page(title, heading, parts)


def _definitions(items: Iterable[facts.Fact]) -> str:
    rows = "".join(f"<dt>{escape(item.label)}</dt><dd{_class(item.tone)}>{escape(item.value)}</dd>" for item in items)
    return f"<dl>{rows}</dl>"


def _class(tone: str) -> str:
    return f' class="{escape(tone)}"' if tone else ""


def _step(number: int, step: StepResult) -> str:
    history = step.history
    details = step.artifact.details
    known = [*facts.step_facts(step, history), *written.sample_facts(details), facts.Fact("in", str(step.folder))]
    kind = "" if step.kind == step.name else f"<small>{escape(step.kind)}</small>"
    parts = [
        '<section class="step">',
        f"<h3>{number} {escape(step.name)} {kind}</h3>",
        _definitions(known),
    ]
    if step.artifact.scores:
        measured = step.scores
        parts += [scores.rows(measured), scores.details(measured, step.minimum)]
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
    parts.append(turns.rounds(details))
    if len(course := turns.rewards(details)) > 1:
        name = "mean reward of the model that goes on, on held-out prompts"
        parts.append(f'<figure class="wide">{_line_chart(course, name, "round", width=880, height=200)}</figure>')
    parts.append(written.samples(details))
    parts.append("</section>")
    return "".join(parts)


def _series(history: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return facts.losses([{**row, "loss": row.get(name)} for row in history])


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
    y_ticks = ticks(low, high, max(2, height // 60))
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)
    x_ticks = [
        tick for tick in ticks(first, last, max(3, width // 130)) if first <= tick <= last and tick == round(tick)
    ]
    y_gap = y_ticks[1] - y_ticks[0]
    y_labels = [tick_text(tick, y_gap) for tick in y_ticks]
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
