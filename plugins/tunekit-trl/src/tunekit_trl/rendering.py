"""From canonical rows to the exact training text, and where in it the targets are.

Positions are character offsets into the text. With a chat template the text is what the template renders; where a
turn begins and ends is found by rendering the messages before it, so that no ``{% generation %}`` markers are needed
and the token that ends a turn is part of the turn. Without a template the text is plain.

Which turns are targets is decided here, too: by ``train_on``, by a flag that a message carries (``train`` or ``loss``:
true or false, ``weight``: 0 or 1), and by its role: what a tool answered is never learned.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from jinja2.exceptions import TemplateError

from tunekit.data import as_messages, plain_pair, to_text
from tunekit.errors import DataError
from tunekit_trl.written import WrittenCheck, is_tool

__all__ = ["ChatRenderer", "PlainRenderer", "Rendered", "renderer_for", "template_source"]

Message = Mapping[str, Any]
Messages = Sequence[Message]
Span = tuple[int, int]

_MARK = "\ue000\ue001\ue000"
"""Private-use characters: templates pass them through, and no text of a row holds them in this order."""

_FLAGS = ("train", "loss", "weight")
"""Message fields that leave a turn out: as axolotl, ms-swift, and OpenAI's fine-tuning files spell them."""
_THOUGHTS = ("reasoning_content", "thinking")
"""Message fields with what a model thinks before it answers; templates know the one or the other."""
_THOUGHTS_END = "</think>"
_TITLES = {"developer": "System", "system": "System", "tool": "Tool", "user": "User"}


@dataclass(frozen=True)
class Rendered:
    """A training text and its target spans."""

    text: str
    spans: tuple[Span, ...]
    """(begin, end) of each part that is learned, in order, not overlapping."""
    ends_turn: bool
    """Whether the text itself ends the last turn: the template wrote a special token there."""
    plain: bool = False
    """Whether no template made the text, so that the tokenizer's begin-of-text token is still missing."""
    lost_thoughts: int = 0
    """Assistant turns whose thoughts the template left out."""
    turns: tuple[tuple[int, str], ...] = ()
    """(begin, role) of each message, where it was asked for."""


# Which turns are targets


def _wanted(message: Message, number: int) -> bool:
    """Whether a message's own flag leaves it in.

    Raises:
        DataError: for a flag that is neither true nor false, or one that asks for a turn that is never learned.
    """
    wanted = True
    for name in _FLAGS:
        value = message.get(name)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise DataError(
                f"message {number} has {name}={value!r}, which is neither {_choices(name)}",
                code="turn-flag",
                found=f"{name}={value!r}",
                fix=f"{name}={'0 or 1' if name == 'weight' else 'true or false'}; turns are learned or left out, "
                "weights between are not supported",
            )
        wanted = wanted and bool(value)
        if value and is_tool(message):
            raise DataError(
                f"message {number} is a tool's output and asks to be learned ({name}={value!r}); the model would learn "
                "to make up what tools answer",
                code="turn-flag",
                found=f"role {message.get('role')}, {name}={value!r}",
                fix=f"leave {name} out of that message",
            )
    return wanted


def _choices(name: str) -> str:
    return "0 nor 1" if name == "weight" else "true nor false"


def _targets(messages: Messages, train_on: str, prompt: int) -> list[int]:
    """Numbers of the assistant turns that are learned.

    Args:
        messages: all of them.
        train_on: as in the options, but not ``all``.
        prompt: messages of the prompt; what the model writes comes after them.
    """
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if train_on == "completion":
        turns = [number for number in turns if number >= prompt]
    elif train_on == "last":
        turns = turns[-1:]
    return [number for number in turns if _wanted(messages[number], number)]


def _left_out(messages: Messages) -> list[int]:
    """Numbers of the messages that are not learned even where everything else is."""
    return [number for number, message in enumerate(messages) if not _wanted(message, number) or is_tool(message)]


def _check_flags(messages: Messages) -> None:
    for number, message in enumerate(messages):
        _wanted(message, number)


def _prompt_length(messages: Messages) -> int:
    """Messages of a conversation up to its last question: what its completion answers."""
    asked = [number for number, message in enumerate(messages) if message["role"] not in ("assistant", "tool")]
    return asked[-1] + 1 if asked else 0


def _without(length: int, gaps: Iterable[Span]) -> list[Span]:
    """The spans between ``gaps`` of a text of ``length`` characters."""
    spans: list[Span] = []
    at = 0
    for begin, end in sorted(gaps):
        if begin > at:
            spans.append((at, begin))
        at = max(at, end)
    if at < length:
        spans.append((at, length))
    return spans


# With a chat template


class ChatRenderer:
    """Renders with the tokenizer's chat template.

    Args:
        tokenizer: a ``transformers`` tokenizer with a chat template.
        stops: texts of the tokens that generation stops at.
    """

    name = "chat template"

    def __init__(self, tokenizer: Any, stops: Collection[str] = ()) -> None:
        self.tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = {str(token) for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
        self.special = tuple(sorted((text for text in special if text), key=len, reverse=True))
        self.stops = tuple(text for text in self.special if text in stops or text == tokenizer.eos_token)
        source = template_source(tokenizer)
        # A template that knows one of the two spellings is given that one.
        shown = [name for name in _THOUGHTS if name in source]
        self._thoughts = shown[0] if len(shown) == 1 else None
        self._written = WrittenCheck(self._try)
        self._obeys: bool | None = None

    def pair(
        self,
        row: Mapping[str, Any],
        field: str = "completion",
        train_on: str = "completion",
        *,
        turns: bool = False,
    ) -> Rendered:
        """Prompt and answer; the target is the answer (``completion``), every assistant turn (``all-assistant``), the
        last of them (``last``), or everything (``all``). ``turns`` asks where each message begins.

        Raises:
            DataError: if the template cannot render the row, leaves its tools out, or hides where an answer begins.
        """
        prompt = as_messages(row["prompt"])
        messages = prompt + as_messages(row[field], "assistant")
        return self._turns(messages, row.get("tools"), train_on, len(prompt), turns=turns)

    def conversation(self, row: Mapping[str, Any], train_on: str, *, turns: bool = False) -> Rendered:
        """A conversation; the targets are its assistant turns (``all-assistant``), those after the last question
        (``completion``), the last of them (``last``), or everything (``all``). Raises as :meth:`pair` does."""
        messages = as_messages(row["messages"])
        return self._turns(messages, row.get("tools"), train_on, _prompt_length(messages), turns=turns)

    def _turns(
        self, messages: list[dict[str, Any]], tools: Any, train_on: str, prompt: int, *, turns: bool
    ) -> Rendered:
        _check_flags(messages)
        chosen = None if train_on == "all" else _targets(messages, train_on, prompt)
        gaps = _left_out(messages) if chosen is None else []
        messages = [self._shown(message) for message in messages]
        text = self.render(messages, tools)
        self._written.check(messages, tools, text)
        last = len(text) - self._header_behind(messages, text, tools)
        if chosen is None:
            spans = _without(len(text), [self._whole(messages, number, text, tools) for number in gaps])
        else:
            spans = [self._answer(messages, number, text, tools, last) for number in chosen]
        layout = self._layout(messages, text, tools) if turns else ()
        text = text[:last]
        spans = [(begin, min(end, len(text))) for begin, end in spans if begin < len(text)]
        tail = text[spans[-1][0] : spans[-1][1]].rstrip() if spans else ""
        return Rendered(
            text,
            tuple(spans),
            ends_turn=tail.endswith(self.special),
            lost_thoughts=_lost_thoughts(messages, text),
            turns=layout,
        )

    def _layout(self, messages: Messages, text: str, tools: Any) -> tuple[tuple[int, str], ...]:
        """Where each message begins; of one that the template hides, where the one before does."""
        begins = [0]
        for number in range(1, len(messages)):
            before = self._try(messages[:number], tools)
            if before is not None and text.startswith(before):
                begins.append(len(before))
            else:
                begins.append(self._front(messages, number, text, tools) or begins[-1])
        return tuple((begin, str(message["role"])) for begin, message in zip(begins, messages, strict=True))

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

    def _shown(self, message: dict[str, Any]) -> dict[str, Any]:
        """What the template is given: no flags, thoughts under the name it knows. Nulls are meant: columnar files lose
        theirs when they are read."""
        for name in _FLAGS:
            message.pop(name, None)
        if self._thoughts is not None:
            other = _THOUGHTS[1 - _THOUGHTS.index(self._thoughts)]
            if message.get(other) is not None:
                message.setdefault(self._thoughts, message.pop(other))
        return message

    def _header_behind(self, messages: Messages, text: str, tools: Any) -> int:
        """Characters of the header of one more answer that stands behind the last one, in templates that write it
        whether or not they are asked to. Nothing is answered there."""
        last = len(messages) - 1
        if self._obeys or last < 1 or messages[last]["role"] != "assistant":
            return 0
        before = self._try(messages[:last], tools)
        if self._obeys is None and before is not None:
            asked = self._try(messages[:last], tools, generation_prompt=True)
            self._obeys = asked != before
        if self._obeys or before is None or not text.startswith(before):
            return 0
        end = self._back(messages, last, text, tools)
        shared = _shared_end(before, text[len(before) if end is None else end :])
        at = max((shared.rfind(stop) + len(stop) for stop in self.stops if stop in shared), default=0)
        if not at and end is None:
            return 0  # the same words in question and answer would look like one
        if not at:
            at = min((shared.find(token) + len(token) for token in self.special if token in shared), default=0)
        return len(shared[at:].lstrip())

    def _answer(self, messages: Messages, number: int, text: str, tools: Any, last: int) -> Span:
        """An assistant turn: from behind what the model is given before it writes, to the token that ends it. ``last``
        is where the last message ends."""
        begin = self._begin(messages, number, text, tools)
        return begin, self._end(messages, number, text, tools, begin, last)

    def _begin(self, messages: Messages, number: int, text: str, tools: Any) -> int:
        if number > 0:
            before = self._try(messages[:number], tools, generation_prompt=True)
            if before is not None and text.startswith(before):
                return len(before)
        # Templates that rewrite earlier turns when later ones follow: find the turn by its content.
        begin = self._front(messages, number, text, tools)
        if begin is None:
            raise _hidden(number, "begins")
        return begin

    def _end(self, messages: Messages, number: int, text: str, tools: Any, begin: int, last: int) -> int:
        if number == len(messages) - 1:
            return last
        enders = self._enders(messages, text[:last])
        upto = self._try(messages[: number + 1], tools, generation_prompt=False)
        if upto is not None and text.startswith(upto):
            return self._with_stop(text, begin, len(upto), enders)
        # Where the template rewrites earlier turns, the next one's place tells.
        end = None if messages[number].get("tool_calls") else self._back(messages, number, text, tools)
        if end is None:
            end = self._before_next(messages, number, text, tools, begin, enders)
        if end is None:
            raise _hidden(number, "ends")
        end = self._with_stop(text, begin, end, enders)
        blanks = text[len(text[:last].rstrip()) : last] if messages[-1]["role"] == "assistant" else ""
        return end + len(blanks) if text.startswith(blanks, end) else end

    def _with_stop(self, text: str, begin: int, end: int, enders: Sequence[str]) -> int:
        """``end``, or behind the token that ends the turn, where only the turn that follows writes that."""
        if text[begin:end].rstrip().endswith(self.special):
            return end
        rest = text[end:]
        blank = len(rest) - len(rest.lstrip())
        for token in enders:
            if rest.startswith(token, blank):
                return end + blank + len(token)
        return end

    def _enders(self, messages: Messages, text: str) -> tuple[str, ...]:
        """Texts of the tokens that end a turn."""
        if messages[-1]["role"] != "assistant":
            return self.stops
        tail = text.rstrip()
        return (*self.stops, *(token for token in self.special if tail.endswith(token)))

    def _whole(self, messages: Messages, number: int, text: str, tools: Any) -> Span:
        """A message of any role with its header, as the template writes it; its content alone where the template
        rewrites what came before."""
        before = self._try(messages[:number], tools, generation_prompt=False) if number else ""
        upto = text if number == len(messages) - 1 else self._try(messages[: number + 1], tools)
        if before is not None and upto is not None and text.startswith(before) and text.startswith(upto):
            return len(before), len(upto)
        begin = self._front(messages, number, text, tools)
        end = len(text) if number == len(messages) - 1 else self._back(messages, number, text, tools)
        if begin is None or end is None:
            raise _hidden(number, "begins" if begin is None else "ends")
        return begin, end

    def _front(self, messages: Messages, number: int, text: str, tools: Any) -> int | None:
        """Where a message's own text begins, by rendering once more with that place marked."""
        # Thoughts come before the content, where the template shows them.
        for field in (*_THOUGHTS, "content"):
            content = str(messages[number].get(field) or "")
            if field != "content" and not content.strip():
                continue
            for changed in _marked_fronts(content):
                marked = self._changed(messages, number, field, changed, tools)
                at = -1 if marked is None else marked.find(_MARK)
                if marked is not None and at >= 0 and text.startswith(marked[:at]):
                    return at
        return None

    def _back(self, messages: Messages, number: int, text: str, tools: Any) -> int | None:
        """Where a message's content ends, by rendering once more with that place marked."""
        content = str(messages[number].get("content") or "")
        # Many templates strip the content; then the mark must stand inside of the blanks.
        for inner in dict.fromkeys((content, content.strip())):
            marked = self._changed(messages, number, "content", inner + _MARK, tools)
            if marked is not None and marked.count(_MARK) == 1 and marked.replace(_MARK, "") == text:
                return marked.index(_MARK)
        return None

    def _before_next(
        self, messages: Messages, number: int, text: str, tools: Any, begin: int, enders: Sequence[str]
    ) -> int | None:
        """The last token that ends a turn before the next message's own text."""
        limit = self._front(messages, number + 1, text, tools)
        if limit is None:
            return None
        found = [(text.rfind(token, begin, limit), token) for token in enders]
        at, token = max(found, default=(-1, ""))
        return at + len(token) if at >= 0 else None

    def _changed(self, messages: Messages, number: int, field: str, value: str, tools: Any) -> str | None:
        changed = [dict(message) for message in messages]
        changed[number][field] = value
        return self._try(changed, tools)

    def _try(self, messages: Messages, tools: Any, *, generation_prompt: bool = False) -> str | None:
        try:
            return self.render(messages, tools, generation_prompt)
        except DataError:
            return None


def _marked_fronts(content: str) -> list[str]:
    """Contents with their front marked: as it is, without the blanks that many templates strip, and behind thoughts
    that some cut away."""
    made = [_MARK + content, _MARK + content.strip()]
    if _THOUGHTS_END in content:
        before, _, after = content.rpartition(_THOUGHTS_END)
        made.append(f"{before}{_THOUGHTS_END}{_MARK}{after.lstrip()}")
    return list(dict.fromkeys(made))


def _hidden(number: int, what: str) -> DataError:
    return DataError(
        f"the chat template does not show where message {number} {what}",
        code="template-boundary",
        found="rendering the messages before it gives another text, and its content cannot be found",
        fix="give the tokenizer a chat template that leaves earlier turns as they are, or train on the last turn only "
        '(train_on="last")',
    )


def _shared_end(first: str, second: str) -> str:
    """The longest text that both end with."""
    pairs = zip(reversed(first), reversed(second), strict=False)
    length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return first[len(first) - length :]


def _lost_thoughts(messages: Messages, text: str) -> int:
    lost = 0
    for message in messages:
        if message["role"] == "assistant":
            thoughts = next((str(message[name]) for name in _THOUGHTS if message.get(name)), "").strip()
            lost += bool(thoughts) and thoughts not in text
    return lost


def template_source(tokenizer: Any) -> str:
    """Text of the chat template; of all of them if there are several; empty without one."""
    template = getattr(tokenizer, "chat_template", None) or ""
    return "\n".join(map(str, template.values())) if isinstance(template, Mapping) else str(template)


# Without a template


class PlainRenderer:
    """Renders as plain text, for tokenizers without a chat template."""

    name = "plain text"

    def __init__(self, tokenizer: Any) -> None:
        self.eos = tokenizer.eos_token or ""

    def pair(
        self,
        row: Mapping[str, Any],
        field: str = "completion",
        train_on: str = "completion",
        *,
        turns: bool = True,
    ) -> Rendered:
        """Prompt and answer; arguments and targets as in :meth:`ChatRenderer.pair`.

        Raises:
            DataError: for a row with tools, which plain text cannot carry.
        """
        _refuse_tools(row)
        messages = as_messages(row["prompt"])
        length = len(messages)
        messages += as_messages(row[field], "assistant")
        _check_flags(messages)
        one_answer = length == len(messages) - 1 and messages[-1]["role"] == "assistant"
        earlier = any(message["role"] == "assistant" for message in messages[:length])
        learned = _wanted(messages[-1], len(messages) - 1) and not _left_out(messages)
        if one_answer and learned and (not earlier or train_on in ("completion", "last")):
            prompt, answer = plain_pair(row["prompt"], row[field])
            text = prompt + answer
            begin = 0 if train_on == "all" else len(prompt)
            layout = ((0, "prompt"), (len(prompt), "completion"))
            return Rendered(text, ((begin, len(text)),), ends_turn=False, plain=True, turns=layout)
        return self._paragraphs(messages, train_on, length)

    def conversation(self, row: Mapping[str, Any], train_on: str, *, turns: bool = True) -> Rendered:
        """A conversation as ``User: ...`` and ``Assistant: ...`` paragraphs; every assistant turn ends with the
        end-of-text token. One question with one answer is written as :meth:`pair` writes it. Raises as :meth:`pair`
        does."""
        _refuse_tools(row)
        messages = as_messages(row["messages"])
        if len(messages) == 2 and [message["role"] for message in messages] == ["user", "assistant"]:
            return self.pair({"prompt": messages[:1], "completion": messages[1:]}, train_on=train_on)
        _check_flags(messages)
        return self._paragraphs(messages, train_on, _prompt_length(messages))

    def _paragraphs(self, messages: Messages, train_on: str, prompt: int) -> Rendered:
        text = ""
        answers: dict[int, Span] = {}
        paragraphs: list[Span] = []
        for number, message in enumerate(messages):
            text += "\n\n" if text else ""
            begin = len(text)
            if message["role"] != "assistant":
                role = str(message["role"])
                text += f"{_TITLES.get(role, role.capitalize())}: {to_text([message])}"
            else:
                text += "Assistant:"
                inside = len(text)
                text += " " + to_text([message])
                # The encoder adds the token at the very end of the text.
                if number < len(messages) - 1:
                    text += self.eos
                answers[number] = (inside, len(text))
            paragraphs.append((begin, len(text)))
        if train_on == "all":
            spans = _without(len(text), [paragraphs[number] for number in _left_out(messages)])
        else:
            spans = [answers[number] for number in _targets(messages, train_on, prompt)]
        layout = zip((begin for begin, _ in paragraphs), (str(message["role"]) for message in messages), strict=True)
        ended = messages[-1]["role"] != "assistant" and bool(self.eos)
        return Rendered(text, tuple(spans), ends_turn=ended, plain=True, turns=tuple(layout))


def _refuse_tools(row: Mapping[str, Any]) -> None:
    if row.get("tools"):
        raise DataError(
            "the row has tools, but the tokenizer has no chat template that could show them to the model",
            code="tools-without-template",
            fix="use a model with a chat template for tools",
        )


def renderer_for(tokenizer: Any, stops: Collection[str] = ()) -> ChatRenderer | PlainRenderer:
    """The tokenizer's chat template if it has one, else plain text. ``stops``: tokens that generation stops at."""
    return ChatRenderer(tokenizer, stops) if getattr(tokenizer, "chat_template", None) else PlainRenderer(tokenizer)
