"""The canonical row shapes, how a row is validated, and which shape can be turned into which.

========================  ==========================================================================
``text``                  ``{text}``
``prompt_completion``     ``{prompt, completion, tools?}``
``conversation``          ``{messages, tools?}``
``preference``            ``{prompt, chosen, rejected, tools?}``; chosen and rejected: assistant turns only
``feedback``              ``{prompt, completion, label, tools?}``; label: bool, True is good
========================  ==========================================================================

Text fields are strings, or lists of messages ``{role, content, tool_calls?, reasoning_content?, ...}``. Within one row
they are all strings or all message lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tunekit.data.messages import as_messages, normalize_messages, normalize_tools, to_text
from tunekit.data.rows import RowProblem, clean_text, kind_of

__all__ = ["CONVERSIONS", "SCHEMAS", "SHAPES", "conversion", "validate_row"]

Row = dict[str, Any]

SCHEMAS: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "prompt_completion": ("prompt", "completion"),
    "conversation": ("messages",),
    "preference": ("prompt", "chosen", "rejected"),
    "feedback": ("prompt", "completion", "label"),
}
"""Schema to the fields every row of it has."""

SHAPES: Mapping[str, str] = {
    "text": "text: {text}",
    "prompt_completion": "prompt_completion: {prompt, completion}",
    "conversation": "conversation: {messages}",
    "preference": "preference: {prompt, chosen, rejected}",
    "feedback": "feedback: {prompt, completion, label}",
}
"""Schema to one line for people."""


def validate_row(row: Mapping[str, Any], schema: str) -> Row:
    """A canonical row of ``schema`` with exactly its fields, checked and copied.

    Raises:
        RowProblem: naming the field.
    """
    for field in SCHEMAS[schema]:
        if field not in row:
            raise RowProblem(field, "is missing")
        if row[field] is None:
            raise RowProblem(field, "is null")
    made = _VALIDATORS[schema](row)
    tools = normalize_tools(row["tools"]) if schema != "text" and row.get("tools") is not None else None
    if tools:
        made["tools"] = tools
    return made


def _text(row: Mapping[str, Any]) -> Row:
    return {"text": clean_text(row["text"], "text")}


def _prompt_completion(row: Mapping[str, Any]) -> Row:
    prompt = _prompt(row["prompt"])
    completion = _reply(row["completion"], "completion", prompt)
    if not _says_something(completion):
        raise RowProblem("completion", "is empty, so the row has nothing to train on")
    return _alike({"prompt": prompt, "completion": completion})


def _conversation(row: Mapping[str, Any]) -> Row:
    messages = normalize_messages(row["messages"], "messages")
    if not any(message["role"] == "assistant" and _says_something([message]) for message in messages):
        raise RowProblem("messages", "has no assistant message with content, so the row has nothing to train on")
    return {"messages": messages}


def _preference(row: Mapping[str, Any]) -> Row:
    prompt = _prompt(row["prompt"])
    chosen = _reply(row["chosen"], "chosen", prompt)
    rejected = _reply(row["rejected"], "rejected", prompt)
    made = _alike({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    # One empty side is a real preference (HH has such rows); equal sides teach nothing and are a data error.
    if made["chosen"] == made["rejected"]:
        raise RowProblem("rejected", "equals 'chosen'")
    return made


def _feedback(row: Mapping[str, Any]) -> Row:
    prompt = _prompt(row["prompt"])
    completion = _reply(row["completion"], "completion", prompt)
    if not _says_something(completion):
        raise RowProblem("completion", "is empty")
    return {**_alike({"prompt": prompt, "completion": completion}), "label": _label(row["label"])}


_VALIDATORS: Mapping[str, Callable[[Mapping[str, Any]], Row]] = {
    "text": _text,
    "prompt_completion": _prompt_completion,
    "conversation": _conversation,
    "preference": _preference,
    "feedback": _feedback,
}


def _prompt(value: Any) -> str | list[dict[str, Any]]:
    if isinstance(value, str):
        return clean_text(value, "prompt")
    messages = normalize_messages(value, "prompt")
    if messages[-1]["role"] == "assistant":
        raise RowProblem("prompt", "ends with an assistant message; the answer belongs in another field")
    return messages


def _reply(value: Any, field: str, prompt: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    if isinstance(value, str):
        return clean_text(value, field, empty=True)
    if isinstance(value, Mapping):
        value = [value]
    messages = normalize_messages(value, field)
    start = as_messages(prompt)
    if len(messages) > len(start) and messages[: len(start)] == start:
        messages = messages[len(start) :]  # UltraFeedback repeats the prompt in chosen and rejected
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            raise RowProblem(f"{field}[{number}]", f"is a {message['role']} message; only assistant messages answer")
    return messages


def _alike(row: Row) -> Row:
    """All strings, or all message lists: a mixed row becomes messages."""
    if all(isinstance(value, str) for value in row.values()):
        return row
    return {
        key: as_messages(value, "user" if key == "prompt" else "assistant") if isinstance(value, str) else value
        for key, value in row.items()
    }


def _says_something(value: str | list[dict[str, Any]]) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return any(
        message["content"].strip() or message.get("tool_calls") or str(message.get("reasoning_content", "")).strip()
        for message in value
    )


def _label(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("true", "false", "0", "1"):
        return value.strip().lower() in ("true", "1")
    raise RowProblem("label", f"is {kind_of(value)} {value!r:.40}; a label is true or false")


def _pair_to_conversation(row: Row) -> Row:
    messages = as_messages(row["prompt"]) + as_messages(row["completion"], "assistant")
    return _with_tools(row, {"messages": messages})


def _conversation_to_pair(row: Row) -> Row:
    messages = row["messages"]
    if messages[-1]["role"] != "assistant":
        raise RowProblem("messages", f"ends with a {messages[-1]['role']} message; the step trains on the last answer")
    start = len(messages) - 1
    if start == 0 or not any(message["role"] != "assistant" for message in messages[:start]):
        raise RowProblem("messages", "has no message before the answer")
    if not _says_something(messages[start:]):
        raise RowProblem("messages", "ends with an empty answer")
    return _with_tools(row, {"prompt": messages[:start], "completion": messages[start:]})


def _pair_to_text(row: Row) -> Row:
    _no_tools(row)
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        return {"text": prompt + completion}
    if len(prompt) == 1:
        return {"text": f"{to_text(prompt)}\n\n{to_text(completion)}"}
    return {"text": to_text([*prompt, *completion])}


def _conversation_to_text(row: Row) -> Row:
    _no_tools(row)
    return {"text": to_text(row["messages"])}


def _with_tools(row: Row, made: Row) -> Row:
    return made | {"tools": row["tools"]} if "tools" in row else made


def _no_tools(row: Row) -> None:
    if "tools" in row:
        raise RowProblem("tools", "cannot be written as plain text")


CONVERSIONS: Mapping[tuple[str, str], tuple[Callable[[Row], Row], str]] = {
    ("prompt_completion", "conversation"): (_pair_to_conversation, "prompt and completion as one conversation"),
    ("conversation", "prompt_completion"): (_conversation_to_pair, "the last assistant message is the completion"),
    ("prompt_completion", "text"): (_pair_to_text, "prompt and completion written as one plain text"),
    ("conversation", "text"): (_conversation_to_text, "messages written as one plain text"),
}
"""(from, to) to the function and one line for people. Everything else is refused: it would drop what the data says."""


def conversion(have: str, accepts: tuple[str, ...]) -> tuple[str, Callable[[Row], Row] | None] | None:
    """The schema a step gets and the function that makes it; (schema, None) if none is needed; None if impossible."""
    if not accepts or have in accepts:
        return have, None
    for want in accepts:
        if (have, want) in CONVERSIONS:
            return want, CONVERSIONS[have, want][0]
    return None
