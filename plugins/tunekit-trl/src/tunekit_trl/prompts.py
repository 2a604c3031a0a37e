"""What the methods that learn from prompts share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.errors import StepError
from tunekit.plugins import StepContext

__all__ = ["PromptRow", "check_rewards"]

PromptRow = Mapping[str, Any]
"""``prompt_ids``, ``prompt`` (text or messages), ``columns`` (mapping)."""


def check_rewards(ctx: StepContext) -> None:
    """Raises:
    StepError: if the step has no reward to learn from.
    """
    if not ctx.rewards:
        raise StepError(
            f"The step {ctx.step.name!r} has no reward.",
            code="no-reward",
            fix='name one: reward="exact-match", reward=my_function, or a reward step before this one',
        )
