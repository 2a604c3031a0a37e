"""CoNLL files: one token per line with its tags in columns, a blank line after each sentence.

Columns are separated by tabs, or by spaces (CoNLL-2003). The first is the token, the last the tag; what stands between
is not read. ``-DOCSTART-`` lines end a sentence and are left out, as are comment lines before a sentence.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from tunekit.data.files import CHUNK, lines
from tunekit.data.rows import RawRow, RowProblem
from tunekit.errors import DataError

__all__ = ["conll_rows", "looks_like_conll"]

_TAG = re.compile(r"O|[BIESLUM]-\S+")
"""Tags of the schemes IOB, IOB2, BIOES and BILOU."""

MAX_TOKENS = 1 << 20
"""Tokens of the longest sentence that is read: without blank lines a file would be one row, however large."""

_SNIFFED = 300
"""Lines that are looked at to tell a CoNLL file from a table or a text."""


def conll_rows(path: Path) -> Iterator[RawRow]:
    """Sentences as ``{"tokens": [...], "tags": [...]}``; ``line`` is that of the first token.

    Every line of a file has as many columns as its first one. A sentence with another line in it is a bad row.

    Raises:
        DataError: if the file cannot be read.
    """
    layout = _Layout()
    number = 0
    start = 0
    tokens: list[str] = []
    tags: list[str] = []
    problem: RowProblem | None = None
    lost = False

    def sentence() -> RawRow:
        if problem is not None:
            return RawRow(number, line=start, problem=problem)
        return RawRow(number, {"tokens": tokens, "tags": tags}, line=start)

    for at, line in lines(path):
        if isinstance(line, str) and layout.separates(line):
            if start and not lost:
                yield sentence()
            start, tokens, tags, problem, lost = 0, [], [], None, False
            continue
        if lost:
            continue
        if not start and isinstance(line, str) and layout.is_comment(line):
            continue
        if not start:
            start = at
            number += 1
        if isinstance(line, RowProblem):
            problem = problem or RowProblem(line.field, f"line {at}: {line.reason}", line.fix)
            continue
        fields = layout.fields(line)
        if len(fields) != layout.width:
            reason = f"line {at} has {_columns(len(fields))}, the first line has {layout.width}"
            problem = problem or RowProblem("", reason)
        elif not fields[0].strip() or not fields[-1].strip():
            missing = "token" if not fields[0].strip() else "tag"
            problem = problem or RowProblem("tokens" if missing == "token" else "tags", f"line {at} has no {missing}")
        else:
            tokens.append(fields[0].strip())
            tags.append(fields[-1].strip())
        if len(tokens) > MAX_TOKENS:
            problem = RowProblem("tokens", f"are more than {MAX_TOKENS:,}", "put a blank line after each sentence")
            yield sentence()
            tokens, tags, lost = [], [], True
    if start and not lost:
        yield sentence()


class _Layout:
    """How the lines of one file are divided; settled by its first token line."""

    def __init__(self) -> None:
        self.tab: bool | None = None
        self.width = 0

    @staticmethod
    def separates(line: str) -> bool:
        return not line.strip() or line.startswith("-DOCSTART-")

    def is_comment(self, line: str) -> bool:
        if not line.startswith("#"):
            return False
        if "\t" in line:
            return False
        # In a file with tabs, a line without one is no token. In one with spaces, "# O" may be the token "#".
        fields = line.split()
        return self.tab is True or not (len(fields) in (self.width, 2, 4) and _TAG.fullmatch(fields[-1]))

    def fields(self, line: str) -> list[str]:
        if self.tab is None:
            self.tab = "\t" in line
        fields = line.split("\t") if self.tab else line.split()
        if not self.width:
            # One column cannot be a token and its tag: such a line is refused against the least there can be.
            self.width = max(2, len(fields))
        return fields


def _columns(count: int) -> str:
    return f"{count} column" + "s" * (count != 1)


def looks_like_conll(path: Path) -> bool:
    """Whether a table or text file is CoNLL: every line of its first sentences has a token and a tag.

    The tags are those of named entities (``O``, ``B-...``). In a file with tabs other tags do as well, where blank
    lines part groups of lines without a space in them.
    """
    head: list[str] = []
    held = 0
    try:
        for _, line in itertools.islice(lines(path), _SNIFFED):
            if isinstance(line, RowProblem):
                return False
            head.append(line)
            held += len(line)
            if held > CHUNK:
                break
    except DataError:
        return False
    layout = _Layout()
    groups, filled, entity, spaces = 0, 0, True, False
    open_group = False
    for line in head:
        if layout.separates(line):
            open_group = False
            continue
        if not open_group and layout.is_comment(line):
            continue
        fields = layout.fields(line)
        if len(fields) != layout.width or len(fields) < 2 or not fields[0].strip() or not fields[-1].strip():
            return False
        groups += not open_group
        open_group = True
        filled += 1
        entity = entity and _TAG.fullmatch(fields[-1].strip()) is not None
        spaces = spaces or any(" " in field.strip() for field in fields)
    if not filled:
        return False
    return entity or (layout.tab is True and not spaces and groups > 1 and filled >= 2 * groups)
