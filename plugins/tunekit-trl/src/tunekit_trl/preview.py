"""What the trainers learn, token by token, through the code that they encode their rows with. Imports no torch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from tunekit.errors import DataError
from tunekit.plugins import PreviewContext, PreviewRow, TokenView, hf
from tunekit_trl.encoding import IGNORED, SKIPPABLE, Encoder, Pair, encoder_from
from tunekit_trl.rendering import Rendered
from tunekit_trl.unpaired_encoding import judged

__all__ = ["dpo", "sft", "unpaired"]

_TOGETHER = 64


def sft(ctx: PreviewContext) -> Iterator[PreviewRow]:
    """The rows that ``sft`` learns.

    Raises:
        DataError: for ``train_on`` that has no meaning for the rows.
    """
    encoder, views = _encoder(ctx)
    schema = ctx.data.schema
    train_on = encoder.train_on(schema, ctx.options.train_on)
    rows, looked = ctx.data.read(), 0
    while batch := list(islice(rows, _TOGETHER)):
        with hf.quiet():  # rows longer than the model's context are cut here, which the tokenizer cannot know
            made = encoder.examples([row for _, row in batch], schema, train_on)
        for (raw, row), found in zip(batch, made, strict=True):
            looked += 1
            if isinstance(found, DataError):
                yield _problem(ctx, raw, found)
                continue
            turns: list[tuple[int, str]] = []
            if looked <= ctx.shown:
                turns = views.turns(found.input_ids, encoder.rendered(row, schema, train_on, turns=True))
            yield PreviewRow(
                number=raw.number,
                tokens=views.tokens(found.input_ids, found.labels, turns),
                cut=found.cut,
                stopped=found.stop_learned(schema),
                bos=views.bos(found.input_ids),
            )


def dpo(ctx: PreviewContext) -> Iterator[PreviewRow]:
    """The pairs that ``dpo`` learns, each as two examples of one number: the chosen answer and the rejected one."""
    encoder, views = _encoder(ctx)
    rows = ctx.data.read()
    while batch := list(islice(rows, _TOGETHER)):
        with hf.quiet():
            made = encoder.pairs([row for _, row in batch])
        for (raw, _), found in zip(batch, made, strict=True):
            if isinstance(found, DataError):
                yield _problem(ctx, raw, found)
            else:
                yield from _sides(raw.number, found, encoder, views)


def _sides(number: int, pair: Pair, encoder: Encoder, views: _Views) -> Iterator[PreviewRow]:
    begin = len(pair.prompt_ids)
    answers = (pair.chosen_ids, pair.rejected_ids)
    for role, answer, cut, stopped in zip(("chosen", "rejected"), answers, pair.cuts, pair.stopped, strict=True):
        ids = [*pair.prompt_ids, *answer]
        labels = [*[IGNORED] * begin, *answer]
        yield PreviewRow(
            number=number,
            tokens=views.tokens(ids, labels, [(0, "prompt"), (begin, role)]),
            cut=cut,
            stopped=stopped,
            bos=views.bos(ids),
        )


def unpaired(ctx: PreviewContext) -> Iterator[PreviewRow]:
    """The judged answers that ``kto`` and ``bco`` learn from; the target of each is its verdict."""
    encoder, views = _encoder(ctx)
    rows = ctx.data.read()
    while batch := list(islice(rows, _TOGETHER)):
        with hf.quiet():
            made = judged(encoder, [row for _, row in batch])
        for (raw, _), found in zip(batch, made, strict=True):
            if isinstance(found, DataError):
                yield _problem(ctx, raw, found)
                continue
            begin = len(found.prompt_ids)
            ids = [*found.prompt_ids, *found.completion_ids]
            labels = [*[IGNORED] * begin, *found.completion_ids]
            yield PreviewRow(
                number=raw.number,
                tokens=views.tokens(ids, labels, [(0, "prompt"), (begin, "completion")]),
                cut=found.cut,
                target="good" if found.label else "bad",
                stopped=found.stopped,
                bos=views.bos(ids),
            )


def _encoder(ctx: PreviewContext) -> tuple[Encoder, _Views]:
    tokenizer, facts = ctx.tokenizer()
    with hf.quiet():
        encoder = encoder_from(tokenizer, facts, ctx.options.max_length)
    return encoder, _Views(encoder)


def _problem(ctx: PreviewContext, raw: Any, error: DataError) -> PreviewRow:
    skip = getattr(ctx.options, "on_bad_row", "error") == "skip" and error.code in SKIPPABLE
    # In a folder of files the number alone does not say where the row stands.
    message = f"{raw.file.name} row {raw.in_file}: {error.message}" if raw.file else error.message
    return PreviewRow(number=raw.number, tokens=(), problem=message, code=error.code, fix=error.fix or "", skipped=skip)


class _Views:
    """Ids to token views. The same token in the same place is one object: there are hundreds of thousands."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.special = set(encoder.tokenizer.all_special_ids) | {
            number for number, token in encoder.tokenizer.added_tokens_decoder.items() if token.special
        }
        self._known: dict[tuple[int, bool, int | None, str], TokenView] = {}

    def tokens(
        self, ids: Sequence[int], labels: Sequence[int], turns: Sequence[tuple[int, str]]
    ) -> tuple[TokenView, ...]:
        """Views of one example. ``turns``: (first token, role) of each turn, in order.

        The first token of an example is never learned: nothing stands before it.
        """
        begins = [begin for begin, _ in turns]
        made: list[TokenView] = []
        for at, (token, label) in enumerate(zip(ids, labels, strict=True)):
            turn = bisect_right(begins, at) - 1 if begins else None
            role = turns[turn][1] if turn is not None and turn >= 0 else ""
            made.append(self._view(token, at > 0 and label != IGNORED, turn if turn != -1 else None, role))
        return tuple(made)

    def _view(self, token: int, learned: bool, turn: int | None, role: str) -> TokenView:
        key = (token, learned, turn, role)
        view = self._known.get(key)
        if view is None:
            view = self._known[key] = TokenView(
                id=token,
                text=hf.token_text(self.encoder.tokenizer, token),
                label=token if learned else None,
                weight=1.0 if learned else 0.0,
                turn=turn,
                role=role,
                special=token in self.special,
            )
        return view

    def bos(self, ids: Sequence[int]) -> int | None:
        """Begin-of-text tokens at the front."""
        bos = self.encoder.tokenizer.bos_token_id
        if bos is None:
            return None
        count = 0
        while count < len(ids) and ids[count] == bos:
            count += 1
        return count

    def turns(self, ids: list[int], rendered: Rendered) -> list[tuple[int, str]]:
        """Where each message's first token is."""
        borders = [begin for begin, _ in rendered.turns]
        return list(zip(self._places(ids, rendered, borders), (role for _, role in rendered.turns), strict=True))

    def _places(self, ids: list[int], rendered: Rendered, borders: Sequence[int]) -> list[int]:
        """The token at each character border."""
        encoder = self.encoder
        prefix = len(encoder.prefix) if rendered.plain and ids[: len(encoder.prefix)] == encoder.prefix else 0
        text = rendered.text
        if prefix and text.startswith(encoder.text(encoder.prefix)):
            prefix = 0  # the text spells it itself
        if getattr(encoder.tokenizer, "is_fast", False):
            made: Any = encoder.tokenizer(
                text, add_special_tokens=False, truncation=False, padding=False, return_offsets_mapping=True
            )
            whole, inside = list(made["input_ids"]), ids[prefix:]
            if whole[: len(inside)] == inside[: len(whole)]:
                ends = [end for _, end in made["offset_mapping"]]
                return [0 if at == 0 else min(prefix + bisect_right(ends, at), len(ids)) for at in borders]
        return [0 if at == 0 else self._walk(ids, prefix, at) for at in borders]

    def _walk(self, ids: list[int], prefix: int, border: int) -> int:
        """Where the decoded text gets past ``border``, for rows whose pieces were tokenized apart."""
        low, high = prefix, len(ids)
        while low < high:
            middle = (low + high) // 2
            if len(self.encoder.text(ids[prefix : middle + 1])) > border:
                high = middle
            else:
                low = middle + 1
        return low
