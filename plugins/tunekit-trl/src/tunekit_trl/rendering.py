"""From canonical rows to the exact training text, and where in it the targets are.

Positions are character offsets into the text. With a chat template the text is what the template renders; where a
turn begins and ends is found by rendering the messages before it, so that no ``{% generation %}`` markers are needed
and the token that ends a turn is part of the turn. Without a template the text is plain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from tunekit.data import as_messages, plain_pair, to_text
from tunekit.errors import DataError

__all__ = ["ChatRenderer", "PlainRenderer", "Rendered", "renderer_for"]

Messages = Sequence[Mapping[str, Any]]
Span = tuple[int, int]

_MARK = "\ue000\ue001\ue000"
"""Private-use characters: templates pass them through, and no text of a row holds them in this order."""


@dataclass(frozen=True)
class Rendered:
    """A training text and its target spans."""

    text: str
    spans: tuple[Span, ...]
    """(begin, end) of each part that is learned, in order, not overlapping."""
    ends_turn: bool
    """Whether the text itself ends the last turn: the template wrote a stop token, so that none is added."""


_TITLES = {"developer": "System", "system": "System", "tool": "Tool", "user": "User"}


class ChatRenderer:
    """Renders with the tokenizer's chat template."""

    name = "chat template"

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = {str(token) for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
        self.special = tuple(sorted((text for text in special if text), key=len, reverse=True))

    def pair(self, row: Mapping[str, Any], field: str = "completion") -> Rendered:
        """Prompt and answer; the target is the answer.

        Raises:
            DataError: if the template cannot render the row, or hides where the answer begins.
        """
        prompt = as_messages(row["prompt"])
        messages = prompt + as_messages(row[field], "assistant")
        tools = row.get("tools")
        text = self.render(messages, tools)
        begin = self._begin(messages, len(prompt), text, tools)
        return self._rendered(text, [(begin, len(text))])

    def conversation(self, row: Mapping[str, Any], train_on: str) -> Rendered:
        """A conversation; the targets are its assistant turns (``all-assistant``), the last of them (``last``), or
        everything (``all``). Raises as :meth:`pair` does."""
        messages, tools = as_messages(row["messages"]), row.get("tools")
        text = self.render(messages, tools)
        if train_on == "all":
            return self._rendered(text, [(0, len(text))])
        turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if train_on == "last":
            turns = turns[-1:]
        spans = [
            (self._begin(messages, number, text, tools), self._end(messages, number, text, tools)) for number in turns
        ]
        return self._rendered(text, spans)

    def render(self, messages: Messages, tools: Any = None, generation_prompt: bool = False) -> str:
        """The template's text.

        Raises:
            DataError: if the template refuses the messages.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=tools,
                tokenize=False,
                add_generation_prompt=generation_prompt,
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise DataError(
                f"the chat template refuses the messages: {error}",
                code="chat-template",
                found=f"roles: {', '.join(str(message.get('role')) for message in messages)}",
                fix="use the roles and the order the model's template knows",
            ) from error
        return str(text)

    def _rendered(self, text: str, spans: list[Span]) -> Rendered:
        tail = text[spans[-1][0] : spans[-1][1]].rstrip() if spans else ""
        return Rendered(text, tuple(spans), ends_turn=tail.endswith(self.special))

    def _begin(self, messages: Messages, number: int, text: str, tools: Any) -> int:
        """Where turn ``number`` begins: after what the model is given before it writes."""
        if number > 0:
            before = self._try(messages[:number], tools, generation_prompt=True)
            if before is not None and text.startswith(before):
                return len(before)
        # Templates that rewrite earlier turns when later ones follow: find the turn by its content.
        return self._content(messages, number, text, tools, front=True)

    def _end(self, messages: Messages, number: int, text: str, tools: Any) -> int:
        """Where turn ``number`` ends, the token that ends it included."""
        if number == len(messages) - 1:
            return len(text)
        upto = self._try(messages[: number + 1], tools, generation_prompt=False)
        if upto is not None and text.startswith(upto):
            return len(upto)
        end = self._content(messages, number, text, tools, front=False)
        rest = text[end:]
        blank = len(rest) - len(rest.lstrip())
        for token in self.special:
            if rest.startswith(token, blank):
                return end + blank + len(token)
        return end

    def _content(self, messages: Messages, number: int, text: str, tools: Any, *, front: bool) -> int:
        """Begin or end of a message's content in ``text``, by rendering once more with that place marked."""
        # Thoughts come before the content, where the template shows them.
        for field in ("reasoning_content", "content") if front else ("content",):
            at = self._marked(messages, number, text, tools, field, front=front)
            if at is not None:
                return at
        raise DataError(
            f"the chat template does not show where assistant turn {number} {'begins' if front else 'ends'}",
            code="template-boundary",
            found="rendering the messages before it gives another text, and its content cannot be found",
            fix="give the tokenizer a chat template that leaves earlier turns as they are, or train on pairs of "
            "prompt and completion",
        )

    def _marked(self, messages: Messages, number: int, text: str, tools: Any, field: str, *, front: bool) -> int | None:
        content = str(messages[number].get(field) or "")
        if not content.strip():
            return None
        # Many templates strip the content; then the mark must stand inside of the blanks.
        for inner in dict.fromkeys((content, content.strip())):
            changed = [dict(message) for message in messages]
            changed[number][field] = _MARK + inner if front else inner + _MARK
            marked = self._try(changed, tools, generation_prompt=False)
            if marked is not None and marked.count(_MARK) == 1 and marked.replace(_MARK, "") == text:
                return marked.index(_MARK)
        return None

    def _try(self, messages: Messages, tools: Any, *, generation_prompt: bool) -> str | None:
        try:
            return self.render(messages, tools, generation_prompt)
        except DataError:
            return None


class PlainRenderer:
    """Renders as plain text, for tokenizers without a chat template."""

    name = "plain text"

    def __init__(self, tokenizer: Any) -> None:
        self.eos = tokenizer.eos_token or ""

    def pair(self, row: Mapping[str, Any], field: str = "completion") -> Rendered:
        """Prompt and answer; the target is the answer.

        Raises:
            DataError: for a row with tools, which plain text cannot carry.
        """
        _refuse_tools(row)
        prompt, answer = plain_pair(row["prompt"], row[field])
        text = prompt + answer
        return Rendered(text, ((len(prompt), len(text)),), ends_turn=False)

    def conversation(self, row: Mapping[str, Any], train_on: str) -> Rendered:
        """A conversation as ``User: ...`` and ``Assistant: ...`` paragraphs; every assistant turn ends with the
        end-of-text token. One question with one answer is written as :meth:`pair` writes it. Raises as :meth:`pair`
        does."""
        _refuse_tools(row)
        messages = as_messages(row["messages"])
        if len(messages) == 2 and [message["role"] for message in messages] == ["user", "assistant"]:
            rendered = self.pair({"prompt": messages[:1], "completion": messages[1:]})
            if train_on == "all":
                return Rendered(rendered.text, ((0, len(rendered.text)),), ends_turn=False)
            return rendered
        text = ""
        spans: list[Span] = []
        for number, message in enumerate(messages):
            text += "\n\n" if text else ""
            if message["role"] != "assistant":
                role = str(message["role"])
                text += f"{_TITLES.get(role, role.capitalize())}: {to_text([message])}"
                continue
            text += "Assistant:"
            begin = len(text)
            text += " " + to_text([message])
            # The encoder adds the token at the very end of the text.
            if number < len(messages) - 1:
                text += self.eos
            spans.append((begin, len(text)))
        if train_on == "all":
            spans = [(0, len(text))]
        elif train_on == "last":
            spans = spans[-1:]
        ended = messages[-1]["role"] != "assistant"
        return Rendered(text, tuple(spans), ends_turn=ended and bool(self.eos))


def _refuse_tools(row: Mapping[str, Any]) -> None:
    if row.get("tools"):
        raise DataError(
            "the row has tools, but the tokenizer has no chat template that could show them to the model",
            code="tools-without-template",
            fix="use a model with a chat template for tools",
        )


def renderer_for(tokenizer: Any) -> ChatRenderer | PlainRenderer:
    """The tokenizer's chat template if it has one, else plain text."""
    return ChatRenderer(tokenizer) if getattr(tokenizer, "chat_template", None) else PlainRenderer(tokenizer)
