"""A small honest data format, a chat log in one text column, and the same with one bug each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tunekit.plugins import DataFormatSpec, RowProblem, hookimpl

api_version = 1

Row = Mapping[str, Any]

_LINE = re.compile(r"(\w+): (.+)")


def speakers(row: Row) -> dict[str, Any]:
    """``{"log": "ann: Hi\\nbot: Hello", "bot": "bot"}`` to a conversation; whoever is not the bot is the user."""
    log, bot = (_text(row, name) for name in ("log", "bot"))
    messages = []
    for number, line in enumerate(log.splitlines(), 1):
        found = _LINE.fullmatch(line)
        if found is None:
            raise RowProblem("log", f"has no speaker in line {number}")
        messages.append({"role": "assistant" if found[1] == bot else "user", "content": found[2]})
    if all(message["role"] == "user" for message in messages):
        raise RowProblem("bot", f"says nothing: {bot!r} is no speaker")
    return {"messages": messages}


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise RowProblem(name, "is no text")
    return value


def mutates(row: Any) -> dict[str, Any]:
    made = speakers(row)
    row.pop("bot")
    return made


def shares(row: Any) -> dict[str, Any]:
    """What it returns is part of what it was given."""
    made = speakers(row)
    made["messages"] = row.setdefault("messages", made["messages"])
    return made


_speakers: set[str] = set()


def remembers(row: Row) -> dict[str, Any]:
    """Whoever was a bot in one row is a bot in all rows after it."""
    made = speakers(row)
    _speakers.add(row["bot"])
    for line, message in zip(row["log"].splitlines(), made["messages"], strict=True):
        if line.partition(":")[0] in _speakers:
            message["role"] = "assistant"
    return made


def swallows(row: Row) -> dict[str, Any]:
    try:
        return speakers(row)
    except RowProblem:
        return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "?"}]}


def misnames(row: Row) -> dict[str, Any]:
    """Lets a bad row through, to fail under the name of a canonical field."""
    try:
        return speakers(row)
    except RowProblem:
        return {"messages": []}


def heavy(row: Row) -> dict[str, Any]:
    import numpy  # noqa: F401

    return speakers(row)


@hookimpl
def tunekit_formats() -> list[DataFormatSpec]:
    return [
        DataFormatSpec(
            name="speakers", schema="conversation", columns=("log", "bot"), target="sabotage_formats:speakers"
        )
    ]


class _One:
    """A plugin with a single format, so that no two fit the same data."""

    api_version = 1

    def __init__(self, **fields: Any) -> None:
        self.spec = DataFormatSpec(
            **{"schema": "conversation", "columns": ("log", "bot"), "target": "sabotage_formats:speakers", **fields}
        )

    @hookimpl
    def tunekit_formats(self) -> list[DataFormatSpec]:
        return [self.spec]


MUTATES = _One(name="mutates", target="sabotage_formats:mutates")
SHARES = _One(name="shares", target="sabotage_formats:shares")
REMEMBERS = _One(name="remembers", target="sabotage_formats:remembers")
SWALLOWS = _One(name="swallows", target="sabotage_formats:swallows")
MISNAMES = _One(name="misnames", target="sabotage_formats:misnames")
HEAVY = _One(name="heavy", target="sabotage_formats:heavy")
GENERAL = _One(name="general", columns=("data",), optional=("log", "bot"))
TAKEN = _One(name="taken", columns=("messages",), optional=("log", "bot"))
"""Its columns are those of tunekit's own format ``openai``."""
