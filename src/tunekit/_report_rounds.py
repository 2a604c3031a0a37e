"""What became of the rounds of a step, for the report. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any, TypeGuard

from tunekit import _facts as facts
from tunekit._charts import Interval, intervals

__all__ = ["rewards", "rounds"]


def rounds(details: Mapping[str, Any]) -> str:
    """A table of the rounds and a picture of their win rates, as HTML; empty for a step without rounds."""
    records = facts.round_records(details)
    if not records:
        return ""
    head = "".join(
        f"<th>{name}</th>"
        for name in ("round", "win rate against the round before", "mean reward", "KL to the round before", "outcome")
    )
    table = (
        f'<h4>Rounds</h4><div class="scroll"><table class="rounds"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(map(_row, records))}</tbody></table></div>"
    )
    lines = [line for one in records if (line := _line(one)) is not None]
    if not lines:
        return table
    summary = "win rate by round: " + ", ".join(f"{line.name} {line.text}" for line in lines)
    label = "win rate against the round before, 95% CI; ties count half"
    return f'{table}<figure class="wide">{intervals(lines, label=label, summary=summary, low=0.0, high=1.0)}</figure>'


def rewards(details: Mapping[str, Any]) -> list[tuple[int, float]]:
    """``(round, mean reward on the held-out prompts)`` of the model that went on; round 0: the start."""
    points: list[tuple[int, float]] = []
    for one in facts.round_records(details):
        before, after = one.get("reward_before"), one.get("reward_after")
        if not _finite(before) or not _finite(after):
            continue
        if not points:
            points.append((0, float(before)))
        points.append((int(one["round"]), float(after if one.get("kept") else before)))
    return points


def _row(one: Mapping[str, Any]) -> str:
    won, far = one.get("win_rate"), one.get("kl")
    won = won if isinstance(won, Mapping) else {}
    rate = "-"
    if facts.round_value(one) is not None:
        rate = facts.percent(won["value"])
        if _finite(won.get("ci_low")) and _finite(won.get("ci_high")):
            rate += f" (95% CI {facts.percent(won['ci_low'])} to {facts.percent(won['ci_high'])})"
        rate += f", n={facts.number(won.get('n'))}"
    reward = "-"
    if one.get("reward_after") is not None:
        reward = f"{facts.number(one.get('reward_before'))} → {facts.number(one['reward_after'])}"
    nats = "-"
    if isinstance(far, Mapping) and far.get("per_sequence") is not None:
        nats = f"{facts.number(far['per_sequence'])} nats a completion"
    cells = "".join(f"<td>{escape(text)}</td>" for text in (str(one["round"]), rate, reward, nats))
    tone = "good" if one.get("kept") else "warn"
    return f'<tr>{cells}<td class="{tone}">{escape(_outcome(one))}</td></tr>'


def _outcome(one: Mapping[str, Any]) -> str:
    became = facts.round_outcome(one)
    if one.get("kept"):
        return became
    if "problem" in one:
        return f"{became}: {one['problem']}"
    return f"{became}: won fewer prompts than keep_at asks for"


def _line(one: Mapping[str, Any]) -> Interval | None:
    value = facts.round_value(one)
    won = one.get("win_rate")
    if value is None or not isinstance(won, Mapping):
        return None
    low, high = won.get("ci_low"), won.get("ci_high")
    return Interval(
        name=f"round {one['round']}",
        value=value,
        low=float(low) if _finite(low) else value,
        high=float(high) if _finite(high) else value,
        text=f"{facts.percent(value)} {facts.round_outcome(one)}",
        tone="good" if one.get("kept") else "bad",
    )


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
