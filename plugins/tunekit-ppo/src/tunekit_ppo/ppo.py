"""The component behind ``align(method="ppo")``."""

from __future__ import annotations

import copy
import dataclasses
import gc
from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.errors import StepError
from tunekit.plugins import Artifact, StepContext, hf
from tunekit_ppo.actor_critic import ActorCritic, separate_critic
from tunekit_ppo.course import Learned, course
from tunekit_ppo.rounds import in_rounds
from tunekit_ppo.trainer import PpoTrainer

__all__ = ["PpoComponent"]

_PROBES = 4


class PpoComponent:
    """Proximal policy optimisation."""

    def run(self, ctx: StepContext) -> Artifact:
        """Write, score and learn, in rounds if asked to; save, and prove the merge of an adapter.

        Raises:
            DataError: for no prompt, or one that cannot be used; for rounds without held-out prompts.
            OptionsError: for fewer rollouts than rounds.
            StepError: for no reward, a reward that fails, a loss that is not finite, or a merge that is wrong.
            RunCancelled: after a cancel; a resumable checkpoint is left.
        """
        if not ctx.rewards:
            raise StepError(
                "PPO has no reward to learn from.",
                code="no-reward",
                fix="put a reward step before this one, or pass reward=...",
            )
        loaded = ctx.model()
        tokenizer = loaded.tokenizer
        room = hf.prompt_room(ctx.options, hf.model_facts(loaded.model))
        prompts, facts = hf.prompt_rows(ctx, ctx.data, tokenizer, room)
        critic, head = separate_critic(ctx, loaded.model) if ctx.options.critic == "separate" else (None, None)
        policy = loaded.model
        if ctx.adapter is not None:
            policy = ctx.adapter.attach(policy, seed=ctx.seed)
            critic = critic if critic is None else ctx.adapter.attach(critic, seed=ctx.seed + 1)
        model = ActorCritic(policy, critic, head).to(next(policy.parameters()).device)
        # Before the copy: weights of another type round otherwise, and the reference would not be the policy.
        hf.trained_in_float32(model)
        reference = None if ctx.adapter else copy.deepcopy(policy).eval().requires_grad_(False)
        hf.tell_dropout(ctx, model)
        with hf.dropout_off(model), hf.quiet():
            before = hf.start_samples(ctx, policy, tokenizer, strict=True)
            learn = _at_once if ctx.options.rounds is None else in_rounds
            made = learn(ctx, model, tokenizer, prompts, reference)
            details: dict[str, Any] = {
                "reference": "the step's input model" + (", adapter off" if ctx.adapter else ""),
                "rewards": {bound.name: bound.weight for bound in ctx.rewards},
                "data": facts,
                **made.details,
            }
            details |= hf.compare_samples(ctx, policy, tokenizer, before=before)
            del model, critic, reference
            gc.collect()
        if not made.changed and ctx.adapter is not None:
            # The adapter is as it was attached: it adds nothing, and there is no merge to prove.
            policy, ctx = ctx.adapter.merge(policy), dataclasses.replace(ctx, adapter=None)
        return hf.finish(
            ctx,
            policy,
            tokenizer,
            outcome=made.outcome,
            probes=made.probes,
            details=details,
            metrics=made.metrics,
        )


def _at_once(
    ctx: StepContext, model: ActorCritic, tokenizer: Any, prompts: Sequence[Mapping[str, Any]], reference: Any
) -> Learned:
    """All rollouts in one training."""
    trainer = PpoTrainer(ctx, model, tokenizer, prompts, reference)
    outcome = hf.train(ctx, trainer)
    trainer.settle()
    details = {
        "rollouts": len(trainer.rollouts),
        "completions": len(trainer.rollouts) * ctx.options.rollout_size,
        "skipped_updates": trainer.skipped,
        "ended_early": trainer.ended,
        "undone": trainer.undone,
        "kl_coef": trainer.kl.coefficient,
    }
    return Learned(
        outcome=outcome,
        details=details,
        metrics=course(trainer.rollouts, trainer.final_kl),
        probes=_probes(trainer),
    )


def _probes(trainer: PpoTrainer) -> list[list[int]]:
    rollout = trainer.rollout
    if rollout is None:
        return []
    pairs = list(zip(rollout.prompts, rollout.completions, strict=True))[:_PROBES]
    return [[*trainer.prompts[number]["prompt_ids"], *made] for number, made in pairs]
