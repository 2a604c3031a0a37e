"""What a model wrote before and after a step, who won, and how far it went, for the report. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from tunekit import _facts as facts

__all__ = ["sample_facts", "samples"]


def sample_facts(details: Mapping[str, Any]) -> list[facts.Fact]:
    """Samples, win rate, rewards and divergence from the start, of the details of an artifact."""
    found = []
    drawn, won, far = details.get("samples"), details.get("win_rate"), details.get("kl_to_start")
    if isinstance(drawn, Mapping):
        cut = drawn.get("cut_off")
        if "problem" in drawn:
            found.append(facts.Fact("samples", str(drawn["problem"]), "warn"))
        elif isinstance(cut, Mapping):
            text = (
                f"{facts.number(drawn.get('n'))}, cut off after {facts.number(drawn.get('max_new_tokens'))} tokens: "
                f"{facts.number(cut.get('before'))} before and {facts.number(cut.get('after'))} after training"
            )
            found.append(facts.Fact("samples", text))
    if isinstance(won, Mapping) and "problem" in won:
        found.append(facts.Fact("win rate", f"not measured: {won['problem']}", "warn"))
    if isinstance(won, Mapping) and isinstance(won.get("value"), int | float):
        text = (
            f"{won['value']:.1%} against the start, 95% CI {facts.number(won.get('ci_low'))} to "
            f"{facts.number(won.get('ci_high'))}, {facts.number(won.get('n'))} prompts, ties count half"
        )
        found.append(facts.Fact("win rate", text))
        found.append(
            facts.Fact("reward", f"{facts.number(won.get('reward_before'))} -> {facts.number(won.get('reward_after'))}")
        )
    if isinstance(far, Mapping):
        if "problem" in far:
            found.append(facts.Fact("KL to the start", f"not measured: {far['problem']}", "warn"))
        else:
            token, whole = facts.number(far.get("per_token")), facts.number(far.get("per_sequence"))
            found.append(facts.Fact("KL to the start", f"{token} nats a token, {whole} a completion"))
    return found


def samples(details: Mapping[str, Any]) -> str:
    """The completions side by side, as HTML; empty if there are none."""
    given = details.get("samples")
    rows = given.get("rows") if isinstance(given, Mapping) else None
    if not isinstance(rows, list | tuple) or not rows:
        return ""
    lines = [
        f"<tr><td><pre>{escape(str(row.get('prompt', '')))}</pre></td>{_cell(row, 'before')}{_cell(row, 'after')}</tr>"
        for row in rows
        if isinstance(row, Mapping)
    ]
    return (
        f"<details><summary>{len(lines)} samples before and after</summary>"
        '<div class="scroll"><table><thead><tr><th>prompt</th><th>before</th><th>after</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></details>"
    )


def _cell(row: Mapping[str, Any], side: str) -> str:
    score = row.get(f"{side}_score")
    told = f"<small>reward {escape(facts.number(score))}</small>" if score is not None else ""
    return f"<td><pre>{escape(str(row.get(side, '')))}</pre>{told}</td>"
