"""Formats of texts with a class or a number, and of words with tags."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.data.formats_base import NO, TREE, Format, Row, fields, mostly

__all__ = ["LABELLED_FORMATS", "is_float", "number_of"]

_TEXTS = ("sentence review tweet comment headline utterance document passage verse snippet", "content body",
          "question query premise")  # fmt: skip
_PAIRS: tuple[Mapping[str, str], ...] = tuple(
    {"text": one, "text_pair": two}
    for one, two in (
        ("sentence1", "sentence2"),
        ("sentence_1", "sentence_2"),
        ("sentence_a", "sentence_b"),
        ("text1", "text2"),
        ("text_1", "text_2"),
        ("text_a", "text_b"),
        ("premise", "hypothesis"),
        ("question1", "question2"),
        ("question", "sentence"),
        ("question", "passage"),
        ("query", "document"),
        ("query", "passage"),
    )
)
_OTHER = ("chosen", "rejected", "answer", "answers", "completion", "completions", "response", "output", "messages",
          "conversations", "instruction", "prompt", "tokens", *TREE)  # fmt: skip
"""Columns beside a text and a label that mean the label is one of something else."""


def number_of(value: Any) -> float | None:
    """A finite number, or the number that a text spells; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def is_float(value: Any) -> bool:
    """Whether a value is a number with a fraction, or written as one: a measure, not a class."""
    number = number_of(value)
    if number is None:
        return False
    return not number.is_integer()


def _text(row: Row) -> bool:
    return isinstance(row.get("text"), str)


def _class(value: Any) -> bool:
    """Whether it can be a class: a boolean, a whole number or a short text; of a list the row itself is told."""
    if isinstance(value, str):
        return len(value) <= 100
    return isinstance(value, bool | int | list) or (isinstance(value, float) and value.is_integer())


def _classes(rows: Sequence[Row]) -> int:
    if any(is_float(row.get("label")) for row in rows):
        return NO
    given = [row for row in rows if row.get("label") is not None]
    return mostly(lambda row: _text(row) and _class(row["label"]))(given) if given else NO


def _scores(rows: Sequence[Row]) -> int:
    given = [row for row in rows if row.get("score") is not None]
    return mostly(lambda row: _text(row) and number_of(row["score"]) is not None)(given) if given else NO


def _tagged(row: Row) -> bool:
    tokens, tags = row.get("tokens"), row.get("tags")
    return isinstance(tokens, list) and isinstance(tags, list) and all(isinstance(token, str) for token in tokens)


LABELLED_FORMATS: tuple[Format, ...] = (
    Format(
        name="classification",
        schema="classification",
        columns=("text", "label"),
        optional=("text_pair",),
        aliases={
            "text": _TEXTS,
            "label": (
                "category class intent sentiment topic emotion gold_label label_text",
                "rating stars",
                "?score target labels",
            ),
        },
        together=_PAIRS,
        convert=fields("text", "label", maybe=("text_pair",)),
        without=_OTHER,
        looks=_classes,
        rivals="label",
        summary="a text (and a second one) and its class",
    ),
    Format(
        name="regression",
        schema="regression",
        columns=("text", "score"),
        optional=("text_pair",),
        aliases={
            "text": _TEXTS,
            "score": (
                "similarity similarity_score relatedness relatedness_score",
                "rating stars",
                "?label target value labels",
            ),
        },
        together=_PAIRS,
        convert=fields("text", "score", maybe=("text_pair",)),
        without=_OTHER,
        looks=_scores,
        rivals="label",
        summary="a text (and a second one) and a number",
    ),
    Format(
        name="token_classification",
        schema="token_classification",
        columns=("tokens", "tags"),
        aliases={
            "tokens": ("words",),
            "tags": ("ner_tags ner ner_labels", "labels tag_labels", "pos_tags chunk_tags pos upos"),
        },
        convert=fields("tokens", "tags"),
        looks=mostly(_tagged),
        summary="words and a tag for each",
    ),
)
