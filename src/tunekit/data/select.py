"""Which rows of a data set are used: without copies, without benchmark questions, shuffled, limited, split.

The order is fixed: **dedupe, decontaminate, shuffle, limit, split**. So ``limit=100`` gives 100 usable rows to training
and validation together, drawn from the whole data set if it is shuffled, and no copy of a held-out row is trained on.

One pass over the rows decides. Data below 64 MB stay in memory. Of larger ones 30 to 90 bytes a row do, not the rows:
afterwards a file of JSON Lines is read by the places of its lines, and what has no such places is copied to a temporary
file once.
"""

from __future__ import annotations

import json
import math
import os
import random
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunekit.data.dataset import Dataset
from tunekit.data.rows import RawRow, RowProblem
from tunekit.data.text import row_key
from tunekit.errors import DataError
from tunekit.plan import digest
from tunekit.storage import disk_errors

__all__ = [
    "LARGE_BYTES",
    "LeftOut",
    "Selection",
    "derived",
    "is_large",
    "nothing_to_train",
    "select",
    "shuffled",
    "split",
    "wanted_rows",
]

LARGE_BYTES = 64 << 20
"""Files above this size are not kept in memory, nor read through before training unless a selection needs it."""

LARGE_ROWS = 500_000
"""The same for sources that know their rows but not their size, such as a memory-mapped ``datasets.Dataset``."""

LISTED = 5
"""How many of the rows that were left out are named."""

Row = dict[str, Any]


@dataclass
class LeftOut:
    """Rows that one rule left out."""

    reason: str
    """``undecided``, ``duplicate``, ``near-duplicate``, ``benchmark`` or ``held-out-copy``."""
    rows: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)
    """The first few: ``row`` is the number of the row in its source; what it agrees with is named beside it."""

    def add(self, row: int, **facts: Any) -> None:
        """Count one row."""
        self.rows += 1
        if len(self.examples) < LISTED:
            self.examples.append({"row": row, **facts})

    def facts(self) -> dict[str, Any]:
        """As JSON types."""
        return {"reason": self.reason, "rows": self.rows, "examples": self.examples}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a selection came to."""

    train: Dataset
    validation: Dataset | None
    left_out: tuple[LeftOut, ...]
    """By rule, in the order in which they were applied; rules that left nothing out are not listed."""
    read: int
    """Rows that were looked at."""
    conflicts: int = 0
    """Left-out copies whose targets differ from those of the row that stayed: one text, two labels."""


class Filter:
    """Decides row by row whether a row stays. Base of the rules of ``dedupe`` and ``decontaminate``."""

    reason = ""

    def look(self, row: Row, number: int) -> dict[str, Any] | None:
        """None if the row stays; else what it agrees with, for the report. ``number`` is its number in the source."""
        raise NotImplementedError


class HeldOut(Filter):
    """Leaves out rows whose text is in a validation set of its own."""

    reason = "held-out-copy"

    def __init__(self, validation: Dataset) -> None:
        self._keys: dict[int, int] = {}
        for raw, row in validation.read():
            self._keys.setdefault(row_key(row), raw.number)

    def look(self, row: Row, number: int) -> dict[str, Any] | None:
        """The number of the held-out row with the same text."""
        held_out = self._keys.get(row_key(row))
        return None if held_out is None else {"held_out": held_out}


def is_large(dataset: Dataset) -> bool:
    """Whether a data set is too large to be kept in memory or read through without need."""
    return dataset.size_bytes() > LARGE_BYTES or (dataset.quick_length() or 0) > LARGE_ROWS


def select(
    dataset: Dataset,
    *,
    filters: Sequence[Filter] = (),
    shuffle: bool = False,
    limit: int | None = None,
    validation: float | int | None = None,
    seed: int = 0,
    identity: str = "",
    tick: Callable[[int], None] | None = None,
) -> Selection:
    """Choose rows of ``dataset``, which has no limit of its own.

    Args:
        dataset: where the rows come from; it is read once, up to the last row that is needed.
        filters: rules that leave rows out, in their order.
        shuffle: put the rows in a random order that depends on ``seed`` and their number alone.
        limit: use the first rows of that order only.
        validation: hold out this share of the rows (a float below 1, rounded up) or this number of rows (a whole
            number). See :func:`split`.
        seed: of the order and of the split.
        identity: what else decides which rows stay, such as the content of the benchmarks; for the fingerprint.
        tick: called with the number of rows read, every thousand rows.

    Raises:
        DataError: for a bad row, or if no row is left to train on or to hold out.
    """
    rows = _Rows(dataset)
    left_out = [LeftOut(rule.reason) for rule in filters]
    stayed = array("Q")
    keys, groups = array("Q"), array("Q")
    conflicts = read = count = 0
    together = _Together(seed) if validation is not None else None
    for position, (raw, row) in enumerate(dataset.read()):
        read = position + 1
        if tick is not None and read % 1000 == 0:
            tick(read)
        rows.note(raw, row)
        key, group = together.keys(raw, row) if together is not None else (0, 0)
        for rule, out in zip(filters, left_out, strict=True):
            match = rule.look(row, raw.number)
            if match is not None:
                conflicts += bool(match.pop("conflict", False))
                out.add(raw.number, **match)
                break
        else:
            count += 1
            if filters:
                stayed.append(position)
            if validation is not None:
                keys.append(key)
                groups.append(group)
            if limit is not None and not shuffle and count == limit:
                break
    left_out = [out for out in left_out if out.rows]
    if not count:
        raise _nothing_left(dataset, read, left_out)
    kept: Sequence[int] = stayed if filters else range(count)
    order: Sequence[int] = _permutation(count, seed) if shuffle else range(count)
    chosen = order[:limit] if limit is not None else order
    facts = {
        "filters": [rule.reason for rule in filters],
        "identity": identity,
        "shuffle": shuffle,
        "limit": limit,
        "validation": validation,
        "seed": seed if shuffle or validation is not None else None,
    }
    if validation is None:
        train = _Selected(dataset, rows, array("Q", (kept[index] for index in chosen)), facts, "train")
        return Selection(train=train, validation=None, left_out=tuple(left_out), read=read, conflicts=conflicts)
    held, copies = _hold_out(dataset, keys, groups, chosen, validation)
    if copies:
        out = LeftOut("held-out-copy")
        for index, twin in copies:
            out.add(rows.number(kept[index]), held_out=rows.number(kept[twin]))
        left_out.append(out)
    apart = held | {index for index, _ in copies}
    sides = (
        array("Q", (kept[index] for index in chosen if index not in apart)),
        array("Q", (kept[index] for index in chosen if index in held)),
    )
    if not sides[0]:
        raise nothing_to_train(dataset, len(held), len(chosen), validation)
    made = [
        _Selected(dataset, rows, side, facts, part) for side, part in zip(sides, ("train", "validation"), strict=True)
    ]
    return Selection(train=made[0], validation=made[1], left_out=tuple(left_out), read=read, conflicts=conflicts)


def shuffled(dataset: Dataset, seed: int = 0) -> Dataset:
    """The same rows in a random order: a permutation that depends on ``seed`` and the number of rows alone.

    Raises:
        DataError: for a bad row, or without rows.
    """
    return select(dataset, shuffle=True, seed=seed).train


def split(dataset: Dataset, validation: float | int, seed: int = 0) -> tuple[Dataset, Dataset]:
    """``(training, held_out)``: two data sets without a row or a text in common.

    Which rows are held out follows from a hash of their text and ``seed``: rows added later move few rows from one side
    to the other, and the order of the rows moves none. A text that is there several times is held out once; its other
    copies are used on neither side. Rows that are made of one row of the source, such as the pairs of a ranking, stay
    together, so that a few more than asked for may be held out.

    Args:
        dataset: what to split; a copy of its order stays on both sides.
        validation: a share of the rows (a float below 1, rounded up) or a number of rows (a whole number from 1).
        seed: another seed holds out other rows.

    Raises:
        DataError: for a bad row, or if a side would be empty.
    """
    made = select(dataset, validation=validation, seed=seed)
    assert made.validation is not None
    return made.train, made.validation


def wanted_rows(validation: float | int, rows: int) -> int:
    """How many of ``rows`` rows are held out."""
    if isinstance(validation, int):
        return validation
    return math.ceil(validation * rows - 1e-9)


def _permutation(count: int, seed: int) -> array[int]:
    order = array("Q", range(count))
    random.Random(f"tunekit-shuffle-{seed}").shuffle(order)
    return order


class _Together:
    """Keys by which rows are held out: what is made of one row of the source must not stand on both sides."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._latest: dict[tuple[int, ...], tuple[int, int]] = {}

    def keys(self, raw: RawRow, row: Row) -> tuple[int, int]:
        """Hash of the row's text, and of the text of the first row that was made of the same row of the source."""
        key = row_key(row, self._seed)
        part, number = (raw.origin[:-1], raw.origin[-1]) if raw.origin else ((), raw.number)
        before, group = self._latest.get(part, (None, key))
        if before != number:
            group = key
            self._latest[part] = (number, key)
        return key, group


def _hold_out(
    dataset: Dataset, keys: array[int], groups: array[int], chosen: Sequence[int], validation: float | int
) -> tuple[set[int], list[tuple[int, int]]]:
    """Indices to hold out, and ``(copy, held-out index)`` of the rows that have their texts.

    Whole groups are held out, those with the lowest keys, until there are enough rows.
    """
    want = wanted_rows(validation, len(chosen))
    # Sorting all rows would take a hundred times the memory of their keys: first those whose leading bits are lowest.
    counts = array("Q", bytes(8 * 65536))
    for index in chosen:
        counts[groups[index] >> 48] += 1
    last = reached = 0
    while want <= len(chosen):
        while reached < want and last < 65536:
            reached += counts[last]
            last += 1
        lowest = [index for index in chosen if groups[index] >> 48 < last]
        held, first = _lowest(keys, groups, lowest, want)
        if len(held) >= want:
            copies = [(index, first[keys[index]]) for index in chosen if index not in held and keys[index] in first]
            return held, sorted(copies)
        if last == 65536:
            break
        reached = len(held)  # copies took the places of others
    raise nothing_to_train(dataset, want, len(chosen), validation)


def _lowest(keys: array[int], groups: array[int], indices: list[int], want: int) -> tuple[set[int], dict[int, int]]:
    """Indices to hold out, and the first of them with each text."""
    held: set[int] = set()
    first: dict[int, int] = {}
    group = None
    # Rows of one group stand together, and of equal texts the earliest row comes first.
    for index in sorted(indices, key=lambda index: (groups[index], index)):
        if len(held) >= want and groups[index] != group:
            break
        group = groups[index]
        if first.setdefault(keys[index], index) == index:
            held.add(index)
    return held, first


def _nothing_left(dataset: Dataset, read: int, left_out: Sequence[LeftOut]) -> DataError:
    counted = ", ".join(f"{out.rows:,} as {out.reason}" for out in left_out)
    return DataError(
        f"{dataset.name}: every row was left out.",
        code="nothing-left",
        found=f"{read:,} rows read; left out {counted}",
        fix="use other data, or select less strictly",
        details={"file": str(dataset.source or dataset.name), "left_out": [out.facts() for out in left_out]},
    )


def nothing_to_train(dataset: Dataset, held: int, rows: int, validation: float | int) -> DataError:
    """The error for a split without a training side."""
    return DataError(
        f"{dataset.name}: nothing is left to train on when {held:,} of {rows:,} rows are held out.",
        code="nothing-left",
        asked=f"validation={validation!r}",
        found=f"{rows:,} rows; copies of a held-out row are not trained on",
        fix="hold out fewer rows, use more data, or pass validation data of its own: validation='held_out.jsonl'",
        details={"file": str(dataset.source or dataset.name), "rows": rows, "option": "validation"},
    )


class _Rows:
    """The rows of a data set by position. It is filled during the one pass and read afterwards."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._kept: list[tuple[int, int | None, Row]] | None = None if is_large(dataset) else []
        self._numbers = array("Q")
        self._starts = array("Q")
        self._inner = array("I")  # which of the rows that one line gives; empty while every line gives one
        self._path: Path | None = None
        self._lines: Iterator[tuple[int, int]] = iter(())
        self._line = self._start = 0
        self._spill: Any = None
        self._end = 0

    def note(self, raw: RawRow, row: Row) -> None:
        """Take the next row of the pass."""
        if self._kept is not None:
            self._kept.append((raw.number, raw.line, row))
            return
        if not self._numbers:
            self._choose(raw)
        self._numbers.append(raw.number)
        if self._path is not None:
            self._note_line(raw)
            return
        data = json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")
        with disk_errors(Path(tempfile.gettempdir()), f"copying the rows of {self._dataset.name}"):
            self._spill.write(data)
        self._starts.append(self._end)
        self._end += len(data)

    def _choose(self, raw: RawRow) -> None:
        """How rows are read again: by line, if the first one is a line of JSON, else from a copy."""
        path = self._dataset.source
        is_lines = path is not None and path.suffix.lower() in (".jsonl", ".ndjson") and path.is_file()
        if path is not None and raw.line is not None and is_lines:
            start = next((start for line, start in _line_starts(path) if line == raw.line), None)
            with path.open("rb") as stream:
                stream.seek(start or 0)
                try:
                    same = start is not None and json.loads(stream.readline().decode("utf-8-sig")) == raw.value
                except ValueError:
                    same = False
            if same:
                self._path, self._lines = path, _line_starts(path)
                return
        self._spill = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the last data set that reads it)

    def _note_line(self, raw: RawRow) -> None:
        inner = self._inner[-1] + 1 if self._inner else 1
        if self._line != raw.line:
            inner = 0
            while self._line != raw.line:
                self._line, self._start = next(self._lines)
        if inner and not self._inner:
            self._inner.extend([0] * len(self._starts))
        if self._inner or inner:
            self._inner.append(inner)
        self._starts.append(self._start)

    def number(self, position: int) -> int:
        """Number of a row in its source."""
        return self._kept[position][0] if self._kept is not None else self._numbers[position]

    def at(self, positions: Sequence[int]) -> Iterator[tuple[RawRow, Row]]:
        """The rows at ``positions``, in that order; copies that are the caller's to change."""
        if self._kept is not None:
            for position in positions:
                number, line, row = self._kept[position]
                yield RawRow(number, line=line), _copy(row)
        elif self._path is None:
            with disk_errors(Path(tempfile.gettempdir()), f"copying the rows of {self._dataset.name}"):
                self._spill.flush()
            for position in positions:
                after = self._starts[position + 1] if position + 1 < len(self._starts) else self._end
                start = self._starts[position]
                data = os.pread(self._spill.fileno(), after - start, start)  # several passes may read at once
                yield RawRow(self._numbers[position]), json.loads(data.decode("utf-8", "surrogatepass"))
        else:
            with self._path.open("rb") as stream:
                for position in positions:
                    stream.seek(self._starts[position])
                    number = self._numbers[position]
                    try:
                        raw = RawRow(number, json.loads(stream.readline().decode("utf-8-sig")))
                        made = self._dataset._canonical(raw)
                        row = made if isinstance(made, dict) else made[self._inner[position] if self._inner else 0]
                    except (ValueError, IndexError, RowProblem) as error:
                        raise _changed(self._path, number) from error
                    yield raw, row


def _changed(path: Path, row: int) -> DataError:
    return DataError(
        f"{path.name} changed while it was read: row {row} is no longer where it was.",
        code="file-changed",
        fix="run again, and leave the file alone meanwhile",
        details={"file": str(path), "row": row},
    )


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


def _line_starts(path: Path) -> Iterator[tuple[int, int]]:
    start = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            yield number, start
            start += len(line)


def derived(made: Dataset, base: Dataset) -> None:
    """Set up ``made`` as a data set with the rows of ``base``, of which it will give some."""
    Dataset.__init__(
        made,
        base._raw,
        schema=base.schema,
        format=base.format,
        native=base.native,
        convert=base._convert,
        accepts=base.accepts,
        limit=base.limit,
        on_bad_row=base.on_bad_row,
        columns=base.columns,
        note=base._note,
        format_version=base.format_version,
        expands=base.expands,
    )
    made.name, made.source = base.name, base.source


class _Selected(Dataset):
    """Rows of another data set by their positions."""

    def __init__(self, base: Dataset, rows: _Rows, positions: array[int], selection: dict[str, Any], part: str) -> None:
        derived(self, base)
        self._base = base
        self._rows = rows
        self._positions = positions
        self._selection = selection
        self._part = part
        self._count = len(positions)

    def read(self) -> Iterator[tuple[RawRow, Row]]:
        """The chosen rows."""
        yield from self._rows.at(self._positions)

    @property
    def bad_rows(self) -> list[tuple[int, str]]:
        """Those of the data set that was chosen from."""
        return self._base.bad_rows

    def quick_length(self) -> int | None:
        """Rows that were chosen."""
        return self._count

    def take(self, n: int) -> Dataset:
        """Its first ``n`` rows."""
        if n < 1:
            raise DataError(f"A data set cannot be limited to {n} rows.", code="limit")
        selection = {**self._selection, "take": n}
        return _Selected(self._base, self._rows, self._positions[:n], selection, self._part)

    def fingerprint(self) -> str:
        """Hash over the data set that was chosen from, and the choice."""
        if self._fingerprint is None:
            self._fingerprint = digest(
                {"base": self._base.fingerprint(), "selection": self._selection, "part": self._part}
            )
        return self._fingerprint

    def describe(self) -> str:
        """One line for people."""
        what = "held-out rows" if self._part == "validation" else "rows"
        return f"{self._base.describe()}; {len(self._positions):,} {what} chosen"
