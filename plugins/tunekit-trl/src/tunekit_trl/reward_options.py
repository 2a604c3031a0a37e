"""Options of the reward trainer and of the reward that scores with a trained model. Pydantic, torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tunekit.errors import OptionsError
from tunekit.plugins import Options, ValidatedOptions
from tunekit_trl.options import with_rate

__all__ = ["OBJECTIVES", "RewardModelOptions", "RewardOptions", "objective_for"]

REWARD_LEARNING_RATE = {"full": 1e-5, "adapter": 1e-4}

OBJECTIVES = {
    "preference": ("bradley-terry", "plackett-luce"),
    "ranked": ("bradley-terry", "plackett-luce"),
    "rated": ("regression", "logistic"),
    "regression": ("regression", "logistic"),
    "feedback": ("logistic",),
}
"""Row shape to the objectives that learn from it, the default first; ``logistic`` is the default for scores that are
all 0 or 1."""

COMPARING = ("bradley-terry", "plackett-luce")


class RewardOptions(ValidatedOptions):
    """Reward model: one number for a prompt with its answer, learned from pairs, ranked lists, ratings or thumbs.

    Pairs and lists: Bradley-Terry as in InstructGPT (Ouyang et al. 2022, arXiv:2203.02155). Saved is an ordinary
    ``AutoModelForSequenceClassification`` with one output. The learning rate is 1e-5 for full training and 1e-4 through
    an adapter, with the head trained in full, unless given. Dropout is off throughout. There is no ``beta``: the scale
    of a reward is that of log-odds of being preferred.
    """

    batch_size: int = Field(default=8, ge=1, json_schema_extra={"unit": "pairs"})
    """Pairs, lists or rated answers per device and micro-batch."""
    gradient_accumulation: int = Field(default=1, ge=1, json_schema_extra={"unit": "micro-batches"})
    """Micro-batches per optimizer step; the loss is the mean over the rows of all of them."""
    objective: Literal["bradley-terry", "plackett-luce", "regression", "logistic"] | None = None
    """What is learned. None: what fits the data.

    ``bradley-terry``, for pairs and ranked lists: a pair costs ``-log sigmoid(r_better - r_worse - margin)``; a list is
    all its pairs of unequal rank, averaged, so that it counts once. ``plackett-luce``, for the same: the chance of the
    whole order, where each place is won against all that come later (Plackett 1975), averaged over the places.
    ``regression``, for ratings: squared error in standard deviations. ``logistic``, for thumbs and scores of 0 and 1:
    ``sigmoid(r)`` is the chance of being good."""
    margin_weight: float = Field(default=1.0, ge=0)
    """What the column ``margin`` of pairs is multiplied by: how much better the reward of the better answer is to be
    at least (Llama 2, arXiv:2307.09288). 0 leaves margins out. ``bradley-terry`` only."""
    center_rewards_coefficient: float = Field(default=0.0, ge=0)
    """Weight of ``(r_better + r_worse)^2``, which keeps rewards around 0 without changing which is better (Eisenstein
    et al. 2023, arXiv:2312.09244; 0.01 there). ``bradley-terry`` and ``plackett-luce`` only."""

    @model_validator(mode="after")
    def _options_fit_the_objective(self) -> Self:
        if self.objective is not None:
            problem = self.without_effect(self.objective)
            if problem:
                raise ValueError(problem)
        return self

    def without_effect(self, objective: str) -> str:
        """Which option has no effect with an objective; empty: none."""
        if self.center_rewards_coefficient > 0 and objective not in COMPARING:
            return (
                f"center_rewards_coefficient has no effect with objective={objective!r}, where the data say where 0 is"
            )
        if self.margin_weight != 1.0 and objective != "bradley-terry":
            return f"margin_weight has no effect with objective={objective!r}; it belongs to 'bradley-terry'"
        return ""

    def objective_on(self, schema: str, binary: bool | None) -> str:
        """The objective for the data. ``binary``: whether all scores are 0 or 1; None: they are not known yet.

        Raises:
            OptionsError: if the options do not fit the data.
        """
        asked = self.objective
        try:
            objective = objective_for(schema, asked, bool(binary))
        except ValueError as error:
            raise OptionsError(
                f"{error}.",
                code="reward-objective",
                asked=f"objective={asked!r}",
                found=f"data of the shape {schema}",
                suggestions=OBJECTIVES[schema],
                fix="leave objective out",
            ) from error
        problem = self.without_effect(objective)
        if problem:
            raise OptionsError(f"{problem}.", code="option-without-effect", found=f"data of the shape {schema}")
        if objective == "logistic" and binary is False:
            raise OptionsError(
                "objective='logistic' learns whether an answer is good, from scores of 0 and 1.",
                code="reward-objective",
                asked="objective='logistic'",
                found="other scores",
                fix="objective='regression'",
            )
        return objective

    def check_rows(self, schema: str, rows: Sequence[Mapping[str, Any]], whole: bool) -> None:
        """Raises:
        OptionsError: if the objective cannot learn from such rows.
        """
        if schema in OBJECTIVES:
            known = all(row.get("score", 0) in (0, 1) for row in rows)
            self.objective_on(schema, None if known and not whole else known)

    def resolve(self, *, adapter: str | None) -> Self:
        """Fill in the learning rate."""
        return with_rate(self, REWARD_LEARNING_RATE, adapter)


class RewardModelOptions(Options):
    """Scores with a sequence-classification model: one trained by ``reward``, or any other with one output.

    Of a classifier with several classes, ``label`` names the one whose log-odds are the score.
    """

    model: str
    """The model: a folder, a hub id, a short name, or ``step:<name>``, the model of an earlier step."""
    normalise: bool = False
    """Give scores in standard deviations from the mean over the held-out answers, as measured when the model was
    trained by ``reward``."""
    label: str | None = None
    """Class whose log-odds are the score, of a model with several classes."""
    template: Literal["chat", "plain"] | None = None
    """How a prompt and its completion become one text: by the model's chat template, or as they stand. None: as the
    model was trained, else by the chat template if it has one."""
    max_length: int | None = Field(default=None, ge=8, json_schema_extra={"unit": "tokens"})
    """Longest text in tokens; the end of longer ones is not read, with a notice. None: what the model can read."""


def objective_for(schema: str, asked: str | None, binary: bool = False) -> str:
    """The objective for rows of ``schema``.

    Args:
        schema: row shape.
        asked: the option; None: the default.
        binary: whether all scores are 0 or 1.

    Raises:
        ValueError: if ``asked`` cannot learn from such rows.
    """
    allowed = OBJECTIVES[schema]
    if asked is None:
        return "logistic" if binary and "logistic" in allowed else allowed[0]
    if asked not in allowed:
        raise ValueError(f"objective={asked!r} cannot learn from rows of the shape {schema}")
    return asked
