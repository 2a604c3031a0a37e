"""Whether a chat template writes what a row holds: system messages, tools, tool calls, and what tools answered.

Looking for a tool's name in the text would not do: the name of a call may stand in the list of tools, and that of a
tool in a question. The row is rendered again with something else in the place, and must give another text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunekit.errors import DataError

__all__ = ["WrittenCheck", "is_tool"]

Message = Mapping[str, Any]
Messages = Sequence[Message]

_SYSTEM = ("system", "developer")
_OTHER = "quiet_walrus"
"""Stands in for what a template must write: another text then. Letters that every way of writing keeps."""

_LOST = {
    "system-lost": (
        "the chat template leaves the system message out, so the model would learn to answer as if it had read it not",
        "put its text into the first question, or use a chat template that writes system messages",
    ),
    "tools-lost": (
        "the chat template does not show the row's tools to the model",
        "use a model whose chat template takes tools, or give the tokenizer such a template",
    ),
    "tool-calls-lost": (
        "the chat template leaves tool calls out, so the model would learn to say nothing there",
        "use a model whose chat template writes tool calls, or give the tokenizer such a template",
    ),
    "tool-results-lost": (
        "the chat template leaves out what a tool answered, so the model would learn to make it up",
        "use a model whose chat template writes tool messages, or give the tokenizer such a template",
    ),
}
"""Code to what is lost and what to do."""


def is_tool(message: Message) -> bool:
    """Whether a message is what a tool answered."""
    return str(message.get("role")) in ("tool", "observation", "function", "ipython")


class WrittenCheck:
    """Refuses rows of which a chat template leaves something out.

    Args:
        render: messages and tools to text; None where the template refuses them.
    """

    def __init__(self, render: Callable[[Messages, Any], str | None]) -> None:
        self._render = render
        self._written: dict[tuple[Any, ...], bool] = {}

    def check(self, messages: Messages, tools: Any, text: str) -> None:
        """Look at one row, of which ``text`` was made.

        Raises:
            DataError: for the first of them that the template leaves out.
        """
        for number, tool in enumerate(tools or ()):
            others = _changed_tool(tool)
            with_others = [[*tools[:number], other, *tools[number + 1 :]] for other in others]
            place: tuple[Any, ...] = (min(number, 1), number == len(tools) - 1, messages[0]["role"], len(messages) > 1)
            self._demand("tools-lost", place, text, [(messages, changed) for changed in with_others], _name(tool))
        asked = max((number for number, message in enumerate(messages) if message["role"] == "user"), default=0)
        for number, message in enumerate(messages):
            code, others = _changed_message(message)
            if code:
                around = [messages[at]["role"] if 0 <= at < len(messages) else "" for at in (number - 1, number + 1)]
                calls = len(message.get("tool_calls") or ())
                place = (number == 0, *around, number > asked, bool(message.get("content")), calls, bool(tools))
                changed = [([*messages[:number], other, *messages[number + 1 :]], tools) for other in others]
                self._demand(code, place, text, changed, f"message {number}, role {message['role']}")

    def _demand(
        self, code: str, place: tuple[Any, ...], text: str, changed: Sequence[tuple[Messages, Any]], what: str
    ) -> None:
        """Require another text for each of ``changed``. One look is enough for all messages in a like ``place``."""
        written = self._written.get((code, *place))
        if written is None:
            # A template that refuses the other one has read it.
            written = all(self._render(messages, tools) != text for messages, tools in changed)
            self._written[(code, *place)] = written
        if not written:
            message, fix = _LOST[code]
            raise DataError(f"{message} ({what})", code=code, found="the text is the same with another one", fix=fix)


def _name(tool: Any) -> str:
    """Name of a tool."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return str(function.get("name", "")) if isinstance(function, Mapping) else ""


def _changed_tool(tool: Any) -> list[Any]:
    """The tool under another name."""
    return [_with_function(tool, name=_OTHER)] if isinstance(tool, Mapping) else []


def _changed_message(message: Message) -> tuple[str, list[Message]]:
    """Code of what would be lost with a message, and messages that are not the same: each must give another text."""
    calls = message.get("tool_calls")
    if calls:
        others: list[Message] = []
        for number, call in enumerate(calls):
            text = isinstance(call.get("function", call).get("arguments"), str)
            arguments: Any = f'{{"{_OTHER}": "{_OTHER}"}}' if text else {_OTHER: _OTHER}
            for change in ({"name": _OTHER}, {"arguments": arguments}):
                changed = [*calls[:number], _with_function(call, **change), *calls[number + 1 :]]
                others.append({**message, "tool_calls": changed})
        return "tool-calls-lost", others
    content = message.get("content")
    code = "tool-results-lost" if is_tool(message) else "system-lost" if message["role"] in _SYSTEM else ""
    if not code or not isinstance(content, str) or not content.strip():
        return "", []
    return code, [{**message, "content": f"{_OTHER} {content}"}]


def _with_function(tool: Mapping[str, Any], **change: Any) -> dict[str, Any]:
    if isinstance(tool.get("function"), Mapping):
        return {**tool, "function": {**tool["function"], **change}}
    return {**tool, **change}
