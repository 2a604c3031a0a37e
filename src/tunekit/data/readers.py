"""Files as rows: JSON, JSON Lines, CSV, TSV, Parquet, CoNLL and plain text, each also compressed with gzip."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunekit.data.conll import conll_rows, looks_like_conll
from tunekit.data.files import (
    MAX_ROW,
    MAX_WHOLE,
    data_error,
    hash_file,
    lines,
    open_bytes,
    text_chunks,
    too_long,
    unpacked_size,
)
from tunekit.data.objects import class_name, double_columns
from tunekit.data.rows import RawRow, RowProblem
from tunekit.data.tables import csv_records, sniff_header, table_rows, tsv_records
from tunekit.errors import DataError, MissingDependencyError

__all__ = ["PASSAGE_CHARS", "SUFFIXES", "TEXT_RULES", "FileSource", "file_kind", "known_kind", "text_rule"]

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
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".iob2": "conll",
}
"""File name ending to kind; each but Parquet may be followed by ``.gz``."""

WRAPPERS = ("data", "rows", "examples", "train")
"""Keys of a JSON object that hold the rows."""

_FIELDS = frozenset(
    ("text", "content", "paragraphs", "prompt", "completion", "instruction", "input", "output", "question", "query",
     "answer", "answers", "response", "responses", "completions", "messages", "conversations", "conversation", "chosen",
     "rejected", "label", "labels", "score", "tokens", "tags", "ner_tags", "replies", "sentence", "sentence1",
     "premise", "review")
)  # fmt: skip
"""What only a row has."""

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


def file_kind(path: Path) -> str | None:
    """Kind of a file by its name, or by its first character when the name says nothing; None if unknown."""
    kind = known_kind(path)
    if kind is None:
        with open_bytes(path) as stream:
            head = stream.read(256).removeprefix(b"\xef\xbb\xbf").lstrip()
        kind = "json" if head[:1] in (b"{", b"[") else None
    return kind


def known_kind(path: Path) -> str | None:
    """Kind of a file by its name alone."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


class FileSource:
    """A file that is read anew on every pass.

    Args:
        path: an existing file.
        kind: one of the values of :data:`SUFFIXES`. A TSV or text file that holds CoNLL lines is read as such.
        rule: for plain text, one of :data:`TEXT_RULES`; None detects it.
        header: for CSV and TSV: ``names``: the first line names the columns; ``positions``: the columns are called
            ``1``, ``2`` ... and a first line that clearly names them is left out; None: look at the lines.

    Attributes:
        kind: as above, ``conll`` where that was found.
        header: False if the columns have no names in the file and are called ``1``, ``2`` ...
        sure_header: whether a CSV or TSV file's first line clearly is a header, or clearly is none.
    """

    def __init__(self, path: Path, kind: str, *, rule: str | None = None, header: str | None = None) -> None:
        self.path: Path | None = path
        self.name = path.name
        self._file = path
        if (kind == "tsv" and header is None and looks_like_conll(path)) or (
            kind == "txt" and rule is None and looks_like_conll(path)
        ):
            kind = "conll"
        self.kind = kind
        self.header = True
        self.sure_header = True
        self._skip = False
        if kind in ("csv", "tsv") and header != "names":
            found = sniff_header(path, kind)
            self.sure_header = found is not None
            self.header = header is None and found is not False
            self._skip = header is not None and found is True
        self.rule = (rule or text_rule(path)) if kind == "txt" else ""

    def rows(self) -> Iterator[RawRow]:
        """The rows from the first on."""
        readers: dict[str, Callable[[], Iterator[RawRow]]] = {
            "json": lambda: _json_rows(self._file),
            "csv": lambda: table_rows(self._file, csv_records(self._file), header=self.header, skip=self._skip),
            "tsv": lambda: table_rows(self._file, tsv_records(self._file), header=self.header, skip=self._skip),
            "parquet": lambda: _parquet_rows(self._file),
            "conll": lambda: conll_rows(self._file),
            "txt": lambda: _text_rows(self._file, self.rule),
        }
        return readers[self.kind]()

    def content_hash(self) -> str | None:
        """SHA-256 (hex) of the stored bytes."""
        return hash_file(self._file)

    def length(self) -> int | None:
        """Rows of a Parquet file, which states them; None for any other: it has to be read."""
        return _parquet_length(self._file) if self.kind == "parquet" else None

    def size(self) -> int | None:
        """Bytes, of a gzip file those that it states to hold unpacked; None if the file is gone."""
        return unpacked_size(self._file)


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
        wrapped = _wrapped(whole, path)
        if wrapped is not None and _is_only_line(path):
            yield from (RawRow(number, row) for number, row in enumerate(wrapped, 1))
            return
    yield from _line_rows(path)


def _wrapped(value: Any, path: Path) -> list[Any] | None:
    """The rows that an object wraps; None if it is a row itself, which may have a list of that name too."""
    if not isinstance(value, dict) or any(str(key).lower() in _FIELDS for key in value):
        return None
    lines_file = path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson"))
    if lines_file and sum(isinstance(part, list) for part in value.values()) > 1:
        return None
    for key in WRAPPERS:
        rows = value.get(key)
        if isinstance(rows, list) and (rows or len(value) == 1) and all(isinstance(row, dict) for row in rows):
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
    pieces: list[str] = []
    size = 0
    for piece in text_chunks(path):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_WHOLE:
            reason = f"is one JSON object of more than {MAX_WHOLE >> 20} MB, which is not read as a whole"
            raise data_error(path, reason, code="json-syntax", fix="write an array of rows, or JSON Lines")
    text = "".join(pieces)
    del pieces
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise _syntax_error(path, error.msg, error.lineno, error.colno, None) from error
    except (ValueError, RecursionError) as error:
        raise data_error(path, f"is not usable JSON: {_short(error)}", code="json-syntax") from error
    wrapped = _wrapped(value, path)
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
            if near and not window.ended and len(window.text) - window.pos <= MAX_ROW:
                window.more()
                continue
            if len(window.text) - window.pos > MAX_ROW:
                line = window.place(window.pos)[0]
                reason = f"row {number} (line {line}) {too_long()}"
                raise data_error(path, reason, code="json-syntax", row=number, line=line) from error
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
            double_columns(stream.schema_arrow.names, path.name)
            names = _class_names(stream.schema_arrow.metadata)
            facts = stream.metadata
            stored = sum(facts.row_group(group).total_byte_size for group in range(facts.num_row_groups))
            each = max(1, stored // max(1, facts.num_rows))  # a damaged file may state anything
            for batch in stream.iter_batches(batch_size=max(1, min(1024, MAX_ROW // each))):
                for row in _batch_rows(batch):
                    number += 1
                    row.number = number
                    if names and row.problem is None:
                        row.value = {
                            key: class_name(value, names[key]) if key in names else value
                            for key, value in row.value.items()
                        }
                    yield row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise data_error(path, f"is no Parquet file, or is damaged after row {number} ({str(error)[:120]})") from error


def _class_names(metadata: Any) -> dict[str, list[str]]:
    """Column -> names of its classes, as ``datasets`` writes them into the schema; empty for any other file."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    found: dict[str, list[str]] = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        inner = feature[0] if isinstance(feature, list) and feature else feature
        inner = inner.get("feature", inner) if isinstance(inner, dict) else None
        names = inner.get("names") if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" else None
        if isinstance(names, list):
            found[column] = [str(name) for name in names]
    return found


def _parquet_length(path: Path) -> int | None:
    try:
        with importlib.import_module("pyarrow.parquet").ParquetFile(path) as stream:
            return max(0, int(stream.metadata.num_rows))
    except (ImportError, OSError, ValueError, RuntimeError):
        return None  # reading the rows will say why


def _batch_rows(batch: Any) -> Iterator[RawRow]:
    try:
        yield from (RawRow(0, value) for value in batch.to_pylist())
        return
    except (ValueError, OverflowError):
        pass  # text that is no UTF-8, a date outside the calendar: find the rows
    for index in range(batch.num_rows):
        try:
            yield RawRow(0, batch.slice(index, 1).to_pylist()[0])
        except (ValueError, OverflowError) as error:
            yield RawRow(0, problem=RowProblem("", f"cannot be read: {str(error)[:120]}"))


# Plain text


def text_rule(path: Path) -> str:
    seen = 0
    filled = 0
    blank = 0
    for at, line in lines(path):
        if at > _HEAD // 16:
            break
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
    lost = False

    def flush() -> Iterator[tuple[int, str]]:
        nonlocal size
        text = "\n".join(held).strip("\n")
        held.clear()
        size = 0
        if text.strip() and not lost:
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
                lost = False
        elif rule == "passages" and (
            (size >= PASSAGE_CHARS and not line.strip()) or size + len(line) >= 4 * PASSAGE_CHARS
        ):
            yield from flush()
            start = at
        held.append(line)
        size += len(line) + 1
        if lost or size > MAX_ROW:
            if not lost:
                yield start, RowProblem("", too_long("the document is"), 'cut it: format="passages" or format="lines"')
            lost = True
            held.clear()
            size = 0
    yield from flush()
