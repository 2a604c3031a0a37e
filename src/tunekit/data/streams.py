"""Selections that read no more than is used: for streams without a known end, and for files too large to read twice.

What :mod:`tunekit.data.select` decides in a pass of its own is decided here while the rows are read. A shuffle can then
only mix rows that are close to each other: it draws from a buffer of :data:`BUFFER` rows, as ``datasets`` and
``torch.utils.data`` do for iterable data.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tunekit.data.dataset import Dataset
from tunekit.data.rows import RawRow
from tunekit.data.select import Filter, HeldOut, LeftOut, Row, derived, wanted_rows
from tunekit.errors import DataError
from tunekit.plan import digest

__all__ = ["BUFFER", "STREAM_ROWS", "Streamed", "is_endless", "stream"]

BUFFER = 10_000
"""Rows that a shuffle of a stream draws from."""

STREAM_ROWS = 100_000
"""Rows after which a source that does not know its length is taken for one without an end."""

Filters = Callable[[], Sequence[Filter]]


def is_endless(dataset: Dataset, tick: Callable[[int], None] | None = None) -> bool:
    """Whether a data set is a stream that goes on after :data:`STREAM_ROWS` rows; as many are read and checked.

    Raises:
        DataError: for a bad row.
    """
    if dataset.known_size():
        return False
    for number, _ in enumerate(dataset.rows(), 1):
        if tick is not None and number % 1000 == 0:
            tick(number)
        if number > STREAM_ROWS:
            return True
    return False


def stream(
    dataset: Dataset,
    *,
    filters: Filters = tuple,
    shuffle: bool = False,
    limit: int | None = None,
    validation: float | int | None = None,
    seed: int = 0,
    identity: str = "",
) -> tuple[Dataset, Dataset | None]:
    """``(training, held_out)``, chosen while rows are read.

    Args:
        dataset: where the rows come from.
        filters: makes the rules anew for every pass.
        shuffle: mix rows within :data:`BUFFER`.
        limit: end after this many rows.
        validation: hold out the first rows of the order: this number, or this share of ``limit``.
        seed: of the order.
        identity: what else decides which rows stay; for the fingerprint.

    Raises:
        DataError: for a share of a stream without ``limit``, or a bad row among the held-out ones.
    """
    make: dict[str, Any] = {"shuffle": shuffle, "seed": seed, "identity": identity}
    if validation is None:
        return Streamed(dataset, filters, limit=limit, **make), None
    if isinstance(validation, float) and limit is None:
        raise DataError(
            f"{dataset.name} has no known end, so a share of it cannot be held out.",
            code="endless-share",
            asked=f"validation={validation!r}",
            fix="give a number of rows, such as validation=500, or a limit",
            details={"option": "validation"},
        )
    from tunekit.data.load import canonical_dataset

    want = wanted_rows(validation, limit or 0)
    pairs = list(itertools.islice(Streamed(dataset, filters, limit=limit, **make).read(), want))
    rows, numbers = [row for _, row in pairs], {raw.number for raw, _ in pairs}
    if len(rows) < want or (limit is not None and limit <= want):
        raise DataError(
            f"{dataset.name}: nothing is left to train on when {want:,} rows are held out.",
            code="nothing-left",
            asked=f"validation={validation!r}",
            fix="hold out fewer rows",
            details={"option": "validation"},
        )
    held = canonical_dataset(f"{dataset.name}, held out", dataset.schema, rows, accepts=dataset.accepts)
    keys = _HeldOut(held, numbers)
    # The held-out rows are dropped by position and not counted; later copies of them are dropped by text and counted.
    train = Streamed(dataset, filters, after=keys, skip=want, limit=limit, **make)
    return train, held


class _HeldOut(HeldOut):
    """Also leaves out what else is made of the rows of the source that held-out rows are made of."""

    def __init__(self, validation: Dataset, numbers: set[int]) -> None:
        super().__init__(validation)
        self._numbers = numbers

    def look(self, row: Row, number: int) -> dict[str, Any] | None:
        """The number of the held-out row, or of the row of the source."""
        return super().look(row, number) or ({"held_out": number} if number in self._numbers else None)


class Streamed(Dataset):
    """Rows of another data set, chosen while they are read.

    Attributes:
        left_out: by rule, what the longest pass so far has left out.
    """

    def __init__(
        self,
        base: Dataset,
        filters: Filters = tuple,
        *,
        shuffle: bool = False,
        limit: int | None = None,
        seed: int = 0,
        identity: str = "",
        skip: int = 0,
        after: Filter | None = None,
    ) -> None:
        derived(self, base)
        self.limit = limit if limit is not None else base.limit
        self._base = base
        self._filters = filters
        self._shuffle, self._seed, self._first, self._skip = shuffle, seed, limit, skip
        self._identity = identity
        self._after = after
        self._read = 0
        self.left_out: tuple[LeftOut, ...] = ()

    def read(self) -> Iterator[tuple[RawRow, Row]]:
        """The chosen rows."""
        rules = [*self._filters(), *([self._after] if self._after is not None else [])]
        left_out = [LeftOut(rule.reason) for rule in rules]
        limit, skip = self._first, self._skip
        given = 0
        pairs = self._shuffled(self._filtered(rules, left_out))
        if self._after is not None:
            pairs = self._without(pairs, self._after, left_out[-1], skip)
        for pair in pairs if limit is None else itertools.islice(pairs, limit - skip):
            given += 1
            yield pair
        self._count = given

    def _filtered(self, rules: list[Filter], left_out: list[LeftOut]) -> Iterator[tuple[RawRow, Row]]:
        first = rules[:-1] if self._after is not None else rules
        for number, (raw, row) in enumerate(self._base.read(), 1):
            if number >= self._read:
                self._read, self.left_out = number, tuple(left_out)
            for rule, out in zip(first, left_out, strict=False):
                match = rule.look(row, raw.number)
                if match is not None:
                    match.pop("conflict", None)
                    out.add(raw.number, **match)
                    break
            else:
                yield raw, row

    @staticmethod
    def _without(
        pairs: Iterator[tuple[RawRow, Row]], rule: Filter, out: LeftOut, skip: int
    ) -> Iterator[tuple[RawRow, Row]]:
        for raw, row in itertools.islice(pairs, skip, None):
            match = rule.look(row, raw.number)
            if match is None:
                yield raw, row
            else:
                out.add(raw.number, **match)

    def _shuffled(self, pairs: Iterator[tuple[RawRow, Row]]) -> Iterator[tuple[RawRow, Row]]:
        if not self._shuffle:
            yield from pairs
            return
        draw = random.Random(f"tunekit-shuffle-{self._seed}")
        buffer = list(itertools.islice(pairs, BUFFER))
        for pair in pairs:
            index = draw.randrange(len(buffer))
            yield buffer[index]
            buffer[index] = pair
        draw.shuffle(buffer)
        yield from buffer

    @property
    def skipped(self) -> list[tuple[int, str]]:
        """Bad rows that passes over the data set have come across."""
        return self._base.skipped

    @property
    def bad_rows(self) -> list[tuple[int, str]]:
        """The same: a stream is not read to its end for this."""
        return self._base.skipped

    def take(self, n: int) -> Dataset:
        """Its first ``n`` rows."""
        return Streamed(self, limit=n)

    def total(self) -> int | None:
        """None: it is not counted."""
        return None

    def quick_length(self) -> int | None:
        """None: what is left out shows when it is read."""
        return None

    def fingerprint(self) -> str:
        """Hash over the content of a file, else over the first :data:`STREAM_ROWS` rows, and the choice."""
        if self._fingerprint is None:
            content = self._base.fingerprint() if self._base.known_size() else _head_hash(self._base)
            choice = [self._shuffle, self._seed, self._first, self._skip, self._identity]
            self._fingerprint = digest({"base": content, "stream": choice})
        return self._fingerprint

    def describe(self) -> str:
        """One line for people."""
        text = f"{self.name}: {self.format} -> {self.schema}" if self.format != self.schema else self.name
        return f"{text}, read as a stream" + (f", {self.limit:,} rows at most" if self.limit is not None else "")


def _head_hash(dataset: Dataset) -> str:
    hasher = hashlib.sha256(b"stream")
    for row in itertools.islice(dataset.rows(), STREAM_ROWS):
        hasher.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
        hasher.update(b"\n")
    return hasher.hexdigest()
