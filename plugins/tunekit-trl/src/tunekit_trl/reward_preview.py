"""What a reward step learns, answer by answer. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from tunekit.errors import DataError
from tunekit.plugins import PreviewContext, PreviewRow, hf
from tunekit_trl.encoding import IGNORED
from tunekit_trl.preview import _encoder, _problem
from tunekit_trl.reward_rows import REPEATED, RewardRow, encode_answers

__all__ = ["reward"]

_TOGETHER = 64


def reward(ctx: PreviewContext) -> Iterator[PreviewRow]:
    """The answers that ``reward`` learns to score, each with what it is to be better than, or its score. The reward is
    read at the last token."""
    encoder, views = _encoder(ctx)
    rows = ctx.data.read()
    while batch := list(islice(rows, _TOGETHER)):
        with hf.quiet():
            made = encode_answers(encoder, [row for _, row in batch], ctx.data.schema, ctx.options.margin_weight)
        for (raw, _), found in zip(batch, made, strict=True):
            if isinstance(found, DataError):
                problem = _problem(ctx, raw, found)
                yield replace(problem, skipped=True) if found.code == REPEATED else problem
                continue
            for number, cut in enumerate(found.cuts):
                ids = found.sequence(number)
                yield PreviewRow(
                    number=raw.number,
                    tokens=views.tokens(ids, [IGNORED] * len(ids), [(0, _role(found, number))]),
                    cut=cut,
                    target=_target(found, number),
                    bos=views.bos(ids),
                )


def _role(row: RewardRow, number: int) -> str:
    if not row.pairs:
        return "completion"
    if len(row.rests) == 2:
        return "chosen" if row.ranks[number] == 0 else "rejected"
    return f"rank {row.ranks[number]}"


def _target(row: RewardRow, number: int) -> str:
    if not row.pairs:
        return f"score {row.score:g}"
    worse: list[Any] = [(other, margin) for better, other, margin in row.pairs if better == number]
    if not worse:
        return "worst"
    margin = f" by {worse[0][1]:g}" if worse[0][1] else ""
    return f"better than {len(worse)} answer{'s' * (len(worse) != 1)}{margin}"
