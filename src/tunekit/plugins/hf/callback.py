"""The link between a ``transformers.Trainer`` and a step: metrics, progress, checkpoints, cancel, bad losses."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback  # noqa: TID253  (this module is reached through the lazy package only)

from tunekit.errors import StepError
from tunekit.plugins.hf.checkpoints import good_checkpoint, rotate, seal

if TYPE_CHECKING:
    from tunekit.context import StepContext

__all__ = ["TunekitCallback"]

_SLOW_SAVE = 2.0
_SAVE_SHARE = 4.0


class TunekitCallback(TrainerCallback):
    """Reports every optimizer step to a :class:`StepContext`, guards checkpoints, and stops when asked to.

    - After each step: ``ctx.metrics`` (loss, learning_rate, grad_norm, epoch, tokens and what the trainer adds) and
      ``ctx.progress``.
    - A loss or gradient norm that is not finite raises ``StepError(code="nan-loss")`` before anything is saved.
    - ``ctx.cancel`` is looked at after each optimizer step, when observers have seen its loss; a resumable checkpoint
      is written and training ends.
    - Each checkpoint is flushed to the disk and sealed; older ones are deleted only after that.

    Attributes:
        stopped: True when training ended because of ``ctx.cancel``.
        last_checkpoint: newest sealed checkpoint of this process, or None.
    """

    def __init__(self, ctx: StepContext) -> None:
        self.ctx = ctx
        self.stopped = False
        self.last_checkpoint: Path | None = None
        self._targets: int | None = None
        self._auto = getattr(ctx.options, "checkpoint_every", None) is None
        self._keep = int(getattr(ctx.options, "keep_checkpoints", 2))
        self._interval = 0
        self._save_began = 0.0
        self._save_took = 0.0
        self._save_ended = 0.0

    def count_targets(self, tokens: int | None) -> None:
        """Note how many target tokens the optimizer step that begins now is normalised over."""
        self._targets = tokens

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._auto:
            self._interval = min(500, max(1, math.ceil(state.max_steps / 10)))
        self._save_ended = time.monotonic()
        if state.is_world_process_zero:
            self.ctx.progress(state.global_step, state.max_steps, "steps")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        last = state.global_step >= state.max_steps
        if self._auto and state.global_step % self._interval == 0:
            control.should_save = True
        # A checkpoint that takes long is written less often: at most a fifth of the time goes into saving.
        if control.should_save and self._auto and self._save_took > _SLOW_SAVE:
            pause = time.monotonic() - self._save_ended
            if not _agreed(pause >= _SAVE_SHARE * self._save_took, everyone=True):
                control.should_save = False
        # Where a loss is logged, that comes after this: an observer that cancels at a loss stops at that very step.
        if not control.should_log:
            self._look_at_cancel(state, control)
        if control.should_save or last:
            self._check_weights(kwargs.get("model"), state)
        self._save_began = time.monotonic()
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        if not logs or ("loss" not in logs and not any(key.startswith("eval_") for key in logs)):
            return
        values = {key: float(value) for key, value in logs.items() if isinstance(value, int | float)}
        if "loss" in values:
            self._check_loss(args, state, values)
            if self._targets is not None:
                values["tokens"] = float(self._targets)
                if state.log_history:
                    # Kept in the checkpoint, so that totals are right after a resume.
                    state.log_history[-1]["tokens"] = self._targets
        if state.is_world_process_zero:
            self.ctx.metrics(
                state.global_step,
                {key: value for key, value in values.items() if math.isfinite(value) and key != "step"},
            )
            self.ctx.progress(state.global_step, state.max_steps, "steps")
        if "loss" in values and self._look_at_cancel(state, control):
            self._check_weights(kwargs.get("model"), state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir)
        path = folder / f"checkpoint-{state.global_step}"
        _barrier()
        if state.is_world_process_zero:
            seal(path, state.global_step)
            rotate(folder, self._keep)
            self.ctx.checkpoint_saved(path, state.global_step)
        self.last_checkpoint = path
        self._save_ended = time.monotonic()
        self._save_took = self._save_ended - self._save_began

    def _look_at_cancel(self, state: Any, control: Any) -> bool:
        if state.global_step >= state.max_steps or not _agreed(self.ctx.cancel.cancelled, everyone=False):
            return False
        self.stopped = True
        control.should_save = True
        control.should_training_stop = True
        return True

    def _check_loss(self, args: Any, state: Any, values: Mapping[str, float]) -> None:
        if not math.isfinite(values["loss"]):
            raise self._bad(args, state, "loss", values["loss"])
        norm = values.get("grad_norm")
        # Under float16 the loss scaler skips steps whose gradients overflow; the weights stay good.
        if norm is not None and not math.isfinite(norm) and not args.fp16:
            raise self._bad(args, state, "gradient norm", norm)

    def _check_weights(self, model: Any, state: Any) -> None:
        if model is None:
            return
        import torch

        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not bool(torch.isfinite(parameter.detach()).all()):
                raise self._bad(None, state, f"weight {name}", float("nan"))

    def _bad(self, args: Any, state: Any, what: str, value: float) -> StepError:
        folder = Path(args.output_dir) if args is not None else self.ctx.dir / "checkpoints"
        good, _ = good_checkpoint(folder)
        kept = f"the last good checkpoint is {good}" if good else "there is no checkpoint before it"
        return StepError(
            f"The {what} is {value} at optimizer step {state.global_step}; {kept}.",
            code="nan-loss",
            found=f"{what} {value}",
            fix="lower learning_rate, add warmup=0.1 or lower max_grad_norm, and look at the rows of this step",
            details={
                "step": self.ctx.step.name,
                "global_step": state.global_step,
                "checkpoint": str(good) if good else None,
            },
        )


def _distributed() -> Any:
    import torch.distributed as dist

    return dist if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 else None


def _barrier() -> None:
    dist = _distributed()
    if dist is not None:
        dist.barrier()


def _agreed(flag: bool, *, everyone: bool) -> bool:
    """The same answer on all processes: whether everyone (or anyone) says yes."""
    dist = _distributed()
    if dist is None:
        return flag
    answers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, flag)
    return all(answers) if everyone else any(answers)
