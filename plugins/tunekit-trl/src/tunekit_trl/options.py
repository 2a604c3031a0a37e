"""Options of the trainers. Pydantic, torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from tunekit.plugins import SampleOptions, SupervisedOptions, TrainOptions, ValidatedOptions

__all__ = ["AlignOptions", "DpoOptions", "SftOptions", "with_rate"]

_T = TypeVar("_T", bound=TrainOptions)

SFT_LEARNING_RATE = {"full": 2e-5, "adapter": 2e-4}
DPO_LEARNING_RATE = {"full": 1e-6, "adapter": 5e-6}

SMOOTHED_LOSSES = ("robust", "exo_pair")
DIVERGENCE_LOSSES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "discopop")

DpoLoss = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "apo_zero",
    "apo_down",
    "sppo_hard",
    "discopop",
    "sft",
]
_SORTED = "it sorts the pairs of a batch, so the loss of a step would depend on how it is cut into batches"
_ELSEWHERE = {
    "simpo": 'it has no reference; align(method="simpo")',
    "orpo": 'it has no reference; align(method="orpo")',
    "cpo": 'it has no reference; align(method="cpo")',
    "kto": 'it takes single answers; align(method="kto")',
    "kto_pair": 'it takes single answers; align(method="kto")',
    "bco": 'it takes single answers; align(method="bco")',
    "aot": _SORTED,
    "aot_pair": _SORTED,
    "aot_unpaired": _SORTED,
}
"""What people ask of dpo that is something else."""


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
        return with_rate(self, SFT_LEARNING_RATE, adapter)


class AlignOptions(ValidatedOptions, SampleOptions):
    """What the methods that learn from given answers share."""

    reward: Any = None
    """What scores the samples of the report before and after, for the win rate; nothing is learned from it. Name of a
    ``reward`` step or of a reward, a function ``(prompts, completions, **columns) -> scores``, a mapping with ``name``
    and the reward's own options, or a list of these. None: the model of the nearest ``reward`` step before this one, if
    there is one."""


class DpoOptions(AlignOptions):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290).

    The reference is the model the step starts from; its log-probabilities are computed once, before training. The
    learning rate is 1e-6 for full training and 5e-6 through an adapter unless given. Dropout is off throughout, as in
    the reference implementation.
    """

    batch_size: int = Field(default=8, ge=1, json_schema_extra={"unit": "pairs"})
    """Pairs per device and micro-batch."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference: the reward is ``beta * log(policy / reference)``. In ``ipo`` it
    is the paper's tau, in ``hinge`` 1 over the margin of the log-ratios, in ``sppo_hard`` 1 over the paper's eta."""
    loss_type: DpoLoss | list[DpoLoss] = "sigmoid"
    """``sigmoid``: DPO. ``sigmoid_norm``: on log-ratios averaged over the tokens (arXiv:2411.15124). ``hinge``: SLiC
    (arXiv:2305.10425). ``ipo``: arXiv:2310.12036, on log-ratios averaged over the tokens. ``robust``: arXiv:2403.00409.
    ``exo_pair``: arXiv:2402.00856. ``nca_pair``: arXiv:2402.05369. ``bco_pair``: arXiv:2404.04656. ``apo_zero`` and
    ``apo_down``: arXiv:2408.06266. ``sppo_hard``: arXiv:2405.00675. ``discopop``: arXiv:2406.08414. A list adds several
    up, also with ``sft``, the mean cross-entropy of a chosen token, as in MPO (arXiv:2411.10442):
    ``["sigmoid", "bco_pair", "sft"]``."""
    loss_weights: list[float] | None = None
    """Factor of each loss in a list. None: 1 each."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs that are taken to be labelled the wrong way round. ``robust`` and ``exo_pair`` only."""
    discopop_tau: float = Field(default=0.05, gt=0)
    """How sharply ``discopop`` goes over from one of its losses to the other."""
    offset: float = Field(default=0.0, ge=0)
    """Factor of the rows' ``margin``: how far the chosen reward must be above the rejected one (ODPO,
    arXiv:2402.10571). ``sigmoid`` only; every row needs a margin then."""
    f_divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    """What holds the policy to the reference (f-DPO, arXiv:2309.16240)."""
    f_alpha: float = Field(default=0.5, gt=0, lt=1)
    """The alpha of ``alpha_divergence``: near 0 as the reverse KL divergence, near 1 as the forward one."""

    @field_validator("loss_type", mode="before")
    @classmethod
    def _known_loss(cls, value: Any) -> Any:
        for name in value if isinstance(value, list | tuple) else [value]:
            if name in _ELSEWHERE:
                raise ValueError(f"{name!r} is no loss of dpo: {_ELSEWHERE[name]}")
        return list(value) if isinstance(value, tuple) else value

    @model_validator(mode="after")
    def _options_fit_the_losses(self) -> Self:
        names = self.loss_type if isinstance(self.loss_type, list) else [self.loss_type]
        _check_list(names, self.loss_weights, isinstance(self.loss_type, list))
        shown = repr(self.loss_type)
        smoothed = any(name in SMOOTHED_LOSSES for name in names)
        if self.label_smoothing > 0 and not smoothed:
            raise ValueError(
                f"label_smoothing has no effect with loss_type={shown}; it belongs to {' and '.join(SMOOTHED_LOSSES)}"
            )
        if "exo_pair" in names and self.label_smoothing == 0:
            raise ValueError("loss_type='exo_pair' needs label_smoothing above 0; the paper uses 1e-3")
        if "discopop" not in names and "discopop_tau" in self.model_fields_set and self.discopop_tau != 0.05:
            raise ValueError(f"discopop_tau has no effect with loss_type={shown}; it belongs to discopop")
        if self.offset > 0 and "sigmoid" not in names:
            raise ValueError(f"offset has no effect with loss_type={shown}; it belongs to sigmoid")
        if self.f_divergence != "reverse_kl":
            other = [name for name in names if name not in DIVERGENCE_LOSSES]
            if other:
                raise ValueError(
                    f"f_divergence has no effect on {' and '.join(other)}; it belongs to {', '.join(DIVERGENCE_LOSSES)}"
                )
        if self.f_divergence != "alpha_divergence" and self.f_alpha != 0.5:
            raise ValueError(f"f_alpha has no effect with f_divergence={self.f_divergence!r}")
        return self

    def losses(self) -> dict[str, float]:
        """Loss to weight."""
        if not isinstance(self.loss_type, list):
            return {self.loss_type: 1.0}
        return dict(zip(self.loss_type, self.loss_weights or [1.0] * len(self.loss_type), strict=True))

    def resolve(self, *, adapter: str | None) -> Self:
        """Fill in the learning rate."""
        return with_rate(self, DPO_LEARNING_RATE, adapter)


def _check_list(names: list[Any], weights: list[float] | None, several: bool) -> None:
    if not names:
        raise ValueError("loss_type=[] names no loss")
    if len(set(names)) != len(names):
        raise ValueError("loss_type names a loss twice; loss_weights gives it more weight")
    if names == ["sft"]:
        raise ValueError("loss_type='sft' alone learns from the chosen answers only; that is sft(...)")
    if weights is None:
        return
    if not several:
        raise ValueError("loss_weights has no effect with one loss; loss_type takes a list")
    if len(weights) != len(names):
        raise ValueError(f"loss_weights has {len(weights)} numbers for {len(names)} losses")
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError("loss_weights are numbers above 0")


def with_rate(options: _T, rates: Mapping[str, float], adapter: str | None) -> _T:
    """The options with the learning rate for full or adapter training, if none is given."""
    if options.learning_rate is not None:
        return options
    return options.model_copy(update={"learning_rate": rates["adapter" if adapter else "full"]})
