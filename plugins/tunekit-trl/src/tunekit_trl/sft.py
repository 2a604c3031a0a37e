"""Supervised fine-tuning with TRL's loss and loop, on rows that were tokenized here."""

from __future__ import annotations

import gc
from typing import Any

import torch
from datasets import Dataset

from tunekit.plugins import Artifact, StepContext, hf
from tunekit_trl.borrowed import borrowed, refuse_adapter_on_head
from tunekit_trl.encoding import IGNORED
from tunekit_trl.measures import course
from tunekit_trl.rows import encoder_for, sft_rows

with hf.quiet():  # optional libraries that TRL looks for complain when they are imported
    from trl import SFTConfig, SFTTrainer

__all__ = ["PadRows", "SftTrainer"]

PROBES = 4
"""Training rows on which the merge of an adapter is proven."""


class SftTrainer:
    """The component behind ``sft(...)``."""

    def run(self, ctx: StepContext) -> Artifact:
        """Train, save, and prove the merge.

        Raises:
            DataError: for data without rows, or a row without a token to learn.
            StepError: for a loss that is not finite, or a merge that is wrong.
            RunCancelled: after a cancel; a resumable checkpoint is left.
        """
        loaded = ctx.model()
        tokenizer = loaded.tokenizer
        with hf.quiet():
            encoder = encoder_for(loaded.model, tokenizer, ctx.options.max_length)
            rows, facts = sft_rows(ctx, encoder, ctx.options.train_on)
        model = ctx.adapter.attach(loaded.model, seed=ctx.seed) if ctx.adapter else loaded.model
        refuse_adapter_on_head(model)
        with borrowed(model, tokenizer):
            trainer = _trainer(ctx, model, tokenizer, rows)
            outcome = hf.train(ctx, trainer)
            measured = course(trainer.state.log_history)
            del trainer
            gc.collect()
        return hf.finish(
            ctx,
            model,
            tokenizer,
            outcome=outcome,
            probes=[rows[number]["input_ids"] for number in range(min(PROBES, len(rows)))],
            details={"data": facts.to_details()},
            metrics=measured,
        )


class PadRows:
    """Collates ``input_ids`` and ``labels`` to (batch, longest) tensors: right padding, labels ignored there.

    Padding goes by length, never by id, so that a padding token that is the end-of-text token hides none of those.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """``input_ids``, ``attention_mask`` and ``labels``, each (batch, longest), int64."""
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), longest), self.pad_id, dtype=torch.long)
        labels = torch.full((len(rows), longest), IGNORED, dtype=torch.long)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for number, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[number, :length] = torch.as_tensor(row["input_ids"], dtype=torch.long)
            labels[number, :length] = torch.as_tensor(row["labels"], dtype=torch.long)
            mask[number, :length] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def pad_id(tokenizer: Any) -> int:
    """An id to pad with; which one does not matter, since padding is masked by length."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


class _Trainer(SFTTrainer):
    """TRL's trainer without its telemetry and its README in every checkpoint folder."""

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Checkpoints are not for publishing."""


def _trainer(ctx: StepContext, model: Any, tokenizer: Any, rows: Dataset) -> _Trainer:
    args = hf.training_arguments(
        SFTConfig,
        ctx,
        ctx.options,
        # Rows are tokenized, cut and labelled already.
        max_length=None,
        packing=False,
        completion_only_loss=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return _Trainer(
        model=model,
        args=args,
        train_dataset=rows,
        data_collator=PadRows(pad_id(tokenizer)),
        processing_class=tokenizer,
        callbacks=[hf.TunekitCallback(ctx)],
    )
