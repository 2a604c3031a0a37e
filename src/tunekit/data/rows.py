"""Rows on their way in: what a reader hands to a format, and how a row is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tunekit.errors import DataError

__all__ = ["RawRow", "RowProblem", "Source", "clean_text", "kind_of", "row_error"]


class RowProblem(Exception):
    """One row cannot be used; the others can. It becomes a DataError or an entry of ``bad_rows``.

    Args:
        field: name of the field that is wrong, such as ``answer`` or ``turns[3]``; empty: the row as a whole.
        reason: what is wrong, as the rest of a sentence: ``is missing``, ``has no answer``.
        fix: what to do about it; default: mend or skip the row.
    """

    def __init__(self, field: str, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.field, self.reason, self.fix)

    def text(self) -> str:
        """Field and reason in words."""
        return f"field {self.field!r} {self.reason}" if self.field else self.reason


@dataclass(slots=True)
class RawRow:
    """A row as it stands in its source."""

    number: int
    """1-based position among the data rows; header, blank and comment lines do not count."""
    value: Any = None
    line: int | None = None
    """1-based line of the file where it starts; None where rows are not lines."""
    problem: RowProblem | None = None
    """Why there is no value."""
    file: Path | None = None
    """The file it stands in, where a source has several; ``line`` counts in that file, ``number`` in the whole."""
    in_file: int | None = None
    """1-based position among the data rows of ``file``."""
    origin: tuple[int, ...] = ()
    """In a mixture: the part, and the number of the row in it. Rows made of one row have one origin."""

    def reason(self, problem: RowProblem) -> str:
        """Why the row is bad, in words that name its file where the number does not say which."""
        return f"{self.file.name} row {self.in_file}: {problem.text()}" if self.file else problem.text()


class Source(Protocol):
    """Something that rows can be read from, again and again."""

    name: str
    """For people: a file name, a hub id, ``list``."""
    path: Path | None
    """File the rows come from, or None."""
    rule: str
    """Name of the text rule (``lines``, ``passages`` ...) for plain text files; else empty."""

    def rows(self) -> Iterator[RawRow]:
        """The rows from the first on."""
        ...

    def content_hash(self) -> str | None:
        """SHA-256 (hex) of the stored bytes; None when only the rows themselves can be hashed."""
        ...

    def length(self) -> int | None:
        """Number of rows where it is known without reading them."""
        ...

    def size(self) -> int | None:
        """Bytes of files, unpacked; None for what is in memory."""
        ...


def row_error(source: Source, row: RawRow, problem: RowProblem) -> DataError:
    """The error for one bad row."""
    number = row.number if row.in_file is None else row.in_file
    place = f"{row.file.name if row.file else source.name} row {number}"
    file = str(row.file or source.path or source.name)
    details: dict[str, Any] = {"file": file, "row": number, "reason": problem.reason}
    if row.line is not None:
        details["line"] = row.line
        if row.line != number:
            place += f" (line {row.line})"
    if problem.field:
        details["field"] = problem.field
    sentence = f"{place}: {problem.text()}."
    fix = problem.fix or 'mend the row, or pass on_bad_row="skip" to leave out and count such rows'
    return DataError(sentence, code="bad-row", fix=fix, details=details)


def kind_of(value: Any) -> str:
    """What a value is, in words, for error messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"a boolean ({value})"
    if isinstance(value, int | float):
        try:
            return f"a number ({value!r:.40})"
        except ValueError:
            return "a number of thousands of digits"
    if isinstance(value, str):
        return "text"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    return f"of type {type(value).__name__}"


def clean_text(value: Any, field: str, *, empty: bool = False) -> str:
    """``value`` if it is text that a tokenizer can take.

    Raises:
        RowProblem: if it is absent, not text, empty (unless ``empty``), or holds NUL or a lone surrogate.
    """
    if not isinstance(value, str):
        raise RowProblem(field, f"is {kind_of(value)}, not text")
    if not empty and not value.strip():
        raise RowProblem(field, "is empty")
    if "\x00" in value:
        raise RowProblem(field, "holds a NUL character")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowProblem(field, "holds half of a surrogate pair, which is no Unicode text") from None
    return value
