"""What a data format is, and the conversions that many formats share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunekit.data.messages import normalize_messages, without_nulls
from tunekit.data.rows import RowProblem, clean_text, kind_of

__all__ = [
    "BESIDE",
    "JUDGED",
    "NO",
    "SYSTEM",
    "TREE",
    "YES",
    "Columns",
    "Converted",
    "Format",
    "Row",
    "answer",
    "conversation",
    "fields",
    "keep",
    "led",
    "mostly",
    "need",
    "question",
    "reply",
    "tools_of",
    "turns",
]

Row = dict[str, Any]
Converted = Row | list[Row]
Columns = Mapping[str, tuple[str, ...]]

NO, YES = 0, 2
"""How well sample rows fit: not at all, and as data of this format look. Between them, 1: they can be read so, if the
step asks for such rows."""

JUDGED = ("chosen", "rejected", "label", "kto_tag", "ranks", "thumb", "thumbs", "thumbs_up", "thumbs_down", "vote",
          "verdict", "is_good", "desirable", "emojis")  # fmt: skip
"""Columns beside a question and an answer that say whether the answer is good: such rows are not all to be learned."""
SYSTEM = ("system", "system_prompt")
"""What the column of a system prompt is called."""
BESIDE = ("input", "context")
"""Columns that belong to a question beside them, and are added to it after a blank line."""
TREE = ("replies", "parent_id", "message_id")


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to write rows."""

    name: str
    schema: str
    """Canonical shape its rows become."""
    columns: tuple[str, ...]
    """Columns every row has."""
    optional: tuple[str, ...] = ()
    """Columns that are used when they are there."""
    aliases: Columns = field(default_factory=dict)
    """Other names of a column, in groups of falling weight; the names of a group stand in one string. Of two names of
    one group in the same data neither is taken. A group that starts with ``?`` counts only if the step asks for the
    shape."""
    together: tuple[Mapping[str, str], ...] = ()
    """Columns that go by other names only together: field -> column."""
    convert: Callable[[Row], Converted]
    """A raw row as a row of the schema, or a list of any number of them; not yet validated. Raises RowProblem; of a
    plugin's format also anything else."""
    without: tuple[str, ...] = ()
    """Columns that mean the data say more than this format takes from them: no detection then."""
    looks: Callable[[Sequence[Row]], int] = lambda rows: YES
    """How well the values of sample rows fit: 0 not, 1 if need be, 2 well. The rows have the format's column names."""
    rivals: str = ""
    """Formats of one name here read the same columns differently: where several fit equally well, the user must say."""
    summary: str = ""
    note: str = ""
    """What the conversion decides that the name does not say; it stands in the description of the data."""
    provider: str = ""
    """Distribution that brings it; empty for tunekit's own."""
    version: str = ""
    """Version of that distribution."""

    @property
    def id(self) -> str:
        """The spelling that always works: the name, for a plugin's format ``dist/name``."""
        return f"{self.provider}/{self.name}" if self.provider else self.name


def mostly(looks: Callable[[Row], Any]) -> Callable[[Sequence[Row]], int]:
    """Fits if more than half of the sample rows do: a few bad rows do not hide what the data are."""

    def judge(rows: Sequence[Row]) -> int:
        return YES if 2 * sum(bool(looks(row)) for row in rows) > len(rows) else NO

    return judge


def need(row: Row, name: str) -> Any:
    """The value of a column that must be there."""
    if name not in row:
        raise RowProblem(name, "is missing")
    if row[name] is None:
        raise RowProblem(name, "is null")
    return row[name]


def tools_of(row: Row) -> Row:
    """The tools of a row, to be put into the made one; nothing if it has none."""
    return {"tools": _tidy(row["tools"], "tools")} if row.get("tools") else {}


def _tidy(value: Any, name: str) -> Any:
    if isinstance(value, str):
        return value
    try:
        return without_nulls(value)
    except RecursionError:
        raise RowProblem(name, "is nested too deeply") from None


def keep(*names: str) -> Callable[[Row], Row]:
    """The columns as they are, without nulls inside, and the tools. A system prompt beside them makes messages of the
    prompt, and so of the answers."""

    def convert(row: Row) -> Row:
        made = {name: _tidy(need(row, name), name) for name in names} | tools_of(row)
        if not _system(row):
            return made
        prompt = made["prompt"]
        asked = (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else normalize_messages(prompt, "prompt")
        )
        made["prompt"] = led(row, asked)
        for name in ("completion", "chosen", "rejected"):
            if isinstance(made.get(name), list):
                replied = normalize_messages(made[name], name)
                # UltraFeedback repeats the prompt in its answers, without what stands in another column.
                made[name] = replied[len(asked) :] if replied[: len(asked)] == asked else replied
        return made

    return convert


def fields(*names: str, maybe: tuple[str, ...] = ()) -> Callable[[Row], Row]:
    """The columns as they are, and those of ``maybe`` that are there."""

    def convert(row: Row) -> Row:
        made = {name: need(row, name) for name in names}
        return made | {name: row[name] for name in maybe if row.get(name) is not None}

    return convert


def _system(row: Row) -> list[Row]:
    """The row's system prompt as a message; none if it is absent or empty."""
    name = next((name for name in SYSTEM if row.get(name) is not None and str(row[name]).strip()), None)
    return [] if name is None else [{"role": "system", "content": clean_text(row[name], name)}]


def led(row: Row, messages: list[Row]) -> list[Row]:
    """The messages after the row's system prompt.

    Raises:
        RowProblem: if they begin with another one.
    """
    system = _system(row)
    if messages and messages[0]["role"] == "system":
        if system and messages[0]["content"].strip() != system[0]["content"].strip():
            raise RowProblem("system", "differs from the system message that the messages begin with")
        return messages
    return system + messages


def question(row: Row, name: str) -> list[Row]:
    """System prompt, history and question of a row in columns, as messages.

    Args:
        row: the raw row.
        name: column of the question; those of :data:`BESIDE` are added to it after a blank line.
    """
    text = clean_text(need(row, name), name)
    for other in BESIDE:
        extra = row.get(other) if other != name else None
        if extra is not None and clean_text(extra, other, empty=True).strip():
            text = f"{text}\n\n{extra}"
    messages = _system(row)
    history = row.get("history")
    if history:
        if not isinstance(history, list):
            raise RowProblem("history", f"is {kind_of(history)}, not a list of [question, answer] pairs")
        for number, turn in enumerate(history):
            if not isinstance(turn, list) or len(turn) != 2:
                raise RowProblem(f"history[{number}]", "is no [question, answer] pair")
            messages.append({"role": "user", "content": clean_text(turn[0], f"history[{number}][0]")})
            messages.append({"role": "assistant", "content": clean_text(turn[1], f"history[{number}][1]")})
    return [*messages, {"role": "user", "content": text}]


def answer(row: Row, name: str) -> list[Row]:
    """The answer in a column as a message list."""
    value = need(row, name)
    if isinstance(value, list):
        raise RowProblem(name, "is a list of several answers, not one")
    return [{"role": "assistant", "content": clean_text(value, name)}]


def turns(asked: str, answered: str) -> Callable[[Row], Row]:
    """Question and answer in two columns."""

    def convert(row: Row) -> Row:
        return {"prompt": question(row, asked), "completion": answer(row, answered)}

    return convert


def conversation(name: str) -> Callable[[Row], Row]:
    """The messages in a column, with a system prompt and tools from beside it."""

    def convert(row: Row) -> Row:
        return {"messages": led(row, normalize_messages(need(row, name), name))} | tools_of(row)

    return convert


def reply(value: Any, name: str) -> list[Row]:
    """An answer that is text, a message or a list of messages."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    return normalize_messages([value] if isinstance(value, Mapping) else value, name)
