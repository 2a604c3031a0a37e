"""Training on completions: a loss of log-probabilities, full batches, prompts computed once, validation."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch  # noqa: TID253  (this module is reached through the lazy package only)
from transformers import TrainerCallback  # noqa: TID253

from tunekit.plugins.hf.arguments import evaluating
from tunekit.plugins.hf.completions import CompletionLogps, CompletionModel, PromptGroup
from tunekit.plugins.hf.planned_trainer import PlannedTrainer
from tunekit.plugins.hf.training import trained_in_float32

if TYPE_CHECKING:
    from tunekit.context import StepContext

__all__ = ["CompletionTrainer", "Objective", "ObjectiveLoss"]

Row = Mapping[str, Any]
Ask = Callable[[Sequence[PromptGroup]], torch.Tensor]
"""Summed log-probabilities of completions under the policy as it is, (completions,), no gradient."""

_EVAL_ROWS = 8
_TOKENS = "completion_tokens"
"""Name among the totals of a step: its completion tokens."""


@dataclass(frozen=True)
class ObjectiveLoss:
    """What an :class:`Objective` says about some rows."""

    loss: Any
    """Scalar tensor, differentiable: these rows' part of the optimizer step's loss, so that the parts of all rows of
    the step add up to it."""
    measured: Mapping[str, tuple[Any, float]] = field(default_factory=dict)
    """Name to (sum, count), for the log: the value of an optimizer step is the sum of the sums over the sum of the
    counts. Sums are scalars without a gradient. The names must be the same on all processes, whatever their rows."""


class Objective(Protocol):
    """A loss on completions. ``row`` is what the data set gives, with ``prompt_ids`` and whatever the loss needs."""

    def group(self, row: Row) -> PromptGroup:
        """What is put to the model for a row."""
        ...

    def totals(self, rows: Sequence[Row], ask: Ask) -> Mapping[str, float]:
        """Sums over the rows of an optimizer step that the loss needs to know, such as their number. They are added up
        over all processes. ``ask`` is for losses that compare with other completions first; with it every process
        must be asked the same number of times."""
        ...

    def loss(self, logps: CompletionLogps, rows: Sequence[Row], totals: Mapping[str, float]) -> ObjectiveLoss:
        """The loss of some of the rows; ``logps`` holds the completions of their groups, in order."""
        ...


class CompletionTrainer(PlannedTrainer):
    """A ``transformers.Trainer`` for losses of the log-probabilities of completions. Give it to
    :func:`tunekit.plugins.hf.train`.

    - Rows share a sequence without padding, and the completions of a row share its prompt, where the model provably
      takes that; see :class:`tunekit.plugins.hf.completions.CompletionModel`. Logits are computed at completions.
    - The loss is normalised over all rows (or tokens, as the objective says) of an optimizer step, over its
      micro-batches and processes: eight rows at once and one row eight times are the same step. To it comes the
      balance of the experts of a model that has it in its loss, weighted by completion tokens.
    - A micro-batch is run in pieces, each with its own backward pass, and so takes little memory.

    Args:
        ctx: the step. Its options are a :class:`tunekit.plugins.options.TrainOptions`.
        model: a ``transformers`` causal model, with the adapter on it if there is one.
        tokenizer: saved in checkpoints.
        rows: ``len(rows)`` and ``rows[number]`` -> mapping, as the objective takes them.
        objective: the loss.
        validation: held-out rows; None: none. Measured is the same loss, as ``eval_loss``, and what the objective
            measures, with the prefix ``eval_``.
        callbacks: further callbacks.
        puts: what puts groups to the model, made as ``puts(model, groups, whole=...)``. With a
            :class:`tunekit.plugins.hf.score_model.ScoreModel` the objective is given scores in place of
            log-probabilities, and cannot ask.
    """

    def __init__(
        self,
        ctx: StepContext,
        model: Any,
        tokenizer: Any,
        rows: Any,
        objective: Objective,
        validation: Any = None,
        *,
        callbacks: Sequence[TrainerCallback] = (),
        puts: Callable[..., Any] = CompletionModel,
    ) -> None:
        # Before anything is computed: the reference must come from the weights that are trained.
        trained_in_float32(model)
        super().__init__(ctx, model, tokenizer, _Counted(rows), validation, collate=list, callbacks=callbacks)
        self.objective = objective
        groups = [objective.group(rows[number]) for number in range(min(8, len(rows)))]
        whole = bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)
        self.completions = puts(model, groups, whole=whole)
        # Rows are dealt out by number; how long they are does not matter.
        self._batches = self._plan([0] * len(rows))
        self._totals: dict[str, float] = {}
        self.tokens_seen = 0
        """Completion tokens that this process has learned from."""

    # What is trained on.

    def planned_steps(self) -> Iterator[list[int]]:
        """Row numbers of each optimizer step of this process that something is learned from, from the first step to
        the last, in the order that :meth:`Objective.totals` is given them: for what a loss needs to know beforehand."""
        each = self.args.gradient_accumulation_steps
        epochs = copy.copy(self._batches)
        steps = -(-len(epochs) // each)
        left = self.args.max_steps if self.args.max_steps > 0 else math.ceil(self.args.num_train_epochs * steps)
        epoch = 0
        while left > 0:
            epochs.set_epoch(epoch)
            batches = list(epochs)
            for begin in range(0, min(steps, left) * each, each):
                yield [number for batch in batches[begin : begin + each] for number in batch if number >= 0]
            left -= steps
            epoch += 1

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of an optimizer step, and the number of completion tokens in those of all processes."""
        samples = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        rows = [row for batch in samples for row in batch if row.get("counts", True)]
        totals = dict(self.objective.totals(rows, self._ask)) if samples else {}
        tokens = self._tokens(rows)
        self._totals, count = self._everywhere(totals, tokens)
        self._totals[_TOKENS] = float(count)
        return samples, count

    def _everywhere(self, totals: Mapping[str, float], tokens: int) -> tuple[dict[str, float], Any]:
        names = sorted(totals)
        sums = torch.tensor([*(totals[name] for name in names), tokens], dtype=torch.float64)
        values = self._over_processes(sums).tolist()
        return dict(zip(names, values[:-1], strict=True)), torch.tensor(int(values[-1]), device=self.args.device)

    def _ask(self, groups: Sequence[PromptGroup]) -> torch.Tensor:
        return self.sums(self.model, groups)

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """The training's mixed precision: a reference that is computed before the training begins, which is when
        ``accelerate`` puts it around the model, must not differ from the policy by its rounding."""
        stack: contextlib.ExitStack = super().compute_loss_context_manager()
        stack.enter_context(self.accelerator.autocast())
        return stack

    def sums(self, model: Any, groups: Sequence[PromptGroup]) -> torch.Tensor:
        """Summed log-probabilities of the completions of all groups, in order, (completions,) float32 on the CPU; no
        gradient, dropout off, in the precision of the training, also before it."""
        if not groups:
            return torch.zeros(0)
        found: list[Any] = [None] * len(groups)
        with evaluating(model), self.completions.attending():
            for numbers in self.completions.pieces(groups):
                part = [groups[number] for number in numbers]
                with self.compute_loss_context_manager():
                    made = self.completions(model, part).sums().float().cpu()
                sizes = [len(group.completions) for group in part]
                for number, values in zip(numbers, made.split(sizes), strict=True):
                    found[number] = values
        return torch.cat(found)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradient of a micro-batch; its share of the optimizer step's loss."""
        self._training(model)
        total = torch.zeros((), device=self.args.device)
        pieces = self._cut(inputs)
        for number, rows in enumerate(pieces):
            with self._synced(model, number == len(pieces) - 1):
                made = self._loss_of(model, rows)
                counts = rows[0].get("counts", True)
                # A distributed model averages gradients over the processes.
                self.accelerator.backward(made.loss * (self.args.world_size if counts else 0.0))
            # All processes log the same names, also one whose rows do not count.
            for name, (summed, count) in made.measured.items():
                before = self._sums.get(name, (0.0, 0.0))
                self._sums[name] = (before[0] + summed, before[1] + count) if counts else before
            if counts:
                # What is logged is the mean over the processes.
                total += made.loss.detach() * self.args.world_size
                self.tokens_seen += self._tokens(rows)
        return total

    def _cut(self, rows: Sequence[Row]) -> list[list[Row]]:
        pieces = self.completions.pieces([self.objective.group(row) for row in rows])
        return [[rows[number] for number in piece] for piece in pieces]

    def _loss_of(self, model: Any, rows: Sequence[Row], totals: Mapping[str, float] | None = None) -> ObjectiveLoss:
        totals = self._totals if totals is None else totals
        with self.compute_loss_context_manager():
            logps = self.completions(model, [self.objective.group(row) for row in rows])
        made = self.objective.loss(logps, rows, totals)
        return self._with_routing(made, logps, rows, totals)

    def _with_routing(
        self, made: ObjectiveLoss, logps: Any, rows: Sequence[Row], totals: Mapping[str, float]
    ) -> ObjectiveLoss:
        """The loss with what the model adds for the balance of its experts: the share of these rows."""
        routing = getattr(logps, "routing", None)
        if routing is None:
            return made
        share = self._tokens(rows) / max(totals[_TOKENS], 1)
        return replace(made, loss=made.loss + share * routing.to(made.loss.device))

    def _tokens(self, rows: Sequence[Row]) -> int:
        return sum(len(made) for row in rows for made in self.objective.group(row).completions)

    def _attending(self) -> contextlib.AbstractContextManager[Any]:
        return self.completions.attending()  # type: ignore[no-any-return]

    # What is measured.

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The loss over all held-out rows as one batch, and what the objective measures."""
        held_out = self.eval_dataset if eval_dataset is None else eval_dataset
        rows = [held_out[number] for number in range(len(held_out))]
        own = rows[self.args.process_index :: self.args.world_size]
        totals, tokens = self._everywhere(dict(self.objective.totals(own, self._ask)), self._tokens(own))
        totals[_TOKENS] = float(tokens)
        sums: dict[str, tuple[Any, float]] = {}
        with evaluating(self.model), self.completions.attending():
            # All processes do the same number of passes and measure the same names: one that has no row left is given
            # one that does not count.
            for begin in range(0, -(-len(rows) // self.args.world_size), _EVAL_ROWS):
                self._tell_validating(begin)
                batch = own[begin : begin + _EVAL_ROWS]
                for part in self._cut(batch or rows[:1]):
                    made = self._loss_of(self.model, part, totals)
                    for name, (summed, count) in {**made.measured, "loss": (made.loss, 1.0)}.items():
                        before = sums.get(name, (0.0, 0.0))
                        sums[name] = (before[0] + summed, before[1] + count) if batch else before
        sums.setdefault("loss", (0.0, 0.0))
        measured = self._reduced(sums, "loss")
        return self._evaluated({f"{metric_key_prefix}_{name}": value for name, value in measured.items()})

    def _reduced(self, sums: Mapping[str, tuple[Any, float]], added: str = "") -> dict[str, float]:
        """Means over all processes; ``added`` is a sum."""
        names = sorted(sums)
        values = torch.tensor([[float(sums[name][0]), sums[name][1]] for name in names], dtype=torch.float64)
        return {
            name: summed if name == added else summed / max(count, 1e-12)
            for name, (summed, count) in zip(names, self._over_processes(values).tolist(), strict=True)
        }

    def _measured_in_step(self) -> dict[str, float]:
        return self._reduced(self._sums)


class _Counted:
    """Rows for a ``DataLoader`` under a :class:`BatchPlan`: ``~number`` gives a row of which nothing is learned."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row:
        if number >= 0:
            row: Row = self.rows[number]
            return row
        return {**self.rows[~number], "counts": False}
