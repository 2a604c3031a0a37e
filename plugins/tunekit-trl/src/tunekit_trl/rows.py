"""A step's data as token rows, and what happened to it on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from datasets import Dataset

from tunekit.data import Dataset as Data
from tunekit.errors import DataError
from tunekit.plugins import StepContext
from tunekit_trl.encoding import Encoder, Example, Pair

__all__ = ["DataFacts", "TokenRows", "encoder_for", "held_out_rows", "pair_rows", "sft_rows"]

T = TypeVar("T", Example, Pair)

_TOGETHER = 256
_LISTED = 5


@dataclass
class DataFacts:
    """Counts over the rows a step trains on."""

    template: str
    max_length: int
    train_on: str = ""
    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    cut_rows: int = 0
    cut_tokens: int = 0
    longest: int = 0
    split_rows: int = 0
    merged_rows: int = 0
    appended_stops: int = 0
    skipped: list[tuple[int, str]] = field(default_factory=list)

    def count(self, tokens: int, targets: int, longest: int, cut: int, boundary: str) -> None:
        """Add one row."""
        self.rows += 1
        self.tokens += tokens
        self.trained_tokens += targets
        self.longest = max(self.longest, longest)
        self.cut_rows += cut > 0
        self.cut_tokens += cut
        self.split_rows += boundary == "split"
        self.merged_rows += boundary == "merged"

    def to_details(self) -> dict[str, Any]:
        """JSON types, for the artifact's ``details["data"]``."""
        return {
            "template": self.template,
            "train_on": self.train_on,
            "rows": self.rows,
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "longest_row": self.longest,
            "max_length": self.max_length,
            "cut_rows": self.cut_rows,
            "cut_tokens": self.cut_tokens,
            "split_boundary_rows": self.split_rows,
            "merged_boundary_rows": self.merged_rows,
            "appended_stop_tokens": self.appended_stops,
            "skipped_rows": len(self.skipped),
        }

    def tell(self, ctx: StepContext) -> None:
        """Notices about whatever was not used as it stands in the data."""
        if self.cut_rows:
            limit = f"max_length={self.max_length}"
            if self.max_length < ctx.options.max_length:
                limit = f"the model's {self.max_length} positions"
            ctx.notice(
                "rows-cut",
                f"{self.cut_rows:,} of {self.rows:,} rows are longer than {limit} and lose {self.cut_tokens:,} tokens "
                "at their end.",
            )
        if self.skipped:
            shown = "; ".join(f"row {number}: {reason}" for number, reason in self.skipped[:_LISTED])
            ctx.notice("rows-skipped", f"{len(self.skipped):,} rows with nothing to learn were left out ({shown}).")
        if self.split_rows:
            ctx.notice(
                "token-boundary",
                f"In {self.split_rows:,} of {self.rows:,} rows the tokenizer would merge the end of the prompt with "
                "the beginning of the answer; the two are tokenized apart, as they are when the model is used.",
            )
        if self.merged_rows:
            ctx.notice(
                "token-boundary",
                f"In {self.merged_rows:,} of {self.rows:,} rows one token holds the end of the prompt and the "
                "beginning of the answer; it is trained as part of the answer. End prompts with a line break to "
                "avoid it.",
            )
        if self.appended_stops and self.template == "chat template":
            ctx.notice(
                "stop-appended",
                f"The chat template ends {self.appended_stops:,} answers without a special token; the tokenizer's "
                "end-of-text token was added and is trained.",
            )


def encoder_for(model: Any, tokenizer: Any, max_length: int) -> Encoder:
    """An encoder for the step's model; its length limit is never above what the model has positions for."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(limit, int) and limit > 0:
        max_length = min(max_length, limit)
    stops = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = stops if isinstance(stops, list) else [] if stops is None else [stops]
    embeddings = int(model.get_input_embeddings().weight.shape[0])
    return Encoder(tokenizer, max_length, frozenset(int(stop) for stop in listed), embeddings)


class TokenRows:
    """Token rows in memory; see :class:`tunekit.plugins.hf.TokenTrainer`."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples
        self.lengths = np.array([len(example.input_ids) for example in examples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, number: int) -> dict[str, list[int]]:
        example = self._examples[number]
        return {"input_ids": example.input_ids, "labels": example.labels}


def sft_rows(ctx: StepContext, encoder: Encoder, train_on: str | None) -> tuple[TokenRows, DataFacts]:
    """The rows that are learned.

    Raises:
        DataError: for no rows, or a row that cannot be used (unless ``on_bad_row="skip"``).
    """
    _schema(ctx)
    assert ctx.data is not None
    made, facts = _examples(ctx, ctx.data, encoder, train_on)
    facts.tell(ctx)
    return TokenRows(made), facts


def held_out_rows(ctx: StepContext, encoder: Encoder, train_on: str | None) -> TokenRows | None:
    """The rows of ``ctx.validation``; None if there are none. Raises as :func:`sft_rows` does."""
    if ctx.validation is None:
        return None
    return TokenRows(_examples(ctx, ctx.validation, encoder, train_on)[0])


def _examples(ctx: StepContext, data: Data, encoder: Encoder, train_on: str | None) -> tuple[list[Example], DataFacts]:
    chosen = encoder.train_on(data.schema, train_on)
    facts = DataFacts(encoder.template, encoder.max_length, chosen)
    if data.schema == "text":
        facts.template = "plain text"
    appended = encoder.appended_stops
    made = _encode(ctx, data, facts, lambda rows: encoder.examples(rows, data.schema, chosen))
    for example in made:
        length = len(example.input_ids)
        facts.count(length, example.targets, length, example.cut, example.boundary)
    facts.appended_stops = encoder.appended_stops - appended
    return made, facts


def pair_rows(ctx: StepContext, encoder: Encoder) -> tuple[Dataset, DataFacts]:
    """Columns ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``. Raises as :func:`sft_rows` does."""
    _schema(ctx)
    facts = DataFacts(encoder.template, encoder.max_length, "chosen and rejected")
    assert ctx.data is not None
    made = _encode(ctx, ctx.data, facts, encoder.pairs)
    for pair in made:
        answers = len(pair.chosen_ids) + len(pair.rejected_ids)
        longest = len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))
        facts.count(2 * len(pair.prompt_ids) + answers, answers, longest, pair.cut, pair.boundary)
    facts.appended_stops = encoder.appended_stops
    facts.tell(ctx)
    return Dataset.from_dict(
        {
            "prompt_ids": [p.prompt_ids for p in made],
            "chosen_ids": [p.chosen_ids for p in made],
            "rejected_ids": [p.rejected_ids for p in made],
        }
    ), facts


def _schema(ctx: StepContext) -> str:
    if ctx.data is None:
        raise DataError(f"The step {ctx.step.name!r} has no data.", code="no-data", fix="pass data=...")
    return ctx.data.schema


def _encode(
    ctx: StepContext, data: Data, facts: DataFacts, encode: Callable[[list[dict[str, Any]]], list[T | DataError]]
) -> list[T]:
    skip = getattr(ctx.options, "on_bad_row", "error") == "skip"
    made: list[T] = []
    number = 0
    rows = iter(data.rows())
    while batch := list(islice(rows, _TOGETHER)):
        ctx.cancel.raise_if_cancelled()
        for found in encode(batch):
            number += 1
            if not isinstance(found, DataError):
                made.append(found)
            elif skip and found.code in ("no-targets", "equal-answers"):
                facts.skipped.append((number, found.message))
            else:
                raise _in_row(data, number, found) from found
        ctx.progress(number, None, "rows", "tokenizing")
    if not made:
        raise DataError(
            f"{data.name} has no row to train on.",
            code="empty-dataset",
            found=f"{number} rows, {len(facts.skipped)} of them left out",
            details={"file": str(data.source or data.name)},
        )
    ctx.progress(number, number, "rows", "tokenizing")
    return made


def _in_row(data: Data, number: int, error: DataError) -> DataError:
    return DataError(
        f"{data.name} row {number}: {error.message}.",
        code=error.code,
        asked=error.asked,
        found=error.found,
        suggestions=error.suggestions,
        fix=error.fix,
        details={**error.details, "file": str(data.source or data.name), "row": number},
    )
