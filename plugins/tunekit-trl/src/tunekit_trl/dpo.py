"""Direct preference optimisation with TRL's loss and loop, against the model the step starts from."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from tunekit.errors import StepError
from tunekit.plugins import Artifact, StepContext, hf
from tunekit_trl.borrowed import borrowed, dropout_off, dropout_rates, refuse_adapter_on_head
from tunekit_trl.measures import course
from tunekit_trl.rows import encoder_for, pair_rows
from tunekit_trl.sft import PROBES, pad_id

with hf.quiet():  # optional libraries that TRL looks for complain when they are imported
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

__all__ = ["DpoTrainer"]

REFERENCE_FILE = "reference_logps.json"
"""Log-probabilities of chosen and rejected answers under the reference, in row order; summed over the answer, natural
logarithm."""

# Rounding of a summed log-probability, relative to it: batches of other rows are padded otherwise.
_NOISE, _HALF_NOISE = 1e-4, 2e-2

_REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


class DpoTrainer:
    """The component behind ``align(method="dpo")``."""

    def run(self, ctx: StepContext) -> Artifact:
        """Compute the reference once, train, save, and prove the merge.

        Raises:
            DataError: for data without rows, or a pair without a token to learn.
            StepError: for a loss that is not finite, or a merge that is wrong.
            RunCancelled: after a cancel; a resumable checkpoint is left.
        """
        loaded = ctx.model()
        tokenizer = loaded.tokenizer
        with hf.quiet():
            encoder = encoder_for(loaded.model, tokenizer, ctx.options.max_length)
            rows, facts = pair_rows(ctx, encoder)
        model = ctx.adapter.attach(loaded.model, seed=ctx.seed) if ctx.adapter else loaded.model
        refuse_adapter_on_head(model)
        _tell_dropout(ctx, model)
        with borrowed(model, tokenizer), dropout_off(model):
            trainer = _trainer(ctx, model, tokenizer, rows)
            outcome = hf.train(ctx, trainer)
            measured: dict[str, Any] = course(trainer.state.log_history, _REWARDS)
            seconds = float(outcome.metrics.get("seconds", 0.0))
            if trainer.tokens_seen and seconds > 0:
                measured["tokens_per_second"] = round(trainer.tokens_seen / seconds, 1)
            del trainer
            gc.collect()
        return hf.finish(
            ctx,
            model,
            tokenizer,
            outcome=outcome,
            probes=[
                rows[number]["prompt_ids"] + rows[number]["chosen_ids"] for number in range(min(PROBES, len(rows)))
            ],
            details={
                "data": facts.to_details(),
                "reference": "the step's input model" + (", adapter off" if ctx.adapter else ""),
                "beta": ctx.options.beta,
                "loss_type": ctx.options.loss_type,
            },
            metrics=measured,
        )


class _ReferenceIsKnown(torch.nn.Module):
    """Stands where TRL expects a reference model.

    The reference log-probabilities are computed beforehand, so no second model is ever run. Without this TRL would, for
    a model with an adapter, add a second adapter as reference and save it with every checkpoint.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.config = model.config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Never called."""
        raise AssertionError("the reference log-probabilities are in the data")


class _Trainer(DPOTrainer):
    """TRL's trainer on tokenized pairs with the reference computed once, without telemetry and README files."""

    def __init__(self, ctx: StepContext, model: Any, rows: Dataset, **kwargs: Any) -> None:
        self._ctx = ctx
        self.tokens_seen = 0
        super().__init__(model=model, ref_model=_ReferenceIsKnown(model), train_dataset=rows, **kwargs)

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Checkpoints are not for publishing."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """The rows are tokenized and cut already."""
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """Add the columns ``ref_chosen_logps`` and ``ref_rejected_logps``; TRL calls this once, before training."""
        self.ref_model = None
        path = self._ctx.dir / REFERENCE_FILE
        key = _rows_key(dataset)
        known = _read_reference(path, key, len(dataset))
        if known is None:
            known = self._reference(dataset)
            _write_reference(path, key, known)
        chosen, rejected = known
        return dataset.add_column("ref_chosen_logps", chosen).add_column("ref_rejected_logps", rejected)

    def _reference(self, dataset: Dataset) -> tuple[list[float], list[float]]:
        """Log-probabilities under the model as it is before the first step: dropout off, same cut. The longest rows
        come first: little is padded, and a lack of memory shows at once."""
        ctx, model = self._ctx, self.model
        lengths = [len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in dataset]
        order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
        chosen, rejected = [0.0] * len(order), [0.0] * len(order)
        size = self.args.per_device_train_batch_size
        training = model.training
        model.to(self.accelerator.device)
        model.eval()
        with ctx.adapter.detached(model) if ctx.adapter else contextlib.nullcontext():
            for begin in range(0, len(order), size):
                ctx.cancel.raise_if_cancelled()
                numbers = order[begin : begin + size]
                batch = self._prepare_inputs(self.data_collator([dataset[number] for number in numbers]))
                for logps, into in zip(self.compute_ref_log_probs(model, batch), (chosen, rejected), strict=True):
                    for number, value in zip(numbers, logps.float().tolist(), strict=True):
                        into[number] = value
                ctx.progress(begin + len(numbers), len(order), "rows", "reference log-probabilities")
        model.train(training)
        return chosen, rejected

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's loss. Counts the answer tokens on the way, and checks the reference on the very first batch."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            first = self.tokens_seen == 0 and self.state.global_step == 0
            self.tokens_seen += int(inputs["completion_mask"].sum())
            if first:
                self._check_reference()
        return loss

    def _check_reference(self) -> None:
        """Before the first update the policy is the reference, so that every reward is zero.

        Raises:
            StepError: if it is not: the log-probabilities belong to another model.
        """
        seen = self._metrics["train"]
        rewards = {side: float(seen[f"rewards/{side}"][-1]) for side in ("chosen", "rejected")}
        scale = max(1.0, *(abs(float(seen[f"logps/{side}"][-1])) for side in rewards))
        half = self.args.bf16 or self.args.fp16 or self.model.dtype in (torch.bfloat16, torch.float16)
        limit = (_HALF_NOISE if half else _NOISE) * scale * self.beta
        if max(abs(reward) for reward in rewards.values()) > limit:
            raise StepError(
                "The reference is not the model this step starts from: before the first update their rewards differ.",
                code="reference-mismatch",
                asked=f"rewards of 0 (within {limit:.2g})",
                found=", ".join(f"{side} {reward:.4g}" for side, reward in rewards.items()),
                fix=f"delete {self._ctx.dir / REFERENCE_FILE} and run again",
                details={"step": self._ctx.step.name, **rewards},
            )


def _trainer(ctx: StepContext, model: Any, tokenizer: Any, rows: Dataset) -> _Trainer:
    args = hf.training_arguments(
        DPOConfig,
        ctx,
        ctx.options,
        beta=ctx.options.beta,
        loss_type=[ctx.options.loss_type],
        label_smoothing=ctx.options.label_smoothing,
        # Rows are cut already.
        max_length=None,
        precompute_ref_log_probs=True,
        disable_dropout=True,
    )
    return _Trainer(
        ctx,
        model,
        rows,
        args=args,
        data_collator=DataCollatorForPreference(pad_token_id=pad_id(tokenizer)),
        processing_class=tokenizer,
        callbacks=[hf.TunekitCallback(ctx)],
    )


def _tell_dropout(ctx: StepContext, model: Any) -> None:
    rates = dropout_rates(model)
    if rates:
        ctx.notice(
            "dropout-off",
            f"Preference optimisation runs without dropout; the rates {', '.join(f'{p:g}' for p in sorted(rates))} "
            "of model or adapter are not applied in this step.",
        )


def _rows_key(rows: Dataset) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]]).encode())
    return digest.hexdigest()


def _read_reference(path: Path, key: str, rows: int) -> tuple[list[float], list[float]] | None:
    """The log-probabilities that an interrupted run of this step left, if they belong to these rows."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["rows"] != key or len(data["chosen"]) != rows or len(data["rejected"]) != rows:
            return None
        return [float(value) for value in data["chosen"]], [float(value) for value in data["rejected"]]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write_reference(path: Path, key: str, known: tuple[list[float], list[float]]) -> None:
    aside = path.with_name(path.name + ".partial")
    with hf.storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="utf-8") as stream:
            json.dump({"rows": key, "chosen": known[0], "rejected": known[1]}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
