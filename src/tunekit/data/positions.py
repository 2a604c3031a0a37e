"""Tables without a header, whose columns are called "1", "2" ...: what the columns are, seen from their values."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from tunekit.data.formats_base import Row
from tunekit.data.formats_labelled import number_of

__all__ = ["fields_by_kind", "positional"]

Found = tuple[str, dict[str, str], int]
"""Name of a format, field -> column, and how well the data fit: 1 if the step asks for it, 2 by themselves."""


def positional(names: Sequence[str], samples: Sequence[Row]) -> list[Found]:
    """The readings of a table whose columns are called "1" to "n"; none for any other.

    A first column of whole numbers that only rise is a row number and left out. What remains is a text; two texts
    (question and answer); a text, or a pair of texts, with a class or a number.
    """
    if not names or list(names) != [str(number) for number in range(1, len(names) + 1)]:
        return []
    kinds = {name: _kind([row[name] for row in samples if row.get(name) not in (None, "")]) for name in names}
    columns = list(names)
    if len(columns) > 2 and _row_numbers([row.get(columns[0]) for row in samples]):
        columns.pop(0)
    shape = [kinds[name] for name in columns]
    if shape == ["text"]:
        return [("text", {"text": columns[0]}, 2)]
    if shape[1:] in (["text"], ["text", "text"]) and shape[0] in ("class", "count class"):
        second = {"text_pair": columns[2]} if len(columns) == 3 else {}
        return [("classification", {"text": columns[1], **second, "label": columns[0]}, 2)]
    texts, last = shape[:-1], shape[-1]
    if texts not in (["text"], ["text", "text"]):
        return []
    pair = {"text_pair": columns[1]} if len(texts) == 2 else {}
    labelled = {"text": columns[0], **pair, "label": columns[-1]}
    scored = {"text": columns[0], **pair, "score": columns[-1]}
    levels = _LEVELS[last]
    found: list[Found] = [("classification", labelled, levels[0]), ("regression", scored, levels[1])]
    if not pair:
        found.append(("question_answer", {"question": columns[0], "answer": columns[1]}, levels[2]))
    return [one for one in found if one[2]]


_LEVELS = {
    # kind of the last column: as classes, as scores, as answers
    "class": (2, 0, 0),
    "count class": (2, 1, 0),
    "count": (1, 2, 2),
    "measure": (0, 2, 0),
    "word": (1, 0, 1),
    "text": (0, 0, 2),
    "": (0, 0, 0),
}


def fields_by_kind(names: Sequence[str], samples: Sequence[Row], fields: Sequence[str]) -> dict[str, str]:
    """Field -> the column without a name that it most likely is: labels and scores are short, the rest is text."""
    kinds = {name: _kind([row[name] for row in samples if row.get(name) not in (None, "")]) for name in names}
    found: dict[str, str] = {}
    for field in fields:
        short = field in ("label", "score", "ranks", "tags")
        free = [name for name in names if name not in found.values()]
        fitting = [name for name in free if (kinds[name] not in ("text", "word", "")) == short]
        if free:
            found[field] = (fitting or free)[0]
    return found


def _kind(values: Sequence[Any]) -> str:
    """``class`` (few short values), ``count class`` (few whole numbers), ``count``, ``measure``, ``word``, ``text``."""
    if not values:
        return ""
    if not all(isinstance(value, str | int | float) for value in values):
        return ""
    numbers = [number_of(value) for value in values]
    few = 2 * len(set(values)) <= len(values)
    if all(number is not None for number in numbers):
        written = any(isinstance(value, float) or (isinstance(value, str) and "." in value) for value in values)
        if written or any(number is not None and not number.is_integer() for number in numbers):
            return "measure"
        return "count class" if few else "count"
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values):
        return ""
    if few and all(len(text) <= 50 for text in texts):
        return "class"
    return "text" if any(_words(text) > 2 or len(text) > 30 for text in texts) else "word"


def _words(text: str) -> int:
    """Words by the spaces between them; Chinese, Japanese and Korean characters count as one each."""
    return len(text.split()) + sum("\u2e80" <= sign <= "\uffdc" for sign in text)


def _row_numbers(values: Sequence[Any]) -> bool:
    numbers = [number_of(value) for value in values]
    whole = [number for number in numbers if number is not None and number.is_integer()]
    return len(whole) == len(values) > 1 and all(one < two for one, two in pairwise(whole))
