"""What a row says: its text, normalised, for comparing rows with each other and with benchmarks."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["is_cjk", "normalized", "row_key", "row_target", "row_texts", "words"]

TARGETS = ("label", "labels", "score", "scores", "ranks", "tags", "margin", "columns")
"""Fields that say what is to be learned of a text; two rows with one text and other targets contradict each other."""

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")
_CJK_WORD = re.compile(rf"[{_CJK}]")

_MESSAGE = ("content", "reasoning_content", "tool_calls")


def normalized(text: str) -> str:
    """NFC, with every run of white space as one blank and none at the ends."""
    text = " ".join(text.split())
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def row_texts(row: Mapping[str, Any]) -> list[str]:
    """Every text of a canonical row, in the order of its fields: prompts, answers, the messages of a conversation with
    their reasoning and tool calls, the words of a tagged sentence as one text. Targets and tool descriptions are none.
    """
    return [text for field, value in row.items() if field not in TARGETS and field != "tools" for text in _texts(value)]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in _MESSAGE:
            inner = value.get(part)
            if isinstance(inner, str):
                yield inner
            elif inner:
                yield json.dumps(inner, sort_keys=True, ensure_ascii=False, default=str)
    elif isinstance(value, list | tuple):
        if value and all(isinstance(item, str) for item in value):
            yield " ".join(value)
        else:
            for item in value:
                yield from _texts(item)


def row_target(row: Mapping[str, Any]) -> str:
    """The targets of a row as text; empty for rows that have none."""
    given = {field: row[field] for field in TARGETS if field in row}
    return json.dumps(given, sort_keys=True, ensure_ascii=False, default=str) if given else ""


def row_key(row: Mapping[str, Any], seed: int = 0) -> int:
    """64-bit hash of the normalised texts of a row (BLAKE2b) and of the tools it offers. Its targets do not count.

    Rows with equal texts have equal keys. That any two of a million different ones have equal keys by chance happens in
    3 of 100 million data sets.
    """
    hasher = hashlib.blake2b(digest_size=8, salt=seed.to_bytes(16, "little"))
    texts = [normalized(text) for text in row_texts(row)]
    if row.get("tools"):
        texts.append(json.dumps(row["tools"], sort_keys=True, ensure_ascii=False, default=str))
    hasher.update("\x1e".join(texts).encode("utf-8", "surrogatepass"))
    return int.from_bytes(hasher.digest(), "little")


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation; of Chinese, Japanese and Korean text every character is one."""
    return _WORD.findall(normalized(text).lower())


def is_cjk(word: str) -> bool:
    """Whether a word is a single Chinese, Japanese or Korean character."""
    return len(word) == 1 and _CJK_WORD.match(word) is not None
