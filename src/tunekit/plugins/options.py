"""Bases for option models. Pydantic, torch-free.

Unknown options are errors, and so are values that only look right: ``"8"`` is no integer, ``1.5`` no count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator  # noqa: TID253  (this module is imported only with an options model)

__all__ = [
    "DataOptions",
    "DataRequest",
    "Options",
    "SampleOptions",
    "SupervisedOptions",
    "TrainOptions",
    "ValidatedOptions",
]


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """A data set that a step reads besides its ``data``."""

    ref: Any
    """What the user wrote: path, data set name, list of rows, or an object in memory."""
    accepts: tuple[str, ...] = ()
    """Row shapes the step can use, the preferred first; empty: any."""
    format: str | None = None
    columns: Mapping[str, str] | None = None
    limit: int | None = None
    on_bad_row: str = "error"


class Options(BaseModel):
    """Base of every options model: frozen, no unknown names, no silent conversion.

    The text under a field is its help; ``Field(..., json_schema_extra={"unit": "tokens"})`` says what a number counts.
    Both are shown by ``tunekit plugins show``.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, protected_namespaces=()
    )

    def resolve(self, *, adapter: str | None) -> Self:
        """Fill in what depends on the rest of the plan. ``adapter`` is the adapter's name or None for full training."""
        return self

    def further_data(self) -> Mapping[str, DataRequest]:
        """Data sets that the step reads besides ``data``, by a name of the options' choice.

        ``check`` looks into each, its content counts for whether a step must run again, and the step finds it opened in
        ``ctx.further_data``.
        """
        return {}

    def check_rows(self, schema: str, rows: Sequence[Mapping[str, Any]], whole: bool) -> None:
        """Say what keeps the options from working with the data, before anything runs. Called by ``check``.

        Args:
            schema: row shape of the step's data.
            rows: the first rows of it, read; those of the options of a reward are rows of the shape ``prompt``.
            whole: whether these are all rows.

        Raises:
            TunekitError: if they do not; it becomes a finding of ``check``.
        """


class DataOptions(Options):
    """Which rows a step reads."""

    data: Any = None
    """Path, data set name, list of rows, or a ``datasets``/pandas object. None: the embedded default, with a notice."""
    format: str | None = None
    """Name of the data format, when detection should not decide, such as ``alpaca``."""
    columns: dict[str, str] | None = None
    """Canonical field to column name, such as ``{"prompt": "question", "completion": "answer"}``."""
    limit: int | None = Field(default=None, ge=1, json_schema_extra={"unit": "rows"})
    """Use the first rows only."""
    on_bad_row: Literal["error", "skip"] = "error"
    """``skip`` leaves bad rows out, counts and lists them."""
    shuffle: bool = False
    """Put the rows in a random order (by the step's seed) before ``limit`` and ``validation`` take theirs."""
    dedupe: Literal["exact", "near"] | None = None
    """Leave out rows whose text was there before: the same text, or ``near``: nearly the same words."""
    decontaminate: bool = False
    """Leave out rows that hold text of the benchmarks in this plan; they are counted and listed."""


class TrainOptions(DataOptions):
    """Options that every trainer of weights shares."""

    epochs: float = Field(default=1.0, gt=0, json_schema_extra={"unit": "passes"})
    """Passes over the data; ``max_steps`` wins."""
    max_steps: int | None = Field(default=None, ge=1, json_schema_extra={"unit": "optimizer steps"})
    """Optimizer steps in all."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate. None: the trainer's default for full or adapter training, shown by ``explain``."""
    batch_size: int = Field(default=8, ge=1, json_schema_extra={"unit": "examples"})
    """Examples per device and micro-batch."""
    gradient_accumulation: int = Field(default=1, ge=1, json_schema_extra={"unit": "micro-batches"})
    """Micro-batches per optimizer step; the loss is normalised over the target tokens of all of them."""
    max_length: int = Field(default=1024, ge=8, json_schema_extra={"unit": "tokens"})
    """Longest example in tokens; what is cut is counted and reported."""
    warmup: float = Field(default=0.0, ge=0)
    """Warm-up: a share of all steps below 1, a number of steps from 1."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Course of the learning rate after warm-up."""
    optimizer: str = "adamw_torch"
    """Optimizer name as transformers spells it."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradient clipping by global norm; 0 turns it off."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    checkpoint_every: int | None = Field(default=None, ge=1, json_schema_extra={"unit": "optimizer steps"})
    """Optimizer steps between checkpoints. None: about ten times per step of the pipeline, at least every 500."""
    keep_checkpoints: int = Field(default=2, ge=1, json_schema_extra={"unit": "checkpoints"})
    """How many of the newest checkpoints stay on disk."""
    seed: int | None = Field(default=None, ge=0, le=2**32 - 1)
    """Seed of this step. None: the run's seed."""


class ValidatedOptions(TrainOptions):
    """Options of trainers that measure on held-out rows."""

    validation: Any = None
    """Held-out data: a share of the rows below 1, a number of rows from 1, or data of its own (path, rows, object)."""
    validate_every: int | None = Field(default=None, ge=1, json_schema_extra={"unit": "optimizer steps"})
    """Optimizer steps between measurements on the held-out data. None: at the end of each epoch."""
    keep_best: bool = False
    """Hand on the checkpoint with the lowest validation loss in place of the last one."""
    early_stopping: int | None = Field(default=None, ge=1, json_schema_extra={"unit": "measurements"})
    """Stop after this many measurements without a lower validation loss."""

    @field_validator("validation")
    @classmethod
    def _share_or_rows(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("is true or false; it takes a share of the rows, a number of rows, or data of its own")
        if isinstance(value, int) and value < 1:
            raise ValueError(f"holds out {value} rows; a number of rows is at least 1")
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError(
                f"is {value:g}; a share of the rows is above 0 and below 1, a number of rows is a whole number from 1"
            )
        return value

    def _validated(self) -> bool:
        """Whether rows are held out. Options that hold them out elsewhere than by ``validation`` override it."""
        return self.validation is not None

    @model_validator(mode="after")
    def _validation_for_what_needs_it(self) -> Self:
        asked = [name for name in ("validate_every", "keep_best", "early_stopping") if getattr(self, name)]
        if asked and not self._validated():
            raise ValueError(
                f"{' and '.join(asked)} measure{'s' * (len(asked) == 1)} on held-out data, and validation is not "
                "given: validation=0.05 holds out a share of the rows"
            )
        return self


class SampleOptions(Options):
    """Options of trainers that show what the model writes before and after; see
    :func:`tunekit.plugins.hf.compare_samples`."""

    samples: int = Field(default=8, ge=0, json_schema_extra={"unit": "prompts"})
    """Prompts, held-out ones if there are any, that are continued before and after training for the report; with
    rewards they give the win rate. 0: none."""
    sample_tokens: int | None = Field(default=None, ge=1, json_schema_extra={"unit": "tokens"})
    """Longest of these completions. None: the step's ``max_new_tokens`` where it has one, otherwise 64."""


class SupervisedOptions(ValidatedOptions):
    """Options of trainers that learn from targets: how batches are filled."""

    schedule: Literal["linear", "cosine", "constant", "wsd"] = "linear"  # type: ignore[assignment]
    """Course of the learning rate after warm-up. ``wsd``: constant, then a linear decay over the last ``decay``."""
    decay: float = Field(default=0.2, gt=0)
    """``wsd`` only: the decay at the end, a share of all steps below 1, a number of steps from 1."""
    max_tokens_per_batch: int | None = Field(default=None, ge=8, json_schema_extra={"unit": "tokens"})
    """Fill micro-batches with whole examples of similar length up to this many tokens. ``batch_size``, when given as
    well, is a second limit; otherwise it is set to the same number, which is none."""
    packing: bool = False
    """Pack examples into blocks of up to ``max_length`` tokens; none sees another. ``batch_size`` counts blocks."""

    @model_validator(mode="before")
    @classmethod
    def _tokens_alone_fill_batches(cls, values: Any) -> Any:
        # Written out, so that the plan says it: no number of rows that fit in so many tokens is above it.
        limit = values.get("max_tokens_per_batch") if isinstance(values, Mapping) else None
        if isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1 and "batch_size" not in values:
            return {**values, "batch_size": limit}
        return values

    @model_validator(mode="after")
    def _batches_are_filled_one_way(self) -> Self:
        if self.packing and self.max_tokens_per_batch is not None:
            raise ValueError(
                "packing and max_tokens_per_batch exclude each other: with packing, a batch is batch_size blocks of "
                "max_length tokens"
            )
        if self.schedule != "wsd" and self.decay != type(self).model_fields["decay"].default:
            raise ValueError(f"decay has no effect with schedule={self.schedule!r}; it belongs to 'wsd'")
        return self
