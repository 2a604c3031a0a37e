"""Formats of plain text, of questions with answers, and of conversations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunekit.data.formats_base import (
    BESIDE,
    JUDGED,
    SYSTEM,
    TREE,
    Format,
    Row,
    conversation,
    keep,
    mostly,
    need,
    turns,
)
from tunekit.data.rows import RowProblem, clean_text

__all__ = ["CHAT_FORMATS", "TEXT_FORMATS"]

_TALK = ("answer", "answers", "choices", "completion", "conversations", "instruction", "messages", "output", "prompt")
"""Columns beside a text that mean it is no plain text."""


def _lines(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(line, str) for line in value)


def _plain_text(row: Row) -> Row:
    text = need(row, "text")
    return {"text": "\n".join(text) if _lines(text) else text}


def _paragraphs(row: Row) -> Row:
    """Title, author and lines, each on a line of its own, as they are printed."""
    lines = need(row, "paragraphs")
    if not _lines(lines):
        raise RowProblem("paragraphs", "is no list of lines of text")
    title = next((row[name] for name in ("title", "rhythmic", "chapter") if row.get(name)), None)
    head = [(title, "title"), (row.get("author"), "author")]
    return {"text": "\n".join([*(clean_text(value, name) for value, name in head if value), *lines])}


def _alone(row: Row) -> bool:
    """Whether the document is the only long text of the row: two of them are an article and its summary."""
    long = [name for name, value in row.items() if isinstance(value, str) and len(value) > 100]
    return isinstance(row.get("content"), str) and long in ([], ["content"])


def _one(answered: str) -> Callable[[Row], bool]:
    return lambda row: not isinstance(row.get(answered), list)


def _pairs() -> list[Format]:
    names = [
        ("question_answer", "question", "answer"),
        ("question_response", "question", "response"),
        ("prompt_response", "prompt", "response"),
        ("query_response", "query", "response"),
        ("instruction_response", "instruction", "response"),
        ("input_output", "input", "output"),
    ]
    return [
        Format(
            name=name,
            schema="prompt_completion",
            columns=(asked, answered),
            optional=(*SYSTEM, "history", *(name for name in BESIDE if name != asked)),
            convert=turns(asked, answered),
            without=JUDGED if asked == "instruction" else (*JUDGED, "instruction"),
            looks=mostly(_one(answered)),
            summary=f"{asked} as the user's turn, {answered} as the assistant's",
        )
        for name, asked, answered in names
    ]


CHAT_FORMATS: tuple[Format, ...] = (
    Format(
        name="sharegpt",
        schema="conversation",
        columns=("conversations",),
        optional=("tools", *SYSTEM),
        aliases={"conversations": ("conversation",)},
        convert=conversation("conversations"),
        without=JUDGED,
        summary="conversations of {from, value}, with tools, function_call and observation turns",
    ),
    Format(
        name="openai",
        schema="conversation",
        columns=("messages",),
        optional=("tools", *SYSTEM),
        convert=conversation("messages"),
        without=JUDGED,
        summary="messages of {role, content}, with tools, tool_calls and typed content parts",
    ),
    Format(
        name="prompt_completion",
        schema="prompt_completion",
        columns=("prompt", "completion"),
        optional=("tools", *SYSTEM),
        convert=keep("prompt", "completion"),
        without=JUDGED,
        summary="prompt and completion as they are; strings become turns of the chat template, if there is one",
    ),
    Format(
        name="alpaca",
        schema="prompt_completion",
        columns=("instruction", "output"),
        optional=(*BESIDE, *SYSTEM, "history"),
        convert=turns("instruction", "output"),
        without=JUDGED,
        looks=mostly(_one("output")),
        summary="instruction (and input, after a blank line) as the user's turn, output as the assistant's",
    ),
    *_pairs(),
)

TEXT_FORMATS: tuple[Format, ...] = (
    Format(
        name="text",
        schema="text",
        columns=("text",),
        convert=_plain_text,
        without=("chosen", "rejected", *TREE),
        summary="text, or a list of its lines",
    ),
    Format(
        name="paragraphs",
        schema="text",
        columns=("paragraphs",),
        optional=("title", "rhythmic", "chapter", "author"),
        aliases={"paragraphs": ("content lines",)},
        convert=_paragraphs,
        without=("chosen", "rejected", "text", *_TALK, *TREE),
        looks=mostly(lambda row: _lines(row.get("paragraphs"))),
        summary="lines of text under a title and an author",
    ),
    Format(
        name="content",
        schema="text",
        columns=("content",),
        aliases={"content": ("document article body",)},
        convert=lambda row: {"text": need(row, "content")},
        without=("chosen", "rejected", "text", "role", "summary", "title", *_TALK, *TREE),
        looks=mostly(_alone),
        summary="a document",
    ),
)
