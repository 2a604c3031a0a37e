"""Known data formats: how each is recognised by its columns, and how its rows become canonical ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunekit.data.messages import is_messages, normalize_messages
from tunekit.data.readers import TEXT_RULES
from tunekit.data.rows import RowProblem, clean_text, kind_of
from tunekit.errors import TunekitError
from tunekit.settings import canonical_name

__all__ = ["FORMATS", "FORMAT_NAMES", "Format", "by_name", "detect", "guarded", "unsupported"]

Row = dict[str, Any]


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
    convert: Callable[[Row], Row]
    """A raw row as a row of the schema, not yet validated. Raises RowProblem; of a plugin's format also anything else.
    """
    without: tuple[str, ...] = ()
    """Columns that mean the data say more than this format takes from them: no detection then."""
    looks: Callable[[Row], bool] = lambda row: True
    """Whether a sample row's values have the right kinds."""
    summary: str = ""
    provider: str = ""
    """Distribution that brings it; empty for tunekit's own."""
    version: str = ""
    """Version of that distribution."""

    @property
    def id(self) -> str:
        """The spelling that always works: the name, for a plugin's format ``dist/name``."""
        return f"{self.provider}/{self.name}" if self.provider else self.name


def _need(row: Row, field: str) -> Any:
    if field not in row:
        raise RowProblem(field, "is missing")
    if row[field] is None:
        raise RowProblem(field, "is null")
    return row[field]


def _keep(*fields: str) -> Callable[[Row], Row]:
    def convert(row: Row) -> Row:
        made = {field: _need(row, field) for field in fields}
        if row.get("tools"):
            made["tools"] = row["tools"]
        return made

    return convert


def _fields(*fields: str, maybe: tuple[str, ...] = ()) -> Callable[[Row], Row]:
    def convert(row: Row) -> Row:
        made = {field: _need(row, field) for field in fields}
        return made | {field: row[field] for field in maybe if row.get(field) is not None}

    return convert


def _plain_text(row: Row) -> Row:
    text = _need(row, "text")
    if isinstance(text, list) and text and all(isinstance(line, str) for line in text):
        text = "\n".join(text)
    return {"text": text}


def _system(row: Row) -> list[Row]:
    """The row's system prompt as a message; none if it is absent or empty."""
    system = next((row[name] for name in ("system", "system_prompt") if row.get(name) not in (None, "")), None)
    return [] if system is None else [{"role": "system", "content": clean_text(system, "system")}]


def _question(row: Row, field: str) -> list[Row]:
    """System prompt, history and question of a row in columns, as messages."""
    text = clean_text(_need(row, field), field)
    extra = row.get("input") if field == "instruction" else None
    if extra is not None and clean_text(extra, "input", empty=True).strip():
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


def _answer(row: Row, field: str) -> list[Row]:
    value = _need(row, field)
    if isinstance(value, list):
        raise RowProblem(field, "is a list of several answers; ranked answers are not a format that is known")
    return [{"role": "assistant", "content": clean_text(value, field)}]


def _turns(question: str, answer: str) -> Callable[[Row], Row]:
    def convert(row: Row) -> Row:
        return {"prompt": _question(row, question), "completion": _answer(row, answer)}

    return convert


def _conversation(field: str) -> Callable[[Row], Row]:
    def convert(row: Row) -> Row:
        messages = normalize_messages(_need(row, field), field)
        if messages[0]["role"] != "system":
            messages = _system(row) + messages
        made: Row = {"messages": messages}
        if row.get("tools"):
            made["tools"] = row["tools"]
        return made

    return convert


def _reply(value: Any, field: str) -> list[Row]:
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    if isinstance(value, Mapping):
        return normalize_messages([value], field)
    return normalize_messages(value, field)


def _turn_preference(field: str) -> Callable[[Row], Row]:
    conversation = _conversation(field)

    def convert(row: Row) -> Row:
        made = conversation(row)
        made["prompt"] = made.pop("messages")
        for side in ("chosen", "rejected"):
            made[side] = _reply(_need(row, side), side)
        return made

    return convert


def _question_preference(question: str) -> Callable[[Row], Row]:
    def convert(row: Row) -> Row:
        return {
            "prompt": _question(row, question),
            "chosen": _reply(_need(row, "chosen"), "chosen"),
            "rejected": _reply(_need(row, "rejected"), "rejected"),
        }

    return convert


def _turn_feedback(field: str) -> Callable[[Row], Row]:
    conversation = _conversation(field)

    def convert(row: Row) -> Row:
        made = conversation(row)
        messages = made.pop("messages")
        if messages[-1]["role"] != "assistant" or len(messages) < 2:
            raise RowProblem(field, "does not end with the assistant message that the label judges")
        return made | {"prompt": messages[:-1], "completion": messages[-1:], "label": _need(row, "label")}

    return convert


def _tagged_feedback(row: Row) -> Row:
    return {
        "prompt": _question(row, "instruction"),
        "completion": _answer(row, "output"),
        "label": _need(row, "kto_tag"),
    }


_HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def _transcript(value: Any, field: str) -> list[Row]:
    if not isinstance(value, str):
        return normalize_messages(value, field)
    text = clean_text(value, field)
    marks = list(_HH_TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        raise RowProblem(field, r"does not start with '\n\nHuman:'")
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [
        {"role": "user" if mark[1] == "Human" else "assistant", "content": text[mark.end() : end].strip()}
        for mark, end in zip(marks, ends, strict=True)
    ]


def _common_prefix(row: Row) -> Row:
    """Two transcripts that start alike: what they share is the prompt, what differs are the answers."""
    chosen, rejected = (_transcript(_need(row, side), side) for side in ("chosen", "rejected"))
    if chosen == rejected:
        raise RowProblem("rejected", "equals 'chosen'")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0:
        raise RowProblem("rejected", "does not start with the same message as 'chosen'")
    made: Row = {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}
    if row.get("tools"):
        made["tools"] = row["tools"]
    return made


def _messages_in(field: str) -> Callable[[Row], bool]:
    def looks(row: Row) -> bool:
        value = row.get(field)
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return False
        return is_messages(value)

    return looks


def _both_transcripts(row: Row) -> bool:
    return all(isinstance(row.get(s), str) and _HH_TURN.match(row[s].lstrip()) for s in ("chosen", "rejected"))


def _both_messages(row: Row) -> bool:
    return is_messages(row.get("chosen")) and is_messages(row.get("rejected"))


def _pairs() -> list[Format]:
    names = [
        ("question_answer", "question", "answer"),
        ("prompt_response", "prompt", "response"),
        ("query_response", "query", "response"),
        ("instruction_response", "instruction", "response"),
        ("input_output", "input", "output"),
    ]
    return [
        Format(
            name=name,
            schema="prompt_completion",
            columns=(question, answer),
            optional=("system", "input") if question == "instruction" else ("system",),
            convert=_turns(question, answer),
            without=_JUDGED if question == "instruction" else (*_JUDGED, "instruction"),
            summary=f"{question} as the user's turn, {answer} as the assistant's",
        )
        for name, question, answer in names
    ]


_JUDGED = ("chosen", "rejected", "label", "kto_tag", "ranks")
_TREE = ("replies", "parent_id", "message_id")

FORMATS: tuple[Format, ...] = (
    *(
        Format(
            name="sharegpt_preference" if field == "conversations" else "messages_preference",
            schema="preference",
            columns=(field, "chosen", "rejected"),
            optional=("system", "tools"),
            convert=_turn_preference(field),
            looks=lambda row: "prompt" not in row and not _both_messages(row),
            summary="a conversation and two answers to it (LLaMA-Factory)",
        )
        for field in ("conversations", "messages")
    ),
    Format(
        name="preference",
        schema="preference",
        columns=("prompt", "chosen", "rejected"),
        optional=("tools",),
        convert=_keep("prompt", "chosen", "rejected"),
        summary="a prompt and two answers, as strings or messages",
    ),
    *(
        Format(
            name=f"{question}_preference",
            schema="preference",
            columns=(question, "chosen", "rejected"),
            optional=("system", "input", "history"),
            convert=_question_preference(question),
            summary=f"{question} as the user's turn, and two answers",
        )
        for question in ("instruction", "question")
    ),
    Format(
        name="hh",
        schema="preference",
        columns=("chosen", "rejected"),
        convert=_common_prefix,
        looks=_both_transcripts,
        summary=r"two '\n\nHuman: ... \n\nAssistant: ...' transcripts that start alike",
    ),
    Format(
        name="chosen_rejected",
        schema="preference",
        columns=("chosen", "rejected"),
        optional=("tools",),
        convert=_common_prefix,
        looks=_both_messages,
        summary="two message lists that start alike",
    ),
    *(
        Format(
            name="kto" if field == "messages" else "sharegpt_kto",
            schema="feedback",
            columns=(field, "label"),
            optional=("system", "tools"),
            convert=_turn_feedback(field),
            looks=_messages_in(field),
            summary="a conversation and whether its last answer is good",
        )
        for field in ("messages", "conversations")
    ),
    Format(
        name="feedback",
        schema="feedback",
        columns=("prompt", "completion", "label"),
        optional=("tools",),
        convert=_keep("prompt", "completion", "label"),
        summary="a prompt, an answer, and whether it is good",
    ),
    Format(
        name="alpaca_kto",
        schema="feedback",
        columns=("instruction", "output", "kto_tag"),
        optional=("input", "system", "history"),
        convert=_tagged_feedback,
        summary="Alpaca columns and whether the output is good",
    ),
    Format(
        name="sharegpt",
        schema="conversation",
        columns=("conversations",),
        optional=("tools", "system"),
        convert=_conversation("conversations"),
        without=_JUDGED,
        summary="conversations of {from, value}, with tools, function_call and observation turns",
    ),
    Format(
        name="openai",
        schema="conversation",
        columns=("messages",),
        optional=("tools", "system"),
        convert=_conversation("messages"),
        without=_JUDGED,
        summary="messages of {role, content}, with tools and tool_calls",
    ),
    Format(
        name="prompt_completion",
        schema="prompt_completion",
        columns=("prompt", "completion"),
        optional=("tools",),
        convert=_keep("prompt", "completion"),
        without=_JUDGED,
        summary="prompt and completion as they are; strings are continued without a chat template",
    ),
    Format(
        name="alpaca",
        schema="prompt_completion",
        columns=("instruction", "output"),
        optional=("input", "system", "history"),
        convert=_turns("instruction", "output"),
        without=_JUDGED,
        looks=lambda row: not isinstance(row.get("output"), list),
        summary="instruction (and input, after a blank line) as the user's turn, output as the assistant's",
    ),
    *_pairs(),
    Format(
        name="ranked",
        schema="ranked",
        columns=("prompt", "completions", "ranks"),
        optional=("tools",),
        convert=_keep("prompt", "completions", "ranks"),
        summary="a prompt, answers, and their ranks: the lower the better",
    ),
    Format(
        name="classification",
        schema="classification",
        columns=("text", "label"),
        optional=("text_pair",),
        convert=_fields("text", "label", maybe=("text_pair",)),
        without=_JUDGED[:2],
        summary="a text (and a second one) and its class",
    ),
    Format(
        name="token_classification",
        schema="token_classification",
        columns=("tokens", "tags"),
        convert=_fields("tokens", "tags"),
        summary="words and a tag for each",
    ),
    Format(
        name="regression",
        schema="regression",
        columns=("text", "score"),
        optional=("text_pair",),
        convert=_fields("text", "score", maybe=("text_pair",)),
        summary="a text (and a second one) and a number",
    ),
    Format(
        name="text",
        schema="text",
        columns=("text",),
        convert=_plain_text,
        without=("chosen", "rejected", *_TREE),
        summary="text",
    ),
)
"""Every known format; where several fit, the first one that the step accepts is taken."""

FORMAT_NAMES: tuple[str, ...] = (*(form.name for form in FORMATS), *TEXT_RULES)
"""What ``format=`` takes; the last ones are rules for plain text files."""


def by_name(name: str, formats: Sequence[Format] = ()) -> list[Format]:
    """The formats that ``name`` may mean; a text rule gives ``text``.

    A short name is tunekit's own where it has one. ``dist/name`` is that of a distribution, and ``tunekit/name`` the
    own one.
    """
    provider, _, short = name.rpartition("/")
    if canonical_name(provider) in ("", "tunekit"):
        wanted = "text" if short in TEXT_RULES else short
        own = [form for form in FORMATS if form.name == wanted]
        if own or provider:
            return own
    found = [form for form in formats if form.name == short]
    return [form for form in found if canonical_name(form.provider) == canonical_name(provider)] if provider else found


def detect(columns: Sequence[str], sample: Row, formats: Sequence[Format] = FORMATS) -> list[Format]:
    """Those of ``formats`` that fit the columns and the values of a sample row, in their order."""
    there = set(columns)
    return [
        form
        for form in formats
        if there.issuperset(form.columns) and not there.intersection(form.without) and form.looks(sample)
    ]


def guarded(form: Format) -> Callable[[Row], Row]:
    """The conversion of a plugin's format, where whatever goes wrong in it is a problem of the row at hand."""

    def convert(row: Row) -> Row:
        try:
            made: Any = form.convert(row)
        except (RowProblem, TunekitError):
            raise
        except KeyError as error:
            missing = error.args[0] if error.args else None
            if isinstance(missing, str) and missing not in row:
                raise RowProblem(missing, "is missing") from error
            raise RowProblem("", f"cannot be converted by {form.id}: KeyError: {error}") from error
        except Exception as error:
            raise RowProblem("", f"cannot be converted by {form.id}: {type(error).__name__}: {error}") from error
        if not isinstance(made, Mapping):
            raise RowProblem("", f"became {kind_of(made)} in {form.id}, not an object with named fields")
        return dict(made)

    return convert


def unsupported(columns: Sequence[str], sample: Row) -> str:
    """What data of no known format seem to be, as a sentence; empty if there is nothing to say."""
    there = set(columns)
    if "replies" in there and "text" in there:
        return (
            "This looks like message trees with nested replies, which are not read as they are: "
            "write one row per pair of answers."
        )
    if "output" in there and isinstance(sample.get("output"), list):
        return (
            "This looks like ranked answers (output is a list, best first), which are not read as they are: "
            "write rows with prompt, chosen and rejected."
        )
    if there and all(name.isdigit() or len(name) > 60 for name in there):
        return "This looks like a file without a header."
    return ""
