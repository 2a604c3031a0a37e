"""What PPO asks, token by token, through the code that it encodes its prompts with. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.errors import DataError
from tunekit.plugins import PreviewContext, PreviewRow, TokenView, hf
from tunekit_ppo.prompts import SKIPPABLE, encode, room_for

__all__ = ["prompts"]


def prompts(ctx: PreviewContext) -> Iterator[PreviewRow]:
    """The prompts of the step. No token of them is learned: the model learns from what it writes behind them."""
    tokenizer, facts = ctx.tokenizer()
    room = room_for(ctx.options, facts)
    special = set(tokenizer.all_special_ids)
    bos = tokenizer.bos_token_id
    for raw, row in ctx.data.read():
        try:
            with hf.quiet():
                ids = encode(tokenizer, row, room).ids
        except DataError as error:
            skip = ctx.options.on_bad_row == "skip" and error.code in SKIPPABLE
            message = f"{raw.file.name} row {raw.in_file}: {error.message}" if raw.file else error.message
            yield PreviewRow(
                number=raw.number, tokens=(), problem=message, code=error.code, fix=error.fix or "", skipped=skip
            )
            continue
        yield PreviewRow(
            number=raw.number,
            tokens=tuple(
                TokenView(
                    id=token,
                    text=hf.token_text(tokenizer, token),
                    label=None,
                    weight=0.0,
                    role="prompt",
                    special=token in special,
                )
                for token in ids
            ),
            target="what the model writes next, scored",
            bos=None if bos is None else next((n for n, token in enumerate(ids) if token != bos), len(ids)),
        )
