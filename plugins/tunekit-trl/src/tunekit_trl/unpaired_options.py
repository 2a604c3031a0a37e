"""Options of the methods that learn from single answers, each judged good or bad. Pydantic, torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tunekit.errors import DataError
from tunekit_trl.options import AlignOptions, with_rate

__all__ = ["BcoOptions", "KtoOptions", "UnpairedOptions", "one_prompt", "one_sided"]

LEARNING_RATE = {"full": 1e-6, "adapter": 5e-6}


def one_sided(good: int, bad: int) -> DataError:
    """What is said where all answers are good, or all are bad."""
    kind = "good" if good else "bad"
    return DataError(
        f"All {good + bad:,} answers are judged {kind}; nothing can be learned from a difference between good and bad "
        "ones.",
        code="one-sided-feedback",
        found=f"labels that are all {str(kind == 'good').lower()}",
        fix="sft(data=...) learns from good answers alone" if kind == "good" else "add answers that are judged good",
        details={"good": good, "bad": bad},
    )


def one_prompt(rows: int) -> DataError:
    """What is said where kto has no answers to other prompts."""
    return DataError(
        "All rows have the same prompt; kto compares with answers to other prompts.",
        code="one-prompt",
        found=f"{rows:,} answers to one prompt",
        fix='align(method="bco"), or loss_type="apo_zero_unpaired"',
    )


class UnpairedOptions(AlignOptions):
    """What ``kto`` and ``bco`` share."""

    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference: the reward is ``beta * log(policy / reference)``."""

    def resolve(self, *, adapter: str | None) -> Self:
        """Fill in the learning rate."""
        return with_rate(self, LEARNING_RATE, adapter)

    def check_rows(self, schema: str, rows: Sequence[Mapping[str, Any]], whole: bool) -> None:
        """Raises:
        DataError: if all answers are good, or all are bad.
        """
        good = sum(row.get("label") is True for row in rows)
        if schema == "feedback" and whole and good in (0, len(rows)):
            raise one_sided(good, len(rows) - good)


class KtoOptions(UnpairedOptions):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306).

    An answer gains by being likelier than under the reference, relative to how far the policy has moved on the whole:
    a divergence that is estimated on prompts with the answers to other prompts, over all rows of an optimizer step.
    The reference is the model the step starts from; its log-probabilities are computed once, before training. The
    learning rate is 1e-6 for full training and 5e-6 through an adapter unless given. Dropout is off throughout.
    """

    beta: float = Field(default=0.1, gt=0)
    """How fast the value of an answer saturates, and so how strongly the policy is held to the reference: the paper's
    beta, which the reward ``log(policy / reference)`` and the divergence are multiplied by in the value function."""
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    """``kto``: eq. 7 of the paper. ``apo_zero_unpaired``: anchored at the reference itself, without an estimate of the
    divergence (arXiv:2408.06266, eq. 7, on unpaired answers): for good answers that are better than the model's own."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """Weight of the loss of good answers: the paper's lambda_D."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """Weight of the loss of bad answers: the paper's lambda_U. With ``n`` answers of each kind the paper wants
    ``desirable_weight * n_good / (undesirable_weight * n_bad)`` between 1 and 4/3."""

    @model_validator(mode="after")
    def _others_to_compare_with(self) -> Self:
        if self.loss_type == "kto" and self.batch_size * self.gradient_accumulation < 2:
            raise ValueError(
                "kto estimates a divergence on prompts with the answers to other prompts of the optimizer step: "
                "batch_size * gradient_accumulation is at least 2 (loss_type='apo_zero_unpaired' has no such term)"
            )
        return self

    def check_rows(self, schema: str, rows: Sequence[Mapping[str, Any]], whole: bool) -> None:
        """Raises:
        DataError: if all answers are good, or all are bad, or all are to one prompt.
        """
        super().check_rows(schema, rows, whole)
        prompts = [(row["prompt"], row.get("tools")) for row in rows] if schema == "feedback" and whole else []
        if prompts and self.loss_type == "kto" and all(prompt == prompts[0] for prompt in prompts):
            raise one_prompt(len(rows))


class BcoOptions(UnpairedOptions):
    """Binary classifier optimisation (Jung et al. 2024, arXiv:2404.04656).

    The reward is the logit of a classifier that tells good answers from bad ones, less a shift: the mean reward of all
    rows so far, those of the optimizer step included. The reference is the model the step starts from; its
    log-probabilities are computed once, before training. The learning rate is 1e-6 for full training and 5e-6 through
    an adapter unless given. Dropout is off throughout.
    """
