"""Options of preference optimisation in rounds. Pydantic, torch-free."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tunekit_trl.options import DpoOptions

__all__ = ["IterativeDpoOptions"]


class IterativeDpoOptions(DpoOptions):
    """Direct preference optimisation in rounds (Xu et al. 2023, arXiv:2312.16682; Yuan et al. 2024, arXiv:2401.10020).

    In each round the model completes every prompt ``num_generations`` times, rewards score what it wrote, the best and
    the worst completion of a prompt become a pair, and ``dpo`` learns from the pairs. Then the model is compared with
    that of the round before on held-out prompts, and kept or rolled back. ``beta`` and the losses are those of ``dpo``.
    The learning rate is 1e-6 for full training and 5e-6 through an adapter unless given; each round begins with a
    schedule and an optimizer of its own. Dropout is off throughout.
    """

    rounds: int = Field(default=3, ge=1, json_schema_extra={"unit": "rounds"})
    """How often to generate, score, update and compare."""
    reward: Any = None
    """What scores completions: name of a ``reward`` step or of a reward (``"exact-match"``), a function
    ``(prompts, completions, **columns) -> scores``, ``{"name": ..., "weight": ..., <options>}``, a list of these, or a
    mapping of names to weights. None: the model of the nearest ``reward`` step before this one."""
    epochs: float = Field(default=1.0, gt=0, json_schema_extra={"unit": "passes"})
    """Passes over the pairs of each round; ``max_steps`` wins."""
    max_steps: int | None = Field(default=None, ge=1, json_schema_extra={"unit": "optimizer steps"})
    """Optimizer steps of each round."""
    num_generations: int = Field(default=4, ge=2, json_schema_extra={"unit": "completions"})
    """Completions of each prompt in a round, of which the best and the worst form a pair. Where all rewards are equal
    there is no pair; such prompts are counted."""
    max_new_tokens: int = Field(default=256, ge=1, json_schema_extra={"unit": "tokens"})
    """Longest completion."""
    max_length: int = Field(default=1024, ge=8, json_schema_extra={"unit": "tokens"})
    """Longest prompt with its completion. A prompt that leaves less than ``max_new_tokens`` is an error, or left out
    with ``on_bad_row="skip"``: a question is never cut."""
    temperature: float = Field(default=1.0, gt=0)
    """What logits are divided by when completions are drawn. Held-out prompts are completed at 1."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw among the likeliest tokens that together have this probability."""
    top_k: int = Field(default=0, ge=0)
    """Draw among this many likeliest tokens; 0: all."""
    reference: Literal["round", "start"] = "round"
    """What the policy is held to: ``round``, the model at the start of the round, so that it may go further with each;
    ``start``, the model that the step starts from, in all rounds."""
    offset: float = Field(default=0.0, ge=0)
    """Factor of the difference of the rewards of a pair: how far the chosen implicit reward must be above the rejected
    one (ODPO, arXiv:2402.10571). ``sigmoid`` only."""
    validation: Any = 0.1
    """Held-out prompts, which each round is judged on: a share of the rows below 1, a number of rows from 1, or data of
    its own (path, rows, object)."""
    eval_prompts: int = Field(default=256, ge=1, json_schema_extra={"unit": "prompts"})
    """Most held-out prompts that each round is judged on, spread evenly."""
    keep_at: float = Field(default=0.5, ge=0, le=1)
    """Lowest win rate against the round before that is kept; a tie is half a win. 0: every round is kept."""

    @field_validator("validation")
    @classmethod
    def _something_is_held_out(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("is None, and rounds are judged on held-out prompts; it takes a share, a number, or data")
        return value

    @model_validator(mode="after")
    def _rounds_are_the_measurements(self) -> Self:
        asked = [name for name in ("validate_every", "keep_best", "early_stopping") if getattr(self, name)]
        if asked:
            raise ValueError(
                f"{' and '.join(asked)} {'has' if len(asked) == 1 else 'have'} no effect: rounds are measured at their "
                "end, and kept by keep_at"
            )
        if self.max_new_tokens >= self.max_length:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} leaves no room for a prompt in max_length={self.max_length}"
            )
        return self
