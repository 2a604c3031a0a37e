"""How many optimizer steps a training has, and which of them belong to which round. Imports no torch."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

from tunekit.errors import OptionsError

__all__ = ["Share", "planned_steps", "shares_of", "updates_of"]


class Share(NamedTuple):
    """A part of a step's training: whole rollouts."""

    begin: int
    """Rollouts before it."""
    steps: int
    """Its optimizer steps."""


def planned_steps(options: Any, prompts: int) -> int:
    """Optimizer steps of a step with this many prompts."""
    if options.max_steps is not None:
        return int(options.max_steps)
    completions = options.epochs * prompts * options.num_generations
    return int(max(1, math.ceil(completions / options.rollout_size - 1e-9)) * updates_of(options))


def updates_of(options: Any) -> int:
    """Optimizer steps of a rollout."""
    return int(options.ppo_epochs * (options.rollout_size // (options.batch_size * options.gradient_accumulation)))


def shares_of(options: Any, prompts: int) -> list[Share]:
    """The rollouts of a step, dealt out to its rounds as evenly as whole rollouts can be.

    Raises:
        OptionsError: code ``empty-round``, if there are fewer rollouts than rounds.
    """
    steps, each, rounds = planned_steps(options, prompts), updates_of(options), options.rounds
    rollouts = math.ceil(steps / each)
    if rollouts < rounds:
        raise OptionsError(
            f"{rounds} rounds share {rollouts} rollout{'s' if rollouts > 1 else ''}, and each needs one at least.",
            code="empty-round",
            asked=f"rounds={rounds}",
            found=f"{steps} optimizer steps in all, {each} in a rollout of {options.rollout_size} completions",
            fix=f"raise max_steps to {rounds * each} or more, or epochs; or lower rollout_size or rounds",
        )
    ends = [number * rollouts // rounds for number in range(rounds + 1)]
    return [Share(begin, min(end * each, steps) - begin * each) for begin, end in itertools.pairwise(ends)]
