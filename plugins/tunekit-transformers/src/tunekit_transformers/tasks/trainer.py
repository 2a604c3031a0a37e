"""The training loop of the tasks: batches, loss, measurements, the best weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback

from tunekit.errors import StepError
from tunekit.plugins import hf
from tunekit_transformers.tasks import metrics
from tunekit_transformers.tasks.encode import IGNORED, Encoded
from tunekit_transformers.tasks.heads import Scale

__all__ = ["Measuring", "TaskBatches", "TaskData", "TaskTrainer", "collate", "measure"]

_FILE = "best.safetensors"


@dataclass
class TaskData:
    """One task as the trainer needs it."""

    name: str
    kind: str
    train: Encoded
    labels: tuple[str, ...] = ()
    validation: Encoded | None = None
    test: Encoded | None = None
    weight: float = 1.0
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    scale: Scale = field(default_factory=Scale)
    entities: bool = True
    _weights: Any = field(default=None, init=False, repr=False, compare=False)

    def weights_on(self, device: Any) -> Any:
        """``class_weights`` as a float32 tensor, (classes,), made once per device; None without."""
        if self.class_weights is not None and (self._weights is None or self._weights.device != device):
            self._weights = torch.tensor(self.class_weights, device=device)
        return self._weights


class TaskBatches:
    """Micro-batches of an epoch: rows of one task and of similar length each. A ``batch_sampler``.

    An item is ``(task, row, counts)``; ``counts`` is False for a row that is only there so that all processes do the
    same number of steps. The order depends on ``seed`` and the epoch alone, and every epoch has the same number of
    batches.
    ``accumulation`` micro-batches of a task stand next to each other, so that an optimizer step is of one task as far
    as it comes out even.

    Args:
        lengths: tokens of the rows of each task.
        batch_size: most rows of a batch.
        accumulation: micro-batches per optimizer step.
        max_tokens: most tokens of a batch, padding included; None: no limit.
        temperature: shares of tasks are proportional to batches ** (1 / temperature).
        seed: of the order.
        rank: number of this process.
        world: number of processes.
    """

    def __init__(
        self,
        lengths: Sequence[np.ndarray[Any, Any]],
        *,
        batch_size: int,
        accumulation: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.lengths, self.batch_size, self.accumulation = list(lengths), batch_size, accumulation
        self.max_tokens, self.seed, self.rank, self.world = max_tokens, seed, rank, world
        self.epoch = 0
        sizes = [len(self._pass(task, 0)) for task in range(len(self.lengths))]
        self.counts = _shares(sizes, temperature)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is iterated over."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-sum(self.counts) // self.world)

    def __iter__(self) -> Iterator[list[tuple[int, int, bool]]]:
        draw = np.random.default_rng([self.seed, self.epoch, len(self.lengths)])
        groups = []
        for task, count in enumerate(self.counts):
            batches = [(task, rows) for rows in self._stream(task, self.epoch * count, count)]
            groups += [batches[at : at + self.accumulation] for at in range(0, len(batches), self.accumulation)]
        # Short groups last: before a full one they would shift all that follow out of step.
        whole = self.accumulation * (self.batch_size if self.max_tokens is None else 1)
        sizes = [sum(len(rows) if self.max_tokens is None else 1 for _, rows in group) for group in groups]
        order = sorted(draw.permutation(len(groups)).tolist(), key=lambda number: sizes[number] < whole)
        batches = [batch for number in order for batch in groups[number]]
        for task, rows in batches[self.rank :: self.world]:
            yield [(task, row, True) for row in rows]
        if len(batches[self.rank :: self.world]) < len(self):
            task, rows = batches[0]
            yield [(task, rows[0], False)]

    def _stream(self, task: int, begin: int, count: int) -> Iterator[list[int]]:
        """``count`` batches from number ``begin`` on of the endless repetition of a task's passes."""
        number, skip = 0, begin
        size = len(self._pass(task, 0))
        number, skip = divmod(begin, size)
        while count > 0:
            batches = self._pass(task, number)[skip : skip + count]
            yield from batches
            count -= len(batches)
            number, skip = number + 1, 0

    def _pass(self, task: int, number: int) -> list[list[int]]:
        draw = np.random.default_rng([self.seed, task, number])
        lengths = self.lengths[task]
        order = draw.permutation(len(lengths))
        if self.max_tokens is None:
            # What one optimizer step learns from does not depend on how it is cut into micro-batches. Rows are sorted
            # within some steps only, so that which of them meet stays random.
            whole = self.batch_size * self.accumulation
            span = 32 * whole
            parts = [order[at : at + span] for at in range(0, len(order), span)]
            order = np.concatenate([part[np.argsort(-lengths[part], kind="stable")] for part in parts])
            units = [order[at : at + whole].tolist() for at in range(0, len(order), whole)]
            # A short one in front would shift the others across the borders of optimizer steps.
            turn = sorted(draw.permutation(len(units)).tolist(), key=lambda unit: len(units[unit]) < whole)
            return [
                units[unit][at : at + self.batch_size]
                for unit in turn
                for at in range(0, len(units[unit]), self.batch_size)
            ]
        # Cuts at the same places of the sorted lengths in every pass: as many batches each time.
        order = order[np.argsort(-lengths[order], kind="stable")]
        batches: list[list[int]] = []
        batch: list[int] = []
        for row in order.tolist():
            if batch and (len(batch) >= self.batch_size or int(lengths[batch[0]]) * (len(batch) + 1) > self.max_tokens):
                batches.append(batch)
                batch = []
            batch.append(row)
        batches.append(batch)
        return [batches[at] for at in draw.permutation(len(batches)).tolist()]


def _shares(sizes: Sequence[int], temperature: float) -> list[int]:
    """How many batches of each task an epoch has; as many in all as the tasks have together."""
    if temperature == 1.0 or len(sizes) == 1:
        return list(sizes)
    total = sum(sizes)
    weights = [size ** (1 / temperature) for size in sizes]
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [max(1, math.floor(value)) for value in exact]
    by_rest = sorted(range(len(sizes)), key=lambda task: counts[task] - exact[task])
    for task in by_rest[: max(0, total - sum(counts))]:
        counts[task] += 1
    return counts


class _Rows:
    """Rows of all tasks for a ``DataLoader`` over :class:`TaskBatches`."""

    def __init__(self, tasks: Sequence[TaskData]) -> None:
        self.tasks = tasks

    def __len__(self) -> int:
        return sum(len(task.train.rows) for task in self.tasks)

    def __getitem__(self, item: tuple[int, int, bool]) -> tuple[int, dict[str, Any], bool]:
        task, row, counts = item
        return task, self.tasks[task].train.rows[row], counts


def collate(rows: Sequence[Mapping[str, Any]], kind: str, pad: int) -> dict[str, torch.Tensor]:
    """Rows as one batch, padded on the right to the longest.

    ``input_ids``, ``attention_mask`` (absent if no row is padded), ``token_type_ids`` where rows have them: (rows,
    tokens) int64; for pairs that are read apart the same with ``pair_``; ``labels``: (rows,) int64 classes or float32
    scores, or (rows, tokens) int64 tags with -100 where nothing is learned.
    """
    batch = _padded(rows, pad, "")
    if rows and "pair" in rows[0]:
        batch |= _padded([row["pair"] for row in rows], pad, "pair_")
    if kind == "ner":
        width = batch["input_ids"].shape[1]
        labels = np.full((len(rows), width), IGNORED, dtype=np.int64)
        for number, row in enumerate(rows):
            labels[number, : len(row["labels"])] = row["labels"]
        batch["labels"] = torch.from_numpy(labels)
    else:
        dtype = torch.int64 if kind == "classification" else torch.float32
        batch["labels"] = torch.tensor([row["labels"] for row in rows], dtype=dtype)
    return batch


def _padded(rows: Sequence[Mapping[str, Any]], pad: int, prefix: str) -> dict[str, torch.Tensor]:
    lengths = [len(row["input_ids"]) for row in rows]
    width = max(lengths)
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for number, row in enumerate(rows):
        ids[number, : lengths[number]] = row["input_ids"]
        mask[number, : lengths[number]] = 1
    batch = {f"{prefix}input_ids": torch.from_numpy(ids)}
    if min(lengths) < width:
        batch[f"{prefix}attention_mask"] = torch.from_numpy(mask)
    if not prefix and "token_type_ids" in rows[0]:
        kinds = np.zeros((len(rows), width), dtype=np.int64)
        for number, row in enumerate(rows):
            kinds[number, : lengths[number]] = row["token_type_ids"]
        batch["token_type_ids"] = torch.from_numpy(kinds)
    return batch


def count_targets(labels: Any) -> int:
    """Number of targets of a batch, from labels as :func:`collate` gives them."""
    return int((labels != IGNORED).sum()) if labels.dtype == torch.int64 else len(labels)


def loss_sum(task: TaskData, logits: Any, labels: Any, *, plain: bool = False) -> Any:
    """Summed loss of a batch.

    Args:
        task: whose loss.
        logits: (rows, classes), (rows, tokens, tags) or (rows, 1).
        labels: as :func:`collate` gives them.
        plain: without class weights and label smoothing, as held-out data are measured.
    """
    logits = logits.float()
    if task.kind == "regression":
        aim = (labels.float() - task.scale.mean) / task.scale.deviation
        return torch.nn.functional.mse_loss(logits[:, 0], aim, reduction="sum")
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        labels.reshape(-1),
        weight=None if plain else task.weights_on(logits.device),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=0.0 if plain else task.label_smoothing,
    )


class TaskTrainer(Trainer):
    """``transformers.Trainer`` for :class:`TaskData`: the loss of each task is a mean over the targets of a whole
    optimizer step, whatever the micro-batches are.

    Args:
        tasks: one, or several for a model that takes ``task=``.
        pad: id of the padding token.
        options: options of the step.
        measuring: the callback that looks at held-out rows.
        arguments: of ``transformers.Trainer``.
    """

    def __init__(
        self, *, tasks: Sequence[TaskData], pad: int, options: Any, measuring: Measuring, **arguments: Any
    ) -> None:
        self.tasks, self.pad, self.options, self.measuring = list(tasks), pad, options, measuring
        self.many = hasattr(arguments["model"], "heads")
        super().__init__(
            train_dataset=_Rows(self.tasks), callbacks=[measuring, *arguments.pop("callbacks", ())], **arguments
        )
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._targets: dict[int, float] = {}
        self._batches: dict[int, float] = {}

    def get_train_dataloader(self) -> Any:
        batches = TaskBatches(
            [task.train.lengths for task in self.tasks],
            batch_size=self.options.batch_size,
            accumulation=self.options.gradient_accumulation,
            max_tokens=self.options.max_tokens_per_batch,
            temperature=getattr(self.options, "temperature", 1.0),
            seed=self.args.data_seed,
            rank=self.args.process_index,
            world=self.args.world_size,
        )
        return _Loader(_Rows(self.tasks), batch_sampler=batches, collate_fn=self._collate)

    def _collate(self, items: Sequence[tuple[int, dict[str, Any], bool]]) -> dict[str, Any]:
        number, _, counts = items[0]
        batch: dict[str, Any] = collate([row for _, row, _ in items], self.tasks[number].kind, self.pad)
        return {**batch, "task": number, "targets": count_targets(batch["labels"]) if counts else 0}

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        samples = []
        for _ in range(num_batches):
            try:
                samples.append(next(epoch_iterator))
            except StopIteration:
                break
        count = len(self.tasks)
        sums = torch.zeros(2, count, dtype=torch.float64)
        for batch in samples:
            sums[0, batch["task"]] += batch["targets"]
            sums[1, batch["task"]] += 1
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums.to(torch.float32).to(device)).cpu().to(torch.float64)
        self._targets = {task: float(sums[0, task]) for task in range(count)}
        self._batches = {task: float(sums[1, task]) for task in range(count)}
        return samples, int(sums[0].sum())

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = dict(inputs)
        number, labels, targets = inputs.pop("task"), inputs.pop("labels"), inputs.pop("targets")
        task = self.tasks[number]
        outputs = model(task=task.name, **inputs) if self.many else model(**inputs)
        loss = loss_sum(task, outputs.logits, labels)
        share = self._batches[number] / sum(self._batches.values()) if len(self.tasks) > 1 else 1.0
        loss = loss * (task.weight * share / max(self._targets[number], 1.0)) * (1 if targets else 0)
        if self.args.world_size > 1:
            loss = loss * self.args.world_size  # gradients are averaged over the processes
        return (loss, outputs) if return_outputs else loss

    def measure(self, task: TaskData, data: Encoded) -> dict[str, Any]:
        """The report of the present weights on rows of a task, in batches as large as those of training."""
        rows, tokens = self.args.train_batch_size, self.options.max_tokens_per_batch
        report: dict[str, Any] = measure(self.model, task, data, self.pad, rows, self.many, max_tokens=tokens)
        return report

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the held-out rows of every task that has some, and log the numbers as ``eval_...``."""
        numbers: dict[str, float] = {}
        total = 0.0
        for task in self.tasks:
            if task.validation is None:
                continue
            report = self.measure(task, task.validation)
            start = f"eval_{task.name}_" if self.many else "eval_"
            numbers |= {f"{start}{name}": value for name, value in metrics.scalars(report).items() if name != "n"}
            total += task.weight * float(report["loss"]) / task.scale.deviation**2
        if self.many:
            numbers["eval_loss"] = total
        self.log(numbers)
        state: Any = self.state
        control: Any = getattr(self, "control")  # noqa: B009
        self.control = self.callback_handler.on_evaluate(self.args, state, control, metrics=numbers)
        return numbers

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        except _AlreadyStopped:
            return None


class _Loader(torch.utils.data.DataLoader):
    """A loader that hands the epoch on to its batch sampler."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order."""
        self.batch_sampler.set_epoch(epoch)


@torch.no_grad()
def measure(
    model: Any,
    task: TaskData,
    data: Encoded,
    pad: int,
    batch_size: int,
    many: bool = False,
    *,
    max_tokens: int | None = None,
) -> dict[str, Any]:
    """Predict all rows and compare. ``loss`` is the mean of the plain loss, in the units of the data.

    Raises:
        StepError: code ``nan-loss`` if the loss is no number.
    """
    outputs, loss, targets = predict(model, task, data, pad, batch_size, many, max_tokens=max_tokens)
    report = judge(task, data, outputs)
    report["loss"] = loss / max(targets, 1) * task.scale.deviation**2
    if not math.isfinite(report["loss"]):
        raise StepError(
            f"The loss of the held-out rows is {report['loss']}.",
            code="nan-loss",
            fix="lower learning_rate, or look at the rows of validation",
        )
    return report


@torch.no_grad()
def predict(
    model: Any,
    task: TaskData,
    data: Encoded,
    pad: int,
    batch_size: int,
    many: bool = False,
    *,
    max_tokens: int | None = None,
) -> tuple[list[np.ndarray[Any, Any]], float, int]:
    """Logits of each row, (classes,), (1,) or (words of the row, tags); summed loss, number of targets.

    The longest rows come first; a batch has up to ``batch_size`` rows and ``max_tokens`` tokens, padding included. The
    mode of the model is put back.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    outputs: list[Any] = [None] * len(data.rows)
    loss, targets = 0.0, 0
    lengths = data.lengths
    order = np.argsort(-lengths, kind="stable").tolist()
    at = 0
    try:
        with hf.quiet():
            while at < len(order):
                fit = batch_size if max_tokens is None else max_tokens // int(lengths[order[at]])
                chosen = order[at : at + max(1, min(batch_size, fit))]
                at += len(chosen)
                batch = collate([data.rows[number] for number in chosen], task.kind, pad)
                targets += count_targets(batch["labels"])
                inputs = {name: value.to(device) for name, value in batch.items()}
                labels = inputs.pop("labels")
                logits = (model(task=task.name, **inputs) if many else model(**inputs)).logits
                if not bool(torch.isfinite(logits).all()):
                    raise StepError("The model computes outputs that are no numbers.", code="nan-loss")
                loss += float(loss_sum(task, logits, labels, plain=True))
                values = logits.float().cpu().numpy()
                for number, own in zip(chosen, values, strict=True):
                    outputs[number] = own[data.rows[number]["positions"]] if task.kind == "ner" else own
    finally:
        model.train(training)
    return outputs, loss, targets


def decode(task: TaskData, data: Encoded, outputs: Sequence[Any]) -> list[Any]:
    """What the outputs say, per data row: class, tags, or score in the units of the data."""
    if task.kind == "classification":
        return [task.labels[int(values.argmax())] for values in outputs]
    if task.kind == "regression":
        return [float(values[0]) * task.scale.deviation + task.scale.mean for values in outputs]
    none = "O" if "O" in task.labels else task.labels[0]
    tags = [[none] * len(truth) for truth in data.truth]
    for row, values in zip(data.rows, outputs, strict=True):
        for word, own in zip(row["words"].tolist(), values.argmax(-1).tolist(), strict=True):
            tags[row["sentence"]][word] = task.labels[own]
    return tags


def judge(task: TaskData, data: Encoded, outputs: Sequence[Any]) -> dict[str, Any]:
    """The report of the task's metrics."""
    found = decode(task, data, outputs)
    if task.kind == "classification":
        return metrics.classification_report(data.truth, found, task.labels)
    if task.kind == "regression":
        return metrics.regression_report(data.truth, found)
    return metrics.tagging_report(data.truth, found, entities=task.entities)


class _AlreadyStopped(Exception):
    """The checkpoint is one of a training that had stopped early."""


class Measuring(TrainerCallback):
    """When held-out rows are measured, which weights were best, and when to stop.

    All that it knows comes from the trainer's log, which every checkpoint holds: a resumed training decides as one
    that was not interrupted.

    Args:
        options: of the step.
        on: whether there are held-out rows.
        folder: where the best weights are kept.
    """

    def __init__(self, options: Any, on: bool, folder: Path) -> None:
        self.options, self.on, self.folder = options, on, folder
        self.name = f"eval_{options.metric_for_best}"
        self.sign = -1.0 if options.metric_for_best in metrics.HIGHER_IS_BETTER else 1.0
        self.stopped_early = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._exhausted(state):
            self.stopped_early = True
            raise _AlreadyStopped

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        every = self.options.validate_every
        if self.on and every is None and abs(state.epoch - round(state.epoch)) < 1e-6:
            # With the last step of an epoch, not behind it: a checkpoint of that step then knows of the measurement.
            control.should_evaluate = True
        if self.on and ((every is not None and state.global_step % every == 0) or state.global_step >= state.max_steps):
            control.should_evaluate = True
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        last = self._values(state)[-1:]
        done = bool(last) and last[0][0] == state.global_step
        stopping = control.should_training_stop
        if self.on and self.options.validate_every is None and not done and not stopping:
            control.should_evaluate = True
        return control

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        newest = self._values(state)[-1:]
        if not newest or newest[0][0] != state.global_step:
            return control
        if self.options.keep_best and self.best(state) == state.global_step and state.is_world_process_zero:
            self._write(kwargs["model"], state.global_step)
        if self._exhausted(state) and state.global_step < state.max_steps:
            self.stopped_early = True
            control.should_training_stop = True
            control.should_save = True
        return control

    def best(self, state: Any) -> int | None:
        """Optimizer step of the best measurement, the first of equal ones; None: no measurement has a value."""
        values = [(step, value) for step, value in self._values(state) if math.isfinite(value)]
        return min(values, key=lambda item: (self.sign * item[1], item[0]))[0] if values else None

    def restore(self, model: Any, state: Any) -> bool:
        """Put the best weights back on the model; False if it has them.

        Raises:
            StepError: code ``best-weights`` if they are not there.
        """
        step = self.best(state)
        if not self.options.keep_best or step is None or step == state.global_step:
            return False
        from safetensors import safe_open

        path = self.folder / _FILE
        own = dict(model.named_parameters())
        try:
            with safe_open(path, framework="pt") as stored:
                if json.loads(stored.metadata()["tunekit"])["step"] != step:
                    raise ValueError("they are of another step")
                for name in stored.keys():  # noqa: SIM118  (not a mapping)
                    own[name].data.copy_(stored.get_tensor(name))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise StepError(
                f"The best weights, of step {step}, cannot be read: {error}.",
                code="best-weights",
                found=str(path),
                fix="run the step again, or leave keep_best out",
            ) from error
        return True

    def _write(self, model: Any, step: int) -> None:
        from safetensors.torch import save_file

        module = getattr(model, "module", model)
        weights = {
            name: value.detach().cpu().contiguous() for name, value in module.named_parameters() if value.requires_grad
        }
        with hf.storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            aside = self.folder / f"{_FILE}.partial"
            save_file(weights, aside, metadata={"tunekit": json.dumps({"step": step})})
            aside.replace(self.folder / _FILE)

    def undefined(self, state: Any) -> list[int]:
        """Optimizer steps of the measurements for which the metric is not defined."""
        return [step for step, value in self._values(state) if not math.isfinite(value)]

    def _values(self, state: Any) -> list[tuple[int, float]]:
        """Step and value of each measurement; a value that is not defined, such as the correlation with predictions
        that are all equal, is the worst there is."""
        found = []
        for row in state.log_history:
            if "eval_loss" in row:
                value = float(row.get(self.name, math.nan))
                found.append((int(row["step"]), value if math.isfinite(value) else self.sign * math.inf))
        return found

    def _exhausted(self, state: Any) -> bool:
        values = [self.sign * value for _, value in self._values(state)]
        patience = self.options.early_stopping
        return patience is not None and bool(values) and len(values) - 1 - values.index(min(values)) >= patience
