"""The course of a step that trains on completions: rows, reference, training, artifact."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from typing import Any

from tunekit.data import Dataset
from tunekit.plugins import Artifact, StepContext, hf
from tunekit_trl.borrowed import borrowed
from tunekit_trl.completion_rows import CompletionRows
from tunekit_trl.encoding import Encoder
from tunekit_trl.measures import course
from tunekit_trl.reference import reference_logps
from tunekit_trl.rows import DataFacts, encoder_for
from tunekit_trl.sft import PROBES
from tunekit_trl.together import refuse_sharded

__all__ = ["CompletionAlignment"]


class CompletionAlignment(ABC):
    """Base of the components that train on completions of known texts.

    Attributes:
        measured: names in the log whose mean over the last quarter of the steps is a final metric.
        asks: whether the objective asks for log-probabilities beside its loss, each process as often as its rows need.
    """

    measured: tuple[str, ...] = ()
    asks: bool = False

    @abstractmethod
    def rows(self, ctx: StepContext, encoder: Encoder, data: Dataset) -> tuple[CompletionRows, DataFacts]:
        """Tokenized rows of ``data``, the step's own or its held-out rows, and what happened to them."""

    @abstractmethod
    def objective(self, ctx: StepContext, rows: CompletionRows) -> Any:
        """The loss, a :class:`tunekit.plugins.hf.Objective`."""

    def has_reference(self, ctx: StepContext) -> bool:
        """Whether the loss needs the log-probabilities under the step's input model."""
        return True

    def ready(self, ctx: StepContext, trainer: hf.CompletionTrainer) -> None:  # noqa: B027  (optional)
        """Called before training, with reference log-probabilities in the rows."""

    def trained(self, ctx: StepContext, trainer: hf.CompletionTrainer) -> dict[str, float]:
        """Called after training: further final metrics."""
        return {}

    def details(self, ctx: StepContext) -> dict[str, Any]:
        """Facts for the artifact."""
        return {}

    def run(self, ctx: StepContext) -> Artifact:
        """Compute the reference once, train, save, and prove the merge.

        Raises:
            DataError: for data without rows, or a row without a token to learn.
            StepError: for a reference that is not the input model, a loss that is not finite, or a merge that is wrong.
            RunCancelled: after a cancel; a resumable checkpoint is left.
        """
        loaded = ctx.model()
        tokenizer = loaded.tokenizer
        with hf.quiet():
            encoder = encoder_for(loaded.model, tokenizer, ctx.options.max_length)
            assert ctx.data is not None
            rows, facts = self.rows(ctx, encoder, ctx.data)
            facts.totals.raise_if_harmful()
            facts.tell(ctx)
            held_out = self.rows(ctx, encoder, ctx.validation)[0] if ctx.validation is not None else None
        model = ctx.adapter.attach(loaded.model, seed=ctx.seed) if ctx.adapter else loaded.model
        hf.tell_dropout(ctx, model)
        with borrowed(model, tokenizer), hf.dropout_off(model):
            trainer = hf.CompletionTrainer(ctx, model, tokenizer, rows, self.objective(ctx, rows), held_out)
            if self.asks:
                refuse_sharded(trainer, ctx.step.component.name)
            if self.has_reference(ctx):
                for known in (rows, held_out):
                    if known is not None:
                        known.set_reference(reference_logps(ctx, trainer, known.groups()))
            self.ready(ctx, trainer)
            before = hf.start_samples(ctx, model, tokenizer)
            outcome = hf.train(ctx, trainer)
            metrics: dict[str, Any] = course(trainer.state.log_history, self.measured)
            metrics |= _held_out(trainer.state.log_history)
            metrics |= self.trained(ctx, trainer)
            seconds = float(outcome.metrics.get("seconds", 0.0))
            if trainer.tokens_seen and seconds > 0:
                metrics["tokens_per_second"] = round(trainer.tokens_seen / seconds, 1)
            shares = trainer.completions.shares
            written = hf.compare_samples(ctx, model, tokenizer, before=before) if before else {}
            del trainer, before
            gc.collect()
        reference = {"reference": "the step's input model" + (", adapter off" if ctx.adapter else "")}
        return hf.finish(
            ctx,
            model,
            tokenizer,
            outcome=outcome,
            probes=[
                [*prompt, *completions[0]] for prompt, completions in map(rows.group, range(min(PROBES, len(rows))))
            ],
            details={
                "data": facts.to_details() | ({} if held_out is None else {"held_out_rows": len(held_out)}),
                **(reference if self.has_reference(ctx) else {}),
                "shared_prompts": shares,
                **self.details(ctx),
                **written,
            },
            metrics=metrics,
        )


def _held_out(history: Any) -> dict[str, float]:
    """What was measured last on held-out rows, but the loss, which is there already."""
    measured = [row for row in history if "eval_loss" in row]
    if not measured:
        return {}
    return {
        key: float(value)
        for key, value in measured[-1].items()
        if key.startswith("eval_") and key != "eval_loss" and isinstance(value, int | float)
    }
