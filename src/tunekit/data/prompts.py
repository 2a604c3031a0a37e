"""Rows that hold a prompt for a model to answer, and what else they say, for the rewards that judge the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunekit.data.columns import checked_columns
from tunekit.data.formats_base import BESIDE, SYSTEM, Converted, Format, Row, keep, led, need, question, tools_of
from tunekit.data.messages import is_messages, normalize_messages

__all__ = ["PROMPT_FORMATS", "carrying"]

_OF_THE_PROMPT = (*SYSTEM, *BESIDE, "history", "tools", "columns")
"""Columns that a format makes a part of the prompt, or that have a field of their own."""


def carrying(
    convert: Callable[[Row], Converted], form: Format, columns: Mapping[str, str]
) -> Callable[[Row], Converted]:
    """``convert``, which makes ``prompt`` rows, with the other columns of each row kept in ``columns``.

    Args:
        convert: raw row to checked rows.
        form: the format of the raw rows; its first column is the prompt's.
        columns: field of the format -> column of the data, where they differ.
    """
    fields = (form.columns[0], *(name for name in (*form.columns, *form.optional) if name in _OF_THE_PROMPT))
    taken = {columns.get(field, field) for field in fields}

    def carry(row: Row) -> Converted:
        made = convert(row)
        others = checked_columns({name: value for name, value in row.items() if name not in taken})
        for one in made if isinstance(made, list) else [made]:
            if kept := {**others, **one.get("columns", {})}:
                one["columns"] = kept
        return made

    return carry


def _prompt(row: Row) -> Row:
    """The prompt, as text or messages; text beside a system prompt, a history or a context becomes the user's turn."""
    value = need(row, "prompt")
    columns = {"columns": row["columns"]} if row.get("columns") is not None else {}
    if is_messages(value):
        return {"prompt": led(row, normalize_messages(value, "prompt"))} | tools_of(row) | columns
    if any(row.get(name) for name in (*SYSTEM, *BESIDE, "history")):
        return {"prompt": question(row, "prompt")} | tools_of(row) | columns
    return keep("prompt")(row) | columns


def _asked(name: str) -> Callable[[Row], Row]:
    def convert(row: Row) -> Row:
        return {"prompt": question(row, name)} | tools_of(row)

    return convert


def _before_the_answer(name: str) -> Callable[[Row], Row]:
    """The messages before the last answer, which is a column; all of them where the last one is not an answer."""

    def convert(row: Row) -> Row:
        messages = led(row, normalize_messages(need(row, name), name))
        made: Row = {"prompt": messages}
        if len(messages) > 1 and messages[-1]["role"] == "assistant":
            made = {"prompt": messages[:-1], "columns": {"completion": messages[-1:]}}
        return made | tools_of(row)

    return convert


def _if_asked_for(rows: Sequence[Mapping[str, Any]]) -> int:
    """Rows with a prompt mostly say more than it, so that this is how they look only to a step that wants it."""
    return 1


PROMPT_FORMATS: tuple[Format, ...] = (
    Format(
        name="prompt",
        schema="prompt",
        columns=("prompt",),
        optional=("columns", "tools", "history", *BESIDE, *SYSTEM),
        convert=_prompt,
        looks=_if_asked_for,
        note="the other columns are for rewards",
        summary="a prompt, as text or messages; the other columns are for rewards",
    ),
    *(
        Format(
            name=f"{name}_prompt",
            schema="prompt",
            columns=(name,),
            optional=("tools", "history", *(other for other in BESIDE if other != name), *SYSTEM),
            convert=_asked(name),
            without=("prompt", "messages", "conversations"),
            looks=_if_asked_for,
            note="the other columns are for rewards",
            summary=f"{name} as the user's turn; the other columns are for rewards",
        )
        for name in ("question", "instruction", "problem", "query")
    ),
    *(
        Format(
            name=f"{name}_prompt",
            schema="prompt",
            columns=(name,),
            optional=("tools", *SYSTEM),
            convert=_before_the_answer(name),
            without=("prompt", "chosen", "rejected"),
            looks=_if_asked_for,
            note="the messages before the last answer; the other columns are for rewards",
            summary="the messages before the last answer; the answer and the other columns are for rewards",
        )
        for name in ("messages", "conversations")
    ),
)
