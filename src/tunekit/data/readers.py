"""Files as rows: JSON, JSON Lines, CSV, TSV, Parquet and plain text, each also compressed with gzip."""

from __future__ import annotations

import csv
import importlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunekit.data.files import data_error, hash_file, lines, open_bytes, text_chunks
from tunekit.data.rows import RawRow, RowProblem
from tunekit.errors import DataError, MissingDependencyError

__all__ = ["PASSAGE_CHARS", "SUFFIXES", "TEXT_RULES", "FileSource", "file_kind"]

SUFFIXES = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "txt",
    ".text": "txt",
    ".md": "txt",
}
"""File name ending to kind; each but Parquet may be followed by ``.gz``."""

WRAPPERS = ("data", "rows", "examples", "train")
"""Keys of a JSON object that hold the rows."""

SEPARATOR = "<|endoftext|>"
PASSAGE_CHARS = 2000
LONG_LINE = 200

TEXT_RULES = {
    "separated": f"one document between two {SEPARATOR} marks",
    "lines": "one document per line",
    "passages": f"passages of about {PASSAGE_CHARS:,} characters, cut at blank lines",
    "document": "the whole file is one document",
}
"""How a plain text file is cut into rows.

Detection looks at the first megabyte: a ``<|endoftext|>`` mark means ``separated``; no blank line and an average
line of 200 characters or more means ``lines`` (one article per line); everything else, such as a play or a book, is
cut into ``passages`` that keep their line breaks. ``format="document"`` makes the whole file one row.
"""

_HEAD = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")
_FIELD_LIMIT_LOCK = threading.Lock()
_FIELD_LIMIT = 1 << 30


def file_kind(path: Path) -> str | None:
    """Kind of a file by its name, or by its first character when the name says nothing; None if unknown."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    kind = SUFFIXES.get(suffixes[-1]) if suffixes else None
    if kind is None:
        with open_bytes(path) as stream:
            head = stream.read(256).removeprefix(b"\xef\xbb\xbf").lstrip()
        kind = "json" if head[:1] in (b"{", b"[") else None
    return kind


class FileSource:
    """A file that is read anew on every pass.

    Args:
        path: an existing file.
        kind: one of the values of :data:`SUFFIXES`.
        rule: for plain text, one of :data:`TEXT_RULES`; None detects it.
        header: False: the first line of a CSV or TSV file is a row, and the columns are called ``1``, ``2`` ...
    """

    def __init__(self, path: Path, kind: str, *, rule: str | None = None, header: bool = True) -> None:
        self.path: Path | None = path
        self.name = path.name
        self._file = path
        self._kind = kind
        self._header = header
        self.rule = (rule or _text_rule(path)) if kind == "txt" else ""

    def rows(self) -> Iterator[RawRow]:
        """The rows from the first on."""
        readers: dict[str, Callable[[], Iterator[RawRow]]] = {
            "json": lambda: _json_rows(self._file),
            "csv": lambda: _csv_rows(self._file, self._header),
            "tsv": lambda: _tsv_rows(self._file, self._header),
            "parquet": lambda: _parquet_rows(self._file),
            "txt": lambda: _text_rows(self._file, self.rule),
        }
        return readers[self._kind]()

    def content_hash(self) -> str | None:
        """SHA-256 (hex) of the stored bytes."""
        return hash_file(self._file)

    def length(self) -> int | None:
        """None: a file has to be read."""
        return None


# JSON


def _json_rows(path: Path) -> Iterator[RawRow]:
    """JSON Lines, one array, one object that wraps an array, or one row; told apart by the text itself."""
    with open_bytes(path) as stream:
        head = stream.read(_HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"["):
        yield from _array_rows(path)
        return
    first: str | None = None
    for _, line in lines(path):
        if isinstance(line, RowProblem):
            break
        if line.strip():
            first = line.strip()
            break
    else:
        return
    if first is not None and first.startswith("{"):
        try:
            whole = json.loads(first)
        except RecursionError:
            whole = None
        except ValueError:
            # Either an object over several lines, or JSON Lines whose first line is broken.
            if path.suffix.lower() == ".json" or first == "{":
                yield from _object_rows(path)
                return
            whole = None
        wrapped = _wrapped(whole)
        if wrapped is not None and _is_only_line(path):
            yield from (RawRow(number, row) for number, row in enumerate(wrapped, 1))
            return
    yield from _line_rows(path)


def _wrapped(value: Any) -> list[Any] | None:
    if isinstance(value, dict):
        for key in WRAPPERS:
            rows = value.get(key)
            if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
                return rows
    return None


def _is_only_line(path: Path) -> bool:
    filled = 0
    for _, line in lines(path):
        filled += isinstance(line, RowProblem) or bool(line.strip())
        if filled > 1:
            return False
    return True


def _line_rows(path: Path) -> Iterator[RawRow]:
    number = 0
    for at, line in lines(path):
        if isinstance(line, RowProblem):
            number += 1
            yield RawRow(number, line=at, problem=line)
            continue
        if not line.strip():
            continue
        number += 1
        try:
            yield RawRow(number, json.loads(line), line=at)
        except json.JSONDecodeError as error:
            problem = RowProblem("", f"is not JSON: {error.msg} at column {error.colno}")
            yield RawRow(number, line=at, problem=problem)
        except (ValueError, RecursionError) as error:
            yield RawRow(number, line=at, problem=RowProblem("", f"is not usable JSON: {_short(error)}"))


def _object_rows(path: Path) -> Iterator[RawRow]:
    text = "".join(text_chunks(path))
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise _syntax_error(path, error.msg, error.lineno, error.colno, None) from error
    except (ValueError, RecursionError) as error:
        raise data_error(path, f"is not usable JSON: {_short(error)}", code="json-syntax") from error
    wrapped = _wrapped(value)
    for number, row in enumerate([value] if wrapped is None else wrapped, 1):
        yield RawRow(number, row)


class _Window:
    """The part of a long text that is being looked at."""

    def __init__(self, chunks: Iterator[str]) -> None:
        self._chunks = chunks
        self.text = ""
        self.pos = 0
        self.ended = False
        self._seen = 0  # newlines are counted up to here, once
        self._line = 1
        self._line_start = 0  # where that line starts in self.text; negative when that part was dropped

    def more(self) -> None:
        """Drop what was read and read on; at least double what is left, so that huge values cost linear time."""
        self.place(self.pos)
        self._seen -= self.pos
        self._line_start -= self.pos
        pieces = [self.text[self.pos :]]
        want = max(1, len(pieces[0]))
        got = 0
        while got < want:
            piece = next(self._chunks, None)
            if piece is None:
                self.ended = True
                break
            pieces.append(piece)
            got += len(piece)
        self.text = "".join(pieces)
        self.pos = 0

    def peek(self) -> str:
        """The next character that is no white space, or '' at the end."""
        while True:
            match = _SPACE.match(self.text, self.pos)
            self.pos = match.end() if match else self.pos
            if self.pos < len(self.text):
                return self.text[self.pos]
            if self.ended:
                return ""
            self.more()

    def place(self, pos: int) -> tuple[int, int]:
        """Line and column, both from 1, of a position in :attr:`text`; positions may not go back."""
        breaks = self.text.count("\n", self._seen, pos)
        if breaks:
            self._line += breaks
            self._line_start = self.text.rindex("\n", self._seen, pos) + 1
        self._seen = pos
        return self._line, pos - self._line_start + 1


def _array_rows(path: Path) -> Iterator[RawRow]:
    """Elements of a JSON array, one at a time: the file is never held whole."""
    window = _Window(text_chunks(path))
    decoder = json.JSONDecoder()
    window.peek()
    window.pos += 1
    number = 0
    mark = window.peek()
    while mark != "]":
        number += 1
        line = window.place(window.pos)[0]
        yield RawRow(number, _element(path, window, decoder, number), line=line)
        mark = window.peek()
        if mark not in (",", "]"):
            reason = "the array does not end" if mark == "" else f"Expecting ',' or ']' but found {mark!r}"
            raise _syntax_error(path, reason, *window.place(window.pos), number)
        if mark == ",":
            window.pos += 1
            mark = window.peek()
            if mark == "]":
                raise _syntax_error(path, "a comma before the closing bracket", *window.place(window.pos), number)
    window.pos += 1
    if window.peek():
        raise _syntax_error(path, "more text after the array", *window.place(window.pos), number)


def _element(path: Path, window: _Window, decoder: json.JSONDecoder, number: int) -> Any:
    while True:
        try:
            value, end = decoder.raw_decode(window.text, window.pos)
        except json.JSONDecodeError as error:
            # Near the end of what was read so far the text may just not be complete yet.
            near = error.pos >= len(window.text) - 32 or error.msg.startswith("Unterminated string")
            if near and not window.ended:
                window.more()
                continue
            raise _syntax_error(path, error.msg, *window.place(error.pos), number) from error
        except (ValueError, RecursionError) as error:
            reason = f"row {number} is not usable JSON: {_short(error)}"
            raise data_error(path, reason, code="json-syntax", row=number) from error
        if end == len(window.text) and not window.ended and window.text[end - 1] not in '}]"':
            window.more()  # a number may go on
            continue
        window.pos = end
        return value


def _syntax_error(path: Path, reason: str, line: int, column: int, row: int | None) -> DataError:
    place = f"line {line} column {column}" + (f" (row {row})" if row else "")
    details: dict[str, Any] = {"line": line} | ({"row": row} if row else {})
    return data_error(path, f"JSON syntax error at {place}: {reason}", code="json-syntax", **details)


def _short(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]


# CSV and TSV


def _csv_rows(path: Path, header: bool) -> Iterator[RawRow]:
    state = {"line": 0}

    def feed() -> Iterator[str]:
        for at, line in lines(path):
            state["line"] = at
            if isinstance(line, RowProblem):
                # Inside a quoted field the rest of the file cannot be told apart any more: no row can be skipped.
                raise data_error(path, f"line {at}: {line.reason}", code="encoding", fix=line.fix, line=at)
            yield line + "\n"

    yield from _table_rows(path, _csv_records(path, feed(), state), header)


def _csv_records(path: Path, feed: Iterator[str], state: dict[str, int]) -> Iterator[tuple[int, list[str]]]:
    first = next(feed, None)
    if first is None:
        return
    # Spreadsheets of many countries write semicolons.
    delimiter = ";" if "," not in first and ";" in first else ","

    def again() -> Iterator[str]:
        yield first
        yield from feed

    reader = csv.reader(again(), delimiter=delimiter, strict=True)
    while True:
        start = reader.line_num + 1
        # The csv module keeps one field limit per process (128 KB); long documents need more, and others keep theirs.
        with _FIELD_LIMIT_LOCK:
            before = csv.field_size_limit(_FIELD_LIMIT)
            try:
                record = next(reader, None)
            except csv.Error as error:
                reason = f"line {start}: {error}"
                if "unexpected end of data" in str(error):
                    reason = f"line {start}: a quoted field does not end"
                fix = 'quote fields as "..." and write a quote inside one as ""'
                raise data_error(path, reason, code="csv-syntax", fix=fix, line=start) from error
            finally:
                csv.field_size_limit(before)
        if record is None:
            return
        yield start, record


def _tsv_rows(path: Path, header: bool) -> Iterator[RawRow]:
    yield from _table_rows(path, _tsv_records(path), header)


def _tsv_records(path: Path) -> Iterator[tuple[int, list[str] | RowProblem]]:
    for at, line in lines(path):
        if isinstance(line, RowProblem):
            yield at, line
        else:
            yield at, [_unquote(field) for field in line.split("\t")] if line else []


def _unquote(field: str) -> str:
    # Most TSV files know no quoting; some tools quote as CSV does. Only what is clearly such a field is unquoted.
    if len(field) >= 2 and field[0] == field[-1] == '"':
        inner = field[1:-1]
        if '"' not in inner.replace('""', ""):
            return inner.replace('""', '"')
    return field


def _table_rows(
    path: Path, records: Iterator[tuple[int, list[str] | RowProblem]] | Iterator[tuple[int, list[str]]], header: bool
) -> Iterator[RawRow]:
    names: list[str] | None = None
    number = 0
    for at, record in records:
        if isinstance(record, RowProblem):
            if names is None:
                raise data_error(path, f"line {at}: {record.reason}", code="encoding", fix=record.fix, line=at)
            number += 1
            yield RawRow(number, line=at, problem=record)
            continue
        if not record:
            continue
        if names is None:
            if header:
                names = [name.strip() for name in record]
                double = sorted({name for name in names if names.count(name) > 1})
                if double:
                    fix = 'if the file has no header, name the columns by position: columns={"text": "1"}'
                    reason = f"the header names the column {double[0]!r} twice"
                    raise data_error(path, reason, code="csv-header", fix=fix, line=at, field=double[0])
                continue
            names = [str(position) for position in range(1, len(record) + 1)]
        number += 1
        if len(record) != len(names):
            reason = f"has {len(record)} field{'s' * (len(record) != 1)}, the header has {len(names)}"
            yield RawRow(number, line=at, problem=RowProblem("", reason))
            continue
        yield RawRow(number, dict(zip(names, record, strict=True)), line=at)


# Parquet


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    try:
        pyarrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingDependencyError(
            f"Reading {path.name} needs the package pyarrow.", asked=str(path), fix="pip install pyarrow"
        ) from error
    number = 0
    try:
        with parquet.ParquetFile(path) as stream:
            for batch in stream.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    number += 1
                    yield RawRow(number, value)
    except (pyarrow.ArrowException, OSError) as error:
        raise data_error(path, f"is no Parquet file, or is damaged after row {number} ({str(error)[:120]})") from error


# Plain text


def _text_rule(path: Path) -> str:
    seen = 0
    filled = 0
    blank = 0
    for _, line in lines(path):
        if isinstance(line, RowProblem):
            continue
        if SEPARATOR in line:
            return "separated"
        if line.strip():
            filled += 1
            seen += len(line)
        elif filled:
            blank += 1
        if seen >= _HEAD and filled > 1:
            break
    return "lines" if filled and not blank and seen / filled >= LONG_LINE else "passages"


def _text_rows(path: Path, rule: str) -> Iterator[RawRow]:
    for number, (at, piece) in enumerate(_pieces(path, rule), 1):
        if isinstance(piece, RowProblem):
            yield RawRow(number, line=at, problem=piece)
        else:
            yield RawRow(number, {"text": piece}, line=at)


def _pieces(path: Path, rule: str) -> Iterator[tuple[int, str | RowProblem]]:
    if rule == "lines":
        for at, line in lines(path):
            if isinstance(line, RowProblem) or line.strip():
                yield at, line
        return
    held: list[str] = []
    size = 0
    start = 1

    def flush() -> Iterator[tuple[int, str]]:
        nonlocal size
        text = "\n".join(held).strip("\n")
        held.clear()
        size = 0
        if text.strip():
            yield start, text

    for at, line in lines(path):
        if isinstance(line, RowProblem):
            yield from flush()
            yield at, line
            continue
        if not held:
            start = at
        if rule == "separated":
            *ended, line = line.split(SEPARATOR)
            for part in ended:
                held.append(part)
                yield from flush()
                start = at
        elif rule == "passages" and (
            (size >= PASSAGE_CHARS and not line.strip()) or size + len(line) >= 4 * PASSAGE_CHARS
        ):
            yield from flush()
            start = at
        held.append(line)
        size += len(line) + 1
    yield from flush()
