"""How numbers and step results are put into words, for the terminal and for the report. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunekit.artifacts import Score
    from tunekit.results import StepResult

__all__ = [
    "Fact",
    "count",
    "duration",
    "losses",
    "number",
    "percent",
    "round_outcome",
    "round_records",
    "round_value",
    "score_source",
    "score_text",
    "short",
    "size",
    "step_facts",
    "trained_text",
]

_DID = {
    "pretrain": "pretraining from random weights",
    "post_pretrain": "continued pretraining",
    "sft": "supervised fine-tuning",
    "reward": "reward model training",
    "align": "preference alignment",
    "merge": "adapter merged into the base weights",
    "quantize": "quantization",
    "evaluate": "evaluation",
    "export": "export",
}


def short(value: float) -> str:
    """A count in at most four characters and a unit: ``950``, ``12.3k``, ``134.5M``."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        # 999,950 would print as "1000.0k"
        if abs(value) >= limit * 0.99995:
            return f"{value / limit:.1f}{unit}"
    return f"{value:.0f}"


def count(value: float) -> str:
    """A whole number with thousands separators: ``1,234``."""
    return f"{value:,.0f}"


def size(size_bytes: float) -> str:
    """Bytes in decimal units: ``513.2 MB``."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size_bytes >= limit * 0.99995:
            return f"{size_bytes / limit:.1f} {unit}"
    return f"{size_bytes:.0f} B"


def duration(seconds: float) -> str:
    """``8.4 s``, ``2 min 05 s``, ``1 h 03 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def number(value: Any) -> str:
    """A measured number with four significant places; other values as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return count(value)
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:.4g}" if abs(value) >= 1000 else f"{value:.4f}"


def percent(value: float) -> str:
    """A share with one decimal place where it has one: ``72%``, ``49.7%``."""
    return f"{value:.1%}".replace(".0%", "%")


@dataclass(frozen=True)
class Fact:
    """One thing worth knowing of a step."""

    label: str
    value: str
    tone: str = ""
    """``warn`` for what a reader must not overlook, ``good`` for a proof that held, else empty."""


def losses(history: Iterable[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """``(optimizer step, loss)`` of every row of a history that holds a loss."""
    found = []
    for position, row in enumerate(history, 1):
        loss = row.get("loss")
        if isinstance(loss, int | float) and not isinstance(loss, bool):
            found.append((int(row.get("step", row.get("global_step", position))), float(loss)))
    return found


def score_text(score: Score) -> str:
    """``acc 0.2500, 95% CI 0.14 to 0.40, n=40`` and the label of a sample."""
    text = f"{score.metric} {score.value:.4f}, 95% CI {score.ci_low:.3f} to {score.ci_high:.3f}, n={count(score.n)}"
    return text if score.comparable else f"{text} ({score_source(score)})"


def score_source(score: Score) -> str:
    """Where the questions come from, such as ``sample: not comparable``."""
    return score.source if score.comparable or "not comparable" in score.source else f"{score.source}: not comparable"


def trained_text(step: StepResult) -> str:
    """``full, 1.2M of 1.2M parameters``, ``lora r=8, 73.7k of 1.3M parameters`` or ``-``."""
    artifact = step.artifact
    label = artifact.trained if artifact.trained not in ("", "-") else step.trains
    if label == "-":
        return "-"
    total = artifact.model.parameters if artifact.model else 0
    trained = artifact.trained_parameters
    if not trained:
        return label
    of_all = f" of {short(total)}" if total else ""
    return f"{label}, {short(trained)}{of_all} parameters"


def _loss_facts(curve: Sequence[float], metrics: Mapping[str, Any]) -> list[Fact]:
    """First and last loss, and the speed. One batch is noisy, so the means of the outer quarters stand beside them."""
    text = f"{curve[0]:.4f} -> {curve[-1]:.4f} in {count(len(curve))} steps"
    quarter = len(curve) // 4
    if quarter >= 2:
        first, last = (sum(part) / quarter for part in (curve[:quarter], curve[-quarter:]))
        text += f", mean of first and last quarter {first:.4f} -> {last:.4f}"
    facts = [Fact("loss", text)]
    tokens, speed = metrics.get("tokens"), metrics.get("tokens_per_second")
    parts = [short(tokens)] if isinstance(tokens, int | float) and tokens else []
    parts += [f"{short(speed)} a second"] if isinstance(speed, int | float) and speed else []
    return [*facts, Fact("tokens", ", ".join(parts))] if parts else facts


def _data_facts(data: Any) -> list[Fact]:
    """Rows and tokens a trainer reported under ``data``, and what was cut or left out."""
    if not isinstance(data, Mapping) or "rows" not in data:
        return []
    facts = []
    text = f"{count(data['rows'])} rows" if data["rows"] is not None else "rows not counted"
    if data.get("trained_tokens") and data.get("tokens"):
        text += f", {count(data['trained_tokens'])} of {count(data['tokens'])} tokens trained ({data.get('train_on')})"
    facts.append(Fact("data", text))
    cut, skipped = data.get("cut_rows"), data.get("skipped_rows")
    if cut or skipped:
        facts.append(Fact("left out", f"{count(cut or 0)} rows cut, {count(skipped or 0)} rows skipped", "warn"))
    return facts


def _proof_facts(details: Mapping[str, Any]) -> list[Fact]:
    """What proves a merged or a quantized model."""
    facts = []
    proof, quality = details.get("merge_proof"), details.get("quality")
    if isinstance(proof, Mapping):
        text = (
            f"logits differ by {number(proof.get('max_abs_diff'))} (tolerance {number(proof.get('tolerance'))}), "
            f"from the base by {number(proof.get('base_diff'))}"
        )
        facts.append(Fact("merge proof", text, "good"))
    if isinstance(quality, Mapping) and isinstance(quality.get("top1_agreement"), int | float):
        text = (
            f"loss {number(quality.get('nll_before'))} -> {number(quality.get('nll_after'))} on "
            f"{number(quality.get('rows'))} held-out rows, same next token in {quality['top1_agreement']:.1%}"
        )
        facts.append(Fact("quality", text))
    return facts


_ROUNDS_TOLD = 12
"""Most rounds one line tells of."""


def round_records(details: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The records of the rounds of a step, as ``tunekit.plugins.hf.Rounds`` leaves them in its details."""
    given = details.get("rounds")
    if not isinstance(given, list | tuple):
        return []
    return [one for one in given if isinstance(one, Mapping) and isinstance(one.get("round"), int)]


def round_value(one: Mapping[str, Any]) -> float | None:
    """The win rate of a round against the one before; None where they were not compared."""
    won = one.get("win_rate")
    value = won.get("value") if isinstance(won, Mapping) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def round_outcome(one: Mapping[str, Any]) -> str:
    """``kept``, ``rolled back``, or ``lost``: it came to no comparison."""
    if one.get("kept"):
        return "kept"
    return "lost" if "problem" in one else "rolled back"


def _round_facts(details: Mapping[str, Any]) -> list[Fact]:
    records = round_records(details)
    if not records:
        return []
    told = []
    for one in records[-_ROUNDS_TOLD:]:
        value = round_value(one)
        told.append(f"{one['round']} {'' if value is None else percent(value) + ' '}{round_outcome(one)}")
    if len(records) > _ROUNDS_TOLD:
        told.insert(0, "...")
    kept = sum(bool(one.get("kept")) for one in records)
    return [Fact("rounds", f"{kept} of {len(records)} kept: {', '.join(told)}", "" if kept else "warn")]


def step_facts(step: StepResult, history: Sequence[Mapping[str, Any]]) -> list[Fact]:
    """What a step did, trained, measured and left, in the order in which it is shown. Scores are not among them.

    ``history`` is the step's history, which the caller has read from disk.
    """
    artifact = step.artifact
    details, metrics = artifact.details, artifact.metrics
    did = _DID.get(step.kind, step.kind)
    if artifact.model and artifact.model.quantized:
        did = f"{did} to {artifact.model.quantized}" if step.kind == "quantize" else did
    did += ", taken from an earlier run" if step.reused else f", {duration(step.seconds)}"
    facts = [Fact("did", did), Fact("by", step.component)]
    trained = trained_text(step)
    if trained != "-":
        facts.append(Fact("trained", trained))
    facts += _data_facts(details.get("data"))
    curve = [loss for _, loss in losses(history)]
    if curve:
        facts += _loss_facts(curve, metrics)
    if isinstance(share := metrics.get("rewards/accuracies"), int | float):
        margin = metrics.get("rewards/margins")
        facts.append(Fact("preference", f"chosen above rejected in {share:.1%}, margin {number(margin)}"))
    facts += _round_facts(details)
    facts += _proof_facts(details)
    if artifact.model and artifact.model.size_bytes:
        after = artifact.model.size_bytes
        before = details.get("size_before")
        text = size(after)
        if isinstance(before, int | float) and before:
            text = f"{size(before)} -> {size(after)} ({after / before:.0%})"
        facts.append(Fact("size", text))
    return facts
