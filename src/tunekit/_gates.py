"""Least scores: ``evaluate(min=...)``. They judge what was measured and are no part of measuring it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tunekit.artifacts import Score
from tunekit.errors import StepError
from tunekit.plan import ResolvedStep, thaw

__all__ = ["below", "gate_error", "minimum_of"]


def minimum_of(step: ResolvedStep) -> dict[str, float]:
    """The least scores that a step asks for."""
    given = thaw(step.options).get("min") if step.kind == "evaluate" else None
    return {str(name): float(value) for name, value in given.items()} if isinstance(given, dict) else {}


def below(minimum: Mapping[str, float], scores: Mapping[str, Score]) -> dict[str, Score | None]:
    """The gates that were not met, with their score; None where nothing of that name was measured."""
    found: dict[str, Score | None] = {}
    for name, least in minimum.items():
        score = scores.get(name) or _asked_alike(name, scores)
        if score is None or _unscored(score) or not score.meets(least):
            found[name] = score
    return found


def _unscored(score: Score) -> bool:
    """Whether the answers were collected, but nobody here knows the right ones."""
    return score.protocol.get("scored") is False


def _asked_alike(name: str, scores: Mapping[str, Score]) -> Score | None:
    """A full name for a short one; or the benchmark's own way of asking, where that is the published setup meant."""
    base, _, setup = name.partition(":")
    # Names of benchmarks may have a slash of their own.
    bases = (base, base.partition("/")[2])
    return next((score for score in scores.values() if score.benchmark in bases and setup in ("", score.setup)), None)


def gate_error(
    step: str,
    minimum: Mapping[str, float],
    missed: Mapping[str, Score | None],
    folder: str,
    measured: Iterable[str] = (),
) -> StepError:
    """The error that ends a run whose scores are not good enough, or that has no score of a name."""
    asked, found = [], []
    for name, score in missed.items():
        at = "at least" if score is None or score.higher_is_better else "at most"
        asked.append(f"{name} {at} {minimum[name]:g}")
        found.append(
            f"{name} was not measured"
            if score is None
            else f"{name} was not scored ({score.metric})"
            if _unscored(score)
            else f"{name} {score.metric} {score.value:.4f} (95% CI {score.ci_low:.3f} to {score.ci_high:.3f})"
        )
    kept = f"scores, rows and report are kept in {folder}; a lower min=... is judged without measuring again"
    absent = [name for name, score in missed.items() if score is None]
    if absent:
        kept = (
            f"min=... names {', '.join(absent)}; measured were {', '.join(measured) or 'no benchmarks'}: name one of "
            f"these, or see the notices for what was left out; scores, rows and report are kept in {folder}"
        )
    did = "did not measure what" if len(absent) == len(missed) else "measured less than"
    return StepError(
        f"Step {step} {did} was asked for.",
        code="below-minimum",
        asked=", ".join(asked),
        found=", ".join(found),
        fix=kept,
        details={
            "step": step,
            "folder": folder,
            "scores": {
                name: {"value": None if score is None else score.value, "minimum": minimum[name]}
                for name, score in missed.items()
            },
        },
    )
