"""Fine-tuning with the plain trainer of transformers: cross-entropy on the tokens of the completion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tunekit.errors import DataError
from tunekit.plugins import Artifact, StepContext, hf

with hf.quiet():
    from transformers import Trainer, TrainingArguments

IGNORED = -100
"""Label of a token that is not learned."""


class PlainTrainer:
    """Resume, cancel, checkpoints and the merge of an adapter are the work of ``tunekit.plugins.hf``."""

    def run(self, ctx: StepContext) -> Artifact:
        """Train, save, and hand the model on."""
        loaded = ctx.model()
        tokenizer = loaded.tokenizer
        limit = getattr(loaded.model.config, "max_position_embeddings", None) or ctx.options.max_length
        rows = list(encode(ctx, tokenizer, min(limit, ctx.options.max_length)))
        if not rows:
            raise DataError("There is no row to train on.", fix="pass data=... with at least one row")
        model = ctx.adapter.attach(loaded.model, seed=ctx.seed) if ctx.adapter else loaded.model
        with hf.quiet():
            arguments = hf.training_arguments(TrainingArguments, ctx, ctx.options, remove_unused_columns=False)
            trainer = Trainer(
                model=model,
                args=arguments,
                train_dataset=rows,
                data_collator=pad,
                processing_class=tokenizer,
                callbacks=[hf.TunekitCallback(ctx)],
            )
        outcome = hf.train(ctx, trainer)
        probes = [row["input_ids"] for row in rows[:4]]
        return hf.finish(ctx, model, tokenizer, outcome=outcome, probes=probes, details={"rows": len(rows)})


def encode(ctx: StepContext, tokenizer: Any, max_length: int) -> Iterator[dict[str, list[int]]]:
    """Token ids and labels of each row. The end-of-text token is learned, so that the model learns to stop."""
    assert ctx.data is not None  # the record says which data the trainer takes
    for number, row in enumerate(ctx.data.rows(), 1):
        ctx.cancel.raise_if_cancelled()
        prompt = row["prompt"]
        if not isinstance(prompt, str):
            text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            whole = tokenizer.apply_chat_template([*prompt, *row["completion"]], tokenize=False)
            given = tokenizer(text, add_special_tokens=False)["input_ids"]
            learned = tokenizer(whole[len(text) :], add_special_tokens=False)["input_ids"]
        else:
            given = tokenizer(prompt)["input_ids"]
            learned = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
            learned = [*learned, tokenizer.eos_token_id]
        ids = [*given, *learned]
        labels = [*(given if ctx.options.learn_prompt else [IGNORED] * len(given)), *learned]
        if all(label == IGNORED for label in labels[1:max_length]):
            raise DataError(
                f"Row {number} has no token to learn within {max_length} tokens.",
                code="no-targets",
                fix="raise max_length, or remove the row",
                details={"row": number},
            )
        yield {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def pad(rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """One batch, (rows, longest). Padding goes by length, never by id: the end-of-text token may be the padding."""
    longest = max(len(row["input_ids"]) for row in rows)

    def filled(lists: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
        return torch.tensor([[*values, *[filler] * (longest - len(values))] for values in lists])

    return {
        "input_ids": filled([row["input_ids"] for row in rows], 0),
        "attention_mask": filled([[1] * len(row["input_ids"]) for row in rows], 0),
        "labels": filled([row["labels"] for row in rows], IGNORED),
    }
