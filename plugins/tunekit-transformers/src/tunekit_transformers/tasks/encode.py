"""Rows of the tasks as token ids with their targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from tunekit.errors import DataError, StepError

if TYPE_CHECKING:
    from tunekit.data import Dataset

__all__ = ["IGNORED", "Encoded", "TaskEncoder"]

IGNORED = -100
"""Label of a token or row that is not learned."""

_CHUNK = 1000


@dataclass
class Encoded:
    """The rows of one task and what became of them."""

    kind: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    """``input_ids`` and, where the model has segments, ``token_type_ids``: int32 arrays, (tokens,); ``labels``: class
    number, score, or int64 array (tokens,). Tags also have ``sentence``, and ``positions`` and ``words``: where in the
    row the word of that number begins. Cosine scores have ``pair``: the other text as such a row."""
    truth: list[Any] = field(default_factory=list)
    """Per data row: the class, the tags, or the score."""
    cut_rows: int = 0
    cut_tokens: int = 0
    split_rows: int = 0
    """Sentences that became several windows."""
    words_without_tokens: int = 0

    @property
    def lengths(self) -> np.ndarray[Any, Any]:
        """Tokens per row, the longer of the two for pairs that are read apart, (rows,)."""
        return np.asarray(
            [max(len(row["input_ids"]), len(row["pair"]["input_ids"]) if "pair" in row else 0) for row in self.rows],
            dtype=np.int64,
        )

    def facts(self) -> dict[str, int]:
        """Counts for people."""
        found = {"rows": len(self.truth), "tokens": int(sum(self.lengths)), "rows_cut": self.cut_rows}
        found["tokens_cut"] = self.cut_tokens
        if self.kind == "ner":
            found |= {
                "windows": len(self.rows),
                "sentences_in_windows": self.split_rows,
                "words_without_tokens": self.words_without_tokens,
            }
        return found


class TaskEncoder:
    """Turns canonical rows into token rows.

    Args:
        kind: ``classification``, ``ner`` or ``regression``.
        tokenizer: a tokenizer with a Rust backend.
        limit: longest row in tokens, special ones included.
        labels: classes or tags by number; None for scores.
        segments: whether the model tells the two texts of a pair apart by ``token_type_ids``.
        apart: whether the texts of a pair are read alone (cosine).
        long: ``window`` or ``cut``, for tags.
        overlap: tokens that windows share.

    Raises:
        StepError: code ``slow-tokenizer``.
    """

    def __init__(
        self,
        kind: str,
        tokenizer: Any,
        limit: int,
        *,
        labels: Sequence[str] | None = None,
        segments: bool = False,
        apart: bool = False,
        long: str = "window",
        overlap: int = 32,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise StepError(
                f"The tokenizer {type(tokenizer).__name__} cannot say which characters a token stands for.",
                code="slow-tokenizer",
                fix="use a model with a tokenizer.json",
            )
        self.kind, self.tokenizer, self.limit = kind, tokenizer, limit
        self.numbers = {label: number for number, label in enumerate(labels or ())}
        self.segments, self.apart, self.long = segments, apart, long
        self.single = tokenizer.num_special_tokens_to_add(False)
        # A tokenizer that only puts the texts one behind the other, or a second beginning of text between them, gives
        # no border that a model knows.
        self.paired = tokenizer.sep_token_id is not None and tokenizer.num_special_tokens_to_add(True) > self.single
        self.prefix, self.suffix = _special_ids(tokenizer) if kind == "ner" else ([], [])
        self.room = limit - len(self.prefix) - len(self.suffix)
        self.overlap = min(overlap, self.room // 2)
        self._by_words = kind == "ner" and _splits_words(tokenizer)

    def encode(self, data: Dataset, tick: Callable[[int], None] = lambda done: None) -> Encoded:
        """All rows of a data set.

        Raises:
            DataError: code ``no-tokens``, naming the row; and as reading the rows does.
        """
        return self.encode_rows(((raw.number, row) for raw, row in data.read()), tick, name=data.name)

    def encode_rows(
        self,
        numbered: Iterable[tuple[int, Mapping[str, Any]]],
        tick: Callable[[int], None] = lambda done: None,
        name: str = "rows",
    ) -> Encoded:
        """Rows with their numbers in the source. Rows without a target may be given: nothing of them is learned.
        ``tick`` is told how many rows are done, in between and at the end."""
        made = Encoded(self.kind)
        stream = iter(numbered)
        while chunk := list(islice(stream, _CHUNK)):
            tick(len(made.truth))
            work = self._tags if self.kind == "ner" else self._texts
            for number, found in work([row for _, row in chunk], made):
                row = chunk[number][1]
                if found is None:
                    raise DataError(
                        f"{name} row {chunk[number][0]}: the tokenizer makes no token of the text.",
                        code="no-tokens",
                        found=repr(row.get("text", row.get("tokens")))[:80],
                        fix="take the row out, or mend its text",
                        details={"row": chunk[number][0], "field": "tokens" if self.kind == "ner" else "text"},
                    )
                made.rows.extend(found)
        tick(len(made.truth))
        return made

    def _texts(self, rows: list[Mapping[str, Any]], made: Encoded) -> Iterator[tuple[int, list[dict[str, Any]] | None]]:
        firsts = [row["text"] for row in rows]
        seconds = [row.get("text_pair") for row in rows]
        first, second = self._together(firsts, seconds, made) if not self.apart else self._apart(firsts, seconds, made)
        for number, row in enumerate(rows):
            if self.kind == "classification":
                truth = row.get("label")
                target: Any = self.numbers.get(truth, IGNORED) if truth is not None else IGNORED
            else:
                truth = row.get("score")
                target = 0.0 if truth is None else float(truth)
            made.truth.append(truth)
            own = first[number]
            if len(own["input_ids"]) <= self.single:
                yield number, None
                continue
            own["labels"] = target
            if second is not None:
                own["pair"] = second[number]
            yield number, [own]

    def _together(
        self, firsts: list[str], seconds: list[str | None], made: Encoded
    ) -> tuple[list[dict[str, Any]], None]:
        found: list[dict[str, Any]] = [{} for _ in firsts]
        alone = [number for number, second in enumerate(seconds) if second is None]
        pairs = [number for number, second in enumerate(seconds) if second is not None]
        if pairs and not self.paired:
            firsts = [text if pair is None else f"{text}\n{pair}" for text, pair in zip(firsts, seconds, strict=True)]
            alone, pairs = list(range(len(firsts))), []
        for chosen, paired in ((alone, False), (pairs, True)):
            if chosen:
                texts = [firsts[number] for number in chosen]
                other = [seconds[number] for number in chosen] if paired else None
                for number, row in zip(chosen, self._call(texts, other, made), strict=True):
                    found[number] = row
        return found, None

    def _apart(
        self, firsts: list[str], seconds: list[str | None], made: Encoded
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        missing = next((number for number, second in enumerate(seconds) if second is None), None)
        if missing is not None:
            raise DataError(
                'pooling="cosine" compares two texts, and there are rows with one.',
                code="no-pair",
                found=repr(firsts[missing])[:80],
                fix='pass rows with text and text_pair, or leave pooling="cosine" out',
            )
        return self._call(firsts, None, made), self._call([str(text) for text in seconds], None, made)

    def _call(self, texts: list[str], pairs: list[Any] | None, made: Encoded) -> list[dict[str, Any]]:
        arguments: dict[str, Any] = {"return_attention_mask": False, "return_token_type_ids": self.segments}
        whole = self.tokenizer(texts, pairs, truncation=False, padding=False, **arguments)
        rows = _arrays(whole, self.segments)
        long = [number for number, row in enumerate(rows) if len(row["input_ids"]) > self.limit]
        if long:
            short = self.tokenizer(
                [texts[number] for number in long],
                [pairs[number] for number in long] if pairs is not None else None,
                truncation=True,
                max_length=self.limit,
                padding=False,
                **arguments,
            )
            for number, row in zip(long, _arrays(short, self.segments), strict=True):
                made.cut_rows += 1
                made.cut_tokens += len(rows[number]["input_ids"]) - len(row["input_ids"])
                rows[number] = row
        return rows

    def _tags(self, rows: list[Mapping[str, Any]], made: Encoded) -> Iterator[tuple[int, list[dict[str, Any]] | None]]:
        for number, (ids, words) in enumerate(self._align([row["tokens"] for row in rows])):
            row = rows[number]
            tags = row.get("tags")
            begins: dict[int, int] = {}
            for place, word in enumerate(words):
                if word is not None:
                    begins.setdefault(word, place)
            sentence = len(made.truth)
            made.truth.append(list(tags) if tags is not None else ["O"] * len(row["tokens"]))
            made.words_without_tokens += len(row["tokens"]) - len(begins)
            if not begins:
                yield number, None
                continue
            windows = list(self._windows(len(ids), words))
            if len(windows) > 1:
                made.split_rows += 1
            if windows[-1][1] < len(ids):
                made.cut_rows += 1
                made.cut_tokens += len(ids) - windows[-1][1]
            found = []
            for start, end, fresh in windows:
                own = [(place, word) for word, place in begins.items() if fresh <= place < end]
                labels = np.full(len(self.prefix) + end - start + len(self.suffix), IGNORED, dtype=np.int64)
                positions = np.asarray([len(self.prefix) + place - start for place, _ in own], dtype=np.int64)
                if tags is not None:
                    labels[positions] = [self.numbers.get(tags[word], IGNORED) for _, word in own]
                found.append(
                    {
                        "input_ids": np.asarray([*self.prefix, *ids[start:end], *self.suffix], dtype=np.int32),
                        "labels": labels,
                        "sentence": sentence,
                        "positions": positions,
                        "words": np.asarray([word for _, word in own], dtype=np.int64),
                    }
                )
            yield number, found

    def _align(self, sentences: list[list[str]]) -> Iterator[tuple[list[int], list[int | None]]]:
        """Token ids without special tokens, and for each the number of the word that it belongs to."""
        arguments: dict[str, Any] = {"add_special_tokens": False, "truncation": False, "padding": False}
        if self._by_words:
            encoded = self.tokenizer(sentences, is_split_into_words=True, **arguments)
            for number in range(len(sentences)):
                yield encoded["input_ids"][number], encoded.word_ids(number)
            return
        texts = [" ".join(words) for words in sentences]
        encoded = self.tokenizer(texts, return_offsets_mapping=True, **arguments)
        for number, words in enumerate(sentences):
            owner: list[int | None] = []
            for word, text in enumerate(words):
                owner += [word] * len(text) + [None]
            found: list[int | None] = []
            for start, end in encoded["offset_mapping"][number]:
                # Tokens of these tokenizers begin with the space before a word.
                inside = (place for place in range(start, end) if not texts[number][place].isspace())
                place = next(inside, None)
                found.append(None if place is None else owner[place])
            yield encoded["input_ids"][number], found

    def _windows(self, tokens: int, words: Sequence[int | None]) -> Iterator[tuple[int, int, int]]:
        """(first token, end, first token that is learned here)."""
        start = fresh = 0
        while True:
            end = min(start + self.room, tokens)
            if end < tokens and self.long == "window":
                border = end
                while border > fresh and words[border] is not None and words[border] == words[border - 1]:
                    border -= 1
                end = border if border > fresh else end
            yield start, end, fresh
            if end >= tokens or self.long == "cut":
                return
            fresh = end
            start = max(end - self.overlap, start + 1)
            while start < end and words[start] is not None and start > 0 and words[start] == words[start - 1]:
                start += 1


def _arrays(encoded: Any, segments: bool) -> list[dict[str, Any]]:
    rows = [{"input_ids": np.asarray(ids, dtype=np.int32)} for ids in encoded["input_ids"]]
    if segments:
        for row, kinds in zip(rows, encoded["token_type_ids"], strict=True):
            row["token_type_ids"] = np.asarray(kinds, dtype=np.int32)
    return rows


def _special_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and behind a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for begin in range(len(whole) - len(bare) + 1):
        if whole[begin : begin + len(bare)] == bare:
            return whole[:begin], whole[begin + len(bare) :]
    return [], []


def _splits_words(tokenizer: Any) -> bool:
    """Whether words given one by one become the tokens of the sentence; tokenizers that keep spaces differ."""
    sample = ["ab", "cd"]
    try:
        apart = tokenizer(sample, is_split_into_words=True, add_special_tokens=False)["input_ids"]
    except (AssertionError, ValueError):
        return False
    return bool(apart == tokenizer(" ".join(sample), add_special_tokens=False)["input_ids"])
