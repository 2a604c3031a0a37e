"""Run a trainer inside a step: resume, cancel, errors."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.errors import RunCancelled
from tunekit.plugins.hf.checkpoints import good_checkpoint, set_aside
from tunekit.plugins.hf.silence import quiet
from tunekit.storage import storage_errors

if TYPE_CHECKING:
    from tunekit.context import StepContext

__all__ = ["TrainOutcome", "train", "trained_in_float32"]


@dataclass(frozen=True, kw_only=True)
class TrainOutcome:
    """What came out of training."""

    global_step: int
    """Optimizer steps in all, those before a resume included."""
    max_steps: int
    """Optimizer steps that were planned."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """``loss`` (last step), ``loss_first``, ``loss_mean``, ``steps``, ``epochs``, ``tokens`` (targets, over all steps),
    ``seconds`` and ``tokens_per_second`` (of this process); with validation ``eval_loss`` (last), ``eval_loss_first``,
    ``eval_loss_best`` and ``eval_step_best``."""
    resumed_from: Path | None = None
    """Checkpoint that training continued from."""
    resumed_from_step: int | None = None
    """Its optimizer step; ``ctx.metrics`` was called for later steps only."""


def train(ctx: StepContext, trainer: Any) -> TrainOutcome:
    """Train to the end, from the newest good checkpoint if there is one.

    ``trainer`` is a ``transformers.Trainer`` (or a TRL trainer) whose arguments come from ``training_arguments``; a
    ``TunekitCallback`` is added if it has none. After a resume the losses are those of an uninterrupted run.

    Raises:
        RunCancelled: after ``ctx.cancel``; the checkpoint is in ``details["checkpoint"]``.
        StepError: ``nan-loss``.
        ArtifactError: if the disk is full or cannot be written.
    """
    from transformers import PrinterCallback, ProgressCallback

    from tunekit.plugins.hf.callback import TunekitCallback

    ctx.cancel.raise_if_cancelled()
    folder = Path(trainer.args.output_dir)
    callback = next((c for c in trainer.callback_handler.callbacks if isinstance(c, TunekitCallback)), None)
    if callback is None:
        callback = TunekitCallback(ctx)
        trainer.add_callback(callback)
    for printing in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printing)
    trained_in_float32(trainer.model)
    began = time.monotonic()
    with storage_errors(folder), quiet():
        resume = _resume_point(ctx, folder)
        step = int(resume.name.rpartition("-")[2]) if resume else None
        try:
            with _counting_targets(trainer, callback), _decaying(trainer, ctx.options):
                trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except Exception:
            _drop_unfinished(folder)
            raise
    _plain_forward(trainer)
    if callback.stopped:
        raise RunCancelled(
            f"The run was cancelled in step {ctx.step.name!r} after optimizer step {trainer.state.global_step} of "
            f"{trainer.state.max_steps}: {ctx.cancel.reason}.",
            fix="run the same pipeline again in the same workdir to continue",
            details={
                "step": ctx.step.name,
                "global_step": trainer.state.global_step,
                "checkpoint": str(callback.last_checkpoint),
            },
        )
    seconds = time.monotonic() - began
    return TrainOutcome(
        global_step=trainer.state.global_step,
        max_steps=trainer.state.max_steps,
        metrics=_metrics(trainer.state, seconds, step or 0),
        resumed_from=resume,
        resumed_from_step=step,
    )


def _resume_point(ctx: StepContext, folder: Path) -> Path | None:
    good, problems = good_checkpoint(folder)
    if problems:
        instead = f"{good.name} is used" if good else "training starts from the beginning"
        ctx.notice("damaged-checkpoint", f"Checkpoints that cannot be used: {'; '.join(problems)}. {instead}.")
        if _is_main():
            set_aside(folder, good)
    return good


def _is_main() -> bool:
    import torch.distributed as dist

    return not (dist.is_available() and dist.is_initialized()) or bool(dist.get_rank() == 0)


def _drop_unfinished(folder: Path) -> None:
    """Give the space of a checkpoint that could not be completed back, so that a full disk stays usable."""
    if not _is_main():
        return
    with contextlib.suppress(OSError):
        _, problems = good_checkpoint(folder)
        for line in problems:
            shutil.rmtree(folder / line.partition(":")[0], ignore_errors=True)


class _counting_targets:  # noqa: N801  (used as a context manager)
    """Tell the callback the number of target tokens that the loss of each optimizer step is divided by."""

    def __init__(self, trainer: Any, callback: Any) -> None:
        self.trainer, self.callback = trainer, callback

    def __enter__(self) -> None:
        original = self.trainer.get_batch_samples

        def counted(*args: Any, **kwargs: Any) -> Any:
            samples, items = original(*args, **kwargs)
            if samples:
                self.callback.count_targets(_as_int(items))
            return samples, items

        self.trainer.get_batch_samples = counted

    def __exit__(self, *exc: object) -> None:
        del self.trainer.get_batch_samples


@contextlib.contextmanager
def _decaying(trainer: Any, options: Any) -> Iterator[None]:
    """The ``wsd`` schedule: its decay is a share of the steps, and their number is known only when training begins."""
    if getattr(options, "schedule", None) != "wsd":
        yield
        return
    from transformers.optimization import get_wsd_schedule

    def create_scheduler(num_training_steps: int, optimizer: Any = None) -> Any:
        decay = options.decay * num_training_steps if options.decay < 1 else options.decay
        warmup = trainer.args.get_warmup_steps(num_training_steps)
        decay = min(math.ceil(decay), num_training_steps - warmup)
        trainer.lr_scheduler = get_wsd_schedule(
            trainer.optimizer if optimizer is None else optimizer,
            num_warmup_steps=warmup,
            num_decay_steps=decay,
            num_training_steps=num_training_steps,
            decay_type="linear",
        )
        trainer._created_lr_scheduler = True
        return trainer.lr_scheduler

    trainer.create_scheduler = create_scheduler
    try:
        yield
    finally:
        del trainer.create_scheduler


def _as_int(items: Any) -> int | None:
    if items is None:
        return None
    if hasattr(items, "dim") and items.dim() > 0:
        items = items.reshape(-1)[0]
    return round(float(items))


def trained_in_float32(model: Any) -> None:
    """Make the weights that are trained float32, in place: the updates of AdamW are lost in half precision."""
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()


def _plain_forward(trainer: Any) -> None:
    """Take off the mixed-precision wrapper that accelerate puts around ``forward``."""
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def _metrics(state: Any, seconds: float, resumed: int) -> dict[str, Any]:
    rows = [row for row in state.log_history if "loss" in row]
    losses = [float(row["loss"]) for row in rows]
    tokens = [(int(row["step"]), int(row["tokens"])) for row in rows if "tokens" in row]
    metrics: dict[str, Any] = {
        "steps": int(state.global_step),
        "epochs": round(float(state.epoch or 0.0), 4),
        "seconds": round(seconds, 3),
    }
    if losses:
        metrics |= {"loss": losses[-1], "loss_first": losses[0], "loss_mean": sum(losses) / len(losses)}
    measured = [(float(row["eval_loss"]), int(row["step"])) for row in state.log_history if "eval_loss" in row]
    if measured:
        metrics |= {"eval_loss": measured[-1][0], "eval_loss_first": measured[0][0]}
        metrics["eval_loss_best"], metrics["eval_step_best"] = min(measured)
    if tokens:
        metrics["tokens"] = sum(count for _, count in tokens)
        fresh = sum(count for step, count in tokens if step > resumed)
        metrics["tokens_per_second"] = round(fresh / max(seconds, 1e-9), 1)
    return metrics
