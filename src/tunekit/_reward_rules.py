"""Rules of ``check`` about rewards, and about the rows that they and a step's options are given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tunekit._analysis import Analysis, StepAnalysis
from tunekit._registry import Entry
from tunekit._reward_callables import opaque_parts
from tunekit._rewards import STEP, missing_columns, needed_columns
from tunekit.errors import TunekitError, nearest
from tunekit.plan import ResolvedReward, thaw
from tunekit.plugins.specs import RewardSpec, TrainerSpec

if TYPE_CHECKING:
    from tunekit.data import Dataset

__all__ = ["rewards", "rows_fit"]


def rows_fit(analysis: Analysis, step: StepAnalysis, dataset: Dataset, rows: list[dict[str, Any]], peek: int) -> None:
    """Whether the rows have what the rewards of the step and its options need.

    Args:
        analysis: takes the findings.
        step: the step.
        dataset: its data.
        rows: the first of it, one more than ``peek`` if there are so many.
        peek: rows that are looked at.
    """
    _reward_columns(analysis, step, dataset, rows)
    whole = len(rows) <= peek
    asked = [] if step.options is None else [(step.options, "")]
    if dataset.schema == "prompt":
        for reward, entry in _reward_pairs(step):
            asked.append((analysis.session.parse_options(entry.component, thaw(reward.options)), reward.name))
    for options, reward_name in asked:
        check = getattr(options, "check_rows", None)
        if not rows or not callable(check):
            continue
        try:
            check(dataset.schema, rows, whole)
        except TunekitError as error:
            if reward_name:
                error.details.setdefault("reward", reward_name)
            analysis.add_error(step.name, error)


def _reward_columns(analysis: Analysis, step: StepAnalysis, dataset: Dataset, rows: list[dict[str, Any]]) -> None:
    """Whether the rows have the columns that the rewards of the step look at."""
    for reward in step.rewards:
        needed = needed_columns(reward, analysis.session, analysis.objects)
        for column in missing_columns(needed, dataset, rows):
            there = sorted({name for row in rows for name in row.get("columns", {})})
            close = nearest(column, there, limit=1)
            analysis.add(
                "error",
                step.name,
                "reward-column",
                f"The reward {reward.name} needs a column {column!r}, and {dataset.name} has none; beside the prompt "
                f"there is {', '.join(map(repr, there)) or 'nothing'}.",
                f"say which column it is, with the reward's option of that name: {{{column!r}: {close[0]!r}}}"
                if close and reward.component is not None
                else f"add the column {column!r} to the rows, or use another reward",
                option="reward",
                column=column,
                suggestions=list(close),
            )


def rewards(analysis: Analysis) -> None:
    """What should be known of rewards: code that runs, models that are not there, reward steps nobody scores with."""
    for step in analysis.steps:
        _weights(analysis, step)
        for reward, entry in _reward_pairs(step):
            if isinstance(entry.spec, RewardSpec) and entry.spec.runs_code:
                analysis.add(
                    "warning",
                    step.name,
                    "reward-runs-code",
                    f"The reward {reward.name} of step {step.name} runs code that the model writes while it learns.",
                    f"make sure that {entry.component.id} isolates it, or use another reward",
                    reward=reward.name,
                )
            model = reward.options.get("model")
            if isinstance(model, str) and not model.startswith(STEP):
                _reward_model(analysis, step, reward.name, model)
        for reward in step.rewards:
            held = opaque_parts(analysis.objects.get(reward.memory)) if reward.memory is not None else []
            if held:
                analysis.add(
                    "note",
                    step.name,
                    "reward-state",
                    f"The reward {reward.name} holds or uses {', '.join(held)}; whether step {step.name} must run "
                    "again is told from its code and plain values, not from what such objects hold.",
                    "use another workdir when that changes, or make it a reward of a plugin",
                    reward=reward.name,
                )
    for step in analysis.steps:
        later = [other for other in analysis.steps[step.index :] if other.kind == "align"]
        if step.kind != "reward" or not later:
            continue
        if any("reward" in other.plan.options and not other.rewards for other in later):
            continue  # what is wrong with their rewards is said there
        uses = [reward.step for other in later for reward in other.rewards]
        if step.name not in uses and not any(step in other.lineage() for other in analysis.steps[step.index :]):
            method = later[0].entry.component.name if later[0].entry else later[0].name
            analysis.add(
                "warning",
                step.name,
                "reward-unused",
                f"No later step scores with the reward model of step {step.name}; {method} of step {later[0].name} "
                "does without.",
                f"leave {step.name} out, or use a method that scores what the model writes, such as "
                f'{later[0].kind}(method="ppo")',
            )


def _weights(analysis: Analysis, step: StepAnalysis) -> None:
    spec = step.entry.spec if step.entry else None
    if not isinstance(spec, TrainerSpec) or spec.rewards != "required" or not step.rewards:
        return
    if all(reward.weight == 0 for reward in step.rewards):
        names = ", ".join(reward.name for reward in step.rewards)
        analysis.add(
            "error",
            step.name,
            "reward-weights",
            f"Step {step.name} would learn nothing: the weight of each of its rewards ({names}) is 0.",
            'give one of them a weight, such as reward={"exact-match": 1.0}; weight 0 beside others only logs a reward',
            option="reward",
        )


def _reward_pairs(step: StepAnalysis) -> Iterator[tuple[ResolvedReward, Entry]]:
    packaged = [reward for reward in step.rewards if reward.component is not None]
    yield from zip(packaged, step.reward_entries, strict=True)


def _reward_model(analysis: Analysis, step: StepAnalysis, name: str, model: str) -> None:
    try:
        source = analysis.session.resolve_model(model, objects=analysis.objects)
        problems = list(source.problems())
    except TunekitError as error:
        error.message = f"The reward {name}: {error.message}"
        analysis.add_error(step.name, error)
        return
    for problem in problems:
        analysis.add(
            "error",
            step.name,
            "model-problem",
            f"The reward {name} cannot use the model {source.describe()}: {problem.rstrip('.')}.",
            "mend the folder, or pass another model",
            model=model,
        )
