"""Log-probabilities under the model a step starts from: computed once, kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from accelerate.utils import broadcast_object_list, gather_object

from tunekit.errors import StepError
from tunekit.plugins import StepContext, hf
from tunekit_trl.together import together

__all__ = ["check_start", "reference_logps"]

# Rounding of a summed log-probability, relative to it: pieces of other rows are computed together.
_NOISE, _HALF_NOISE = 1e-4, 2e-2

_AT_A_TIME = 64

# Of a config: what does not change what the model computes, and differs between one in memory and one on disk.
_SAYS_NOTHING = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")


def reference_logps(ctx: StepContext, trainer: hf.CompletionTrainer, groups: Sequence[hf.PromptGroup]) -> list[float]:
    """Summed log-probability, natural logarithm, of every completion of ``groups``, in order, under the input model.

    Dropout and the step's adapter are off. What was computed for the same weights, config, rows and precision, by this
    run or an earlier one of the work folder, is read from the cache. Processes that ask for the same rows compute a
    share each; all of them must call this.

    Args:
        ctx: the step.
        trainer: has the model, as it is before the first update.
        groups: tokenized rows.

    Raises:
        RunCancelled: after a cancel.
        StepError: code ``other-process`` if another process failed.
    """
    path = _path(ctx, trainer, groups)
    count = sum(len(group.completions) for group in groups)
    rank, world = trainer.args.process_index, trainer.args.world_size
    if world > 1 and len(set(gather_object([path.name]))) > 1:
        rank, world = 0, 1  # each process has rows of its own
    known = [_read(path, count) if rank == 0 else None]
    if world > 1:
        # What one process finds on its disk, another may not.
        broadcast_object_list(known)
    if known[0] is not None:
        return known[0]
    model = trainer.model
    model.to(trainer.accelerator.device)
    # Rows of about one length together.
    order = sorted(range(len(groups)), key=lambda number: -groups[number].tokens)[rank::world]
    found: dict[int, list[float]] = {}

    def share() -> None:
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
                if trainer.is_world_process_zero():
                    ctx.progress(begin + len(numbers), len(order), "rows", "reference log-probabilities")

    together(share, trainer.args.world_size, "the reference was computed")
    if world > 1:
        found = {number: made for each in gather_object([found]) for number, made in each.items()}
    values = [value for number in range(len(groups)) for value in found[number]]
    together(lambda: _write(path, values) if rank == 0 else None, trainer.args.world_size, "the reference was kept")
    return values


def check_start(ctx: StepContext, trainer: hf.CompletionTrainer, rewards: Sequence[float], scale: float) -> None:
    """Before the first update the policy is the reference, so that every reward is zero.

    Args:
        ctx: the step.
        trainer: has the model. All of its processes must call this.
        rewards: log-ratios of the very first batch, times beta.
        scale: beta times the size of the log-probabilities they are differences of.

    Raises:
        StepError: if they are not zero: the log-probabilities belong to another model.
    """
    args = trainer.args
    half = args.bf16 or args.fp16 or "16" in str(trainer.model.dtype)
    limit = (_HALF_NOISE if half else _NOISE) * max(scale, 1e-6)
    worst = max(map(abs, rewards), default=0.0)
    if args.world_size > 1:
        # All of them stop: one that goes on would wait for the others for ever.
        worst, limit = max(gather_object([(worst, limit)]), key=lambda pair: pair[0] / pair[1])
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
    model, args = trainer.model, trainer.args
    stored = sorted({str(weights.dtype) for weights in model.parameters() if weights.is_floating_point()})
    computed = "bf16" if args.bf16 else "fp16" if args.fp16 else ""
    config = json.loads(model.config.to_json_string(use_diff=False))
    for name in _SAYS_NOTHING:
        config.pop(name, None)
    digest = hashlib.sha256()
    digest.update(json.dumps([ctx.input_weights_hash, stored, computed, config], sort_keys=True).encode())
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
