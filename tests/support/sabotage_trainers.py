"""The trainers of tunekit-trl with one bug each. For tests of the suite that must find them."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tunekit.cancel import CancelToken
from tunekit.errors import DataError
from tunekit.plugins import Artifact, LoadedModel, StepContext, TrainerSpec, hookimpl

api_version = 1

BUGS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {}
"""Name of a trainer to what is wrong with it while it runs."""


def _bug(name: str) -> Callable[[Any], Any]:
    def keep(make: Any) -> Any:
        BUGS[name] = make
        return make

    return keep


def _trainer_with(**methods: Any) -> Any:
    """TRL's trainer as tunekit-trl uses it, with other methods."""
    from tunekit_trl import sft

    return patch.object(sft, "_Trainer", type("Bugged", (sft._Trainer,), methods))


@_bug("mean-of-means")
def mean_of_means() -> Any:
    """The loss of an optimizer step is the mean of the means of its micro-batches."""
    from tunekit_trl.sft import _Trainer

    def get_batch_samples(self: Any, *args: Any, **kwargs: Any) -> Any:
        samples, _ = _Trainer.get_batch_samples(self, *args, **kwargs)
        return samples, None

    return _trainer_with(get_batch_samples=get_batch_samples)


@_bug("gradient-times-n")
def gradient_times_n() -> Any:
    """The loss ignores the number of target tokens, and nobody divides by the number of micro-batches."""
    from tunekit_trl.sft import _Trainer

    def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, num_items_in_batch: Any = None, **kw: Any) -> Any:
        return _Trainer.compute_loss(self, model, inputs, *args, num_items_in_batch=None, **kw)

    return _trainer_with(compute_loss=compute_loss)


@_bug("random-state-lost")
def random_state_lost() -> Any:
    """A resumed run draws other dropout masks."""
    return _trainer_with(_load_rng_state=lambda self, checkpoint: None)


@_bug("unseeded-order")
def unseeded_order() -> Any:
    """The rows are shuffled by the clock."""
    import torch

    def sampler(self: Any, dataset: Any = None) -> Any:
        generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(4)))
        return torch.utils.data.SubsetRandomSampler(range(len(self.train_dataset)), generator=generator)

    return _trainer_with(_get_train_sampler=sampler)


def _collator_with(change: Callable[[Any, dict[str, Any]], None]) -> Any:
    from tunekit_trl import sft

    class Collator(sft.PadRows):
        def __call__(self, rows: list[dict[str, Any]]) -> Any:
            batch = super().__call__(rows)
            change(self, batch)
            return batch

    return patch.object(sft, "PadRows", Collator)


@_bug("padding-id-masked")
def padding_id_masked() -> Any:
    """Labels are masked where the id is that of the padding token, which may be the end-of-text token."""

    def change(collator: Any, batch: dict[str, Any]) -> None:
        batch["labels"][batch["input_ids"] == collator.pad_id] = -100

    return _collator_with(change)


@_bug("padding-counted")
def padding_counted() -> Any:
    """Padding is a target like any other token."""

    def change(collator: Any, batch: dict[str, Any]) -> None:
        padding = batch["attention_mask"] == 0
        batch["labels"][padding] = collator.pad_id

    return _collator_with(change)


@_bug("no-labels-trained")
def no_labels_trained() -> Any:
    """A row of which nothing is left is trained on, without a label."""
    from tunekit_trl.encoding import Encoder, Example

    proper = Encoder.example

    def example(self: Any, *args: Any) -> Any:
        try:
            return proper(self, *args)
        except DataError:
            return Example([5] * self.max_length, [-100] * self.max_length)

    return patch.object(Encoder, "example", example)


@_bug("dpo-without-end")
def dpo_without_end() -> Any:
    """Preference pairs lose the token that ends their answers."""
    from tunekit_trl.encoding import Encoder

    proper = Encoder.pair

    def pair(self: Any, *args: Any) -> Any:
        made = proper(self, *args)
        for ids in (made.chosen_ids, made.rejected_ids):
            ids[:] = [number for number in ids if number != self.eos_id]
        return made

    return patch.object(Encoder, "pair", pair)


class Honest:
    """``sft`` or ``dpo`` of tunekit-trl, run inside the bug of its name."""

    name = "honest"

    def run(self, ctx: StepContext) -> Artifact:
        """Train."""
        from tunekit_trl.dpo import DpoTrainer
        from tunekit_trl.sft import SftTrainer

        with BUGS.get(self.name, contextlib.nullcontext)():
            self.before(ctx)
            trainer = DpoTrainer() if ctx.step.kind == "align" else SftTrainer()
            return trainer.run(ctx)

    def before(self, ctx: StepContext) -> None:
        """What a bug outside the training loop does."""


class CancelIgnored(Honest):
    name = "cancel-ignored"

    def before(self, ctx: StepContext) -> None:
        ctx.cancel = CancelToken()


class WritesOutside(Honest):
    name = "writes-outside"

    def before(self, ctx: StepContext) -> None:
        Path("training.log").write_text("started\n", encoding="utf-8")


class EarlyCheckpoint(Honest):
    """Reports each checkpoint just before it is written."""

    name = "early-checkpoint"

    def before(self, ctx: StepContext) -> None:
        metrics, saved = ctx.metrics, ctx.checkpoint_saved

        def log(global_step: int, values: Any) -> None:
            metrics(global_step, values)
            if global_step % 2 == 0:
                saved(ctx.dir / "checkpoints" / f"checkpoint-{global_step}", global_step)

        ctx.metrics = log  # type: ignore[method-assign]
        ctx.checkpoint_saved = lambda path, global_step: None  # type: ignore[method-assign]


class AdapterIgnored(Honest):
    name = "adapter-ignored"

    def before(self, ctx: StepContext) -> None:
        ctx.adapter = None


class HandsOnTheStart(Honest):
    """Hands on the model as it was before the training."""

    name = "hands-on-the-start"

    def before(self, ctx: StepContext) -> None:
        start, keep = copy.deepcopy(ctx.model()), ctx._keep
        ctx._load = lambda: LoadedModel(model=copy.deepcopy(start.model), tokenizer=start.tokenizer)
        ctx._keep = lambda loaded: keep(start)


CLASSES = (CancelIgnored, WritesOutside, EarlyCheckpoint, AdapterIgnored, HandsOnTheStart)


def __getattr__(name: str) -> Any:
    """A class for each entry of ``BUGS``: ``mean_of_means_trainer`` and so on."""
    bug = name.removesuffix("_trainer").replace("_", "-")
    if not name.endswith("_trainer") or bug not in BUGS:
        raise AttributeError(name)
    return type(name, (Honest,), {"name": bug})


@hookimpl
def tunekit_trainers() -> Iterable[TrainerSpec]:
    """The honest trainer, and one for each bug."""
    targets = {"honest": "Honest", "dpo-honest": "Honest"} | {each.name: each.__name__ for each in CLASSES}
    targets |= {bug: f"{bug.replace('-', '_')}_trainer" for bug in BUGS}
    for name, target in targets.items():
        dpo = name.startswith("dpo")
        yield TrainerSpec(
            name=name,
            stage="align" if dpo else "sft",
            target=f"sabotage_trainers:{target}",
            options=f"tunekit_trl.options:{'DpoOptions' if dpo else 'SftOptions'}",
            data=("preference",) if dpo else ("prompt_completion", "conversation", "text"),
        )
