"""Options of the trainers that learn from completions they write themselves. Pydantic, torch-free."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tunekit.plugins import SampleOptions, ValidatedOptions

__all__ = ["GrpoOptions", "OnlineDpoOptions", "OnlineOptions", "RlooOptions"]

LEARNING_RATE = {"full": 1e-6, "adapter": 1e-5}
"""As TRL's GRPOConfig for all weights; adapters take about ten times as much (Schulman et al. 2025, "LoRA without
regret")."""

CLIPPED = ("grpo", "dapo", "dr_grpo", "luspo")


class OnlineOptions(ValidatedOptions, SampleOptions):
    """What all of them share: how completions are written.

    ``batch_size`` counts prompts; each is completed ``num_generations`` times, so that a group of completions is never
    split. The learning rate is 1e-6 for full training and 1e-5 through an adapter unless given. Dropout is off.
    """

    reward: Any = None
    """What scores completions: name of a ``reward`` step or of a reward (``"exact-match"``), a function
    ``(prompts, completions, **columns) -> scores``, ``{"name": ..., "weight": ..., <options>}``, a list of these, or a
    mapping of names to weights. None: the model of the nearest ``reward`` step before this one."""
    batch_size: int = Field(default=8, ge=1, json_schema_extra={"unit": "prompts"})
    """Prompts per device and micro-batch; each has ``num_generations`` completions."""
    num_generations: int = Field(default=8, ge=2, json_schema_extra={"unit": "completions"})
    """Completions of each prompt, compared with one another."""
    max_new_tokens: int = Field(default=256, ge=1, json_schema_extra={"unit": "tokens"})
    """Longest completion."""
    max_length: int = Field(default=1024, ge=8, json_schema_extra={"unit": "tokens"})
    """Longest prompt with its completion. A prompt that leaves less than ``max_new_tokens`` is an error, or left out
    with ``on_bad_row="skip"``: a question is never cut."""
    temperature: float = Field(default=1.0, gt=0)
    """What logits are divided by when completions are drawn, and when their probabilities are computed."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw among the likeliest tokens that together have this probability. Below 1 the loss takes probabilities over
    all tokens all the same, as TRL does."""
    top_k: int = Field(default=0, ge=0)
    """Draw among this many likeliest tokens; 0: all. As with ``top_p`` for the loss."""
    missing_eos_penalty: float | None = Field(default=None, gt=0)
    """Taken off the reward of a completion that the length limit ended. None: nothing."""

    def resolve(self, *, adapter: str | None) -> Self:
        """Fill in the learning rate."""
        if self.learning_rate is not None:
            return self
        return self.model_copy(update={"learning_rate": LEARNING_RATE["adapter" if adapter else "full"]})

    @model_validator(mode="after")
    def _prompts_have_room(self) -> Self:
        if self.max_new_tokens >= self.max_length:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} leaves no room for a prompt in max_length={self.max_length}"
            )
        return self

    def _without_effect(self, names: tuple[str, ...], because: str) -> None:
        fields = type(self).model_fields
        asked = [name for name in names if getattr(self, name) != fields[name].default]
        if asked:
            raise ValueError(f"{' and '.join(asked)} {'has' if len(asked) == 1 else 'have'} no effect {because}")


class _Clipping(OnlineOptions):
    num_iterations: int = Field(default=1, ge=1, json_schema_extra={"unit": "updates"})
    """Updates from the same completions. With 1 the policy is the one that wrote them at every update: the ratio of
    probabilities is 1 and nothing is ever clipped."""
    epsilon: float = Field(default=0.2, gt=0, lt=1)
    """How far the ratio of probabilities may fall below 1 before it is clipped, and rise above it unless
    ``epsilon_high`` is given. For ``num_iterations`` above 1."""
    epsilon_high: float | None = Field(default=None, gt=0)
    """How far the ratio may rise above 1; None: ``epsilon``. DAPO takes 0.28 ("clip higher")."""


class GrpoOptions(_Clipping):
    """Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300), and the variants after it.

    The advantage of a completion is its reward less the mean of its group. ``beta`` is the weight of the KL divergence
    from the model the step starts from, estimated per token and added to the loss; 0, the default as in TRL, needs no
    reference. A loss near 0 is normal: at the first update from some completions the advantages of a group cancel out;
    watch ``reward``.
    """

    loss_type: Literal["dapo", "grpo", "dr_grpo", "cispo", "sapo", "luspo"] = "dapo"
    """``dapo``: mean over the tokens of the optimizer step (arXiv:2503.14476). ``grpo``: mean over completions of their
    means over tokens, as the paper has it, which makes the tokens of long completions count less. ``dr_grpo``: sum
    over the tokens divided by ``max_new_tokens`` times the completions (arXiv:2503.20783). ``cispo``: clipped weights
    on log-probabilities (arXiv:2506.13585); ``epsilon_high`` is the largest weight there. ``sapo``: a soft gate in
    place of clipping (arXiv:2511.20347). ``luspo``: sums over the tokens of a completion (arXiv:2602.05261), with
    ``importance_sampling_level="sequence"``. What TRL calls ``bnpo`` is ``dapo`` here: batches do not depend on
    ``gradient_accumulation``."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """``sequence``: one ratio for a completion, the geometric mean over its tokens (GSPO, arXiv:2507.18071)."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence from the reference."""
    use_bias_correction_kl: bool = True
    """Multiply the KL estimate by the ratio of probabilities, so that its gradient is that of the KL divergence also
    where nothing was updated yet (DeepSeek-V3.2, arXiv:2512.02556). False: as in the first paper."""
    delta: float | None = Field(default=None, gt=1)
    """Upper limit of the ratio where the advantage is negative (two-sided clipping, arXiv:2505.07291). None: none."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What advantages are divided by: the standard deviation of the group, of all completions of the optimizer step
    (arXiv:2508.08221), or nothing (arXiv:2503.20783: the division favours questions that are too easy or too hard)."""
    mask_truncated_completions: bool = False
    """Leave completions that the length limit ended out of the loss (DAPO, overlong filtering)."""
    sapo_temperature_pos: float = Field(default=1.0, gt=0)
    """``sapo``: steepness of the gate for positive advantages."""
    sapo_temperature_neg: float = Field(default=1.05, gt=0)
    """``sapo``: steepness of the gate for negative advantages."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.beta == 0:
            self._without_effect(("use_bias_correction_kl",), "with beta=0")
        if self.loss_type != "sapo":
            self._without_effect(("sapo_temperature_pos", "sapo_temperature_neg"), f"with loss_type={self.loss_type!r}")
        if self.loss_type not in CLIPPED:
            self._without_effect(("delta",), f"with loss_type={self.loss_type!r}")
        if self.loss_type == "sapo":
            self._without_effect(("epsilon", "epsilon_high"), "with loss_type='sapo', which does not clip")
        if self.loss_type == "cispo":
            self._without_effect(("epsilon",), "with loss_type='cispo', which limits from above by epsilon_high")
            if self.epsilon_high is None:
                raise ValueError("loss_type='cispo' needs epsilon_high, the largest weight of a token; 5.0 is usual")
        elif self.num_iterations == 1:
            self._without_effect(
                ("epsilon", "epsilon_high", "delta"),
                "with num_iterations=1: the ratio of probabilities is always 1, and nothing is clipped",
            )
        if self.loss_type == "luspo" and self.importance_sampling_level != "sequence":
            raise ValueError("loss_type='luspo' is meant for importance_sampling_level='sequence'")
        if self.importance_sampling_level == "sequence" and self.loss_type in ("dapo", "dr_grpo", "cispo"):
            raise ValueError(
                f"importance_sampling_level='sequence' with loss_type={self.loss_type!r} would weigh completions by "
                "their length; take loss_type='grpo' (GSPO) or 'luspo'"
            )
        return self


class RlooOptions(_Clipping):
    """REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, arXiv:2402.14740).

    The advantage of a completion is its reward less the mean reward of the other completions of its prompt; a
    completion is one action. ``beta`` is the weight of the KL divergence from the model the step starts from, taken off
    the reward: the sum over tokens of the difference of log-probabilities.
    """

    num_generations: int = Field(default=4, ge=2, json_schema_extra={"unit": "completions"})
    """Completions of each prompt; the paper takes 2 and 4."""
    beta: float = Field(default=0.05, ge=0)
    """Weight of the KL divergence from the reference, in the reward."""
    normalize_advantages: bool = False
    """Shift and scale the advantages of an optimizer step to mean 0 and standard deviation 1."""
    reward_clip_range: Any = None
    """``(low, high)``: limits of the reward, before the KL divergence is taken off. None: none."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.num_iterations == 1:
            self._without_effect(
                ("epsilon", "epsilon_high"),
                "with num_iterations=1: the ratio of probabilities is always 1, and nothing is clipped",
            )
        limits = self.reward_clip_range
        if limits is not None:
            numbers = isinstance(limits, list | tuple) and all(
                isinstance(part, int | float) and not isinstance(part, bool) for part in limits
            )
            if not numbers or len(limits) != 2 or not limits[0] < limits[1]:
                raise ValueError(f"reward_clip_range takes (low, high) with low below high, not {limits!r}")
        return self


class OnlineDpoOptions(OnlineOptions):
    """Online direct preference optimisation (Guo et al. 2024, arXiv:2402.04792).

    Of the completions of a prompt the one with the highest reward is taken as chosen, the one with the lowest as
    rejected; where all rewards are equal there is nothing to learn. ``beta`` is as in ``dpo``: the implicit reward is
    ``beta * log(policy / reference)``, with the model the step starts from as reference; in ``ipo`` it is tau.
    """

    batch_size: int = Field(default=8, ge=1, json_schema_extra={"unit": "prompts"})
    """Prompts per device and micro-batch; each gives one pair."""
    num_generations: int = Field(default=2, ge=2, json_schema_extra={"unit": "completions"})
    """Completions of each prompt, of which the best and the worst form a pair."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference."""
    loss_type: Literal["sigmoid", "ipo"] = "sigmoid"
    """``sigmoid``: DPO. ``ipo``: arXiv:2310.12036, on log-ratios averaged over the tokens, as in ``dpo``."""
