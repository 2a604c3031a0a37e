"""How well a tokenizer writes a language: tokens per word, per character and per byte."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

__all__ = ["Fertility", "fertility", "fertility_by_language", "script_of"]

_WORD = re.compile(r"\S+")
_BATCH = 256
_SCRIPTS = (
    *("LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI"),
    *("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI"),
)
_NO_SPACES = frozenset({"CJK", "HIRAGANA", "KATAKANA", "THAI"})


@dataclass(frozen=True, kw_only=True)
class Fertility:
    """Counts over a text, without the special tokens that a tokenizer adds by itself."""

    texts: int
    words: int
    """What white space separates; in scripts that are written without spaces, each character."""
    characters: int
    bytes: int
    """UTF-8 bytes."""
    tokens: int
    unknown: int
    """Unknown tokens: characters that are lost."""
    whole_words: int
    """Words that are one token."""

    @property
    def tokens_per_word(self) -> float:
        """The fertility proper (Rust et al. 2021, arXiv:2012.15613): 1 is the least."""
        return self.tokens / max(1, self.words)

    @property
    def bytes_per_token(self) -> float:
        """How much text a token carries."""
        return self.bytes / max(1, self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """Counts and ratios as JSON types."""
        return asdict(self) | {
            "tokens_per_word": round(self.tokens_per_word, 4),
            "tokens_per_character": round(self.tokens / max(1, self.characters), 4),
            "bytes_per_token": round(self.bytes_per_token, 4),
            "whole_word_share": round(self.whole_words / max(1, self.words), 4),
        }


def fertility(tokenizer: Any, texts: Iterable[str]) -> Fertility:
    """Measure ``tokenizer`` (of ``transformers``) on ``texts``; they are read once."""
    counts: Counter[str] = Counter()
    unknown_id = tokenizer.unk_token_id
    rows = iter(texts)
    seen: dict[str, int] = {}
    while batch := list(islice(rows, _BATCH)):
        ids = tokenizer(batch, add_special_tokens=False, truncation=False, padding=False)["input_ids"]
        for text, row in zip(batch, ids, strict=True):
            words = _words(text)
            fresh = [word for word in dict.fromkeys(words) if word not in seen]
            if fresh:
                # A word inside a text has a space before it, which most tokenizers write into its first token.
                spaced = [f" {word}" if len(word) > 1 or word.isascii() else word for word in fresh]
                made = tokenizer(spaced, add_special_tokens=False, truncation=False, padding=False)["input_ids"]
                seen.update(zip(fresh, map(len, made), strict=True))
            counts.update(
                texts=1,
                words=len(words),
                characters=len(text),
                bytes=len(text.encode()),
                tokens=len(row),
                unknown=sum(token == unknown_id for token in row) if unknown_id is not None else 0,
                whole_words=sum(seen[word] == 1 for word in words),
            )
        if len(seen) > 200_000:
            seen.clear()
    names = ("texts", "words", "characters", "bytes", "tokens", "unknown", "whole_words")
    return Fertility(**{name: counts[name] for name in names})


def fertility_by_language(tokenizer: Any, texts: Mapping[str, Iterable[str]] | Iterable[str]) -> dict[str, Fertility]:
    """Fertility for each language: those of a mapping, or, for plain texts, the script that most letters belong to."""
    if isinstance(texts, Mapping):
        return {name: fertility(tokenizer, rows) for name, rows in texts.items()}
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(script_of(text), []).append(text)
    return {name: fertility(tokenizer, rows) for name, rows in sorted(groups.items())}


def script_of(text: str) -> str:
    """The script most letters of a text are in, such as ``latin``, ``cjk``, ``cyrillic``; ``other`` without letters."""
    counts: Counter[str] = Counter()
    for character, times in Counter(text[:2000]).items():
        if character.isalpha():
            counts[_script(character)] += times
    return counts.most_common(1)[0][0].lower() if counts else "other"


def _script(character: str) -> str:
    name = unicodedata.name(character, "")
    return next((script for script in _SCRIPTS if name.startswith(script)), "OTHER")


def _words(text: str) -> list[str]:
    found: list[str] = []
    for run in _WORD.findall(text):
        if run.isascii():
            found.append(run)
            continue
        held = ""
        for character in run:
            if character.isalpha() and _script(character) in _NO_SPACES:
                if held:
                    found.append(held)
                    held = ""
                found.append(character)
            else:
                held += character
        if held:
            found.append(held)
    return found
