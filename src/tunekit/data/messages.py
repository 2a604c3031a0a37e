"""Messages and text: one shape for chats, and plain text out of them for models without a chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.data.rows import RowProblem, clean_text, kind_of
from tunekit.plan import thaw

__all__ = [
    "as_messages",
    "is_messages",
    "normalize_messages",
    "normalize_tools",
    "plain_pair",
    "to_text",
    "without_nulls",
]

_CALLING = ("function_call", "function_calls", "tool_call", "tool_calls")
_ROLES = {
    "ai": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "chatgpt": "assistant",
    "developer": "developer",
    "function": "tool",
    "function_response": "tool",
    "function_result": "tool",
    "gpt": "assistant",
    "human": "user",
    "ipython": "tool",
    "model": "assistant",
    "observation": "tool",
    "prompter": "user",
    "system": "system",
    "tool": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "user": "user",
    **dict.fromkeys(_CALLING, "assistant"),
}
_BODIES = ("text", "value", "reasoning", "thinking")
_KNOWN = (
    "role",
    "from",
    "content",
    "value",
    "tool_calls",
    "tool_call_id",
    "name",
    "reasoning_content",
    "train",
    "weight",
)
"""Keys of a message that mean something; any other is kept if it is JSON, since a chat template may read it."""
_DEEP = "is nested too deeply"
_TITLES = {"assistant": "Assistant", "developer": "System", "system": "System", "tool": "Tool", "user": "User"}


def is_messages(value: Any) -> bool:
    """Whether ``value`` looks like a message list: a non-empty sequence of mappings with a role."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(item, Mapping) and ("role" in item or "from" in item) for item in value)
    )


def as_messages(value: str | Sequence[Mapping[str, Any]], role: str = "user") -> list[dict[str, Any]]:
    """A text field as a message list: a string becomes one message of ``role``; a list is copied."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return [dict(message) for message in value]


def to_text(value: str | Sequence[Mapping[str, Any]]) -> str:
    """A text field as plain text, for models without a chat template.

    A string stays as it is. One message gives its content. Several give ``User: ...`` and ``Assistant: ...``
    paragraphs. Tool calls are written as JSON after the content.
    """
    if isinstance(value, str):
        return value
    if len(value) == 1:
        return _content(value[0])
    return "\n\n".join(f"{_title(message)}: {_content(message)}" for message in value)


def plain_pair(
    prompt: str | Sequence[Mapping[str, Any]], completion: str | Sequence[Mapping[str, Any]]
) -> tuple[str, str]:
    """Prompt and completion as plain text whose concatenation is the training text, without a chat template.

    Two strings are returned unchanged. A prompt of one message is its content and a blank line, and the completion
    its content. A longer prompt is written as ``User: ...`` paragraphs and ends in ``Assistant:``; the completion
    then starts with a space.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt, completion
    messages = as_messages(prompt)
    answer = to_text(completion)
    if len(messages) == 1:
        return _content(messages[0]) + "\n\n", answer
    return to_text(messages) + "\n\nAssistant:", " " + answer


def _title(message: Mapping[str, Any]) -> str:
    role = str(message.get("role", ""))
    return _TITLES.get(role, role.capitalize())


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = "\n".join(str(part.get("text", "")) for part in content)
    calls = message.get("tool_calls")
    if calls:
        written = json.dumps(thaw([call.get("function", call) for call in calls]), ensure_ascii=False)
        return f"{content}\n{written}" if content else written
    return str(content)


def normalize_messages(value: Any, field: str, *, keep_nulls: bool = False) -> list[dict[str, Any]]:
    """Canonical messages out of OpenAI (``role``, ``content``) or ShareGPT (``from``, ``value``) ones.

    Roles become ``system``, ``developer``, ``user``, ``assistant`` or ``tool``. A ``function_call`` turn becomes an
    assistant message with ``tool_calls``; text parts become a string; reasoning parts go to ``reasoning_content``.
    Keys that are null are left out, also inside the arguments of calls: columnar files add every key that any row has
    to all rows. Arguments that are JSON text keep theirs, and with ``keep_nulls`` all arguments do: those of rows that
    were read already.

    Raises:
        RowProblem: naming the message.
    """
    if isinstance(value, str):
        value = _json(value, field, "is text that is no JSON list of messages")
    if not isinstance(value, list | tuple):
        raise RowProblem(field, f"is {kind_of(value)}, not a list of messages")
    if not value:
        raise RowProblem(field, "is an empty list of messages")
    try:
        return [_message(item, f"{field}[{number}]", keep_nulls) for number, item in enumerate(value)]
    except RecursionError:
        raise RowProblem(field, _DEEP) from None


def _message(item: Any, field: str, keep_nulls: bool) -> dict[str, Any]:
    if type(item) is dict and len(item) == 2 and _is_plain(item.get("role"), item.get("content")):
        # Nearly every message: canonical already.
        return {"role": item["role"], "content": clean_text(item["content"], field, empty=True)}
    message = _shaped(item, field, keep_nulls)
    if len(message) > 2:
        _storable(message, field)
    return message


def _is_json(value: Any) -> bool:
    try:
        _storable(value, "")
    except RowProblem:
        return False
    return True


def _is_plain(role: Any, content: Any) -> bool:
    return isinstance(role, str) and isinstance(content, str) and role in _TITLES


def _storable(value: Any, field: str) -> None:
    """Refuse what cannot be written as JSON in UTF-8: other types, and halves of surrogate pairs."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RowProblem(field, f"holds something that is not JSON in UTF-8 ({str(error)[:80]})") from None


def _shaped(item: Any, field: str, keep_nulls: bool) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise RowProblem(field, f"is {kind_of(item)}, not a message")
    plain = thaw if keep_nulls else without_nulls
    raw = {
        str(key): plain(part)
        for key, part in item.items()
        if part is not None and (key in _KNOWN or _is_json(part))  # a date, say, that no template reads
    }
    sharegpt = "role" not in raw and "from" in raw
    speaker = raw.pop("from" if sharegpt else "role", None)
    if not isinstance(speaker, str):
        raise RowProblem(field, "has no role" if speaker is None else f"has a role that is {kind_of(speaker)}")
    kind = speaker.lower().replace("-", "_").replace(" ", "_")
    role = _ROLES.get(kind)
    if role is None:
        raise RowProblem(
            field, f"has the unknown role {speaker!r}", f"use one of {', '.join(sorted(set(_ROLES.values())))}"
        )
    content = raw.pop("value", None) if sharegpt or "content" not in raw else raw.pop("content")
    message: dict[str, Any] = {"role": role}
    if kind in _CALLING and (content is not None or not raw.get("tool_calls")):
        message["content"] = ""
        message["tool_calls"] = _calls(content, field)
        return message | raw
    calls = raw.pop("tool_calls", None)
    parts: dict[str, Any] = {}
    if isinstance(content, list):
        content, parts = _parts(content, field)
    if content is None:
        if not calls and "tool_calls" not in parts:
            raise RowProblem(field, "has no content")
        content = ""
    message["content"] = clean_text(content, field, empty=True)
    message |= parts
    if calls:
        message["tool_calls"] = _calls(calls, field)
    return message | raw


def _parts(parts: list[Any], field: str) -> tuple[str, dict[str, Any]]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise RowProblem(field, f"has a content part that is {kind_of(part)}")
        kind = part.get("type")
        body = next((part[key] for key in _BODIES if part.get(key) is not None), None)
        if kind in ("text", "input_text", "output_text"):
            texts.append(clean_text(body, field, empty=True))
        elif kind in ("reasoning", "thinking"):
            thoughts.append(clean_text(body, field, empty=True))
        elif kind == "tool_call":
            calls += _calls(body, field)
        else:
            raise RowProblem(field, f"has a content part of type {kind!r}; known are text, reasoning and tool_call")
    extra: dict[str, Any] = {}
    if thoughts:
        extra["reasoning_content"] = "\n".join(thoughts)
    if calls:
        extra["tool_calls"] = calls
    return "\n".join(texts), extra


def _calls(value: Any, field: str) -> list[dict[str, Any]]:
    if isinstance(value, str):
        value = _json(value, field, "has a function call that is not JSON")
    calls = value if isinstance(value, list) else [value]
    made: list[dict[str, Any]] = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str):
            raise RowProblem(field, "has a function call without a name")
        arguments = function.get("arguments", function.get("parameters"))
        if arguments is None:
            arguments = {}
        if isinstance(arguments, str):
            arguments = _json(arguments, field, "has function arguments that are not JSON") if arguments.strip() else {}
        if not isinstance(arguments, Mapping):
            raise RowProblem(field, f"has function arguments that are {kind_of(arguments)}, not an object")
        made_call: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": thaw(arguments)}}
        if isinstance(call, Mapping) and isinstance(call.get("id"), str):
            made_call["id"] = call["id"]
        made.append(made_call)
    if not made:
        raise RowProblem(field, "has an empty list of function calls")
    return made


def normalize_tools(value: Any, field: str = "tools") -> list[dict[str, Any]] | None:
    """Tool schemas as ``[{"type": "function", "function": {...}}]``, out of a list or its JSON text; None if none.

    Nulls stay; :func:`without_nulls` takes them out of what a columnar file gives.

    Raises:
        RowProblem: if they are something else.
    """
    if isinstance(value, str):
        tools = _json(value, field, "is text that is no JSON") if value.strip() else None
    else:
        try:
            tools = thaw(value)
        except RecursionError:
            raise RowProblem(field, _DEEP) from None
    if tools is None:
        return None
    if isinstance(tools, dict):
        tools = [tools]
    if not isinstance(tools, list):
        raise RowProblem(field, f"is {kind_of(tools)}, not a list of tool schemas")
    made: list[dict[str, Any]] = []
    for number, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowProblem(f"{field}[{number}]", "is no tool schema with a name")
        made.append({"type": "function", "function": function})
    _storable(made, field)
    return made or None


def without_nulls(value: Any) -> Any:
    """Plain dicts and lists without the keys that are null, at any depth; nulls in lists stay.

    Arrow gives each object of a column all keys that any object there has. Raises RecursionError as deep JSON does.
    """
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return value


def _json(text: str, field: str, reason: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RowProblem(field, reason) from None
