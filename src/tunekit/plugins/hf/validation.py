"""Held-out data during training: when it is measured, which weights were best, when to stop."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback  # noqa: TID253  (this module is reached through the lazy package only)

from tunekit.errors import StepError
from tunekit.plugins.hf.callback import _agreed
from tunekit.storage import storage_errors

__all__ = ["AlreadyStopped", "Validation"]

_FILE = "best.safetensors"


class AlreadyStopped(Exception):
    """The checkpoint that training was to continue from is one of a training that had stopped."""


class Validation(TrainerCallback):
    """Measures on held-out rows, keeps the weights with the lowest loss, and stops when it no longer falls.

    What it knows comes from the trainer's log, which is part of every checkpoint: a resumed training decides as an
    uninterrupted one.

    Args:
        every: optimizer steps between measurements; None: at the end of each epoch. The last step is always measured.
        keep_best: write the trained weights to ``folder`` whenever the loss is lower than ever before.
        patience: measurements without a lower loss after which training ends; None: never.
        folder: where the best weights are kept.

    Attributes:
        stopped_early: whether ``patience`` ran out.
    """

    def __init__(self, *, every: int | None, keep_best: bool, patience: int | None, folder: Path) -> None:
        self.every, self.keep_best, self.patience, self.folder = every, keep_best, patience, folder
        self.stopped_early = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._exhausted(state):
            self.stopped_early = True
            raise AlreadyStopped

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        # With the last step of an epoch, not behind it: a checkpoint of that step then knows of the measurement.
        due = float(state.epoch).is_integer() if self.every is None else state.global_step % self.every == 0
        if due or state.global_step >= state.max_steps:
            control.should_evaluate = True
        return control

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        losses = _losses(state)
        newest = losses[-1][1]
        if self.keep_best and newest < min((loss for _, loss in losses[:-1] if math.isfinite(loss)), default=math.inf):
            self._keep(kwargs["model"], state, *losses[-1])
        if self._exhausted(state):
            self.stopped_early = state.global_step < state.max_steps
            control.should_training_stop = True
            control.should_save = True
        return control

    def best(self, state: Any) -> tuple[int, float] | None:
        """Optimizer step and loss of the lowest measurement; None: nothing was measured."""
        losses = [(loss, step) for step, loss in _losses(state) if math.isfinite(loss)]
        return (min(losses)[1], min(losses)[0]) if losses else None

    def restore(self, model: Any, state: Any) -> None:
        """Put the best weights back on the model.

        Raises:
            StepError: code ``best-weights`` if they are not there.
        """
        found = self.best(state)
        if not self.keep_best or found is None or found[0] == _losses(state)[-1][0]:
            return
        from safetensors import safe_open

        step, path = found[0], self.folder / _FILE
        try:
            with safe_open(path, framework="pt") as stored:
                if json.loads(stored.metadata()["tunekit"])["step"] != step:
                    raise ValueError("they are of another step")
                own = dict(model.named_parameters())
                for name in stored.keys():  # noqa: SIM118  (not a mapping)
                    parameter = own[name]
                    parameter.data.copy_(stored.get_tensor(name).to(parameter.dtype))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise StepError(
                f"The best weights, of step {step}, cannot be read: {error}.",
                code="best-weights",
                found=str(path),
                fix="run the step again, or leave keep_best out",
            ) from error

    def _keep(self, model: Any, state: Any, step: int, loss: float) -> None:
        """Write the weights from the main process; all processes fail if that fails."""
        problem: Exception | None = None
        if state.is_world_process_zero:
            try:
                self._write(model, step, loss)
            except Exception as error:  # noqa: BLE001  (raised again, once the others know)
                problem = error
        failed = _agreed(problem is not None, everyone=False)
        if problem is not None:
            raise problem
        if failed:
            raise StepError(
                f"The main process could not write the best weights, of step {step}.",
                code="best-weights",
                found=str(self.folder),
                fix="see the error of the main process",
            )

    def _write(self, model: Any, step: int, loss: float) -> None:
        from safetensors.torch import save_file

        module = getattr(model, "module", model)
        weights = {
            name: parameter.detach().cpu().contiguous()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            aside = self.folder / f"{_FILE}.partial"
            save_file(weights, aside, metadata={"tunekit": json.dumps({"step": step, "loss": loss})})
            with aside.open("rb") as stream:
                os.fsync(stream.fileno())
            aside.replace(self.folder / _FILE)

    def _exhausted(self, state: Any) -> bool:
        losses = [loss if math.isfinite(loss) else math.inf for _, loss in _losses(state)]
        if self.patience is None or not losses:
            return False
        return len(losses) - 1 - losses.index(min(losses)) >= self.patience


def _losses(state: Any) -> list[tuple[int, float]]:
    return [(int(row["step"]), float(row["eval_loss"])) for row in state.log_history if "eval_loss" in row]
