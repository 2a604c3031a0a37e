"""Text on its way to a language model: the sample a tokenizer learns from, and blocks of tokens."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tunekit.errors import StepError
from tunekit_transformers.packing import BlockDataset, TokenFile, tokens_for

if TYPE_CHECKING:
    from tunekit.data import Dataset
    from tunekit.plugins import StepContext
    from tunekit_transformers.options import LanguageOptions

__all__ = ["bounded_sample", "measured_blocks", "texts", "training_blocks"]

AT_LEAST = 1 << 22
"""Tokens of the corpus that are read even when training needs fewer: blocks are drawn from all of them."""

READ_AHEAD = 4
"""How many times the size of a sample is read to draw it."""


def texts(ctx: StepContext, data: Dataset) -> Iterator[str]:
    """The texts of ``data``; a cancel is looked at between them."""
    for row in data.rows():
        ctx.cancel.raise_if_cancelled()
        yield row["text"]


def bounded_sample(documents: Iterable[str], characters: int, seed: int) -> list[str]:
    """About ``characters`` of text at most, out of the first four times as much; less is given whole.

    Each document is kept with the same probability. That is 1 as long as everything fits, and is halved, for those
    kept so far as well, whenever the sample is full: one pass, and never more in memory than asked for plus one
    document. The order stays.

    Args:
        documents: texts.
        characters: most characters of the sample.
        seed: of the draw.
    """
    draw = random.Random(seed)
    kept: list[str] = []
    size = read = 0
    chance = 1.0
    for document in documents:
        read += len(document)
        if chance == 1.0 or draw.random() < chance:
            kept.append(document)
            size += len(document)
        while size > characters and len(kept) > 1:
            chance /= 2
            kept = [text for text in kept if draw.random() < 0.5] or kept[:1]
            size = sum(map(len, kept))
        if read >= READ_AHEAD * characters:
            break
    return kept


def training_blocks(
    ctx: StepContext,
    tokenizer: Any,
    vocabulary: int,
    length: int,
    options: LanguageOptions,
    world: int,
    masked: bool = False,
) -> tuple[TokenFile, BlockDataset]:
    """Blocks of the step's data. Where the number of steps is set, the corpus is read as far as they need, but at
    least 4 million tokens.

    Args:
        ctx: the step.
        tokenizer: of the model.
        vocabulary: rows of the model's embedding matrix.
        length: tokens in a block.
        options: the step's options, with ``max_steps`` where a budget sets it.
        world: processes that train together.
        masked: the objective hides words.

    Raises:
        StepError: code ``no-targets``.
    """
    assert ctx.data is not None
    limit = None
    if options.max_steps is not None:
        limit = max(AT_LEAST, tokens_for(options.max_steps, options.rows_per_step(length, world), length))
    file = TokenFile.build(
        ctx,
        texts(ctx, ctx.data),
        tokenizer,
        ctx.data.fingerprint(),
        vocabulary=vocabulary,
        limit_tokens=limit,
        masked=masked,
    )
    blocks = BlockDataset(file, length)
    if len(blocks) == 0:
        raise StepError("The texts hold no token to predict.", code="no-targets", fix="pass longer texts")
    return file, blocks


def measured_blocks(
    ctx: StepContext,
    data: Dataset,
    name: str,
    tokenizer: Any,
    vocabulary: int,
    length: int,
    limit: int | None,
    masked: bool = False,
) -> tuple[TokenFile, Any]:
    """Blocks to measure perplexity on: of the first ``limit`` tokens of ``data``.

    Raises:
        StepError: code ``no-targets``.
    """
    file = TokenFile.build(
        ctx,
        texts(ctx, data),
        tokenizer,
        data.fingerprint(),
        name=name,
        vocabulary=vocabulary,
        limit_tokens=limit,
        masked=masked,
    )
    blocks = BlockDataset(file, length)
    kept = len(blocks)
    if limit is not None and file.facts.tokens > limit:
        # The document that reached the limit is read to its end, which may be far.
        kept = min(kept, max(1, limit // length))
    if kept == 0:
        raise StepError(f"The {name} text holds no token to predict.", code="no-targets", fix="pass longer texts")
    return file, _First(blocks, kept)


class _First:
    """The first rows of token rows."""

    def __init__(self, rows: Any, count: int) -> None:
        self._rows, self._count = rows, count
        self.lengths = rows.lengths[:count]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(f"row {index} of {self._count}")
        return self._rows[index]
