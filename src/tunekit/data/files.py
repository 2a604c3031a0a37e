"""Bytes of a file as checked text: compression, encoding, line numbers. Every failure names the file and the place."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from tunekit.data.rows import RowProblem
from tunekit.errors import DataError

__all__ = [
    "CHUNK",
    "MAX_ROW",
    "MAX_WHOLE",
    "data_error",
    "hash_file",
    "lines",
    "open_bytes",
    "text_chunks",
    "too_long",
    "unpacked_size",
]

CHUNK = 1 << 20

MAX_ROW = 64 << 20
"""Bytes of the longest line, and characters of the longest row, that are read.

Memory stays bounded whatever a file holds.
"""

MAX_WHOLE = 256 << 20
"""Characters of the longest JSON document that has to be read as a whole, because it is no array and no JSON Lines."""

_BOM = codecs.BOM_UTF8
_WIDE = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def data_error(path: Path, reason: str, *, code: str = "unreadable-file", fix: str = "", **details: Any) -> DataError:
    """A DataError about a whole file."""
    return DataError(
        f"{path.name}: {reason}.", code=code, fix=fix, details={"file": str(path), "reason": reason, **details}
    )


def too_long(what: str = "is") -> str:
    """The reason why something longer than :data:`MAX_ROW` is not read."""
    return f"{what} longer than {MAX_ROW >> 20} MB, which no row may be"


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed if its name ends in ``.gz``.

    Raises:
        DataError: if it cannot be opened or read; also for what goes wrong inside the ``with`` block while reading.
    """
    try:
        with cast("IO[bytes]", gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")) as stream:
            yield stream
    except (gzip.BadGzipFile, zlib.error) as error:
        raise data_error(path, f"is no gzip file, or is damaged ({error})") from error
    except EOFError as error:
        raise data_error(path, "is cut short: the gzip stream does not end", fix="copy or download it again") from error
    except PermissionError as error:
        raise data_error(path, "may not be read by this user", fix=f"chmod +r {path}") from error
    except OSError as error:
        raise data_error(path, f"cannot be read: {error.strerror or error}") from error


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of the stored bytes, read in chunks.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise data_error(path, f"cannot be read: {error.strerror or error}") from error


def unpacked_size(path: Path) -> int | None:
    """Bytes of a file, without ``.gz``; None if it is gone.

    A gzip file states the size of what it holds in its last four bytes, modulo 4 GB and for its last member only. Where
    that is less than what is stored, four times the stored size is taken.
    """
    try:
        stored = path.stat().st_size
        if path.suffix.lower() != ".gz" or stored < 18:
            return stored
        with path.open("rb") as stream:
            stream.seek(-4, 2)
            stated = int.from_bytes(stream.read(4), "little")
    except OSError:
        return None
    return stated if stated >= stored else 4 * stored


def _refuse_wide(path: Path, head: bytes) -> None:
    name = next((name for bom, name in _WIDE.items() if head.startswith(bom)), None)
    if name is None and len(head) >= 16:
        # UTF-16 without a mark: every second byte of Latin text is NUL.
        zeros = head.count(b"\x00")
        if zeros * 3 > len(head) and max(head[::2].count(b"\x00"), head[1::2].count(b"\x00")) > zeros * 0.9:
            name = "UTF-16"
    if name:
        raise data_error(
            path, f"is {name}, not UTF-8", code="encoding", fix=f"iconv -f {name} -t UTF-8 {path} > utf8-{path.name}"
        )


def lines(path: Path) -> Iterator[tuple[int, str | RowProblem]]:
    r"""Numbered lines, from 1, without their ``\n`` or ``\r\n``.

    A line that is no UTF-8 text, or is longer than :data:`MAX_ROW`, comes as a RowProblem. A byte order mark at the
    start is dropped.

    Raises:
        DataError: if the file cannot be read or is UTF-16 or UTF-32.
    """
    number = 0
    with open_bytes(path) as stream:
        head = stream.read(4096)
        _refuse_wide(path, head)
        stream.seek(len(_BOM) if head.startswith(_BOM) else 0)
        limit = MAX_ROW + 1
        while raw := stream.readline(limit):
            number += 1
            if raw.endswith(b"\n"):
                raw = raw[:-2] if raw.endswith(b"\r\n") else raw[:-1]
            elif len(raw) == limit:
                yield number, RowProblem("", too_long(), "split it, or write one row per line")
                while (raw := stream.readline(CHUNK)) and not raw.endswith(b"\n"):
                    pass
                continue
            if b"\x00" in raw:
                yield number, RowProblem("", f"NUL at byte {raw.index(0) + 1} of the line; the file may be damaged")
                continue
            try:
                text = raw.decode()
            except UnicodeDecodeError as error:
                yield number, RowProblem("", _not_utf8(raw, error), _ENCODING_FIX)
                continue
            yield number, text


_ENCODING_FIX = 'save the file as UTF-8 (iconv -f ENCODING -t UTF-8), or pass on_bad_row="skip"'


def _not_utf8(raw: bytes, error: UnicodeDecodeError, base: int = 0) -> str:
    return f"byte 0x{raw[error.start]:02x} at byte {base + error.start + 1} is not UTF-8 text"


def text_chunks(path: Path) -> Iterator[str]:
    """The whole text, piece by piece, checked as :func:`lines` does.

    Raises:
        DataError: if the file cannot be read, or is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    with open_bytes(path) as stream:
        first = True
        while True:
            raw = stream.read(CHUNK)
            if first:
                _refuse_wide(path, raw[:4096])
                if raw.startswith(_BOM):
                    raw = raw[len(_BOM) :]
                    done = len(_BOM)
                first = False
            waiting = len(decoder.getstate()[0])
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                reason = _not_utf8(error.object, error, done - waiting)
                raise data_error(path, reason, code="encoding", fix="save the file as UTF-8") from error
            if "\x00" in text:
                raise data_error(path, "holds a NUL byte; it may be damaged", code="nul-byte")
            done += len(raw)
            if text:
                yield text
            if not raw:
                return
