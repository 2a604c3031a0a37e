"""What trainers with planned micro-batches share: rows dealt out, held-out rows, logs, the end of training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253  (this module is reached through the lazy package only)
from torch.utils.data import DataLoader  # noqa: TID253
from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: TID253

from tunekit.plugins.hf.arguments import training_arguments
from tunekit.plugins.hf.batches import BatchPlan
from tunekit.plugins.hf.callback import TunekitCallback
from tunekit.plugins.hf.low_rank import fused_low_rank
from tunekit.plugins.hf.products import fast_products
from tunekit.plugins.hf.validation import AlreadyStopped, Validation

if TYPE_CHECKING:
    from tunekit.context import StepContext

__all__ = ["PlannedTrainer"]

_LOOK_EVERY = 20


class PlannedTrainer(Trainer):
    """A ``transformers.Trainer`` whose micro-batches a :class:`tunekit.plugins.hf.batches.BatchPlan` deals out.

    A subclass makes the plan with :meth:`_plan`, computes in ``training_step`` and ``evaluate``, and says with
    :meth:`_attending` and :meth:`_measured_in_step` what goes around a training and into its log.

    Args:
        ctx: the step. Its options are a :class:`tunekit.plugins.options.TrainOptions`; those of validation are used
            where it has them.
        model: a ``transformers`` model, with the adapter on it if there is one.
        tokenizer: saved in checkpoints.
        source: ``source[number]`` gives a row, ``source[~number]`` that row with nothing to learn, and ``source.rows``
            are the rows. If those have ``set_epoch(epoch)``, that is called before each epoch.
        validation: rows to measure on; None: none.
        collate: makes a micro-batch of rows.
        callbacks: further callbacks.
        pinned: whether micro-batches are tensors, which are pinned where the arguments say so.
        arguments: further arguments of ``transformers.TrainingArguments``.
    """

    control: Any

    def __init__(
        self,
        ctx: StepContext,
        model: Any,
        tokenizer: Any,
        source: Any,
        validation: Any,
        *,
        collate: Callable[[Sequence[Any]], Any],
        callbacks: Sequence[TrainerCallback] = (),
        pinned: bool = False,
        **arguments: Any,
    ) -> None:
        options = ctx.options
        made = training_arguments(TrainingArguments, ctx, options, remove_unused_columns=False, **arguments)
        if made.n_gpu > 1:
            # Several devices are a launcher's matter: one process that serves them all is slower than one device.
            made._n_gpu = 1
        super().__init__(
            model=model,
            args=made,
            train_dataset=source,
            eval_dataset=validation,
            data_collator=collate,
            processing_class=tokenizer,
            callbacks=[TunekitCallback(ctx), _Epochs(self), *callbacks],
        )
        self._ctx, self._pinned = ctx, pinned
        self._batches: Any = None
        self._sums: dict[str, Any] = {}
        self._validation: Validation | None = None
        if validation is not None:
            self._validation = Validation(
                every=getattr(options, "validate_every", None),
                keep_best=bool(getattr(options, "keep_best", False)),
                patience=getattr(options, "early_stopping", None),
                folder=ctx.dir / "checkpoints" / "best",
            )
            self.add_callback(self._validation)

    def _plan(self, lengths: Any, **how: Any) -> BatchPlan:
        """The plan of this process; ``lengths`` and ``how`` as :class:`BatchPlan` takes them."""
        return BatchPlan(
            lengths,
            batch_size=self.args.per_device_train_batch_size,
            seed=self._ctx.seed,
            rank=self.args.process_index,
            world=self.args.world_size,
            **how,
        )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Micro-batches of this process."""
        # Not prepared by accelerate: the plan deals out batches itself, so that no row is repeated to even them out.
        return DataLoader(
            self.train_dataset,
            batch_sampler=self._batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self._pinned and self.args.dataloader_pin_memory,
        )

    # What is trained.

    def _attending(self) -> AbstractContextManager[Any]:
        """What a training happens in."""
        raise NotImplementedError

    def _training(self, model: Any) -> None:
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()

    def _synced(self, model: Any, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged between processes with the last piece of a micro-batch only."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(model)

    def _over_processes(self, values: torch.Tensor) -> torch.Tensor:
        """Sums over all processes."""
        if self.args.world_size > 1:
            values = self.accelerator.reduce(values.to(self.args.device), "sum")
        return values

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as ``transformers.Trainer.train``; with ``keep_best`` the model has the best weights afterwards."""
        try:
            with self._attending(), fused_low_rank(self.model), fast_products(self.model):
                output = super().train(*args, **kwargs)
        except AlreadyStopped:
            output = None
        validation = self._validation
        if validation is None or self._cancel_seen():
            return output
        if validation.stopped_early:
            self._ctx.notice(
                "early-stop",
                f"Training ended after {self.state.global_step} of {self.state.max_steps} steps: the validation loss "
                f"has not been lower in the last {validation.patience} measurements.",
            )
        validation.restore(self.model, self.state)
        return output

    def _cancel_seen(self) -> bool:
        return any(isinstance(c, TunekitCallback) and c.stopped for c in self.callback_handler.callbacks)

    # What is measured.

    def _tell_validating(self, number: int) -> None:
        """Say how far the training is, now and then; a cancel is seen there."""
        if number % _LOOK_EVERY == 0 and self.args.world_size == 1:
            self._ctx.progress(self.state.global_step, self.state.max_steps, "steps", "validating")

    def _evaluated(self, metrics: dict[str, float]) -> dict[str, float]:
        """Log what was measured on held-out rows, and let the callbacks decide."""
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _measured_in_step(self) -> dict[str, float]:
        """What ``self._sums``, collected since the last optimizer step, says."""
        raise NotImplementedError

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with what was measured in the optimizer step."""
        if "loss" in logs and self._sums:
            logs.update(self._measured_in_step())
            self._sums = {}
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> float:
        """Not counted: going through all modules for it costs more than a small step."""
        return 0.0


class _Epochs(TrainerCallback):
    """Tells the order of rows, and rows that change with it, which epoch begins."""

    def __init__(self, trainer: PlannedTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epoch = int(state.epoch or 0)
        self.trainer._batches.set_epoch(epoch)
        rows = self.trainer.train_dataset.rows
        if hasattr(rows, "set_epoch"):
            rows.set_epoch(epoch)
