"""Scores of completions from the rewards of a step, checked and added up."""

from __future__ import annotations

import contextlib
import dis
import math
import traceback
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from tunekit.context import BoundReward
from tunekit.errors import StepError, TunekitError, nearest
from tunekit.plugins.protocols import MissingColumnError

__all__ = ["RewardScores", "checked_scores", "score"]

_SHOWN = 80
_LOADS = ("LOAD_FAST", "LOAD_DEREF", "LOAD_CLASSDEREF")


@dataclass(frozen=True, kw_only=True)
class RewardScores:
    """What the rewards of a step say of some completions."""

    total: list[float]
    """For each completion, the sum of weight times score over the rewards that gave one."""
    by_name: dict[str, list[float | None]]
    """For each reward, its scores as it gave them, before the weight; None: it has nothing to say."""

    def mean(self, name: str) -> float | None:
        """Mean score of one reward over the completions it scored; None if it scored none."""
        known = [value for value in self.by_name[name] if value is not None]
        return sum(known) / len(known) if known else None


def score(
    rewards: Sequence[BoundReward],
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
) -> RewardScores:
    """Score completions with every reward of a step.

    Args:
        rewards: ``ctx.rewards``, started.
        prompts: texts or lists of messages, one for each completion.
        completions: texts; after a prompt of messages, lists with the assistant's message.
        columns: further columns of the prompts' rows, one value for each completion; see :class:`Reward`.

    Raises:
        StepError: if a reward fails, or gives not one finite number or None for each completion, or if no reward has
            anything to say about a completion. The error names the reward.
        ValueError: if lengths of the arguments differ, or there is no reward, or two have one name.
    """
    if not rewards:
        raise ValueError("There is no reward to score with.")
    if len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts for {len(completions)} completions.")
    for column, values in columns.items():
        if len(values) != len(completions):
            raise ValueError(f"Column {column} has {len(values)} values for {len(completions)} completions.")
    names = [reward.name for reward in rewards]
    if len(set(names)) != len(names):
        raise ValueError(f"Two rewards have one name: {', '.join(names)}.")
    weights = {reward.name: reward.weight for reward in rewards}
    by_name = {reward.name: checked_scores(reward, prompts, completions, columns) for reward in rewards}
    total = []
    for index, completion in enumerate(completions):
        known = {reward.name: value for reward in rewards if (value := by_name[reward.name][index]) is not None}
        if not known:
            raise StepError(
                "No reward has anything to say about a completion.",
                code="no-score",
                asked=", ".join(names),
                found=_short(completion),
                fix="Give one reward that scores every completion, or leave such prompts out of the data.",
                details={"rewards": names, "completion": index},
            )
        total.append(_sum({name: (weights[name], value) for name, value in known.items()}, completion))
    return RewardScores(total=total, by_name=by_name)


def _sum(parts: Mapping[str, tuple[float, float]], completion: Any) -> float:
    """Weights times scores, added up.

    Raises:
        StepError: if that is too large for a number.
    """
    try:
        total = math.fsum(weight * value for weight, value in parts.values())
    except (OverflowError, ValueError):  # of finite numbers that become infinite, one or two of opposite signs
        total = math.inf
    if math.isfinite(total):
        return total
    raise StepError(
        "The weighted sum of the rewards is not finite.",
        code="reward-not-finite",
        asked="a finite sum of weight times score",
        found=f"{', '.join(f'{name}: {weight:g} * {value:g}' for name, (weight, value) in parts.items())} "
        f"for {_short(completion)}",
        fix="Give smaller weights, or scores of a smaller range.",
        details={"rewards": list(parts)},
    )


def _own(value: Any) -> Any:
    """A copy of lists and dicts down to what they hold, so that whoever changes them changes nobody else's."""
    if isinstance(value, dict):
        return {key: _own(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        made = [_own(one) if isinstance(one, list | tuple | dict) else one for one in value]
        return made if isinstance(value, list) else tuple(made) if type(value) is tuple else value
    return value


def checked_scores(
    reward: BoundReward,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
) -> list[float | None]:
    """Scores of one reward, before its weight: one finite number or None for each completion.

    The reward is handed lists of its own: what it changes in them, nobody else sees.

    Raises:
        StepError: if the reward fails or gives something else; see :func:`score`.
    """
    where = f"Reward {reward.name}" + (f" ({reward.label})" if reward.label and reward.label != reward.name else "")
    details = {"reward": reward.name}
    own = {name: _own(values) if isinstance(values, list | tuple) else values for name, values in columns.items()}
    try:
        given = reward.reward(_own(list(prompts)), _own(list(completions)), **own)
    except TunekitError:
        raise
    except Exception as problem:
        missing = _missing_column(problem, own)
        if missing is None:
            raise StepError(
                f"{where} failed: {type(problem).__name__}: {problem}",
                code="reward-failed",
                fix="Mend the reward; it is called as reward(prompts, completions, **columns). details['traceback'] "
                "has the traceback.",
                details={**details, "traceback": traceback.format_exc()},
            ) from problem
        raise StepError(
            f"{where} asked for a column that the rows do not have.",
            code="reward-column",
            asked=missing,
            found=", ".join(columns) or "no columns",
            suggestions=nearest(missing, columns),
            fix="Put the column into the prompts' rows, or name the right one in the options of the reward.",
            details=details,
        ) from problem
    # Arrays and tensors of one dimension are taken as lists of numbers.
    if hasattr(given, "tolist"):
        given = given.tolist()
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise StepError(
            f"{where} gave no list of scores.",
            code="reward-scores",
            asked=f"a list of {len(completions)} numbers",
            found=type(given).__name__,
            fix="Give one number for each completion, or None where there is nothing to say.",
            details=details,
        )
    if len(given) != len(completions):
        raise StepError(
            f"{where} gave {len(given)} scores for {len(completions)} completions.",
            code="reward-scores",
            fix="Give one number for each completion, or None where there is nothing to say.",
            details=details,
        )
    return [_number(value, where, completion, details) for value, completion in zip(given, completions, strict=True)]


def _missing_column(problem: Exception, columns: Mapping[str, Sequence[Any]]) -> str | None:
    """The column that a reward looked up and that is not there; None: it failed for another reason.

    Python makes a new dict of ``**columns``, so that the lookup itself cannot tell; the frame where it failed does.
    """
    name = problem.args[0] if isinstance(problem, KeyError) and problem.args else None
    if not isinstance(name, str) or name in columns:
        return None
    if isinstance(problem, MissingColumnError):
        return name
    last = problem.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return None
    held = _looked_into(last.tb_frame, last.tb_lasti)
    if not isinstance(held, dict) or (columns and not held):
        return None
    return name if all(key in columns and held[key] is columns[key] for key in held) else None


def _looked_into(frame: types.FrameType, offset: int) -> Any:
    """The value of ``x`` where ``x[...]``, ``x.pop(...)`` or the like failed in a frame; None: it was something else.

    Args:
        frame: where it failed.
        offset: of the instruction that failed, in bytes.
    """
    instructions = [one for one in dis.get_instructions(frame.f_code) if one.positions is not None]
    failed = next((one for one in instructions if one.offset == offset), None)
    if failed is None or failed.positions is None or failed.positions.col_offset is None:
        return None
    start, end = failed.positions[0::2], failed.positions[1::2]
    begun = [one for one in instructions if one.positions is not None and one.positions[0::2] == start]
    # Of `x["a"]["b"]` only the inner lookup is one in x.
    if any(one.positions[1::2] < end for one in begun if one.positions and not one.opname.startswith("LOAD_")):
        return None
    name = next((one.argval for one in begun if one.opname.startswith(_LOADS)), None)
    return frame.f_locals.get(name) if isinstance(name, str) else None


def _number(value: Any, where: str, completion: Any, details: dict[str, Any]) -> float | None:
    if value is None:
        return None
    if hasattr(value, "item"):
        with contextlib.suppress(ValueError, RuntimeError):
            value = value.item()
    if not isinstance(value, Real):
        raise StepError(
            f"{where} gave something that is no number.",
            code="reward-scores",
            asked="a number or None",
            found=f"{type(value).__name__} for {_short(completion)}",
            fix="Give one number for each completion, or None where there is nothing to say.",
            details=details,
        )
    try:
        number = float(value)
    except OverflowError:  # a whole number or fraction beyond what a float can hold
        number = math.inf
    if not math.isfinite(number):
        raise StepError(
            f"{where} gave a score that is not finite.",
            code="reward-not-finite",
            asked="a finite number or None",
            found=f"{number} for {_short(completion)}",
            fix="Give None where there is nothing to say, and a finite number otherwise.",
            details=details,
        )
    return number


def _short(completion: Any) -> str:
    text = completion if isinstance(completion, str) else str(completion)
    return repr(text[:_SHOWN] + ("..." if len(text) > _SHOWN else ""))
