"""Options of PPO. Pydantic, torch-free."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tunekit.plugins import SampleOptions, ValidatedOptions

__all__ = ["PpoOptions"]

LEARNING_RATE = {"full": 3e-6, "adapter": 3e-5}


class PpoOptions(ValidatedOptions, SampleOptions):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) of a language model, as in Ziegler et al.
    2019 (arXiv:1909.08593) and Huang et al. 2024 (arXiv:2403.17031).

    The reward of a completion is its score, less ``kl_coef`` times the log-ratio to the model that the step starts from
    for each token. A rollout of ``rollout_size`` completions is written and scored, then learned from ``ppo_epochs``
    times in optimizer steps of ``batch_size * gradient_accumulation`` completions. ``epochs`` are passes over the
    prompts; ``max_steps`` counts optimizer steps. The learning rate is 3e-6 for full training and 3e-5 through an
    adapter unless given. Dropout is off throughout.

    With ``rounds`` the optimizer steps are shared out to rounds of whole rollouts. After each, the model is compared
    with that of the round before on held-out prompts, and kept or rolled back, with its value head, the coefficient of
    the penalty, and the running scale. Each round begins with a schedule and an optimizer of its own.
    """

    reward: Any = None
    """What scores completions: name of a ``reward`` step or of a reward component, a function
    ``(prompts, completions, **columns) -> list of numbers``, a record such as ``{"name": ..., "weight": ...}``, a list
    of these, or a mapping of names to weights. None: the model of the nearest ``reward`` step before this one."""

    # How completions are written.
    rollout_size: int = Field(default=64, ge=1, json_schema_extra={"unit": "completions"})
    """Completions that are written and scored before the model learns from them; a multiple of an optimizer step's, and
    of ``num_generations``. Unless given: the next such number from 64."""
    num_generations: int = Field(default=1, ge=1, json_schema_extra={"unit": "completions"})
    """Completions of each prompt in a rollout; they share the computation of their prompt."""
    max_new_tokens: int = Field(default=64, ge=1, json_schema_extra={"unit": "tokens"})
    """Longest completion. A prompt that leaves no room for it within ``max_length`` is an error."""
    temperature: float = Field(default=1.0, gt=0)
    """What logits are divided by, in writing and in learning alike. The paper uses 0.7."""
    batch_size: int = Field(default=8, ge=1, json_schema_extra={"unit": "completions"})
    """Completions per micro-batch."""
    gradient_accumulation: int = Field(default=2, ge=1, json_schema_extra={"unit": "micro-batches"})
    """Micro-batches per optimizer step; losses are averaged over the completion tokens of all of them."""
    ppo_epochs: int = Field(default=4, ge=1, json_schema_extra={"unit": "passes"})
    """Passes over each rollout."""

    # What a completion is worth.
    kl_coef: float = Field(default=0.05, ge=0)
    """The paper's beta: weight of the log-ratio to the reference, in nats, in the reward of each token."""
    kl_target: float | None = Field(default=None, gt=0, json_schema_extra={"unit": "nats per completion"})
    """Let the coefficient follow this KL divergence (adaptive controller, arXiv:1909.08593, 2.2). None: it is fixed."""
    kl_horizon: int = Field(default=10_000, ge=1, json_schema_extra={"unit": "completions"})
    """``kl_target`` only: completions over which the coefficient may change by about a fifth."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """Estimate of the KL divergence in the reward of a token: ``k1`` is the log-ratio r; ``k3`` is exp(-r) - 1 + r,
    never negative and less noisy (Schulman 2020, "Approximating KL divergence")."""
    eos_penalty: float | None = Field(default=None, gt=0)
    """Subtracted from the score of a completion that did not end by itself."""
    unfinished_score: float | None = None
    """Score of a completion that did not end by itself, in place of its own; the paper's "EOS trick" is -1."""
    scale_scores: bool = False
    """Subtract the running mean of all scores and divide by their running standard deviation."""
    clip_scores: float | None = Field(default=None, gt=0)
    """Clip scores to within this, after scaling."""
    whiten_rewards: bool = False
    """Divide the rewards of the tokens of a rollout by their standard deviation; their mean stays."""

    # How the model learns.
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount from a token to the next."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation (arXiv:1506.02438)."""
    whiten_advantages: bool = True
    """Shift and scale the advantages of a rollout's tokens to mean 0 and standard deviation 1."""
    clip_range: float = Field(default=0.2, gt=0)
    """The policy's ratio is clipped to within 1 - and 1 + this."""
    clip_range_value: float | None = Field(default=0.2, gt=0)
    """A new value counts at most this far from the one of the rollout, where that makes the loss larger. None: no
    clipping."""
    value_coef: float = Field(default=0.1, ge=0)
    """Weight of the value loss."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus, in nats per token."""
    critic: Literal["shared", "separate"] = "shared"
    """``shared``: a linear head on the policy's last hidden states. ``separate``: a model of its own, trained as the
    policy is, as in the paper; it takes as much memory again."""
    critic_init: str | None = None
    """Model that a separate critic starts from: ``step:reward`` or a path. None: the step's input model."""
    value_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the value head. None: that of the policy."""
    adam_epsilon: float = Field(default=1e-5, gt=0)
    """Epsilon of Adam; 1e-5 as in the paper, above the 1e-8 of torch, keeps the first updates small."""

    # When to stop.
    update_kl: float | None = Field(default=None, gt=0, json_schema_extra={"unit": "nats per token"})
    """End the passes over a rollout as soon as the model has moved this far from the one that wrote it."""
    stop_kl: float | None = Field(default=None, gt=0, json_schema_extra={"unit": "nats per completion"})
    """End training when the KL divergence to the reference is above this; the model of the last rollout below it is
    handed on. It is measured with every rollout, and once more after the last step."""

    # In rounds.
    rounds: int | None = Field(default=None, ge=1, json_schema_extra={"unit": "rounds"})
    """How often to compare the model with that of the round before, and keep it or roll it back. None: never."""
    validation: Any = None
    """Held-out prompts, which rounds are judged on and samples are drawn for: a share of the rows below 1, a number of
    rows from 1, or data of its own (path, rows, object). With ``rounds``, 0.1 unless given."""
    eval_prompts: int = Field(default=256, ge=1, json_schema_extra={"unit": "prompts"})
    """``rounds`` only: most held-out prompts that each round is judged on, spread evenly."""
    keep_at: float = Field(default=0.5, ge=0, le=1)
    """``rounds`` only: lowest win rate against the round before that is kept; a tie is half a win. 0: every round is
    kept."""

    @model_validator(mode="after")
    def _rounds_are_the_measurements(self) -> Self:
        asked = [name for name in ("validate_every", "keep_best", "early_stopping") if getattr(self, name)]
        if asked:
            raise ValueError(
                f"{' and '.join(asked)} {'has' if len(asked) == 1 else 'have'} no effect: PPO has no validation loss; "
                "rounds compare the model with the one before, and keep_at decides"
            )
        if self.rounds is None:
            fields = type(self).model_fields
            asked = [name for name in ("eval_prompts", "keep_at") if getattr(self, name) != fields[name].default]
            if asked:
                raise ValueError(
                    f"{' and '.join(asked)} {'has' if len(asked) == 1 else 'have'} no effect without rounds"
                )
        elif self.validation is None:
            raise ValueError(
                "validation is None, and rounds are judged on held-out prompts; it takes a share, a number, or data"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _rounds_hold_prompts_out(cls, values: Any) -> Any:
        # Written out, so that the plan says it.
        if not isinstance(values, dict) or values.get("rounds") is None or "validation" in values:
            return values
        return {**values, "validation": 0.1}

    @model_validator(mode="after")
    def _every_option_has_an_effect(self) -> Self:
        minibatch = self.batch_size * self.gradient_accumulation
        if self.rollout_size % minibatch:
            raise ValueError(
                f"rollout_size={self.rollout_size} is no multiple of the {minibatch} completions of an optimizer step "
                f"(batch_size={self.batch_size} times gradient_accumulation={self.gradient_accumulation})"
            )
        if self.rollout_size % self.num_generations:
            raise ValueError(
                f"rollout_size={self.rollout_size} is no multiple of num_generations={self.num_generations}"
            )
        if self.max_new_tokens >= self.max_length:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} leaves no room for a prompt within max_length={self.max_length}"
            )
        if self.kl_target is None and self.kl_horizon != type(self).model_fields["kl_horizon"].default:
            raise ValueError("kl_horizon has no effect without kl_target: the coefficient is fixed")
        if self.kl_target is not None and self.rollout_size >= 5 * self.kl_horizon:
            raise ValueError(
                f"kl_horizon={self.kl_horizon} lets the coefficient change by more than itself within a rollout of "
                f"{self.rollout_size} completions, and become negative; take more than "
                f"{self.rollout_size // 5}, such as the default of {type(self).model_fields['kl_horizon'].default:,}"
            )
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target scales kl_coef, and kl_coef=0 stays 0: give it a start, such as 0.05")
        if self.eos_penalty is not None and self.unfinished_score is not None:
            raise ValueError("eos_penalty and unfinished_score exclude each other: one lowers a score, one replaces it")
        if self.critic_init is not None and self.critic == "shared":
            raise ValueError("critic_init has no effect with critic='shared'; it belongs to 'separate'")
        if self.value_coef == 0 and self.value_learning_rate is not None:
            raise ValueError("value_learning_rate has no effect with value_coef=0: the value head is not trained")
        return self

    @model_validator(mode="before")
    @classmethod
    def _a_rollout_fits_the_batch(cls, values: Any) -> Any:
        # Written out, so that the plan says it.
        if not isinstance(values, dict) or "rollout_size" in values:
            return values
        defaults = {name: cls.model_fields[name].default for name in ("batch_size", "gradient_accumulation")}
        sizes = [values.get(name, default) for name, default in defaults.items()]
        generations = values.get("num_generations", 1)
        if not all(type(size) is int and size >= 1 for size in (*sizes, generations)):
            return values
        whole = math.lcm(sizes[0] * sizes[1], generations)
        size = whole * math.ceil(cls.model_fields["rollout_size"].default / whole)
        return {**values, "rollout_size": size}

    def _validated(self) -> bool:
        # Said by _rounds_are_the_measurements instead.
        return True

    def resolve(self, *, adapter: str | None) -> Self:
        """Fill in the learning rate."""
        if self.learning_rate is not None:
            return self
        return self.model_copy(update={"learning_rate": LEARNING_RATE["adapter" if adapter else "full"]})
