"""The prompts that a model completes, token by token. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from tunekit.errors import DataError
from tunekit.plugins import PreviewContext, PreviewRow, TokenView, hf

__all__ = ["online"]


def online(ctx: PreviewContext) -> Iterator[PreviewRow]:
    """The prompts as the model is given them. No token of them is learned: what is learned is yet to be written."""
    tokenizer, facts = ctx.tokenizer()
    options = ctx.options
    longest = min(options.max_length, facts.positions) if facts.positions else options.max_length
    room = longest - options.max_new_tokens
    special = set(tokenizer.all_special_ids)
    bos = tokenizer.bos_token_id
    for raw, row in ctx.data.read():
        try:
            with hf.quiet():
                ids = hf.prompt_ids(tokenizer, row["prompt"], row.get("tools"))
            if len(ids) > room:
                raise DataError(
                    f"The prompt leaves no room for max_new_tokens: it has {len(ids)} tokens, and may have {room}.",
                    code="prompt-too-long",
                    fix='raise max_length, lower max_new_tokens, or leave such rows out: on_bad_row="skip"',
                )
        except DataError as problem:
            message = f"{raw.file.name} row {raw.in_file}: {problem.message}" if raw.file else problem.message
            skipped = options.on_bad_row == "skip"
            yield PreviewRow(
                number=raw.number, tokens=(), problem=message, code=problem.code, fix=problem.fix, skipped=skipped
            )
            continue
        views = tuple(
            TokenView(
                id=token,
                text=hf.token_text(tokenizer, token),
                label=None,
                weight=0.0,
                turn=0,
                role="prompt",
                special=token in special,
            )
            for token in ids
        )
        front = None if bos is None else next((n for n, token in enumerate(ids) if token != bos), len(ids))
        yield PreviewRow(number=raw.number, tokens=views, cut=0, stopped=None, bos=front)
