"""Training on token rows: full batches, no padding, logits only where something is learned, validation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np  # noqa: TID253  (this module is reached through the lazy package only)
import torch  # noqa: TID253
from transformers import TrainerCallback  # noqa: TID253

from tunekit.errors import StepError
from tunekit.plugins.hf.arguments import evaluating
from tunekit.plugins.hf.batches import Collator, RowSource
from tunekit.plugins.hf.isolation import proven_layout
from tunekit.plugins.hf.pieces import PieceLoss
from tunekit.plugins.hf.planned_trainer import PlannedTrainer

if TYPE_CHECKING:
    from tunekit.context import StepContext

__all__ = ["TokenTrainer"]

_EVAL_TOKENS = 8192


class TokenTrainer(PlannedTrainer):
    """A ``transformers.Trainer`` for token rows. Give it to :func:`tunekit.plugins.hf.train`.

    - A micro-batch is one sequence of the rows' documents without padding; attention stays within a document on every
      attention backend, which is proven on some of the rows before training. A model that cannot do that gets rows
      padded on the right, with a notice.
    - The loss is the sum of the cross-entropies of all targets of an optimizer step, over its micro-batches and
      processes, divided by their number. Logits are computed where there is a target.
    - A micro-batch is run in pieces (:class:`tunekit.plugins.hf.pieces.PieceLoss`): the gradient is the same.
    - ``ctx.options`` says how batches are filled, and how validation is used; see
      :class:`tunekit.plugins.options.SupervisedOptions`.

    Logged per optimizer step besides the loss: ``mean_token_accuracy``, ``input_tokens``, and ``padding_share`` where
    rows are padded. Per measurement: ``eval_loss``, ``eval_perplexity``, ``eval_mean_token_accuracy``, ``eval_tokens``.

    Args:
        ctx: the step. Its options are a :class:`tunekit.plugins.options.SupervisedOptions`.
        model: a ``transformers`` model with an output layer, with the adapter on it if there is one.
        tokenizer: saved in checkpoints.
        rows: token rows: ``len(rows)``, ``rows[number]`` -> mapping with ``input_ids``, ``labels`` (not shifted, -100:
            not learned) and optionally ``position_ids`` that begin at 0 with each document, and ``rows.lengths``, the
            tokens of each row. If it has ``set_epoch(epoch)``, that is called before each epoch.
        validation: token rows to measure on; None: none.
        objective: ``causal`` (a position predicts the next label) or ``masked`` (its own).
        label_smoothing: see :func:`tunekit.plugins.hf.losses.token_loss`; not in ``eval_loss``.
        neftune_alpha: noise on the embeddings, uniform within alpha / sqrt(tokens of the document * hidden size) (Jain
            et al. 2024, arXiv:2310.05914); None: none.
        callbacks: further callbacks.

    Raises:
        OptionsError: for options that the installed library refuses.
        StepError: code ``packing``: the model cannot keep documents apart, and ``packing`` was asked for.
    """

    def __init__(
        self,
        ctx: StepContext,
        model: Any,
        tokenizer: Any,
        rows: Any,
        validation: Any = None,
        *,
        objective: str = "causal",
        label_smoothing: float = 0.0,
        neftune_alpha: float | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        super().__init__(
            ctx,
            model,
            tokenizer,
            RowSource(rows),
            validation,
            collate=Collator(objective),
            callbacks=callbacks,
            pinned=True,
            label_names=["targets"],
        )
        self._neftune = neftune_alpha
        self.layout = proven_layout(model, rows)
        packing = bool(getattr(ctx.options, "packing", False))
        if not self.layout.packs:
            self._tell_padding(packing)
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        self._loss = PieceLoss(model, self.layout, smoothing=label_smoothing, whole=sharded)
        self._plain_loss = PieceLoss(model, self.layout, whole=sharded)
        self._batches = self._plan(
            row_lengths(rows),
            max_tokens=getattr(ctx.options, "max_tokens_per_batch", None),
            pack_length=ctx.options.max_length if packing else None,
            padded=not self.layout.packs,
        )

    # What is trained on.

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of an optimizer step, and the number of targets in them and in those of all processes."""
        samples = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        count = torch.tensor(sum(batch["target_count"] for batch in samples), device=device)
        return samples, self._over_processes(count)

    def training_step(self, model: Any, inputs: Mapping[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradient of a micro-batch; its share of the optimizer step's loss."""
        self._training(model)
        batch = self._prepare_inputs(dict(inputs))
        pieces = self._loss.cut(batch)
        # A distributed model averages gradients over the processes.
        scale = self.args.world_size / max(1, int(num_items_in_batch))
        total = torch.zeros((), device=self.args.device)
        for number, piece in enumerate(pieces):
            with self._synced(model, number == len(pieces) - 1):
                with self.compute_loss_context_manager():
                    summed = self._loss(model, piece)
                loss = summed.loss * scale
                self.accelerator.backward(loss)
            total += loss.detach()
            self._count("correct", summed.correct)
            self._count("width", self._loss.width(piece))
        self._count("input_tokens", sum(batch["lengths"]))
        self._count("targets", batch["target_count"])
        return total

    @contextlib.contextmanager
    def _attending(self) -> Iterator[None]:
        noise = self._noise_hook()
        try:
            with self._loss.attending():
                yield
        finally:
            if noise is not None:
                noise.remove()

    # What is measured.

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean loss over all targets of the held-out rows, its exponential, and the share of targets predicted."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        sums = torch.zeros(3, dtype=torch.float64, device=self.args.device)
        with evaluating(self.model), self._plain_loss.attending():
            for number, batch in enumerate(self._validation_batches(rows)):
                self._tell_validating(number)
                batch = self._prepare_inputs(batch)
                for piece in self._plain_loss.cut(batch):
                    with self.compute_loss_context_manager():
                        made = self._plain_loss(self.model, piece)
                    sums[0] += made.loss
                    sums[1] += made.correct
                sums[2] += batch["target_count"]
        loss, correct, targets = self._over_processes(sums).tolist()
        loss /= max(1.0, targets)
        return self._evaluated(
            {
                f"{metric_key_prefix}_loss": loss,
                f"{metric_key_prefix}_perplexity": float(np.exp(min(loss, 700.0))),
                f"{metric_key_prefix}_mean_token_accuracy": correct / max(1.0, targets),
                f"{metric_key_prefix}_tokens": targets,
            }
        )

    def _measured_in_step(self) -> dict[str, float]:
        counted = [float(self._sums[name]) for name in ("correct", "targets", "input_tokens", "width")]
        sums = self._over_processes(torch.tensor(counted, dtype=torch.float64))
        correct, targets, tokens, width = sums.tolist()
        found = {"mean_token_accuracy": correct / max(1.0, targets), "input_tokens": tokens}
        if not self.layout.packs:
            found["padding_share"] = 1 - min(tokens, width) / max(1.0, width)
        return found

    def _validation_batches(self, rows: Any) -> Iterator[dict[str, Any]]:
        """Batches of neighbouring rows; every ``world_size``-th of them is this process's."""
        lengths = row_lengths(rows)
        begin = number = 0
        while begin < len(rows):
            end, tokens = begin + 1, int(lengths[begin])
            while end < len(rows) and tokens + int(lengths[end]) <= _EVAL_TOKENS:
                tokens += int(lengths[end])
                end += 1
            if number % self.args.world_size == self.args.process_index:
                yield self.data_collator([rows[row] for row in range(begin, end)])
            begin, number = end, number + 1
        short = number % self.args.world_size
        if self._plain_loss.whole and short and self.args.process_index >= short:
            # A sharded model is run by all processes together: those that are short run a row that does not count.
            yield self.data_collator([RowSource(rows)[~0]])

    def _count(self, name: str, value: Any) -> None:
        self._sums[name] = self._sums.get(name, 0) + value

    def _noise_hook(self) -> Any:
        if not self._neftune:
            return None
        alpha = self._neftune

        def add_noise(module: Any, args: Any, embedded: torch.Tensor) -> torch.Tensor:
            if not module.training:
                return embedded
            lengths = torch.tensor(self._loss.lengths, device=embedded.device, dtype=torch.float32)
            width = alpha / torch.sqrt(lengths * embedded.shape[-1])
            if self.layout.packs:
                width = width.repeat_interleave(lengths.long())[None, :, None]
            else:
                width = width[:, None, None]
            noise = torch.rand(embedded.shape, device=embedded.device, dtype=torch.float32) * 2 - 1
            return embedded + (noise * width).to(embedded.dtype)

        return self.model.get_input_embeddings().register_forward_hook(add_noise)

    def _tell_padding(self, packing: bool) -> None:
        name = type(self.model).__name__
        if packing:
            raise StepError(
                f"{name} cannot keep packed documents apart: {self.layout.why}.",
                code="packing",
                fix="packing=False; rows are then padded to the longest of a batch",
            )
        self._ctx.notice(
            "padded-rows",
            f"Rows are padded to the longest of a batch, since several cannot share a sequence with {name}: "
            f"{self.layout.why}. max_tokens_per_batch keeps rows of similar length together.",
        )


def row_lengths(rows: Any) -> np.ndarray[Any, Any]:
    """Tokens of each row, (rows,): ``rows.lengths``, or counted."""
    known = getattr(rows, "lengths", None)
    if known is None:
        known = [len(rows[number]["input_ids"]) for number in range(len(rows))]
    return np.asarray(known, dtype=np.int64)
