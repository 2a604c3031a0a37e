"""One judgement of one answer: what a record holds, how it is checked, and when two texts are the same."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import math
import time as clock
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tunekit.data.messages import as_messages
from tunekit.data.rows import RowProblem, kind_of
from tunekit.data.schemas import validate_row
from tunekit.data.text import normalized
from tunekit.errors import DataError, OptionsError, nearest

__all__ = [
    "MICRO",
    "SCALE",
    "Record",
    "Text",
    "as_micros",
    "check_fields",
    "checked_scale",
    "hash_user",
    "make_record",
    "message_keys",
    "plain",
    "redacted",
    "shown",
    "text_key",
]

Text = str | list[dict[str, Any]]
"""A string, or a list of messages."""

Redact = Callable[[str], str]

SCALE = (1.0, 5.0)
"""Lowest and highest rating, where a store names no other."""

_UP = frozenset(
    ("up", "thumbs_up", "thumbsup", "thumb_up", "upvote", "+1", "1", "like", "liked", "positive", "good", "true",
     "\N{THUMBS UP SIGN}")
)  # fmt: skip
_DOWN = frozenset(
    ("down", "thumbs_down", "thumbsdown", "thumb_down", "downvote", "-1", "dislike", "disliked", "negative", "bad",
     "false", "\N{THUMBS DOWN SIGN}")
)  # fmt: skip
_NO_WORD = {ord(":"): None, 0xFE0F: None, **dict.fromkeys(range(0x1F3FB, 0x1F400))}
"""What stands around a thumb: the colons of a name such as ``:thumbsup:``, tones of skin, the mark of an emoji."""
_SAYS = "give thumbs=, rating=, edit= or chosen_over="
MICRO = 1_000_000
"""Microseconds of a second: what a time is kept in."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one user said about one answer."""

    id: str
    """Unique in the store."""
    time: float
    """Seconds since the epoch, UTC; whole microseconds."""
    prompt: Text
    completion: Text
    """The answer that is judged."""
    thumbs: bool | None = None
    """True: good. None: not said."""
    rating: float | None = None
    scale: tuple[float, float] | None = None
    """Lowest and highest possible rating; None without a rating."""
    edit: Text | None = None
    """What the user made of the answer."""
    chosen_over: tuple[Text, ...] = ()
    """Other answers to the prompt that the user was shown and did not choose."""
    tools: list[dict[str, Any]] | None = None
    """Schemas of the tools that the model could call."""
    user_hash: str = ""
    """Who; empty: not known."""
    model_hash: str = ""
    """Whose answer; empty: not known."""
    source: str = ""
    """Where the record is from, such as the name of an application or of an imported file."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the application wants to keep; JSON types."""

    @property
    def prompt_key(self) -> str:
        """Equal for equal prompts with equal tools, whatever their white space."""
        return text_key(self.prompt, "user", self.tools)

    @property
    def completion_key(self) -> str:
        """Equal for equal answers, whatever their white space."""
        return text_key(self.completion, "assistant")

    @property
    def voter(self) -> str:
        """Whose opinion this is; records without a user are one voter each."""
        return self.user_hash or f"?{self.id}"

    def fraction(self) -> float | None:
        """The rating from 0 (worst) to 1 (best); None without one."""
        if self.rating is None or self.scale is None:
            return None
        low, high = self.scale
        return (self.rating - low) / (high - low)


def hash_user(user: str | int | uuid.UUID, secret: str | bytes) -> str:
    """A pseudonym of a user: 32 hex digits of HMAC-SHA-256, the same for the same user and secret.

    Without the secret nobody can try out names. Keep it outside the store, and throw it away to make the records
    anonymous.

    Args:
        user: what the application calls the user; a number counts as its digits.
        secret: at least 16 bytes.

    Raises:
        OptionsError: if the secret is too short, or one of them is something else.
    """
    user = plain(user)
    if isinstance(user, bool) or not isinstance(user, str | int | uuid.UUID) or user == "":
        raise OptionsError(
            f"user is {shown(user)}; it is a name or a number.",
            code="user",
            fix='leave user_hash out, or "", for users that are not known',
        )
    if not isinstance(secret, str | bytes):
        raise OptionsError(f"The secret is {kind_of(secret)}; it is text or bytes.", code="short-secret")
    key = secret.encode() if isinstance(secret, str) else secret
    if len(key) < 16:
        raise OptionsError(
            f"The secret has {len(key)} bytes; who guesses it can try out names.",
            code="short-secret",
            fix="use 16 bytes or more, such as secrets.token_bytes(32), and keep them",
        )
    return hmac.new(key, str(user).encode(), hashlib.sha256).hexdigest()[:32]


def plain(value: Any) -> Any:
    """The Python number or boolean of a scalar of numpy, as tables hold them; else ``value``."""
    return value.item() if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)) else value


def shown(value: Any) -> str:
    """A value for people, cut."""
    try:
        return f"{value!r:.40}"
    except ValueError:
        return "a number of thousands of digits"


def message_keys(value: Text, role: str) -> Iterator[str]:
    """A hash for every beginning of a text: after its first message, after the second, and so on to its end.

    A string counts as one message of ``role``. White space is collapsed and Unicode composed (NFC) before. 128 bits.
    """
    yield from _keys(hashlib.blake2b(digest_size=16), value, role)


def _keys(hasher: Any, value: Text, role: str) -> Iterator[str]:
    for message in as_messages(value, role):
        parts = [str(message.get("role", "")), normalized(str(message.get("content") or ""))]
        for name in ("reasoning_content", "tool_calls"):
            if message.get(name):
                parts.append(json.dumps([name, message[name]], sort_keys=True, ensure_ascii=False, default=str))
        hasher.update("\x1f".join(parts).encode("utf-8", "surrogatepass") + b"\x1e")
        yield hasher.copy().hexdigest()


def text_key(value: Text, role: str, tools: Any = None) -> str:
    """Hash of a whole text, and of the tools beside it."""
    key = ""
    for key in message_keys(value, role):  # noqa: B007
        pass
    if tools:
        described = json.dumps(tools, sort_keys=True, ensure_ascii=False, default=str)
        key = hashlib.blake2b(f"{key}{described}".encode(), digest_size=16).hexdigest()
    return key


# In.


def make_record(
    prompt: Any,
    completion: Any,
    *,
    thumbs: Any = None,
    rating: Any = None,
    scale: tuple[float, float] | None = None,
    edit: Any = None,
    chosen_over: Any = None,
    tools: Any = None,
    user_hash: str = "",
    model_hash: str = "",
    source: str = "",
    meta: Mapping[str, Any] | None = None,
    time: Any = None,
    id: str | None = None,
    redact: Redact | None = None,
) -> Record:
    """A checked record. The arguments are those of :meth:`tunekit.feedback.FeedbackStore.record`.

    Raises:
        DataError: naming the field that is wrong.
    """
    try:
        return _made(
            prompt, completion, thumbs, rating, scale, edit, chosen_over, tools, user_hash, model_hash, source, meta,
            time, id, redact,
        )  # fmt: skip
    except RowProblem as problem:
        raise DataError(
            f"The feedback cannot be recorded: {problem.text()}.",
            code="bad-feedback",
            fix=problem.fix,
            details={"field": problem.field, "reason": problem.reason},
        ) from None


def _made(
    prompt: Any,
    completion: Any,
    thumbs: Any,
    rating: Any,
    scale: tuple[float, float] | None,
    edit: Any,
    chosen_over: Any,
    tools: Any,
    user_hash: str,
    model_hash: str,
    source: str,
    meta: Mapping[str, Any] | None,
    time: Any,
    id: str | None,
    redact: Redact | None,
) -> Record:
    others = _others(chosen_over)
    if thumbs is None and rating is None and edit is None and not others:
        raise RowProblem("", "it says nothing about the answer", _SAYS)
    values = [prompt, completion, *others] + ([edit] if edit is not None else [])
    if not all(isinstance(value, str) for value in values):
        prompt = as_messages(prompt) if isinstance(prompt, str) else prompt
        completion, edit, *others = (
            as_messages(value, "assistant") if isinstance(value, str) else value
            for value in (completion, edit, *others)
        )
    main = _judged(prompt, completion, tools, thumbs)
    asked, answered = main["prompt"], main["completion"]
    edited = None
    if edit is not None:
        edited = _named("edit", "completion", {"prompt": asked, "completion": edit}, "prompt_completion")
    beaten = [
        _named(f"chosen_over[{number}]", "rejected", {"prompt": asked, "chosen": answered, "rejected": other})
        for number, other in enumerate(others)
    ]
    made = Record(
        id=_label(id, "id") or uuid.uuid4().hex,
        time=_seconds(time),
        prompt=asked,
        completion=answered,
        thumbs=_thumbs(thumbs),
        rating=_rating(rating, scale),
        scale=None if rating is None else _scale(scale),
        edit=edited,
        chosen_over=tuple(beaten),
        tools=main.get("tools"),
        user_hash=_user(user_hash),
        model_hash=_label(model_hash, "model_hash"),
        source=_label(source, "source"),
        meta=_meta(meta),
    )
    judged = made.completion_key
    if edited is not None and text_key(edited, "assistant") == judged:
        raise RowProblem("edit", "equals the answer", "pass thumbs=True for an answer that was taken as it is")
    for number, other in enumerate(beaten):
        if text_key(other, "assistant") == judged:
            raise RowProblem(f"chosen_over[{number}]", "equals the chosen answer")
    # What is equal only now was not the user's mistake; exports leave it out and count it.
    return made if redact is None else redacted(made, redact)


_FIELDS = ("prompt", "completion", "thumbs", "rating", "scale", "edit", "chosen_over", "tools", "user_hash",
           "model_hash", "source", "meta", "time", "id")  # fmt: skip


def check_fields(judgement: Any) -> None:
    """Refuse what :func:`make_record` does not know.

    Raises:
        DataError: naming the field and the nearest one.
    """
    if not isinstance(judgement, Mapping):
        raise DataError(
            f"The feedback cannot be recorded: it is {kind_of(judgement)}, not the arguments of record() by name.",
            code="bad-feedback",
            fix='pass mappings such as {"prompt": ..., "completion": ..., "thumbs": True}',
        )
    unknown = [str(name) for name in judgement if name not in _FIELDS]
    missing = [name for name in _FIELDS[:2] if name not in judgement]
    if unknown or missing:
        raise DataError(
            "The feedback cannot be recorded: "
            + (f"there is no field {unknown[0]!r}." if unknown else f"field {missing[0]!r} is missing."),
            code="bad-feedback",
            found=f"fields {', '.join(map(str, judgement)) or 'none'}",
            suggestions=nearest(unknown[0], _FIELDS) if unknown else (),
            fix=f"use {', '.join(_FIELDS)}; meta= takes anything else",
            details={"field": (unknown or missing)[0]},
        )


def _judged(prompt: Any, completion: Any, tools: Any, thumbs: Any) -> dict[str, Any]:
    """The checked prompt, answer and tools. An answer may be empty where it is compared or rated, as in
    ``validate_row``; a thumb on nothing is a mistake."""
    row = {"prompt": prompt, "completion": completion, "tools": tools}
    if thumbs is not None:
        return validate_row(row | {"label": True}, "feedback")
    return validate_row(row | {"score": 0.0}, "rated")


def redacted(record: Record, redact: Redact) -> Record:
    """The record with ``redact`` applied to the texts of its prompt, answers and tool calls, and in ``meta``.

    Raises:
        OptionsError: if ``redact`` gives something else than text.
    """
    return replace(
        record,
        prompt=_redacted(record.prompt, redact),
        completion=_redacted(record.completion, redact),
        edit=None if record.edit is None else _redacted(record.edit, redact),
        chosen_over=tuple(_redacted(other, redact) for other in record.chosen_over),
        meta=_redacted_values(record.meta, redact),
    )


def _others(chosen_over: Any) -> list[Any]:
    """The answers that were not chosen, out of one or several; a list of messages is one."""
    if chosen_over is None:
        return []
    if isinstance(chosen_over, str | Mapping):
        return [chosen_over]
    if not isinstance(chosen_over, Sequence):
        raise RowProblem("chosen_over", f"is {kind_of(chosen_over)}, not an answer or a list of answers")
    if chosen_over and all(isinstance(item, Mapping) for item in chosen_over):
        return [list(chosen_over)]
    return list(chosen_over)


def _named(name: str, field: str, row: dict[str, Any], schema: str = "preference") -> Any:
    try:
        return validate_row(row, schema)[field]
    except RowProblem as problem:
        if problem.reason == "equals 'chosen'":
            raise RowProblem(name, "equals the chosen answer") from None
        raise RowProblem(problem.field.replace(field, name, 1), problem.reason, problem.fix) from None


def _thumbs(value: Any) -> bool | None:
    value = plain(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        word = value.strip().lower().translate(_NO_WORD).replace("-", "_").replace(" ", "_")
        word = "-1" if word == "_1" else word
        if word in _UP or word in _DOWN:
            return word in _UP
    if isinstance(value, int | float) and value in (1, -1):
        return value == 1
    # 0 is "down" to some and "no opinion" to others.
    raise RowProblem("thumbs", f"is {shown(value)}; it is True or False, 'up' or 'down', 1 or -1")


def _scale(scale: Any) -> tuple[float, float]:
    if scale is None:
        return SCALE
    fits = isinstance(scale, list | tuple) and len(scale) == 2 and all(_is_number(plain(end)) for end in scale)
    if not fits or not float(scale[0]) < float(scale[1]):
        raise RowProblem("scale", f"is {shown(scale)}; it is the lowest and the highest rating, such as (1, 5)")
    return float(scale[0]), float(scale[1])


def checked_scale(scale: Any) -> tuple[float, float]:
    """The lowest and the highest rating, as numbers.

    Raises:
        OptionsError: if it is something else.
    """
    try:
        return _scale(scale)
    except RowProblem as problem:
        raise OptionsError(f"scale {problem.reason}.", code="scale") from None


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _rating(value: Any, scale: Any) -> float | None:
    value = plain(value)
    if value is None:
        return None
    if not _is_number(value):
        raise RowProblem("rating", f"is {shown(value)}, not a finite number")
    low, high = _scale(scale)
    if not low <= value <= high:
        raise RowProblem(
            "rating", f"is {value:g}, outside the scale from {low:g} to {high:g}", "pass scale=(lowest, highest)"
        )
    return float(value)


def _user(value: Any) -> str:
    text = _label(value, "user_hash")
    if "@" in text or " " in text:
        raise RowProblem(
            "user_hash", "looks like a name or an address, not like a hash", "pass hash_user(user, secret)"
        )
    return text


def _label(value: Any, field: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowProblem(field, f"is {kind_of(value)}, not text")
    if len(value) > 512 or any(ord(letter) < 32 for letter in value):
        raise RowProblem(field, "is longer than 512 characters or holds control characters")
    text: str = _storable(value, field)
    return text


def _storable(value: Any, field: str) -> Any:
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RowProblem(field, f"holds something that is not JSON in UTF-8 ({str(error)[:80]})") from None
    return value


def _meta(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise RowProblem("meta", f"is {kind_of(value)}, not an object with named fields")
    made: dict[str, Any] = json.loads(json.dumps(_storable(dict(value), "meta")))
    return made


def _seconds(value: Any) -> float:
    value = plain(value)
    if value is None:
        value = clock.time()
    elif isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value.strip())
        except ValueError:
            raise RowProblem("time", f"is {shown(value)}, not a time such as 2026-05-01T12:00:00+00:00") from None
    if isinstance(value, datetime.datetime):
        if value.tzinfo is None:
            raise RowProblem("time", "has no time zone", "add one: time.replace(tzinfo=datetime.UTC)")
        value = value.timestamp()
    # Postgres keeps 64-bit microseconds; the year 5000 is far enough.
    if not _is_number(value) or not 0 <= value < 95_617_584_000:
        raise RowProblem("time", f"is {shown(value)}; it is seconds since 1970, or a datetime with a time zone")
    return round(float(value) * MICRO) / MICRO


def as_micros(value: Any) -> int | None:
    """Microseconds since the epoch; None for None.

    Raises:
        OptionsError: if it is no time.
    """
    if value is None:
        return None
    try:
        return round(_seconds(value) * MICRO)
    except RowProblem as problem:
        raise OptionsError(f"The time {shown(value)} {problem.reason}.", code="time", fix=problem.fix) from None


def _redacted(value: Text, redact: Redact) -> Any:
    if isinstance(value, str):
        return _checked(redact(value))
    made = []
    for message in value:
        kept = dict(message)
        for name in ("content", "reasoning_content"):
            if isinstance(kept.get(name), str):
                kept[name] = _checked(redact(kept[name]))
        if kept.get("tool_calls"):
            kept["tool_calls"] = _redacted_values(kept["tool_calls"], redact, ("type", "id", "name"))
        made.append(kept)
    return made


def _redacted_values(value: Any, redact: Redact, but: tuple[str, ...] = ()) -> Any:
    if isinstance(value, str):
        return _checked(redact(value))
    if isinstance(value, Mapping):
        return {key: item if key in but else _redacted_values(item, redact, but) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted_values(item, redact, but) for item in value]
    return value


def _checked(text: Any) -> str:
    if not isinstance(text, str):
        raise OptionsError(
            f"The redaction hook gave {kind_of(text)}, not text.",
            code="redact",
            fix="return the text without what must not be kept",
        )
    return text
