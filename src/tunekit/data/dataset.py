"""A data set: canonical, checked rows, read lazily and as often as one likes."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunekit.data.rows import RawRow, RowProblem, Source, kind_of, row_error
from tunekit.data.schemas import Change, validate_row
from tunekit.errors import DataError
from tunekit.plan import digest

__all__ = ["Dataset"]

Row = dict[str, Any]

_VERSION = 3
"""Part of every fingerprint; raised when the same file would give other rows."""

_COUNT_BYTES = 64 << 20
"""Files above this size are not read through only to say how many rows they have."""


class Dataset:
    """An opened data set of canonical rows. Made by :func:`tunekit.data.load_dataset`.

    Rows are read anew on every pass and are yours to change. Shapes: see :mod:`tunekit.data.schemas`.

    Attributes:
        name: for people: a file name, ``tunekit/stdlib-text``, ``list`` ...
        schema: canonical shape of the rows, such as ``prompt_completion``.
        format: format the rows were recognised as, such as ``alpaca``; for plain text the rule, such as ``passages``;
            ``dist/name`` for the format of a plugin.
        format_version: version of the plugin that brings the format; empty for tunekit's own.
        native: shape of that format before any conversion.
        source: the file, or None.
        accepts: shapes the step takes; empty: any.
        limit: most rows that are used, or None.
        on_bad_row: ``error`` or ``skip``.
        expands: whether one row of the source may give several canonical rows, as message trees do.
    """

    def __init__(
        self,
        raw: Source,
        *,
        schema: str,
        format: str,
        native: str,
        convert: Callable[[Row], Row | list[Row]],
        accepts: Sequence[str] = (),
        limit: int | None = None,
        on_bad_row: str = "error",
        columns: Mapping[str, str] | None = None,
        note: str = "",
        format_version: str = "",
        expands: bool = False,
    ) -> None:
        self.name = raw.name
        self.schema = schema
        self.format = format
        self.format_version = format_version
        self.native = native
        self.source: Path | None = raw.path
        self.accepts = tuple(accepts)
        self.limit = limit
        self.on_bad_row = on_bad_row
        self.columns = dict(columns or {})
        self.expands = expands
        self._raw = raw
        self._convert = convert
        self._note = note
        self._count: int | None = None
        self._total: int | None = None
        self._fingerprint: str | None = None
        self._bad: list[tuple[int, str]] | None = None
        self._skipped: dict[int, str] = {}
        self._fruitless: set[int] = set()  # rows of the source that gave none, such as a ranking of ties

    def rows(self) -> Iterator[Row]:
        """Canonical rows in order.

        Raises:
            DataError: for a bad row (file, row, field and reason in ``details``), a damaged file, or when no row is
                left (code ``empty-dataset``).
        """
        for _, row in self.read():
            yield row

    def read(self) -> Iterator[tuple[RawRow, Row]]:
        """As :meth:`rows`, each with the row as it stands in the source: its number and line. Raises as :meth:`rows`
        does."""
        bad: list[tuple[int, str]] = []
        given = read = 0
        ended = True
        for raw in self._raw.rows():
            if self.limit is not None and given >= self.limit:
                ended = False
                break
            read += 1
            try:
                made = self._canonical(raw)
            except RowProblem as problem:
                if self.on_bad_row != "skip":
                    # The traceback of a plugin's format is kept; a RowProblem of our own says nothing more.
                    raise row_error(self._raw, raw, problem) from problem.__cause__
                bad.append((raw.number, raw.reason(problem)))
                self._skipped[raw.number] = raw.reason(problem)
                continue
            if isinstance(made, dict):
                given += 1
                yield raw, made
                continue
            self.expands = True
            if not made:
                self._fruitless.add(raw.number)
            for row in made if self.limit is None else made[: self.limit - given]:
                given += 1
                yield raw, row
        if not given:
            raise self._empty(bad)
        skipped = getattr(self._raw, "skipped", None)  # what the parts of a mixture left out
        self._count = given
        self._bad = bad + (skipped() if callable(skipped) else [])
        if ended:
            self._total = read

    def __iter__(self) -> Iterator[Row]:
        return self.rows()

    def _canonical(self, raw: RawRow) -> Row | list[Row]:
        if raw.problem is not None:
            raise raw.problem
        if not isinstance(raw.value, dict):
            raise RowProblem("", f"is {kind_of(raw.value)}, not an object with named fields")
        return self._convert(raw.value)

    def _empty(self, bad: list[tuple[int, str]]) -> DataError:
        if bad:
            found = f"row {bad[0][0]}: {bad[0][1]}"
            return DataError(
                f"{self.name}: all {len(bad)} rows are bad.",
                code="empty-dataset",
                found=found,
                details={"file": str(self.source or self.name), "bad_rows": len(bad)},
            )
        return empty_error(self._raw)

    def validate(self) -> int:
        """Read every row once, up to ``limit``, and return how many there are.

        Raises:
            DataError: as :meth:`rows` does.
        """
        for _ in self.rows():
            pass
        assert self._count is not None
        return self._count

    def __len__(self) -> int:
        """Rows that :meth:`rows` gives; counted on first use by reading them. Raises as :meth:`rows` does."""
        return self.validate() if self._count is None else self._count

    def __bool__(self) -> bool:
        return True

    @property
    def counted(self) -> int | None:
        """Rows that :meth:`rows` gives, if a whole pass has been made; else None. Reads nothing."""
        return self._count

    @property
    def skipped(self) -> list[tuple[int, str]]:
        """The bad rows that passes have come across so far, by number. Reads nothing."""
        return sorted(self._skipped.items())

    def size_bytes(self) -> int:
        """Bytes of the file as stored; 0 for what is in memory."""
        return self._size()

    def quick_length(self) -> int | None:
        """Rows that :meth:`rows` gives at most, where that is known without reading, as for a list; else None."""
        length = self._raw.length()
        if length is None or self.expands:
            return None
        return length if self.limit is None else min(length, self.limit)

    def known_size(self) -> bool:
        """Whether the source knows how large it is: a file, or a list. A generator does not, and may be endless."""
        return self._raw.size() is not None or self._raw.length() is not None

    @property
    def bad_rows(self) -> list[tuple[int, str]]:
        """(row number, reason) of the rows left out with ``on_bad_row="skip"``. Raises as :meth:`rows` does."""
        if self._bad is None:
            self.validate()
        return list(self._bad or ())

    def peek(self, n: int = 1) -> list[Row]:
        """The first ``n`` rows, or fewer if there are fewer."""
        return list(itertools.islice(self.rows(), n))

    def take(self, n: int) -> Dataset:
        """The same data set, limited to its first ``n`` rows.

        Raises:
            DataError: if ``n`` is below 1.
        """
        if n < 1:
            raise DataError(f"A data set cannot be limited to {n} rows.", code="limit")
        return Dataset(
            self._raw,
            schema=self.schema,
            format=self.format,
            native=self.native,
            convert=self._convert,
            accepts=self.accepts,
            limit=n if self.limit is None else min(n, self.limit),
            on_bad_row=self.on_bad_row,
            columns=self.columns,
            note=self._note,
            format_version=self.format_version,
            expands=self.expands,
        )

    def fingerprint(self) -> str:
        """SHA-256 (hex) over the content and the selection: equal fingerprints give equal rows.

        Files are hashed as stored; other sources by their canonical rows. For the format of a plugin its version
        counts too. Computed once.
        """
        if self._fingerprint is None:
            content = self._raw.content_hash()
            if content is None:
                hasher = hashlib.sha256()
                for row in self.rows():
                    hasher.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode())
                    hasher.update(b"\n")
                content = hasher.hexdigest()
            facts = {
                "version": _VERSION,
                "content": content,
                "format": self.format,
                "schema": self.schema,
                "columns": self.columns,
                "limit": self.limit,
                "on_bad_row": self.on_bad_row,
            }
            if self.format_version:
                facts["format_version"] = self.format_version
            self._fingerprint = digest(facts)
        return self._fingerprint

    def total(self) -> int | None:
        """Rows in the whole source, bad ones included; None for one too large to count without need, and for a stream.

        With :attr:`expands` it counts what the source holds, such as trees, not the rows made of them.
        """
        if self._total is None:
            self._total = self._raw.length()
        if self._total is None:
            if self._size() > _COUNT_BYTES:
                return None
            if self.source is None and self._raw.size() is None:
                return None  # a stream, which may be endless
            self._total = sum(1 for _ in self._raw.rows())
        return self._total

    def _size(self) -> int:
        return self._raw.size() or 0

    @property
    def parts(self) -> list[dict[str, Any]]:
        """For a mixture, what is known of each part, as JSON types; else empty.

        ``name``, ``weight`` (share of the whole), ``format``, ``schema``, ``source``, ``bad_rows``, and after a whole
        pass ``rows`` (how often a row of it was used) and ``passes`` (how often it was begun). Reads nothing.
        """
        facts = getattr(self._raw, "facts", None)
        return facts() if callable(facts) else []

    def describe(self) -> str:
        """One line for people, such as ``alpaca_en_demo.json: alpaca -> prompt_completion, 64 of 999 rows``."""
        shapes = [self.format] if self.format != self.native else []
        shapes += [self.native] + ([self.schema] if self.schema != self.native else [])
        text = f"{self.name}: {' -> '.join(shapes)}"
        if self._note:
            text += f" ({self._note})"
        mixed = getattr(self._raw, "describe", None)
        if callable(mixed):
            return text + self._mixed(mixed)
        total = self.total()
        if self.expands and self.on_bad_row != "skip":
            return text + self._expanded(total)
        if self.limit is None and self.on_bad_row != "skip":
            return text + (f", {_rows(total)}" if total is not None else self._extent())
        if total is None and self.limit is not None and self.on_bad_row != "skip":
            return text + f", the first {_rows(self.limit)}"
        if self.on_bad_row == "skip":
            if total is None and self._bad is None:  # too large to read only for this
                return text + (f", the first {_rows(self.limit)}" if self.limit else self._extent())
            bad = len(self.bad_rows)
            of = f" of {_rows(total)}" if total is not None and not self.expands else ""
            text += f", {len(self):,}{of}" if of else f", {_rows(len(self))}"
            return text + (f", {bad:,} bad row{'s' * (bad != 1)} left out" if bad else "")
        assert total is not None and self.limit is not None
        return text + f", {min(self.limit, total):,} of {_rows(total)}"

    def _extent(self) -> str:
        return f", {self._size() / 2**20:,.0f} MB" if self._size() else ", read as a stream"

    def _expanded(self, total: int | None) -> str:
        if total is None and self._count is None:
            return f", the first {_rows(self.limit)}" if self.limit else self._extent()
        out_of = f" made of {_rows(total)}" if total is not None and self.limit is None else ""
        return f", {_rows(len(self))}{out_of}"

    def _mixed(self, mixed: Callable[[int | None], str]) -> str:
        if self._count is None and self._size() <= _COUNT_BYTES and getattr(self._raw, "countable", False):
            with contextlib.suppress(DataError):  # a bad row is told of when the rows are read
                self.validate()
        what = f", {mixed(self._count)}"
        return what if self._count is None else f"{what}, {_rows(self._count)}"

    def __repr__(self) -> str:
        rest = f", limit={self.limit}" if self.limit is not None else ""
        return f"<Dataset {self.name!r}: {self.format} -> {self.schema}{rest}>"


def canonical_converter(
    convert: Callable[[Row], Any] | None, native: str, change: Change | None
) -> Callable[[Row], Row | list[Row]]:
    """Raw row to checked canonical rows: the format's conversion, validation, and the change of shape.

    A format or a change that returns a list of rows gives a list; a fault in one of them is a fault of the raw row.
    """

    def finish(row: Row) -> Row | list[Row]:
        checked = validate_row(row, native)
        return change(checked) if change is not None else checked

    def run(row: Row) -> Row | list[Row]:
        made = convert(row) if convert is not None else row
        if not isinstance(made, list):
            return finish(made)
        rows: list[Row] = []
        for one in made:
            done = finish(one)
            rows += done if isinstance(done, list) else [done]
        return rows

    return run


def empty_error(raw: Source) -> DataError:
    """The error for a source without rows."""
    return DataError(
        f"{raw.name} holds no rows.",
        code="empty-dataset",
        details={"file": str(raw.path or raw.name), "reason": "no rows"},
    )


def _rows(count: int) -> str:
    return f"{count:,} row" + "s" * (count != 1)
