"""PPO in rounds, each judged against the one before and kept or rolled back."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.errors import StepError
from tunekit.plugins import StepContext, hf
from tunekit_ppo.actor_critic import ActorCritic
from tunekit_ppo.course import Learned, course, joined
from tunekit_ppo.schedule import shares_of
from tunekit_ppo.state import Carried
from tunekit_ppo.trainer import WITHIN, PpoTrainer

__all__ = ["in_rounds"]

_PROBES = 4
_OWN_FAULT = ("kl-bound", "nan-loss", "nan-logits")
"""Errors that say that the updates of a round went astray."""


def in_rounds(
    ctx: StepContext, model: ActorCritic, tokenizer: Any, prompts: Sequence[Mapping[str, Any]], reference: Any
) -> Learned:
    """The rounds of a step; see :class:`tunekit.plugins.hf.Rounds`. The model is that of the last kept one afterwards.

    Args:
        ctx: the step.
        model: policy and value head, as the step starts from them.
        tokenizer: that of the policy.
        prompts: what is asked.
        reference: the model the step starts from, in all rounds; None: the policy with its adapter off.

    Raises:
        DataError: without held-out prompts.
        OptionsError: for fewer rollouts than rounds.
        StepError: if a reward fails.
        RunCancelled: after a cancel; finished rounds and a resumable checkpoint are left.
    """
    options = ctx.options
    held_out = hf.fixed_prompts(ctx.validation, options.eval_prompts)
    work = _Rounds(ctx, model, tokenizer, prompts, reference)
    rounds = hf.Rounds(
        ctx,
        model.policy,
        tokenizer,
        held_out,
        update=lambda part: work.update(part, rounds.number),
        rounds=options.rounds,
        keep_at=options.keep_at,
        max_new_tokens=options.max_new_tokens,
        trained=model,
        state=work.carried,
    )
    made = rounds.run()
    records = [dict(one) for one in made.rounds]
    metrics = joined([one.get("course", {}) for one in records], [one["kept"] for one in records])
    written = sum(one.get("rollouts", 0) for one in records)
    details = {
        "held_out_prompts": len(held_out),
        "rounds": records,
        "rollouts": written,
        "completions": written * options.rollout_size,
        "skipped_updates": sum(one.get("skipped_updates", 0) for one in records),
        "kl_coef": work.carried.kl.coefficient,
    }
    return Learned(
        outcome=made.outcome,
        details=details,
        metrics={**metrics, **made.metrics},
        probes=[prompt["prompt_ids"] for prompt in prompts[:_PROBES]],
        changed=made.kept > 0,
    )


class _Rounds:
    """The updates of the rounds, which share what goes on from one to the next."""

    def __init__(
        self, ctx: StepContext, model: ActorCritic, tokenizer: Any, prompts: Sequence[Mapping[str, Any]], reference: Any
    ) -> None:
        self.step, self.model, self.tokenizer = ctx, model, tokenizer
        self.prompts, self.reference = prompts, reference
        self.carried = Carried(ctx.options)
        self.shares = shares_of(ctx.options, len(prompts))

    def update(self, ctx: StepContext, number: int) -> tuple[hf.TrainOutcome | None, dict[str, Any]]:
        """The rollouts of a round, written, scored and learned from. ``number``: the round, from 1."""
        # Rollouts are counted on over the rounds, and so are the seeds of what is written.
        ctx = dataclasses.replace(ctx, seed=self.step.seed)
        trainer = PpoTrainer(
            ctx,
            self.model,
            self.tokenizer,
            self.prompts,
            self.reference,
            share=self.shares[number - 1],
            carried=self.carried,
        )
        # Folders of a round go with its checkpoints.
        trainer.within = ctx.dir / "within" / WITHIN
        facts: dict[str, Any]
        outcome: hf.TrainOutcome | None = None
        try:
            made = hf.train(ctx, trainer)
            trainer.settle()
        except StepError as error:
            if error.code not in _OWN_FAULT or not trainer.state.global_step:
                raise
            facts = {"problem": error.message, "steps": trainer.state.global_step}
        else:
            outcome = made
            facts = {
                "ended_early": trainer.ended,
                "undone": trainer.undone,
                "kl_coef": self.carried.kl.coefficient,
                "course": course(trainer.rollouts, trainer.final_kl),
            }
        facts |= {"rollouts": len(trainer.rollouts), "skipped_updates": trainer.skipped}
        del trainer
        gc.collect()
        return outcome, facts
