"""Log-probabilities under the model a step starts from: computed once, kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from tunekit.errors import StepError
from tunekit.plugins import StepContext, hf

__all__ = ["check_start", "reference_logps"]

# Rounding of a summed log-probability, relative to it: pieces of other rows are computed together.
_NOISE, _HALF_NOISE = 1e-4, 2e-2

_AT_A_TIME = 64


def reference_logps(ctx: StepContext, trainer: hf.CompletionTrainer, groups: Sequence[hf.PromptGroup]) -> list[float]:
    """Summed log-probability, natural logarithm, of every completion of ``groups``, in order, under the input model.

    Dropout and the step's adapter are off. What was computed for the same weights, rows and precision, by this run or
    an earlier one of the work folder, is read from the cache.

    Args:
        ctx: the step.
        trainer: has the model, as it is before the first update.
        groups: tokenized rows.

    Raises:
        RunCancelled: after a cancel.
    """
    path = _path(ctx, trainer, groups)
    count = sum(len(group.completions) for group in groups)
    known = _read(path, count)
    if known is not None:
        return known
    model = trainer.model
    model.to(trainer.accelerator.device)
    # Rows of about one length together.
    order = sorted(range(len(groups)), key=lambda number: -groups[number].tokens)
    found: list[list[float]] = [[]] * len(groups)
    detached = ctx.adapter.detached(model) if ctx.adapter else contextlib.nullcontext()
    with detached, hf.fast_products(model):
        for begin in range(0, len(order), _AT_A_TIME):
            ctx.cancel.raise_if_cancelled()
            numbers = order[begin : begin + _AT_A_TIME]
            made = trainer.sums(model, [groups[number] for number in numbers]).tolist()
            at = 0
            for number in numbers:
                size = len(groups[number].completions)
                found[number] = made[at : at + size]
                at += size
            ctx.progress(begin + len(numbers), len(order), "rows", "reference log-probabilities")
    values = [value for part in found for value in part]
    _write(path, values)
    return values


def check_start(ctx: StepContext, trainer: hf.CompletionTrainer, rewards: Sequence[float], scale: float) -> None:
    """Before the first update the policy is the reference, so that every reward is zero.

    Args:
        ctx: the step.
        trainer: has the model.
        rewards: log-ratios of the very first batch, times beta.
        scale: beta times the size of the log-probabilities they are differences of.

    Raises:
        StepError: if they are not zero: the log-probabilities belong to another model.
    """
    args = trainer.args
    half = args.bf16 or args.fp16 or "16" in str(trainer.model.dtype)
    limit = (_HALF_NOISE if half else _NOISE) * max(scale, 1e-6)
    worst = max(map(abs, rewards), default=0.0)
    if worst > limit:
        raise StepError(
            "The reference is not the model this step starts from: before the first update their rewards differ.",
            code="reference-mismatch",
            asked=f"rewards of 0 (within {limit:.2g})",
            found=f"a reward of {worst:.4g}",
            fix=f"delete {_folder(ctx)} and run again",
            details={"step": ctx.step.name, "reward": worst},
        )


def _folder(ctx: StepContext) -> Path:
    return (ctx.cache or ctx.dir) / "reference"


def _path(ctx: StepContext, trainer: hf.CompletionTrainer, groups: Sequence[hf.PromptGroup]) -> Path:
    args = trainer.args
    digest = hashlib.sha256()
    digest.update(
        json.dumps([ctx.input_weights_hash, str(trainer.model.dtype), bool(args.bf16), bool(args.fp16)]).encode()
    )
    for group in groups:
        digest.update(json.dumps([list(group.prompt), [list(made) for made in group.completions]]).encode())
    return _folder(ctx) / f"{digest.hexdigest()[:32]}.json"


def _read(path: Path, count: int) -> list[float] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return [float(value) for value in values] if len(values) == count else None
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, values: list[float]) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with hf.storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="utf-8") as stream:
            json.dump(values, stream)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
