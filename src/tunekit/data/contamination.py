"""Text of benchmarks in training data.

A row is contaminated by a benchmark item if it holds 13 words in a row of the item's question or of one of its answers
(Brown et al. 2020, arXiv:2005.14165, appendix C). Of a question of 8 to 12 words it must hold all of them in a row; a
shorter one, of 3 words or more, must be a whole field or line of the row. Words are compared in lower case without
punctuation. A character of Chinese, Japanese or Korean text counts as half a word. Runs of words that more than 10
items of a benchmark share are its wording, not its content, and do not count (after the paper's rule for common
n-grams).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunekit.data.select import LISTED, Filter, Row
from tunekit.data.text import is_cjk, row_texts, words
from tunekit.errors import DataError

if TYPE_CHECKING:
    from tunekit.data.dataset import Dataset

__all__ = ["Benchmarks", "Contamination", "Overlap", "measure_contamination"]

LONG = 13
SHORT = 8
LEAST = 3
COMMON = 10
"""Items of a benchmark that may share a run of words before it counts as the benchmark's wording."""

_SHOWN = 120

Items = int | tuple[int, ...]
"""One item, or several that share a text."""


@dataclass(frozen=True)
class Overlap:
    """What a text has in common with a benchmark."""

    benchmark: str
    item: str
    """Id of the benchmark item."""
    words: str
    """The words in common."""


class Benchmarks:
    """Questions and answers of benchmarks, to be looked for in other texts."""

    def __init__(self) -> None:
        self._items: list[tuple[str, str]] = []
        self._runs: dict[int, dict[int, Items]] = {}
        """Length of a run of words to hash of the run to the items that have it. For questions of 8 to 12 words: of
        their first 8."""
        self._starts: dict[int, list[tuple[int, list[str]]]] = {}
        """Hash of the first 8 words to items and all words of the short questions that begin so."""
        self._whole: dict[str, Items] = {}
        """Very short questions, as their words joined."""

    def __len__(self) -> int:
        return len(self._items)

    def add(self, benchmark: str, items: Iterable[tuple[str, Sequence[str], Sequence[str]]]) -> int:
        """Take the items of one benchmark and return how many there were.

        Args:
            benchmark: its name.
            items: ``(id, questions, answers)``: the texts of each item. Short answers are looked for only as part of
                the questions: that "four" is an answer contaminates nothing.
        """
        runs: dict[int, dict[int, Items]] = {}
        wholes: dict[str, int] = {}
        often: set[str] = set()
        count = 0
        for item_id, questions, answers in items:
            number = len(self._items)
            self._items.append((benchmark, item_id))
            count += 1
            found: dict[int, set[int]] = {}
            for text in dict.fromkeys((*questions, *answers)):
                said = words(text)
                scale = _scale(said)
                if len(said) >= LONG * scale:
                    found.setdefault(LONG * scale, set()).update(run for _, run in _runs(said, LONG * scale))
                elif text not in questions:
                    continue
                elif len(said) >= SHORT * scale:
                    start = hash(tuple(said[: SHORT * scale]))
                    self._starts.setdefault(start, []).append((number, said))
                    self._runs.setdefault(SHORT * scale, {})[start] = number  # its items stand in _starts
                elif len(said) >= LEAST * scale:
                    whole = " ".join(said)
                    if wholes.setdefault(whole, number) != number:
                        often.add(whole)
            for length, hashes in found.items():
                known = runs.setdefault(length, {})
                for run in hashes:
                    before = known.get(run, ())
                    if isinstance(before, int) or len(before) <= COMMON:
                        known[run] = _joined(before, number)
        for length, known in runs.items():
            whole_index = self._runs.setdefault(length, {})
            for run, those in known.items():
                if isinstance(those, int) or len(those) <= COMMON:
                    whole_index[run] = _joined(whole_index.get(run, ()), those)
        for whole, number in wholes.items():
            if whole not in often:
                self._whole[whole] = _joined(self._whole.get(whole, ()), number)
        return count

    def in_order(self, benchmark: str, ids: Container[str]) -> tuple[str, ...]:
        """Those of ``ids`` that are items of ``benchmark``, in its order."""
        return tuple(item for name, item in self._items if name == benchmark and item in ids)

    def overlap(self, texts: Sequence[str]) -> Overlap | None:
        """The first thing that texts have in common with a benchmark item, or None."""
        return next(self._overlaps(texts), None)

    def overlaps(self, texts: Sequence[str]) -> list[Overlap]:
        """One for every benchmark item that the texts have something in common with."""
        found: dict[tuple[str, str], Overlap] = {}
        for overlap in self._overlaps(texts):
            found.setdefault((overlap.benchmark, overlap.item), overlap)
        return list(found.values())

    def _overlaps(self, texts: Sequence[str]) -> Iterator[Overlap]:
        lines = [words(line) for text in texts for line in text.splitlines()]
        said = [word for line in lines for word in line]
        cjk = any(map(is_cjk, said))
        for length in sorted(self._runs):
            if length > LONG and not cjk:
                continue
            known = self._runs[length]
            short = length in (SHORT, 2 * SHORT)
            for start, run in _runs(said, length):
                numbers = known.get(run)
                if numbers is None:
                    continue
                if not short:
                    for number in _each(numbers):
                        yield self._found(number, said[start : start + length])
                    continue
                for item, question in self._starts[run]:
                    if said[start : start + len(question)] == question:
                        yield self._found(item, question)
        if self._whole:
            for line in (*lines, *(words(text) for text in texts)):
                for number in _each(self._whole.get(" ".join(line), ())):
                    yield self._found(number, line)

    def _found(self, number: int, said: Sequence[str]) -> Overlap:
        benchmark, item = self._items[number]
        return Overlap(benchmark, item, " ".join(said))


def _joined(one: Items, other: Items) -> Items:
    """The items of both; a single one, as nearly all are, stays a number and takes no memory of its own."""
    joined = (*_each(one), *_each(other))
    return joined if len(joined) > 1 else joined[0]


def _each(items: Items) -> tuple[int, ...]:
    return (items,) if isinstance(items, int) else items


def _scale(said: Sequence[str]) -> int:
    """2 for text most of whose words are single characters, else 1."""
    return 2 if 2 * sum(map(is_cjk, said)) > len(said) else 1


def _runs(said: Sequence[str], length: int) -> Iterator[tuple[int, int]]:
    for start in range(len(said) - length + 1):
        yield start, hash(tuple(said[start : start + length]))


class Decontaminate(Filter):
    """Leaves out rows that hold text of a benchmark."""

    reason = "benchmark"

    def __init__(self, benchmarks: Benchmarks) -> None:
        self._benchmarks = benchmarks

    def look(self, row: Row, number: int) -> dict[str, Any] | None:
        """The benchmark item and the words in common."""
        found = self._benchmarks.overlap(row_texts(row))
        if found is None:
            return None
        shown = found.words if len(found.words) <= _SHOWN else found.words[: _SHOWN - 3] + "..."
        return {"benchmark": found.benchmark, "item": found.item, "words": shown}


@dataclass(frozen=True, kw_only=True)
class Contamination:
    """How much of benchmarks is in a data set."""

    rows: int
    """Rows that were looked at."""
    contaminated: tuple[int, ...]
    """Numbers of the rows that hold text of a benchmark."""
    items: Mapping[str, tuple[str, ...]]
    """Benchmark to the ids of its items that are in the data."""
    sizes: Mapping[str, int]
    """Benchmark to the number of its items."""
    examples: tuple[dict[str, Any], ...] = field(default=())
    """The first few: row number, benchmark, item, and the words in common."""

    def share(self, benchmark: str) -> float:
        """Share of a benchmark's items that are in the data, from 0 to 1."""
        return len(self.items[benchmark]) / self.sizes[benchmark]


def measure_contamination(
    dataset: Dataset | Iterable[Mapping[str, Any]],
    benchmarks: Mapping[str, Iterable[str | Mapping[str, Any]]],
) -> Contamination:
    """Look for the questions of benchmarks in a data set. Everything is read, nothing is left out.

    Args:
        dataset: canonical rows: a :class:`Dataset`, or any rows with text fields.
        benchmarks: name to questions: each a text, or an item ``{question, answers?, id?}`` with ``answers`` a list of
            texts. Without an id an item is called by its position from 0.

    Raises:
        DataError: for a bad row, or for an item that is neither.
    """
    index = Benchmarks()
    sizes = {name: index.add(name, map(_item, _named(name, items))) for name, items in benchmarks.items()}
    contaminated: list[int] = []
    items: dict[str, set[str]] = {name: set() for name in benchmarks}
    examples: list[dict[str, Any]] = []
    count = 0
    numbered = getattr(dataset, "read", None)
    pairs = ((raw.number, row) for raw, row in numbered()) if callable(numbered) else enumerate(dataset, 1)
    for number, row in pairs:
        count += 1
        found = index.overlaps(row_texts(row))
        if not found:
            continue
        contaminated.append(number)
        for overlap in found:
            items[overlap.benchmark].add(overlap.item)
        if len(examples) < LISTED:
            examples.append(
                {"row": number, "benchmark": found[0].benchmark, "item": found[0].item, "words": found[0].words}
            )
    return Contamination(
        rows=count,
        contaminated=tuple(contaminated),
        items={name: index.in_order(name, ids) for name, ids in items.items()},
        sizes=sizes,
        examples=tuple(examples),
    )


def _named(name: str, items: Iterable[Any]) -> Iterator[tuple[str, int, Any]]:
    for number, item in enumerate(items):
        yield name, number, item


def _item(given: tuple[str, int, Any]) -> tuple[str, list[str], list[str]]:
    name, number, item = given
    if isinstance(item, str):
        return str(number), [item], []
    if isinstance(item, Mapping) and isinstance(item.get("question"), str):
        answers = item.get("answers", ())
        texts = [answers] if isinstance(answers, str) else [str(answer) for answer in answers]
        return str(item.get("id", number)), [item["question"]], texts
    raise DataError(
        f"Item {number} of {name} is no question.",
        code="benchmark-item",
        found=f"{item!r:.80}",
        fix="give a text, or {'question': ..., 'answers': [...]}",
    )
