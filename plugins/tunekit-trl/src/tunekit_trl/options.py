"""Options of the trainers. Pydantic, torch-free."""

from __future__ import annotations

from typing import Literal, Self, TypeVar

from pydantic import Field, model_validator

from tunekit.plugins import SupervisedOptions, TrainOptions

__all__ = ["DpoOptions", "SftOptions"]

_T = TypeVar("_T", bound=TrainOptions)

SFT_LEARNING_RATE = {"full": 2e-5, "adapter": 2e-4}
DPO_LEARNING_RATE = {"full": 1e-6, "adapter": 5e-6}

SMOOTHED_LOSSES = ("robust", "exo_pair")


class SftOptions(SupervisedOptions):
    """Supervised fine-tuning: cross-entropy on the target tokens, averaged over all of an optimizer step.

    The learning rate is 2e-5 for full training and 2e-4 through an adapter unless given.
    """

    epochs: float = Field(default=3.0, gt=0, json_schema_extra={"unit": "passes"})
    """Passes over the data; ``max_steps`` wins. Three, as in TRL and transformers."""
    train_on: Literal["completion", "all-assistant", "last", "all"] | None = None
    """Which tokens are targets. Prompt with completion: ``completion`` (default) or ``all``. Conversation:
    ``all-assistant`` (every assistant turn, default), ``last`` (the last one) or ``all``. Text: ``all``. The token that
    ends a turn belongs to the turn."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each target that is spread evenly over the vocabulary (arXiv:1512.00567). Not in the validation loss."""
    neftune_alpha: float | None = Field(default=None, gt=0)
    """Noise on the embeddings while training, within alpha / sqrt(tokens of the example * hidden size) (NEFTune,
    arXiv:2310.05914); 5 is usual."""

    def resolve(self, *, adapter: str | None) -> Self:
        """Fill in the learning rate."""
        return _with_rate(self, SFT_LEARNING_RATE, adapter)


class DpoOptions(TrainOptions):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290).

    The reference is the model the step starts from; its log-probabilities are computed once, before training. The
    learning rate is 1e-6 for full training and 5e-6 through an adapter unless given. Dropout is off throughout, as in
    the reference implementation.
    """

    batch_size: int = Field(default=2, ge=1, json_schema_extra={"unit": "pairs"})
    """Pairs per device and micro-batch; a pair is two sequences. With neither this nor ``gradient_accumulation`` given,
    an optimizer step takes 4 micro-batches: 8 pairs, in a quarter of the memory."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference: the reward is ``beta * log(policy / reference)``. In ``ipo`` it
    is the paper's tau."""
    loss_type: Literal["sigmoid", "hinge", "ipo", "robust", "exo_pair", "apo_zero", "apo_down"] = "sigmoid"
    """``sigmoid``: DPO. ``hinge``: SLiC (arXiv:2305.10425). ``ipo``: arXiv:2310.12036, on log-ratios averaged over
    the tokens. ``robust``: arXiv:2403.00409. ``exo_pair``: arXiv:2402.00856. ``apo_zero`` and ``apo_down``:
    arXiv:2408.06266."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs that are taken to be labelled the wrong way round. ``robust`` and ``exo_pair`` only."""

    @model_validator(mode="after")
    def _smoothing_fits_the_loss(self) -> Self:
        smoothed = self.loss_type in SMOOTHED_LOSSES
        if self.label_smoothing > 0 and not smoothed:
            raise ValueError(
                f"label_smoothing has no effect with loss_type={self.loss_type!r}; "
                f"it belongs to {' and '.join(SMOOTHED_LOSSES)}"
            )
        if self.loss_type == "exo_pair" and self.label_smoothing == 0:
            raise ValueError("loss_type='exo_pair' needs label_smoothing above 0; the paper uses 1e-3")
        return self

    def resolve(self, *, adapter: str | None) -> Self:
        """Fill in the learning rate, and the micro-batches of an optimizer step."""
        made = _with_rate(self, DPO_LEARNING_RATE, adapter)
        if self.model_fields_set & {"batch_size", "gradient_accumulation"}:
            return made
        return made.model_copy(update={"batch_size": 2, "gradient_accumulation": 4})


def _with_rate(options: _T, rates: dict[str, float], adapter: str | None) -> _T:
    if options.learning_rate is not None:
        return options
    return options.model_copy(update={"learning_rate": rates["adapter" if adapter else "full"]})
