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
    """The trainer of token rows as tunekit-trl uses it, with other methods."""
    from tunekit.plugins import hf

    return patch.object(hf, "TokenTrainer", type("Bugged", (hf.TokenTrainer,), methods))


@_bug("mean-of-means")
def mean_of_means() -> Any:
    """The loss of an optimizer step is the mean of the means of its micro-batches."""
    from tunekit.plugins.hf import TokenTrainer

    def training_step(self: Any, model: Any, inputs: Any, items: Any = None) -> Any:
        wrong = inputs["target_count"] * self.current_gradient_accumulation_steps
        return TokenTrainer.training_step(self, model, inputs, wrong)

    return _trainer_with(training_step=training_step)


@_bug("gradient-times-n")
def gradient_times_n() -> Any:
    """The loss ignores the targets of the other micro-batches, and nobody divides by the number of micro-batches."""
    from tunekit.plugins.hf import TokenTrainer

    def training_step(self: Any, model: Any, inputs: Any, items: Any = None) -> Any:
        return TokenTrainer.training_step(self, model, inputs, inputs["target_count"])

    return _trainer_with(training_step=training_step)


@_bug("random-state-lost")
def random_state_lost() -> Any:
    """A resumed run draws other dropout masks."""
    return _trainer_with(_load_rng_state=lambda self, checkpoint: None)


@_bug("unseeded-order")
def unseeded_order() -> Any:
    """The rows are shuffled by the clock."""
    from tunekit.plugins.hf import TokenTrainer

    def get_train_dataloader(self: Any) -> Any:
        self._batches.seed = int.from_bytes(os.urandom(4))
        return TokenTrainer.get_train_dataloader(self)

    return _trainer_with(get_train_dataloader=get_train_dataloader)


@_bug("padding-id-masked")
def padding_id_masked() -> Any:
    """Labels are masked where the id is that of the padding token, which may be the end-of-text token."""
    from tunekit.plugins.hf import TokenTrainer

    def get_batch_samples(self: Any, *args: Any, **kwargs: Any) -> Any:
        samples, items = TokenTrainer.get_batch_samples(self, *args, **kwargs)
        for batch in samples:
            batch["targets"][batch["targets"] == self.processing_class.pad_token_id] = -100
        return samples, items

    return _trainer_with(get_batch_samples=get_batch_samples)


@_bug("padding-counted")
@contextlib.contextmanager
def padding_counted() -> Any:
    """Rows are padded, and padding is a target like any other token."""
    from tunekit.plugins.hf import token_trainer
    from tunekit.plugins.hf.pieces import PieceLoss
    from tunekit.plugins.hf.segments import Layout

    proper = PieceLoss.inputs

    def inputs(self: Any, piece: Any) -> Any:
        made, targets = proper(self, piece)
        if "attention_mask" in made:
            targets[made["attention_mask"] == 0] = 0
        return made, targets

    padded = Layout("padded", "sabotage")
    with (
        patch.object(token_trainer, "proven_layout", lambda model, rows: padded),
        patch.object(PieceLoss, "inputs", inputs),
    ):
        yield


@_bug("no-labels-trained")
def no_labels_trained() -> Any:
    """A row of which nothing is left is trained on, without a label."""
    from tunekit_trl.encoding import Encoder, Example

    proper = Encoder.examples

    def examples(self: Any, *args: Any) -> Any:
        nothing = Example([5] * self.max_length, [-100] * self.max_length)
        return [nothing if isinstance(found, DataError) else found for found in proper(self, *args)]

    return patch.object(Encoder, "examples", examples)


@_bug("dpo-without-end")
def dpo_without_end() -> Any:
    """Preference pairs lose the token that ends their answers."""
    from tunekit_trl.encoding import Encoder

    proper = Encoder.pairs

    def pairs(self: Any, *args: Any) -> Any:
        made = proper(self, *args)
        for pair in made:
            for ids in (pair.chosen_ids, pair.rejected_ids):
                ids[:] = [number for number in ids if number != self.eos_id]
        return made

    return patch.object(Encoder, "pairs", pairs)


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
