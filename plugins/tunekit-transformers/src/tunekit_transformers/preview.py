"""What the language-model trainers learn: blocks of documents, token by token, cut as they are for training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from tunekit.errors import DataError
from tunekit.plugins import ModelFacts, PreviewContext, PreviewRow, TokenView, hf
from tunekit_transformers.corpus import bounded_sample
from tunekit_transformers.mlm import MaskedRows, Masking
from tunekit_transformers.packing import BlockDataset, TokenFacts, document_rows
from tunekit_transformers.scratch import corpus_tokenizer

__all__ = ["causal", "masked"]

_TOGETHER = 64
_SCANNED = 1000


def causal(ctx: PreviewContext) -> Iterator[PreviewRow]:
    """Blocks for next-token prediction: of a model from random weights, and of one that reads more text."""
    tokenizer, facts = _tokenizer(ctx, masked=False)
    yield from _shown(tokenizer, _blocks(ctx, tokenizer, facts))


def masked(ctx: PreviewContext) -> Iterator[PreviewRow]:
    """Blocks with hidden words, as the first epoch hides them."""
    tokenizer, facts = _tokenizer(ctx, masked=True)
    masking = Masking(tokenizer, probability=ctx.options.mask_probability, whole_words=ctx.options.whole_words)
    yield from _shown(tokenizer, MaskedRows(_blocks(ctx, tokenizer, facts, masked=True), masking, ctx.seed))


def _tokenizer(ctx: PreviewContext, *, masked: bool) -> tuple[Any, ModelFacts]:
    if ctx.step.kind != "pretrain":
        return ctx.tokenizer()
    with hf.quiet():
        sample = bounded_sample((row["text"] for row in ctx.data.rows()), ctx.options.tokenizer_sample, ctx.seed)
        tokenizer, trained = corpus_tokenizer(sample, ctx.options, masked=masked)
    if trained and _may_go_on(ctx):
        ctx.note(
            f"The tokenizer was trained on the first {ctx.data.limit:,} rows here; the run trains it on more of them, "
            "and some tokens will be others."
        )
    return tokenizer, ModelFacts(positions=ctx.options.context)


def _may_go_on(ctx: PreviewContext) -> bool:
    """Whether the data have more rows than those that are looked at."""
    return ctx.data.counted is None or ctx.data.limit is None or ctx.data.counted >= ctx.data.limit


@dataclass
class _Documents:
    """The beginning of a token file, in memory."""

    tokens: np.ndarray[Any, Any]
    starts: np.ndarray[Any, Any]
    facts: TokenFacts


def _blocks(ctx: PreviewContext, tokenizer: Any, facts: ModelFacts, *, masked: bool = False) -> BlockDataset:
    """Blocks of the first documents: no more are read than fill as many blocks as there are rows to look at."""
    length = min(ctx.options.max_length, facts.positions or ctx.options.max_length)
    enough = (ctx.data.limit or _SCANNED) * length
    documents: list[list[int]] = []
    tokens = 0
    texts = (row["text"] for row in ctx.data.rows())
    while tokens < enough and (batch := list(islice(texts, _TOGETHER))):
        for found in document_rows(batch, tokenizer, facts.embeddings, masked):
            if isinstance(found, DataError):
                raise found
            ids = list(found.input_ids)
            documents.append(ids)
            tokens += len(ids)
    lengths = np.array([len(ids) for ids in documents], dtype=np.int64)
    made: Any = _Documents(
        tokens=np.array([token for ids in documents for token in ids], dtype=np.int64),
        starts=np.cumsum(lengths) - lengths,
        facts=TokenFacts(documents=len(documents), tokens=tokens, fingerprint=""),
    )
    return BlockDataset(made, length)


def _shown(tokenizer: Any, blocks: Any) -> Iterator[PreviewRow]:
    special = {*tokenizer.all_special_ids, *(n for n, token in tokenizer.added_tokens_decoder.items() if token.special)}
    known: dict[int, str] = {}

    def text(token: int) -> str:
        if token not in known:
            known[token] = hf.token_text(tokenizer, token)
        return known[token]

    for number in range(len(blocks)):
        row = blocks[number]
        document = -1
        tokens = []
        for token, position, label in zip(row["input_ids"], row["position_ids"], row["labels"], strict=True):
            document += int(position) == 0
            learned = int(label) >= 0
            tokens.append(
                TokenView(
                    id=int(token),
                    text=text(int(token)),
                    label=None if not learned else int(label) if label == token else text(int(label)),
                    weight=1.0 if learned else 0.0,
                    turn=document,
                    special=int(token) in special,
                )
            )
        yield PreviewRow(number=number + 1, tokens=tuple(tokens))
