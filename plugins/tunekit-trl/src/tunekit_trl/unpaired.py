"""Learning from single answers, each judged good or bad: kto and bco."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from tunekit.data import Dataset
from tunekit.plugins import StepContext, hf
from tunekit_trl.alignment import CompletionAlignment
from tunekit_trl.completion_rows import CompletionRows
from tunekit_trl.encoding import Encoder
from tunekit_trl.reference import check_start, reference_logps
from tunekit_trl.rows import DataFacts
from tunekit_trl.unpaired_losses import (
    REWARDS,
    BcoObjective,
    KeptShift,
    KtoObjective,
    PairGroups,
    UnpairedObjective,
    pairwise_accuracy,
)
from tunekit_trl.unpaired_options import one_prompt
from tunekit_trl.unpaired_rows import balance, judged_rows, refuse_one_sided, tell_balance, tell_conflicts

__all__ = ["BcoTrainer", "KtoTrainer", "UnpairedTrainer"]


class UnpairedTrainer(CompletionAlignment):
    """Base of the components that learn from judged answers."""

    measured: tuple[str, ...] = REWARDS
    asks = True

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def rows(self, ctx: StepContext, encoder: Encoder, data: Dataset) -> tuple[CompletionRows, DataFacts]:
        """Prompts with an answer and its label; of the training rows, what is odd about the labels is told."""
        held_out = data is not ctx.data
        rows, facts = judged_rows(ctx, encoder, data, held_out=held_out)
        if not held_out:
            self._counts = balance(rows)
            refuse_one_sided(ctx, self._counts)
            tell_conflicts(ctx, rows)
        return rows, facts

    @abstractmethod
    def objective(self, ctx: StepContext, rows: CompletionRows) -> UnpairedObjective:
        """The loss."""

    def ready(self, ctx: StepContext, trainer: hf.CompletionTrainer) -> None:
        """Have the reference checked with the first loss of a training that is not continued."""

        def check(rewards: Any, scale: float) -> None:
            if trainer.state.global_step == 0:
                check_start(ctx, trainer, rewards, scale)

        assert isinstance(trainer.objective, UnpairedObjective)
        trainer.objective.at_start = check

    def trained(self, ctx: StepContext, trainer: hf.CompletionTrainer) -> dict[str, float]:
        """With held-out rows, how often a good answer of theirs has a higher reward than a bad one."""
        held_out, objective = trainer.eval_dataset, trainer.objective
        if held_out is None:
            return {}
        assert isinstance(objective, UnpairedObjective)
        rows = list(held_out)
        rewards = objective.rewards(trainer.sums(trainer.model, [objective.group(row) for row in rows]), rows)
        found = pairwise_accuracy(rewards.tolist(), [row["label"] > 0 for row in rows])
        return {} if found is None else {"eval_rewards/pairwise_accuracy": found}

    def details(self, ctx: StepContext) -> dict[str, Any]:
        """What the loss was, and how many answers were good."""
        told = ("beta", "loss_type", "desirable_weight", "undesirable_weight")
        found = {name: getattr(ctx.options, name) for name in told if hasattr(ctx.options, name)}
        return {**found, "feedback": self._counts}


class KtoTrainer(UnpairedTrainer):
    """The component behind ``align(method="kto")``."""

    def rows(self, ctx: StepContext, encoder: Encoder, data: Dataset) -> tuple[CompletionRows, DataFacts]:
        """As the base; weights that do not fit the numbers of good and bad answers are told."""
        rows, facts = super().rows(ctx, encoder, data)
        if data is ctx.data:
            tell_balance(ctx, self._counts)
        return rows, facts

    def objective(self, ctx: StepContext, rows: CompletionRows) -> KtoObjective:
        """KTO or APO-zero."""
        options = ctx.options
        return KtoObjective(options.beta, options.loss_type, options.desirable_weight, options.undesirable_weight)

    def ready(self, ctx: StepContext, trainer: hf.CompletionTrainer) -> None:
        """Compute the reference of the mismatched pairs of every optimizer step that is to come.

        Raises:
            DataError: if there is one prompt only, and so no answer to another.
        """
        super().ready(ctx, trainer)
        objective = trainer.objective
        assert isinstance(objective, KtoObjective)
        if objective.anchored:
            return
        rows, held_out = trainer.train_dataset.rows, trainer.eval_dataset
        objective.sets = {False: rows, True: [] if held_out is None else held_out}
        first = rows[0]["prompt_ids"]
        if all(row["prompt_ids"] == first for row in rows):
            raise one_prompt(len(rows))
        steps = [objective.pairs([rows[number] for number in numbers]) for numbers in trainer.planned_steps()]
        if held_out is not None:
            args = trainer.args
            own = range(args.process_index, len(held_out), args.world_size)
            steps.append(objective.pairs([held_out[number] for number in own]))
        pairs = list(dict.fromkeys(pair for step in steps for pair in step))
        logps = reference_logps(ctx, trainer, PairGroups(objective, pairs))
        objective.mismatched = dict(zip(pairs, logps, strict=True))


class BcoTrainer(UnpairedTrainer):
    """The component behind ``align(method="bco")``."""

    def objective(self, ctx: StepContext, rows: CompletionRows) -> BcoObjective:
        """A classifier's loss."""
        return BcoObjective(ctx.options.beta)

    def ready(self, ctx: StepContext, trainer: hf.CompletionTrainer) -> None:
        """Keep the shift in checkpoints."""
        super().ready(ctx, trainer)
        assert isinstance(trainer.objective, BcoObjective)
        trainer.add_callback(KeptShift(trainer.objective))
