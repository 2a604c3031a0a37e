"""Options of the trainers on pairs that need no reference. Pydantic, torch-free."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tunekit_trl.options import AlignOptions, with_rate

__all__ = ["CpoOptions", "OrpoOptions", "SimpoOptions"]

_RATE = {"full": 1e-6, "adapter": 5e-6}
_ORPO_RATE = {"full": 8e-6, "adapter": 5e-5}


class _PairOptions(AlignOptions):
    batch_size: int = Field(default=8, ge=1, json_schema_extra={"unit": "pairs"})
    """Pairs per device and micro-batch."""

    def resolve(self, *, adapter: str | None) -> Self:
        """Fill in the learning rate."""
        return with_rate(self, _RATE, adapter)


class CpoOptions(_PairOptions):
    """Contrastive preference optimisation (Xu et al. 2024, arXiv:2401.08417): DPO with a uniform reference, plus the
    cross-entropy of the chosen answers.

    There is no reference model. The learning rate is 1e-6 for full training and 5e-6 through an adapter unless given.
    """

    beta: float = Field(default=0.1, gt=0)
    """The reward is ``beta * log(policy)``, summed over the tokens. In ``ipo`` it is that paper's tau, on means over
    the tokens; in ``hinge`` 1 over the margin of the log-probabilities."""
    loss_type: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """``sigmoid``: CPO. ``hinge``: SLiC (arXiv:2305.10425). ``ipo``: arXiv:2310.12036."""
    nll_weight: float = Field(default=1.0, ge=0)
    """Weight of the mean cross-entropy of a chosen token, the paper's behaviour cloning."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs that are taken to be labelled the wrong way round. ``sigmoid`` only."""

    @model_validator(mode="after")
    def _smoothing_fits_the_loss(self) -> Self:
        if self.label_smoothing > 0 and self.loss_type != "sigmoid":
            raise ValueError(f"label_smoothing has no effect with loss_type={self.loss_type!r}; it belongs to sigmoid")
        return self


class SimpoOptions(_PairOptions):
    """Simple preference optimisation (Meng et al. 2024, arXiv:2405.14734): the reward is the mean log-probability of a
    token, and the chosen one must be above the rejected one by a margin.

    There is no reference model. The learning rate is 1e-6 for full training and 5e-6 through an adapter unless given.
    """

    beta: float = Field(default=2.0, gt=0)
    """Factor of the mean log-probability of a token in the reward; the paper uses 2 to 10. It is not DPO's beta:
    nothing holds the policy to a reference."""
    gamma: float = Field(default=0.5, ge=0)
    """Target margin of the rewards. The paper uses 0.3 to 1.6, in its code as ``gamma / beta``."""
    nll_weight: float = Field(default=0.0, ge=0)
    """Weight of the mean cross-entropy of a chosen token (CPO-SimPO)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs that are taken to be labelled the wrong way round."""
    alpha: float = 0.0
    """Shape of the reward: ``beta * (1 - p ** -alpha) / alpha`` with p the geometric mean of the probabilities of the
    tokens (AlphaPO, Gupta et al. 2025, arXiv:2501.03884). 0: SimPO's own, ``beta * log(p)``."""


class OrpoOptions(_PairOptions):
    """Odds ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691): supervised fine-tuning on the chosen
    answers that also raises their odds over the rejected ones'.

    There is no reference model, and no sft step is needed before. The learning rate is 8e-6 for full training, as in
    the paper, and 5e-5 through an adapter unless given.
    """

    beta: float = Field(default=0.1, gt=0)
    """Weight of the odds ratio, the paper's lambda."""
    nll_on: Literal["all", "completion"] = "all"
    """Which tokens of the chosen side the cross-entropy is a mean over: ``all``, prompt and answer, as in the authors'
    code and in TRL; ``completion``, as in the paper's formula, which also spares computing prompts twice."""

    def resolve(self, *, adapter: str | None) -> Self:
        """Fill in the learning rate."""
        return with_rate(self, _ORPO_RATE, adapter)
