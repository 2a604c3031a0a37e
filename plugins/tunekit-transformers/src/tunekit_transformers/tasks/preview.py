"""The examples of the tasks as they are learned, without weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tunekit.plugins import PreviewContext, PreviewRow, TokenView, hf
from tunekit_transformers.tasks.encode import IGNORED, TaskEncoder
from tunekit_transformers.tasks.tags import is_entities, to_bio

__all__ = ["preview", "preview_multitask"]


def preview(ctx: PreviewContext) -> Iterator[PreviewRow]:
    """Tokens with their tags, or tokens with the class or score as the target. Raises as :class:`TaskEncoder` does."""
    options = ctx.options
    yield from _rows(ctx, options.task, options, ctx.data, "", options.max_length)


def preview_multitask(ctx: PreviewContext) -> Iterator[PreviewRow]:
    """The rows of one task after the other; the target begins with the task's name."""
    for name, entry in ctx.options.tasks.items():
        yield from _rows(ctx, entry.task, entry, ctx.further_data[name], f"{name}: ", ctx.options.max_length)


def _rows(
    ctx: PreviewContext, kind: str, options: Any, data: Any, prefix: str, max_length: int
) -> Iterator[PreviewRow]:
    tokenizer, facts = ctx.tokenizer()
    limit = min(max_length, facts.positions or max_length)
    segments = int(facts.config.get("type_vocab_size") or 0) > 1
    apart = kind == "regression" and options.pooling == "cosine"
    encoder = TaskEncoder(
        kind,
        tokenizer,
        limit,
        segments=segments,
        apart=apart,
        long=getattr(options, "long", "window"),
        overlap=getattr(options, "overlap", 32),
    )
    for raw, row in data.read():
        row = dict(row)
        if kind == "ner" and is_entities([*row["tags"], "B-x"]):
            row["tags"] = to_bio(row["tags"])
        for tag in row["tags"] if kind == "ner" else ():
            encoder.numbers.setdefault(tag, len(encoder.numbers))
        target = prefix + ("" if kind == "ner" else str(row.get("label", row.get("score"))))
        problem, code = "", ""
        try:
            made = encoder.encode_rows([(raw.number, row)], name=data.name)
        except Exception as error:
            if getattr(error, "code", "") not in ("no-tokens", "no-pair"):
                raise
            problem, code = str(error), str(error.code)  # type: ignore[attr-defined]
            yield PreviewRow(number=raw.number, tokens=(), target=target, problem=problem, code=code)
            continue
        for window in made.rows:
            yield PreviewRow(
                number=raw.number,
                tokens=tuple(_views(tokenizer, window, row if kind == "ner" else None, encoder)),
                cut=made.cut_tokens,
                target=target,
            )


def _views(
    tokenizer: Any, window: Mapping[str, Any], tagged: Mapping[str, Any] | None, encoder: TaskEncoder
) -> Iterator[TokenView]:
    special = set(tokenizer.all_special_ids)
    names = {number: label for label, number in encoder.numbers.items()}
    for turn, part in enumerate([window, *([window["pair"]] if "pair" in window else [])]):
        kinds = part.get("token_type_ids")
        for place, token in enumerate(part["input_ids"].tolist()):
            label = None
            if tagged is not None and window["labels"][place] != IGNORED:
                label = names[int(window["labels"][place])]
            second = turn or (int(kinds[place]) if kinds is not None else 0)
            yield TokenView(
                id=token,
                text=hf.token_text(tokenizer, token),
                label=label,
                weight=0.0 if label is None else 1.0,
                turn=second,
                role="text_pair" if second else "text",
                special=token in special,
            )
