"""A step's data as token rows, and what happened to it on the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tunekit.data import Dataset as Data
from tunekit.errors import DataError
from tunekit.plugins import LabelTotals, StepContext, hf
from tunekit_trl.completion_rows import CompletionRows
from tunekit_trl.encoding import SKIPPABLE, Encoder, Example, Pair, encoder_from

__all__ = ["DataFacts", "encode_rows", "encoder_for", "held_out_rows", "pair_rows", "sft_rows"]

T = TypeVar("T")


class _Place(NamedTuple):
    """Where a row stands."""

    row: int
    """1-based number in the file, or in the data set where that is no folder of files."""
    file: str = ""
    """The file, where there are several."""


Numbered = tuple[_Place, dict[str, Any]]

_TOGETHER = 256
_LISTED = 5
_COUNTED = ("cut_rows", "cut_tokens", "split_rows", "merged_rows", "appended_stops", "lost_thoughts")
_ENCODER = 2
"""Raised when the same row would become other tokens or labels: kept tokens are made again."""
_LARGE_BYTES = 64 << 20
_LARGE_ROWS = 50_000
"""Above either, no more is tokenized than ``max_steps`` reads."""


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
    lost_thoughts: int = 0
    skipped: list[tuple[int, str]] = field(default_factory=list)
    """(row, reason) of rows that were left out, the first hundred at least."""
    skipped_rows: int = 0
    """How many were left out."""
    margins: int = 0
    """Pairs with a margin."""
    totals: LabelTotals = field(default_factory=LabelTotals)
    """What a preview counts, too."""

    @classmethod
    def of(cls, store: hf.TokenStore, template: str, max_length: int, train_on: str) -> DataFacts:
        """What was counted while the rows of ``store`` were made."""
        counted = store.facts
        summed = {name: counted[name] for name in _COUNTED}
        totals = LabelTotals(
            rows=counted["rows"],
            tokens=counted["tokens"],
            trained_tokens=counted["targets"],
            cut_rows=counted["cut_rows"],
            cut_tokens=counted["cut_tokens"],
            stop_rows=counted["stop_rows"],
            stopped_rows=counted["stopped_rows"],
        )
        return cls(
            template,
            max_length,
            train_on,
            rows=counted["rows"],
            tokens=counted["tokens"],
            trained_tokens=counted["targets"],
            longest=counted["longest"],
            skipped=[(int(error.details.get("row", number)), error.message) for number, error in store.problems],
            skipped_rows=sum(counted["problems"].values()),
            totals=totals,
            **summed,
        )

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
            "skipped_rows": self.skipped_rows,
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
            ctx.notice("rows-skipped", f"{self.skipped_rows:,} rows with nothing to learn were left out ({shown}).")
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
                f"The chat template ends {self.appended_stops:,} answers without a token that generation stops at; the "
                "tokenizer's end-of-text token was added and is trained.",
            )
        if self.lost_thoughts:
            ctx.notice(
                "thoughts-left-out",
                f"The chat template leaves out what the model thinks in {self.lost_thoughts:,} assistant turns; it is "
                "not learned.",
            )


def encoder_for(model: Any, tokenizer: Any, max_length: int) -> Encoder:
    """An encoder for the step's model; its length limit is never above what the model has positions for."""
    return encoder_from(tokenizer, hf.model_facts(model), max_length)


def sft_rows(ctx: StepContext, encoder: Encoder, train_on: str | None) -> tuple[hf.TokenStore, DataFacts]:
    """The rows that are learned. Of large data, only as many as ``max_steps`` reads.

    Raises:
        DataError: for no rows, a row that cannot be used (unless ``on_bad_row="skip"``), or rows of which none learns
            the token that ends an answer.
    """
    _schema(ctx)
    assert ctx.data is not None
    store, facts = _stored(ctx, "train", ctx.data, encoder, train_on, **_reach(ctx, ctx.data))
    facts.totals.raise_if_harmful()
    if not store.complete:
        ctx.notice(
            "first-rows",
            f"max_steps={ctx.options.max_steps} reads no more than the first {len(store):,} rows of {ctx.data.name}; "
            "the others are not tokenized. If the rows are sorted, shuffle=True draws from all of them.",
        )
    facts.tell(ctx)
    return store, facts


def held_out_rows(ctx: StepContext, encoder: Encoder, train_on: str | None) -> hf.TokenStore | None:
    """The rows of ``ctx.validation``; None if there are none. Raises as :func:`sft_rows` does."""
    if ctx.validation is None:
        return None
    return _stored(ctx, "validation", ctx.validation, encoder, train_on)[0]


def _reach(ctx: StepContext, data: Data) -> dict[str, int]:
    """Limits of what ``max_steps`` can read of data that are too large to be tokenized without need."""
    options = ctx.options
    if options.max_steps is None:
        return {}
    if data.size_bytes() <= _LARGE_BYTES and (data.total() or 0) <= _LARGE_ROWS:
        return {}
    batches = options.max_steps * options.gradient_accumulation * max(1, int(os.environ.get("WORLD_SIZE", "1")))
    if options.packing:
        return {"limit_tokens": batches * options.batch_size * options.max_length}
    if options.max_tokens_per_batch is not None:
        return {"limit_tokens": batches * options.max_tokens_per_batch}
    return {"limit": batches * options.batch_size}


def _stored(
    ctx: StepContext, name: str, data: Data, encoder: Encoder, train_on: str | None, **limits: int
) -> tuple[hf.TokenStore, DataFacts]:
    chosen = encoder.train_on(data.schema, train_on)
    skip = getattr(ctx.options, "on_bad_row", "error") == "skip"

    def encode(rows: list[Numbered]) -> list[hf.TokenRow | DataError]:
        made = encoder.examples([row for _, row in rows], data.schema, chosen)
        return [
            _placed(found, place) if isinstance(found, DataError) else _token_row(found, data.schema)
            for found, (place, _) in zip(made, rows, strict=True)
        ]

    def judge(number: int, error: DataError) -> None:
        if not (skip and error.code in SKIPPABLE):
            raise _in_row(data, error) from error

    settings = {
        "encoder": [version("tunekit-trl"), _ENCODER],
        "schema": data.schema,
        "train_on": chosen,
        "max_length": encoder.max_length,
        "stops": sorted(encoder.stops),
        "vocabulary": encoder.vocabulary,
    }
    key = hf.token_key(data.fingerprint(), encoder.tokenizer, settings)
    numbered = _numbered(data)
    store = hf.TokenStore.build(ctx, name, numbered, encode, key=key, total=data.total(), on_problem=judge, **limits)
    left_out = sum(store.facts["problems"].values())
    if not len(store):
        raise _nothing(data, left_out, left_out)
    template = "plain text" if data.schema == "text" else encoder.template
    return store, DataFacts.of(store, template, encoder.max_length, chosen)


def _token_row(example: Example, schema: str) -> hf.TokenRow:
    stopped = example.stop_learned(schema)
    counts = {
        "cut_rows": int(example.cut > 0),
        "cut_tokens": example.cut,
        "split_rows": int(example.boundary == "split"),
        "merged_rows": int(example.boundary == "merged"),
        "appended_stops": int(example.appended_stop),
        "lost_thoughts": example.lost_thoughts,
        "stop_rows": int(stopped is not None),
        "stopped_rows": int(bool(stopped)),
    }
    return hf.TokenRow(example.input_ids, example.labels, counts)


def pair_rows(
    ctx: StepContext, encoder: Encoder, data: Data | None = None, *, margins: bool = False
) -> tuple[CompletionRows, DataFacts]:
    """Columns ``prompt_ids``, ``chosen_ids``, ``rejected_ids`` and, if they are asked for, ``margin`` of the rows of
    ``data``, else of the step's.

    Raises:
        DataError: as :func:`sft_rows` does, but for what ``DataFacts.totals`` knows.
    """
    _schema(ctx)
    facts = DataFacts(encoder.template, encoder.max_length, "chosen and rejected")
    data = ctx.data if data is None else data
    assert data is not None
    rows = CompletionRows(("chosen", "rejected"))
    appended = encoder.appended_stops

    def encode(batch: list[dict[str, Any]]) -> list[Pair | DataError]:
        made = encoder.pairs(batch)
        for row, pair in zip(batch, made, strict=True):
            if isinstance(pair, Pair):
                pair.margin = row.get("margin")
        return [_no_margin() if margins and isinstance(p, Pair) and p.margin is None else p for p in made]

    found: list[float] = []
    for pair in encode_rows(ctx, data, facts, encode):
        if pair.margin is not None:
            found.append(float(pair.margin))
        answers = len(pair.chosen_ids) + len(pair.rejected_ids)
        longest = len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))
        facts.count(2 * len(pair.prompt_ids) + answers, answers, longest, pair.cut, pair.boundary)
        for answer, cut, stopped in zip((pair.chosen_ids, pair.rejected_ids), pair.cuts, pair.stopped, strict=True):
            facts.totals.add(tokens=len(pair.prompt_ids) + len(answer), trained=len(answer), cut=cut, stopped=stopped)
        rows.add(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
    facts.appended_stops = encoder.appended_stops - appended
    facts.margins = len(found)
    if margins:
        rows.set_column("margin", found)
    return rows, facts


def _no_margin() -> DataError:
    return DataError(
        "the pair has no margin",
        code="no-margin",
        asked="a number in the column margin, since offset is above 0",
        fix="add the column to all rows, or leave offset out",
    )


def _schema(ctx: StepContext) -> str:
    if ctx.data is None:
        raise DataError(f"The step {ctx.step.name!r} has no data.", code="no-data", fix="pass data=...")
    return ctx.data.schema


def encode_rows(
    ctx: StepContext, data: Data, facts: DataFacts, encode: Callable[[list[dict[str, Any]]], list[T | DataError]]
) -> list[T]:
    """What ``encode`` makes of the rows of ``data``, in order; rows left out are counted in ``facts``. Raises as
    :func:`sft_rows` does."""
    skip = getattr(ctx.options, "on_bad_row", "error") == "skip"
    made: list[T] = []
    number = 0
    rows = _numbered(data)
    while batch := list(islice(rows, _TOGETHER)):
        ctx.cancel.raise_if_cancelled()
        for (place, _), found in zip(batch, encode([row for _, row in batch]), strict=True):
            number += 1
            if not isinstance(found, DataError):
                made.append(found)
            elif skip and found.code in SKIPPABLE:
                facts.skipped.append((place.row, found.message))
                facts.skipped_rows += 1
            else:
                raise _in_row(data, _placed(found, place)) from found
        ctx.progress(number, None, "rows", "tokenizing")
    if not made:
        raise _nothing(data, number, facts.skipped_rows)
    ctx.progress(number, number, "rows", "tokenizing")
    return made


def _nothing(data: Data, rows: int, left_out: int) -> DataError:
    return DataError(
        f"{data.name} has no row to train on.",
        code="empty-dataset",
        found=f"{rows} rows, {left_out} of them left out",
        details={"file": str(data.source or data.name)},
    )


def _numbered(data: Data) -> Iterator[Numbered]:
    """The rows, each with where it stands in its source: what a step trains on may be shuffled and chosen from it."""
    for raw, row in data.read():
        if raw.file is None or raw.in_file is None:
            yield _Place(raw.number), row
        else:
            yield _Place(raw.in_file, str(raw.file)), row


def _placed(error: DataError, place: _Place) -> DataError:
    """The error with its row, in a form that is kept on disk."""
    error.details = {**error.details, "row": place.row} | ({"file": place.file} if place.file else {})
    return error


def _in_row(data: Data, error: DataError) -> DataError:
    file = error.details.get("file")
    name = Path(file).name if file else data.name
    return DataError(
        f"{name} row {error.details['row']}: {error.message}.",
        code=error.code,
        asked=error.asked,
        found=error.found,
        suggestions=error.suggestions,
        fix=error.fix,
        details={**error.details, "file": file or str(data.source or data.name)},
    )
