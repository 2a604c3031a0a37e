"""Reward models: one number for an answer, learned from pairs, ranked lists, ratings or thumbs."""

from __future__ import annotations

import copy
import gc
from collections.abc import Sequence
from typing import Any

from tunekit.data import Dataset as Data
from tunekit.errors import DataError
from tunekit.plugins import Artifact, StepContext, hf
from tunekit_trl.borrowed import borrowed
from tunekit_trl.measures import course
from tunekit_trl.reward_head import give_padding, with_reward_head
from tunekit_trl.reward_losses import RewardObjective
from tunekit_trl.reward_options import COMPARING
from tunekit_trl.reward_quality import compared_quality, rated_quality, spread
from tunekit_trl.reward_rows import RewardFacts, RewardRow, RewardRows, Scale, reward_rows
from tunekit_trl.rows import encoder_for
from tunekit_trl.sft import PROBES

__all__ = ["RECORD", "RewardTrainer"]

RECORD = "tunekit_reward"
"""Attribute of the saved config: objective, template, mean and deviation of the rewards, and where they were measured;
for ratings also the scale that they were learned in."""

_MEASURED_ROWS = 512


class RewardTrainer:
    """The component behind ``reward(...)``."""

    def run(self, ctx: StepContext) -> Artifact:
        """Train, measure on the held-out rows, save, and prove the merge.

        Raises:
            DataError: for data without rows, or a row of which nothing is learned.
            OptionsError: for an objective that does not fit the data.
            StepError: for a model without a place for a head, a loss that is not finite, or a merge that is wrong.
            RunCancelled: after a cancel; a resumable checkpoint is left.
        """
        if ctx.data is None:
            raise DataError(f"The step {ctx.step.name!r} has no data.", code="no-data", fix="pass data=...")
        ctx.options.objective_on(ctx.data.schema, None)
        loaded = ctx.model()
        # The input model's own is used by the steps that go on from it.
        tokenizer = copy.deepcopy(loaded.tokenizer)
        with hf.quiet():
            encoder = encoder_for(loaded.model, tokenizer, ctx.options.max_length)
            rows, facts = _rows(ctx, encoder, ctx.data)
            held = _rows(ctx, encoder, ctx.validation)[0] if ctx.validation is not None else []
        binary = all(row.score in (0.0, 1.0) for row in (*rows, *held))
        objective = ctx.options.objective_on(ctx.data.schema, binary)
        _tell(ctx, facts, objective)
        scale = _scale(ctx, objective, rows)
        model, new = with_reward_head(loaded.model, ctx.seed)
        note = give_padding(model, tokenizer, encoder.stops)
        if note:
            ctx.notice("pad-token", note)
        if ctx.adapter:
            model = ctx.adapter.attach(model, seed=ctx.seed)
        measured: dict[str, Any] = {}
        with borrowed(model, tokenizer), hf.dropout_off(model):
            trainer = hf.CompletionTrainer(
                ctx,
                model,
                tokenizer,
                RewardRows(rows, scale),
                RewardObjective(objective, center=ctx.options.center_rewards_coefficient),
                RewardRows(held, scale) if held else None,
                puts=hf.ScoreModel,
            )
            outcome = hf.train(ctx, trainer)
            measured |= course(trainer.state.log_history, ("accuracy", "margin", "mean_reward"))
            quality, record = _measure(ctx, trainer.completions, objective, rows, held, scale)
            layout = {"kind": trainer.completions.layout.kind, "shared_prompts": trainer.completions.shares}
            del trainer
            gc.collect()
        record |= {"template": facts.template, "max_length": facts.max_length}
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        setattr(plain.config, RECORD, record)
        return hf.finish(
            ctx,
            model,
            tokenizer,
            outcome=outcome,
            probes=[row.sequence(0) for row in rows[:PROBES]],
            details={
                "data": facts.to_details(),
                "objective": objective,
                "new_head": new,
                "layout": layout,
                "quality": quality,
                RECORD: record,
            },
            metrics=measured | {f"eval_{name}": value for name, value in quality.items() if isinstance(value, float)},
        )


def _rows(ctx: StepContext, encoder: Any, data: Data) -> tuple[list[RewardRow], RewardFacts]:
    return reward_rows(ctx, encoder, data, ctx.options.margin_weight)


def _scale(ctx: StepContext, objective: str, rows: Sequence[RewardRow]) -> Scale:
    """What ratings are learned as.

    Raises:
        DataError: code ``equal-scores`` if all are the same.
    """
    if objective in COMPARING:
        return Scale()
    scores = [row.score for row in rows]
    if min(scores) == max(scores):
        raise DataError(
            f"All answers of the data have the score {scores[0]:g}, so there is nothing to tell apart.",
            code="equal-scores",
            found=f"{len(scores):,} rows",
            fix="give rows with good and with bad answers",
        )
    return Scale.of(scores) if objective == "regression" else Scale()


def _tell(ctx: StepContext, facts: RewardFacts, objective: str) -> None:
    if facts.cut_rows:
        ctx.notice(
            "rows-cut",
            f"{facts.cut_rows:,} of {facts.rows:,} rows are longer than {facts.max_length} tokens and lose "
            f"{facts.cut_tokens:,} tokens at their end; the reward is read where they are cut.",
        )
    if facts.skipped:
        shown = "; ".join(f"row {number}: {reason}" for number, reason in facts.skipped[:5])
        ctx.notice("rows-skipped", f"{facts.skipped_rows:,} rows with nothing to learn were left out ({shown}).")
    if facts.repeated:
        ctx.notice(
            "repeated-answers",
            f"{facts.repeated:,} ranked lists hold one text only, again and again, and were left out.",
        )
    if facts.margins and objective != "bradley-terry":
        ctx.notice(
            "margins-unused",
            f"{facts.margins:,} pairs have a margin, which objective={objective!r} does not use; "
            'objective="bradley-terry" does.',
        )
    elif 0 < facts.margins < facts.rows:
        ctx.notice(
            "margins-missing",
            f"{facts.rows - facts.margins:,} of {facts.rows:,} pairs have no margin; theirs counts as 0.",
        )
    if ctx.validation is None:
        ctx.notice(
            "reward-not-measured",
            "No rows are held out, so nothing is known of how good the rewards are; validation=0.1 holds out a share.",
        )


def _measure(
    ctx: StepContext,
    scorer: Any,
    objective: str,
    rows: Sequence[RewardRow],
    held: Sequence[RewardRow],
    scale: Scale,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Quality on the held-out rows, and what the config is to say."""
    used = list(RewardRows(held or rows[:_MEASURED_ROWS], scale))
    groups = [hf.PromptGroup(row["prompt_ids"], row["completion_ids"]) for row in used]
    ctx.progress(0, None, "rows", "measuring the rewards")
    flat = scorer.scores(groups)[:, 0].tolist()
    rewards: list[list[float]] = []
    for row in used:
        rewards.append(flat[: len(row["completion_ids"])])
        flat = flat[len(row["completion_ids"]) :]
    mean, deviation = spread([value for of_one in rewards for value in of_one])
    record: dict[str, Any] = {
        "objective": objective,
        "mean": mean,
        "deviation": deviation,
        "measured_on": "held-out" if held else "training",
        "answers": sum(map(len, rewards)),
    }
    if objective == "regression":
        record["ratings"] = {"mean": scale.mean, "deviation": scale.deviation}
    if not held:
        return {}, record
    if objective in COMPARING:
        return compared_quality(rewards, used), record
    own = [of_one[0] * scale.deviation + scale.mean for of_one in rewards]
    return rated_quality(own, [row["score"] for row in used], objective), record
