"""Options of the trainers for classes, tags and scores. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tunekit.plugins import DataRequest, Options, SupervisedOptions

__all__ = [
    "ACCEPTS",
    "ClassificationOptions",
    "ClassificationTask",
    "MultitaskOptions",
    "NerOptions",
    "NerTask",
    "RegressionOptions",
    "RegressionTask",
    "Task",
]

ACCEPTS: Mapping[str, tuple[str, ...]] = {
    "classification": ("classification",),
    "ner": ("token_classification",),
    "regression": ("regression",),
}
"""Task to the row shapes it learns from."""

LEARNING_RATE = {"full": 5e-5, "adapter": 5e-4}

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


class _Classes(Options):
    labels: list[str] | None = None
    """The classes or tags in the order of the model's outputs. None: those of the training rows, sorted."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes (Szegedy et al. 2016, arXiv:1512.00567)."""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """Factor of the loss by class or tag. ``balanced``: rows / (classes * rows of the class), as in scikit-learn. The
    sum of the weighted losses is divided by the number of targets."""

    @model_validator(mode="after")
    def _labels_are_classes(self) -> Self:
        if self.labels is not None and (len(set(self.labels)) != len(self.labels) or len(self.labels) < 2):
            raise ValueError("labels must be two or more different ones")
        if isinstance(self.class_weights, dict) and any(not value > 0 for value in self.class_weights.values()):
            raise ValueError("class_weights must be above 0")
        return self


class _Tags(_Classes):
    long: Literal["window", "cut"] = "window"
    """What becomes of a sentence that is longer than ``max_length``: several windows that overlap by ``overlap``
    tokens, each word learned once; or its end is cut off and counted."""
    overlap: int = Field(default=32, ge=0, json_schema_extra={"unit": "tokens"})
    """Context that a window shares with the one before it."""

    @model_validator(mode="after")
    def _overlap_of_windows(self) -> Self:
        if self.long == "cut" and self.overlap != _Tags.model_fields["overlap"].default:
            raise ValueError('overlap has no effect with long="cut": there are no windows')
        return self


class _Scores(Options):
    pooling: Literal["head", "cosine"] = "head"
    """``head``: text (and pair) are read together and the model's head gives the score. ``cosine``, pairs only: each
    text is read alone, and the score is the cosine of the mean token vectors, scaled to ``score_range``; for models
    that were made for sentence similarity."""
    score_range: list[float] | None = Field(default=None, min_length=2, max_length=2)
    """``cosine`` only: scores that stand for cosine 0 and 1. None: the lowest and highest of the training rows."""
    standardize: bool = True
    """Learn scores minus their mean, divided by their standard deviation. The saved model gives scores as in the
    data."""

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.score_range is not None and not self.score_range[0] < self.score_range[1]:
            raise ValueError("score_range must be (low, high) with low < high")
        if self.score_range is not None and self.pooling != "cosine":
            raise ValueError('score_range has no effect without pooling="cosine"')
        return self


class _TaskOptions(SupervisedOptions):
    epochs: float = Field(default=3.0, gt=0, json_schema_extra={"unit": "passes"})
    """Passes over the data; ``max_steps`` wins."""
    batch_size: int = Field(default=16, ge=1, json_schema_extra={"unit": "examples"})
    """Examples per device and micro-batch. Batches hold examples of similar length."""
    max_length: int = Field(default=512, ge=8, json_schema_extra={"unit": "tokens"})
    """Longest example in tokens, at most the model's context; what is cut is counted and reported."""
    warmup: float = Field(default=0.1, ge=0)
    """Warm-up: a share of all steps below 1, a number of steps from 1."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    packing: Literal[False] = False
    """Not for these tasks: an example has one target for all of its tokens."""
    early_stopping: int | None = Field(default=None, ge=1, json_schema_extra={"unit": "measurements"})
    """Stop after this many measurements that were not better by ``metric_for_best``."""
    keep_best: bool = False
    """Hand on the weights that were best by ``metric_for_best`` in place of the last ones."""

    @model_validator(mode="after")
    def _metric_for_what_chooses(self) -> Self:
        metric = getattr(self, "metric_for_best", "loss")
        if metric != "loss" and not self.keep_best and self.early_stopping is None:
            raise ValueError(
                f"metric_for_best={metric!r} has no effect without keep_best=True or early_stopping=3: nothing is "
                "chosen by it"
            )
        return self

    def resolve(self, *, adapter: str | None) -> Self:
        """Fill in the learning rate."""
        if self.learning_rate is not None:
            return self
        return self.model_copy(update={"learning_rate": LEARNING_RATE["adapter" if adapter else "full"]})


class _OneTask(_TaskOptions):
    task: ClassVar[str]

    test: Any = None
    """Data that are measured once, when training has ended: path, rows, or an object. Nothing is chosen by them."""

    def further_data(self) -> Mapping[str, DataRequest]:
        """The test rows."""
        if self.test is None:
            return {}
        return {
            "test": DataRequest(
                ref=self.test,
                accepts=ACCEPTS[self.task],
                format=self.format,
                columns=self.columns,
                on_bad_row=self.on_bad_row,
            )
        }


class ClassificationOptions(_OneTask, _Classes):
    """Options of ``post_pretrain(task="classification")``: one class per text, or per pair of texts.

    The learning rate is 5e-5 for full training and 5e-4 through an adapter unless given.
    """

    task: ClassVar[str] = "classification"

    metric_for_best: Literal["loss", "accuracy", "f1", "f1_micro", "f1_weighted", "precision", "recall"] = "loss"
    """Which number of the validation rows says what is better. ``f1``, ``precision`` and ``recall`` are means over the
    classes (macro)."""


class NerOptions(_OneTask, _Tags):
    """Options of ``post_pretrain(task="ner")``: one tag per word, learned on the first token of the word.

    Tags are BIO; IOB and BIOES are turned into BIO. Tags of other kinds (parts of speech) are learned as they are. The
    learning rate is 5e-5 for full training and 5e-4 through an adapter unless given.
    """

    task: ClassVar[str] = "ner"

    metric_for_best: Literal["loss", "f1", "precision", "recall", "accuracy", "f1_macro"] = "loss"
    """Which number of the validation rows says what is better. ``f1``, ``precision`` and ``recall`` count whole
    entities (micro), as seqeval's strict mode does."""


class RegressionOptions(_OneTask, _Scores):
    """Options of ``post_pretrain(task="regression")``: one score per text, or per pair of texts, by squared error.

    The learning rate is 5e-5 for full training and 5e-4 through an adapter unless given.
    """

    task: ClassVar[str] = "regression"

    metric_for_best: Literal["loss", "mse", "rmse", "mae", "pearson", "spearman"] = "loss"
    """Which number of the validation rows says what is better."""


class _Entry(Options):
    """A task in ``post_pretrain(task={name: {...}})``."""

    data: Any
    """Training rows: path, data set name, rows, or an object in memory."""
    validation: Any = None
    """Held-out data: a share of the rows below 1, a number of rows from 1, or data of its own."""
    test: Any = None
    """Data that are measured once, when training has ended."""
    weight: float = Field(default=1.0, gt=0)
    """Factor of the task's loss."""
    format: str | None = None
    """Name of the data format, when detection should not decide."""
    columns: dict[str, str] | None = None
    """Canonical field to column name."""
    limit: int | None = Field(default=None, ge=1, json_schema_extra={"unit": "rows"})
    """Use the first rows only."""
    on_bad_row: Literal["error", "skip"] = "error"
    """``skip`` leaves bad rows out, counts and lists them."""


class ClassificationTask(_Entry, _Classes):
    """One class per text or pair of texts."""

    task: Literal["classification"]


class NerTask(_Entry, _Tags):
    """One tag per word."""

    task: Literal["ner"]


class RegressionTask(_Entry, _Scores):
    """One score per text or pair of texts."""

    task: Literal["regression"]


Task = Annotated[ClassificationTask | NerTask | RegressionTask, Field(discriminator="task")]


class MultitaskOptions(_TaskOptions):
    """Options of ``post_pretrain(task={...})``: several tasks that share one body, with a head each.

    A micro-batch holds rows of one task. The loss of an optimizer step is the mean over its micro-batches of the task's
    weight times the task's mean loss in that step. The learning rate is 5e-5 for full training and 5e-4 through an
    adapter unless given.
    """

    tasks: dict[str, Task] = Field(min_length=1)
    """Name to task: ``{"mood": {"task": "classification", "data": "a.tsv", "weight": 1.0}, ...}``."""
    temperature: float = Field(default=1.0, ge=1)
    """How batches are shared out: a task's share is proportional to batches ** (1 / temperature). 1: by size, every row
    once per pass. The higher, the more equal; small tasks are then repeated and large ones not read to the end (Raffel
    et al. 2020, arXiv:1910.10683, section 3.5.2)."""
    metric_for_best: Literal["loss"] = "loss"
    """The weighted sum of the tasks' validation losses."""

    @model_validator(mode="after")
    def _tasks_and_data(self) -> Self:
        for name, task in self.tasks.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"the task name {name!r} must be letters, digits, - and _, and begin with a letter")
            if isinstance(task, RegressionTask) and task.pooling == "cosine":
                raise ValueError(f"{name!r} cannot have pooling='cosine' among several tasks: it trains no head")
        if self.data is not None:
            raise ValueError("several tasks have their data in task={name: {'data': ...}}, not in data=")
        own = ("format", "columns", "limit", "validation", "shuffle", "dedupe", "decontaminate")
        given = [name for name in own if name in self.model_fields_set and getattr(self, name)]
        if given:
            raise ValueError(f"{', '.join(given)} must stand with each task, task={{name: {{{given[0]!r}: ...}}}}")
        return self

    def _validated(self) -> bool:
        return any(task.validation is not None for task in self.tasks.values())

    def further_data(self) -> Mapping[str, DataRequest]:
        """The rows of every task: ``name``, ``name.validation`` and ``name.test``."""
        found = {}
        for name, task in self.tasks.items():
            parts = {"": task.data, ".validation": task.validation, ".test": task.test}
            for part, ref in parts.items():
                if ref is None or isinstance(ref, int | float):
                    continue
                found[name + part] = DataRequest(
                    ref=ref,
                    accepts=ACCEPTS[task.task],
                    format=task.format,
                    columns=task.columns,
                    limit=task.limit if not part else None,
                    on_bad_row=task.on_bad_row,
                )
        return found
