"""Preference optimisation on pairs: dpo and its losses, and the methods that need no reference."""

from __future__ import annotations

from typing import Any

from tunekit.data import Dataset
from tunekit.plugins import StepContext, hf
from tunekit_trl.alignment import CompletionAlignment
from tunekit_trl.completion_rows import CompletionRows
from tunekit_trl.encoding import Encoder
from tunekit_trl.objectives import REWARDS, CpoObjective, DpoObjective, OrpoObjective
from tunekit_trl.reference import check_start
from tunekit_trl.rows import DataFacts, pair_rows

__all__ = ["CpoTrainer", "DpoTrainer", "OrpoTrainer", "PairTrainer", "SimpoTrainer"]


_TOLD = ("beta", "loss_type", "loss_weights", "gamma", "f_divergence", "offset", "nll_on", "nll_weight")
"""Options that the loss depends on."""
_TOLD_IF_GIVEN = ("label_smoothing", "discopop_tau", "f_alpha", "alpha")
"""Further ones, told where they are not the default, which mostly has no effect."""


class PairTrainer(CompletionAlignment):
    """Base of the components that learn from chosen and rejected completions."""

    measured: tuple[str, ...] = REWARDS

    def rows(self, ctx: StepContext, encoder: Encoder, data: Dataset) -> tuple[CompletionRows, DataFacts]:
        """Columns ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``."""
        rows, facts = pair_rows(ctx, encoder, data, margins=self.margins(ctx))
        if facts.margins and not self.margins(ctx) and data is ctx.data:
            ctx.notice(
                "margins-unused",
                f"{facts.margins:,} pairs have a margin, which {ctx.step.component.name} does not use here; "
                'align(method="dpo", offset=1.0) does.',
            )
        return rows, facts

    def margins(self, ctx: StepContext) -> bool:
        """Whether the loss needs the rows' margins."""
        return False

    def has_reference(self, ctx: StepContext) -> bool:
        """None."""
        return False

    def details(self, ctx: StepContext) -> dict[str, Any]:
        """What the loss was."""
        options = ctx.options
        told = {name: getattr(options, name) for name in _TOLD if getattr(options, name, None)}
        defaults = {name: field.default for name, field in type(options).model_fields.items() if name in _TOLD_IF_GIVEN}
        return told | {name: getattr(options, name) for name in defaults if getattr(options, name) != defaults[name]}


class DpoTrainer(PairTrainer):
    """The component behind ``align(method="dpo")``."""

    def has_reference(self, ctx: StepContext) -> bool:
        """The model the step starts from."""
        return True

    def objective(self, ctx: StepContext, rows: CompletionRows) -> DpoObjective:
        """The losses that the options ask for."""
        options = ctx.options
        return DpoObjective(
            options.losses(),
            options.beta,
            label_smoothing=options.label_smoothing,
            discopop_tau=options.discopop_tau,
            f_divergence=options.f_divergence,
            f_alpha=options.f_alpha,
            offset=options.offset,
        )

    def margins(self, ctx: StepContext) -> bool:
        """With an offset."""
        return bool(ctx.options.offset > 0)

    def ready(self, ctx: StepContext, trainer: hf.CompletionTrainer) -> None:
        """Have the reference checked with the first loss of a training that is not continued."""
        objective = trainer.objective
        assert isinstance(objective, DpoObjective)

        def check(rewards: Any, scale: float) -> None:
            if trainer.state.global_step == 0:
                check_start(ctx, trainer, rewards, scale)

        objective.at_start = check


class CpoTrainer(PairTrainer):
    """The component behind ``align(method="cpo")``."""

    def objective(self, ctx: StepContext, rows: CompletionRows) -> CpoObjective:
        """Sums of log-probabilities, and cross-entropy of the chosen completions."""
        options = ctx.options
        return CpoObjective(
            options.loss_type,
            options.beta,
            means=options.loss_type == "ipo",
            label_smoothing=options.label_smoothing,
            nll=options.nll_weight,
        )


class SimpoTrainer(PairTrainer):
    """The component behind ``align(method="simpo")``."""

    def objective(self, ctx: StepContext, rows: CompletionRows) -> CpoObjective:
        """Means of log-probabilities, and a margin."""
        options = ctx.options
        return CpoObjective(
            "sigmoid",
            options.beta,
            means=True,
            gamma=options.gamma,
            label_smoothing=options.label_smoothing,
            nll=options.nll_weight,
            alpha=options.alpha,
        )


class OrpoTrainer(PairTrainer):
    """The component behind ``align(method="orpo")``."""

    measured = (*REWARDS, "nll_loss", "log_odds_ratio", "log_odds_chosen")

    def objective(self, ctx: StepContext, rows: CompletionRows) -> OrpoObjective:
        """Cross-entropy and odds ratio."""
        return OrpoObjective(ctx.options.beta, prompts=ctx.options.nll_on == "all")
