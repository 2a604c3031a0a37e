"""Supervised fine-tuning: the loss of TRL's trainer, on full batches of rows."""

from __future__ import annotations

import gc

from tunekit.plugins import Artifact, StepContext, hf
from tunekit_trl.borrowed import borrowed
from tunekit_trl.measures import course
from tunekit_trl.rows import encoder_for, held_out_rows, sft_rows

__all__ = ["SftTrainer"]

PROBES = 4
"""Training rows on which the merge of an adapter is proven."""


class SftTrainer:
    """The component behind ``sft(...)``."""

    def run(self, ctx: StepContext) -> Artifact:
        """Train, save, and prove the merge.

        Raises:
            DataError: for data without rows, or a row without a token to learn.
            StepError: for a loss that is not finite, a merge that is wrong, or packing with a model that cannot.
            RunCancelled: after a cancel; a resumable checkpoint is left.
        """
        options = ctx.options
        loaded = ctx.model()
        tokenizer = loaded.tokenizer
        with hf.quiet():
            encoder = encoder_for(loaded.model, tokenizer, options.max_length)
            rows, facts = sft_rows(ctx, encoder, options.train_on)
            held_out = held_out_rows(ctx, encoder, options.train_on)
        model = ctx.adapter.attach(loaded.model, seed=ctx.seed) if ctx.adapter else loaded.model
        with borrowed(model, tokenizer):
            trainer = hf.TokenTrainer(
                ctx,
                model,
                tokenizer,
                rows,
                held_out,
                label_smoothing=options.label_smoothing,
                neftune_alpha=options.neftune_alpha,
            )
            outcome = hf.train(ctx, trainer)
            measured = course(trainer.state.log_history)
            del trainer
            gc.collect()
        artifact = hf.finish(
            ctx,
            model,
            tokenizer,
            outcome=outcome,
            probes=[rows[number]["input_ids"].tolist() for number in range(min(PROBES, len(rows)))],
            details={"data": facts.to_details()},
            metrics=measured,
        )
        for store in (rows, held_out):
            if store is not None:
                store.discard()
        return artifact
