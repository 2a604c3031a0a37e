"""CSV and TSV files as rows, with a header line or without one."""

from __future__ import annotations

import csv
import re
import threading
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from tunekit.data.files import CHUNK, MAX_ROW, data_error, lines, too_long
from tunekit.data.rows import RawRow, RowProblem
from tunekit.errors import DataError

__all__ = ["csv_records", "has_header", "sniff_header", "table_rows", "tsv_records"]

Record = tuple[int, "list[str] | RowProblem"]

_FIELD_LIMIT_LOCK = threading.Lock()

_SNIFFED = 200
"""Records that are looked at to tell whether the first one is a header."""

_NAMES = frozenset(
    [
        *(
            "id",
            "idx",
            "index",
            "guid",
            "uid",
            "name",
            "url",
            "title",
            "author",
            "user",
            "date",
            "type",
            "topic",
            "source",
        ),
        *(
            "text",
            "texts",
            "text1",
            "text2",
            "text_a",
            "text_b",
            "text_pair",
            "content",
            "body",
            "document",
            "documents",
        ),
        *("sentence", "sentences", "sentence1", "sentence2", "premise", "hypothesis", "similarity", "split"),
        *(
            "label",
            "labels",
            "category",
            "class",
            "target",
            "score",
            "scores",
            "rating",
            "stars",
            "sentiment",
            "intent",
        ),
        *("tag", "tags", "token", "tokens", "entity", "language", "lang", "comment", "tweet", "intent", "source"),
        *(
            "prompt",
            "completion",
            "response",
            "chosen",
            "rejected",
            "instruction",
            "input",
            "output",
            "history",
            "options",
        ),
        *(
            "question",
            "answer",
            "answers",
            "query",
            "context",
            "passage",
            "explanation",
            "reason",
            "choices",
            "options",
        ),
        *("message", "messages", "conversations", "system", "review", "summary", "article", "headline"),
    ]
)
"""What columns are called; in no real data is a whole row made of such words."""

_NUMBER = re.compile(r"[+-]?(\d+([.,]\d+)*|\.\d+)([eE][+-]?\d+)?%?")
_END = re.compile(r"[.!?;:,\u3002\uff01\uff1f\uff1b\u2026]$")
_IDENTIFIER = re.compile(r"[^\W\d][\w.-]*([ _-][\w.-]+){0,3}")


# Records


def csv_records(path: Path) -> Iterator[Record]:
    """(line of its start, fields) of every record; an empty line is an empty record.

    Raises:
        DataError: if the file cannot be read, is no UTF-8, or its quotes do not end.
    """
    start = 1
    held = 0
    taken = 0  # lines of the record that is being read: any but the first begins inside a quoted field

    def feed() -> Iterator[str]:
        nonlocal held
        for at, line in lines(path):
            if isinstance(line, RowProblem):
                # Inside a quoted field the rest of the file cannot be told apart any more: no row can be skipped.
                raise data_error(path, f"line {at}: {line.reason}", code="encoding", fix=line.fix, line=at)
            held += len(line)
            if held > MAX_ROW:
                raise data_error(path, f"line {start}: {too_long()}", code="csv-syntax", fix=_QUOTES, line=start)
            yield line + "\n"

    source = feed()
    first = next(source, None)
    if first is None:
        return
    # Spreadsheets of many countries write semicolons.
    delimiter = ";" if "," not in first and ";" in first else ","

    spaced = re.compile(rf'(?<={delimiter})[ \t]+("(?:[^"]|"")*"(?={delimiter}|\n))')
    beside = (f'{delimiter} "', f'{delimiter}\t"')

    def again() -> Iterator[str]:
        nonlocal taken
        for line in chain((first,), source):
            taken += 1
            spacious = taken == 1 and any(sign in line for sign in beside)
            yield _without_blanks(line, delimiter, spaced) if spacious else line

    reader = csv.reader(again(), delimiter=delimiter, strict=True)
    while True:
        start = reader.line_num + 1
        held = taken = 0
        # The csv module keeps one field limit per process (128 KB); long documents need more, and others keep theirs.
        with _FIELD_LIMIT_LOCK:
            before = csv.field_size_limit(MAX_ROW)
            try:
                record = next(reader, None)
            except csv.Error as error:
                reason = f"line {start}: {error}"
                if "unexpected end of data" in str(error):
                    reason = f"line {start}: a quoted field does not end"
                raise data_error(path, reason, code="csv-syntax", fix=_QUOTES, line=start) from error
            finally:
                csv.field_size_limit(before)
        if record is None:
            return
        yield start, record


def _without_blanks(line: str, delimiter: str, spaced: re.Pattern[str]) -> str:
    """The line without the blanks between a comma and a quoted field, which the csv module takes for a part of it."""
    made: list[str] = []
    at = 0
    while True:
        quoted = _QUOTED.match(line, at)
        after = line.find(delimiter, quoted.end() if quoted else at)
        if after < 0 or (quoted is None and line.startswith('"', at)):
            return "".join([*made, line[at:]])
        made.append(line[at : after + 1])
        at = after + 1
        found = spaced.match(line, at)
        at = found.start(1) if found else at


_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_QUOTES = 'quote fields as "..." and write a quote inside one as ""'


def tsv_records(path: Path) -> Iterator[Record]:
    """(line, fields) of every line; an empty line is an empty record.

    Raises:
        DataError: if the file cannot be read.
    """
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


# Rows


def table_rows(path: Path, records: Iterator[Record], *, header: bool, skip: bool = False) -> Iterator[RawRow]:
    """Records as rows with named fields.

    Args:
        path: for errors.
        records: of :func:`csv_records` or :func:`tsv_records`.
        header: whether the first record names the columns; else they are called ``1``, ``2`` ...
        skip: with ``header=False``: leave the first record out.
    """
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
                names = _header(path, record, at)
                continue
            names = [str(position) for position in range(1, len(record) + 1)]
            if skip:
                continue
        number += 1
        if len(record) != len(names):
            named = "the header has" if header else "the first line has"
            reason = f"has {len(record)} field{'s' * (len(record) != 1)}, {named} {len(names)}"
            yield RawRow(number, line=at, problem=RowProblem("", reason))
            continue
        yield RawRow(number, dict(zip(names, record, strict=True)), line=at)


def _header(path: Path, record: list[str], at: int) -> list[str]:
    names = [name.strip() for name in record]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        fix = 'if the file has no header, name the columns by position: columns={"text": "1"}'
        reason = f"the header names the column {double[0]!r} twice"
        raise data_error(path, reason, code="csv-header", fix=fix, line=at, field=double[0])
    return names


# Whether the first record is a header


def sniff_header(path: Path, kind: str) -> bool | None:
    """:func:`has_header` of a file; None too if it cannot be read, which reading its rows will say."""
    reader = csv_records if kind == "csv" else tsv_records
    records: list[list[str]] = []
    held = 0
    try:
        for _, record in islice(reader(path), _SNIFFED):
            if isinstance(record, list) and record:
                records.append(record)
                held += sum(map(len, record))
            if held > CHUNK:
                break
    except DataError:
        return None
    return has_header(records)


def has_header(records: Sequence[Sequence[str]]) -> bool | None:
    """Whether the first record names the columns: True, False, or None if nothing speaks for either.

    For a header: names that columns usually have; a word over a column of numbers; a short name over long texts. For
    data: a number over numbers; a value that comes again in its column, as labels do; a long text or a whole sentence.
    """
    if not records:
        return None
    first = [cell.strip() for cell in records[0]]
    if first in ([str(n) for n in range(len(first))], [str(n) for n in range(1, len(first) + 1)]):
        return True if len(records) > 1 and len(first) > 1 else None
    rest = [record for record in records[1:] if len(record) == len(first)]
    names = data = 0
    shorter = False
    for position, cell in enumerate(first):
        if not cell:
            continue
        below = [value for value in (record[position].strip() for record in rest) if value]
        numbers = sum(_is_number(value) for value in below)
        mostly_numbers = numbers * 10 >= len(below) * 9
        if cell.lower().replace(" ", "_").replace("-", "_") in _NAMES:
            names += 3
        if _is_number(cell):
            data += 2 if mostly_numbers else 0
            continue
        if below and mostly_numbers:
            names += 2
        if cell in below:
            data += 2
        if len(cell) > 60 or _END.search(cell) or len(cell.split()) > 6:
            data += 1 + (len(cell) > 120)
        elif below and min(map(len, below)) > len(cell):
            shorter = True
    if shorter and all(_IDENTIFIER.fullmatch(cell) for cell in first if cell):
        names += 1
    if data == names:
        return None
    return names > data


def _is_number(value: str) -> bool:
    return _NUMBER.fullmatch(value) is not None
