"""One file of token rows: written whole or not at all, checked when it is opened, read by memory map.

A shard holds what one stretch of the data's rows became: token ids in two or four bytes, which of them are learned in
one bit, integers that callers add, and the rows that could not be used. Layout: a magic word, a JSON header, and plain
little-endian arrays on 64-byte borders. The same rows give the same bytes.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.errors import DataError
from tunekit.storage import storage_errors

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "IGNORED",
    "Shard",
    "ShardWriter",
    "TokenRow",
    "drop_leftovers",
    "find_shards",
    "last_to_leave",
    "shard_path",
]

IGNORED = -100
"""Label of a token that is not learned; what torch's cross-entropy leaves out."""

_MAGIC = b"tkshard1"
_HEAD = struct.Struct("<8sII")
_ALIGN = 64
_CHUNK = 1 << 22
_FULL_PROBLEMS = 100
_SUFFIX = ".tokens"
_PLAIN = (str, int, float, bool, type(None))


@dataclass(slots=True)
class TokenRow:
    """What an encoder makes of one row of the data."""

    input_ids: Sequence[int]
    """Token ids."""
    labels: Sequence[int] | None = None
    """Per token: the id itself where it is learned, -100 elsewhere. Not shifted. None: every token is learned."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Numbers to add up over the rows, such as ``{"cut_tokens": 12}``; they come back in ``TokenStore.facts``."""
    columns: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Further integers of the row, of any length, such as ``{"rejected_ids": [...]}``. The same names in every row."""


class ShardWriter:
    """Collects encoded rows in memory, compactly, and writes them as one shard."""

    def __init__(self, begin: int, key: str) -> None:
        self.begin = begin
        self.key = key
        self.end = begin
        self.rows = 0
        self.tokens = 0
        self._parts: dict[str, list[np.ndarray[Any, Any]]] = {}
        self._counts: list[Mapping[str, int]] = []
        self._numbers: list[int] = []
        self._problems: list[tuple[int, DataError]] = []

    def add(self, made: Sequence[TokenRow | DataError]) -> None:
        """Add what the next ``len(made)`` rows of the data became.

        Raises:
            ValueError: for labels that are neither the token's id nor -100, ids that fit in no 32 bits, or other
                columns than in the rows before.
        """
        import numpy as np

        good = [row for row in made if not isinstance(row, DataError)]
        for number, row in enumerate(made, self.end + 1):
            if isinstance(row, DataError):
                self._problems.append((number, row))
            else:
                self._numbers.append(number)
        self.end += len(made)
        if not good:
            return
        lengths = np.fromiter((len(row.input_ids) for row in good), np.int64, len(good))
        ids = _joined([row.input_ids for row in good], int(lengths.sum()))
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) > 0xFFFFFFFF):
            raise ValueError(f"token ids must fit in 32 bits without sign, found {ids.min()} to {ids.max()}")
        learned = np.ones(ids.size, dtype=bool)
        if any(row.labels is not None for row in good):
            given = [row.input_ids if row.labels is None else row.labels for row in good]
            if any(len(labels) != len(row.input_ids) for row, labels in zip(good, given, strict=True)):
                raise ValueError("a row has more or fewer labels than tokens")
            labels = _joined(given, ids.size)
            learned = labels != IGNORED
            if not np.array_equal(labels[learned], ids[learned]):
                raise ValueError(f"labels must be the token's id or {IGNORED}; put other integers into columns")
        starts = np.cumsum(lengths) - lengths
        # The first token of a row follows nothing, so it is no target whatever its label says.
        follows = learned.copy()
        follows[starts[lengths > 0]] = False
        ends = np.concatenate(([0], np.cumsum(follows)))
        self._keep("lengths", lengths.astype(np.int32))
        self._keep("targets", (ends[starts + lengths] - ends[starts]).astype(np.int32))
        self._keep("ids", ids.astype(np.uint32 if ids.size and ids.max() > 0xFFFF else np.uint16))
        self._keep("learned", learned)
        self._counts += [row.counts for row in good]
        names = list(good[0].columns)
        if any(list(row.columns) != names for row in good) or (self.rows and set(names) != self._columns()):
            raise ValueError("every row must have the same columns")
        for name in names:
            values = [row.columns[name] for row in good]
            sizes = np.fromiter((len(value) for value in values), np.int64, len(values))
            self._keep(f"column-lengths/{name}", sizes.astype(np.int32))
            numbers = _joined(values, int(sizes.sum()))
            if numbers.size and max(-int(numbers.min()), int(numbers.max())) > 0x7FFFFFFF:
                raise ValueError(f"column {name!r} holds a number that fits in no 32 bits")
            self._keep(f"column/{name}", numbers.astype(np.int32))
        self.rows += len(good)
        self.tokens += ids.size

    def _columns(self) -> set[str]:
        return {name.partition("/")[2] for name in self._parts if name.startswith("column/")}

    def _keep(self, name: str, part: np.ndarray[Any, Any]) -> None:
        self._parts.setdefault(name, []).append(part)

    def write(self, folder: Path) -> Shard:
        """Write the shard: aside, flushed to disk, renamed.

        Raises:
            ArtifactError: if the disk is full or cannot be written; nothing is left behind.
        """
        arrays, header = self._contents()
        payload = 0
        table: dict[str, list[Any]] = {}
        at = 0
        for name, array in arrays.items():
            table[name] = [array.dtype.str, array.size, at]
            payload = zlib.crc32(_bytes(array), payload)
            at += -(-array.nbytes // _ALIGN) * _ALIGN
        header |= {"arrays": table, "payload_bytes": at, "payload_crc": payload}
        text = json.dumps(header, sort_keys=True).encode()
        text += b" " * (-(_HEAD.size + len(text)) % _ALIGN)
        path = shard_path(folder, self.begin)
        aside = folder / f".{path.name}.{os.getpid()}.tmp"
        with storage_errors(path, "keeping the token ids"):
            try:
                with aside.open("wb") as stream:
                    stream.write(_HEAD.pack(_MAGIC, len(text), zlib.crc32(text)))
                    stream.write(text)
                    for array in arrays.values():
                        stream.write(_bytes(array))
                        stream.write(b"\0" * (-array.nbytes % _ALIGN))
                    stream.flush()
                    os.fsync(stream.fileno())
                aside.replace(path)
            finally:
                aside.unlink(missing_ok=True)
        return Shard(path, header, _HEAD.size + len(text))

    def _contents(self) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
        import numpy as np

        arrays = {name: np.concatenate(parts) for name, parts in sorted(self._parts.items())}
        if "learned" in arrays:
            arrays["learned"] = np.packbits(arrays["learned"], bitorder="little")
        for name in ("lengths", "targets"):
            arrays.setdefault(name, np.zeros(0, dtype=np.int32))
        for name in [name for name in arrays if name.endswith("lengths") or name.startswith("column-lengths/")]:
            offsets = name.replace("lengths", "offsets")
            arrays[offsets] = np.concatenate(([0], np.cumsum(arrays[name], dtype=np.int64)))
        arrays["numbers"] = np.asarray(self._numbers, dtype=np.int64)
        names = sorted({name for counts in self._counts for name in counts})
        table = [counts.get(name, 0) for counts in self._counts for name in names]
        arrays["counts"] = np.asarray(table, dtype=np.int64)
        codes = sorted({error.code for _, error in self._problems})
        arrays["problem_numbers"] = np.asarray([number for number, _ in self._problems], dtype=np.int64)
        arrays["problem_codes"] = np.asarray([codes.index(error.code) for _, error in self._problems], dtype=np.int16)
        header = {
            "key": self.key,
            "begin": self.begin,
            "end": self.end,
            "rows": self.rows,
            "tokens": self.tokens,
            "targets": int(arrays["targets"].sum()),
            "counts": names,
            "columns": sorted(self._columns()),
            "codes": codes,
            "problems": [[number, _error_data(error)] for number, error in self._problems[:_FULL_PROBLEMS]],
        }
        return arrays, header


def _joined(values: Sequence[Any], size: int) -> np.ndarray[Any, Any]:
    import numpy as np

    if values and isinstance(values[0], np.ndarray):
        joined: np.ndarray[Any, Any] = np.concatenate(values).astype(np.int64)
        return joined
    return np.fromiter(chain.from_iterable(values), np.int64, size)


def _bytes(array: np.ndarray[Any, Any]) -> memoryview:
    return array.data.cast("B") if array.size else memoryview(b"")


def _error_data(error: DataError) -> dict[str, Any]:
    fields = error.fields()
    fields["suggestions"] = list(fields["suggestions"])
    fields["details"] = {name: value for name, value in error.details.items() if isinstance(value, _PLAIN)}
    return {"message": error.message, **fields}


class Shard:
    """A complete shard on disk. Opening one maps nothing; arrays are mapped when they are first used."""

    def __init__(self, path: Path, header: Mapping[str, Any], start: int) -> None:
        self.path = path
        self.header = header
        self.begin: int = header["begin"]
        """Rows of the data before it."""
        self.end: int = header["end"]
        """Rows of the data up to its end."""
        self.rows: int = header["rows"]
        self.tokens: int = header["tokens"]
        self._start = start
        self._map: mmap.mmap | None = None

    @classmethod
    def open(cls, path: Path, key: str) -> Shard | None:
        """The shard in ``path``, its checksum compared; None if it is damaged, cut short, or of another key."""
        try:
            with path.open("rb") as stream:
                magic, size, crc = _HEAD.unpack(stream.read(_HEAD.size))
                text = stream.read(size)
                if magic != _MAGIC or len(text) != size or zlib.crc32(text) != crc:
                    return None
                header = json.loads(text)
                if header["key"] != key or path.stat().st_size != _HEAD.size + size + header["payload_bytes"]:
                    return None
                if _payload_crc(stream, header) != header["payload_crc"]:
                    return None
        except (OSError, ValueError, KeyError, struct.error):
            return None
        return cls(path, header, _HEAD.size + size)

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """One array, memory-mapped and read-only. Names as in the header's ``arrays``."""
        import numpy as np

        kind, size, at = self.header["arrays"][name]
        if not size:
            return np.zeros(0, dtype=kind)
        if self._map is None:
            with self.path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(self._map, dtype=kind, count=size, offset=self._start + at)

    def release(self) -> None:
        """Give back the memory of pages that were read; they are read again when they are needed."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Forget the memory map. Arrays that are still in use keep it."""
        self._map = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    def labels_of(self, ids: np.ndarray[Any, Any], begin: int, end: int) -> np.ndarray[Any, Any]:
        """Labels of the shard's tokens ``begin`` to ``end``, whose ids are ``ids``."""
        import numpy as np

        packed = self.array("learned")[begin // 8 : -(-end // 8)]
        learned = np.unpackbits(packed, bitorder="little")[begin % 8 :][: end - begin]
        return np.where(learned, ids, IGNORED)

    def counts(self, rows: int) -> dict[str, int]:
        """The callers' numbers, added up over the first ``rows`` rows."""
        names = self.header["counts"]
        if not names:
            return {}
        table = self.array("counts").reshape(-1, len(names))[:rows]
        return dict(zip(names, table.sum(axis=0).tolist(), strict=True))

    def problems(self, before: int | None = None) -> tuple[dict[str, int], list[tuple[int, DataError]]]:
        """How many rows could not be used, by code; and the first hundred of them in full.

        Args:
            before: look at rows of the data below this number only.
        """
        codes: dict[str, int] = {}
        numbers, kinds = self.array("problem_numbers"), self.array("problem_codes")
        for number, kind in zip(numbers.tolist(), kinds.tolist(), strict=True):
            if before is None or number < before:
                name = self.header["codes"][kind]
                codes[name] = codes.get(name, 0) + 1
        listed = [
            (number, _error(data)) for number, data in self.header["problems"] if before is None or number < before
        ]
        return codes, listed


def _error(data: Mapping[str, Any]) -> DataError:
    fields = dict(data)
    return DataError(fields.pop("message"), **fields)


def _payload_crc(stream: Any, header: Mapping[str, Any]) -> int:
    """CRC-32 of the arrays without the gaps between them, read in pieces of bounded size."""
    import numpy as np

    start = stream.tell()
    crc = 0
    buffer = memoryview(bytearray(_CHUNK))
    for kind, size, at in sorted(header["arrays"].values(), key=lambda entry: int(entry[2])):
        stream.seek(start + at)
        left = size * np.dtype(kind).itemsize
        while left:
            got = stream.readinto(buffer[: min(left, _CHUNK)])
            if not got:
                return -1
            crc = zlib.crc32(buffer[:got], crc)
            left -= got
    return crc


def find_shards(folder: Path) -> Iterator[tuple[int, Path]]:
    """(rows before it, path) of each shard file, in order."""
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        if path.stem.isdigit():
            yield int(path.stem), path


def shard_path(folder: Path, begin: int) -> Path:
    """The file of the shard that begins after ``begin`` rows of the data."""
    return folder / f"{begin:015d}{_SUFFIX}"


def drop_leftovers(folder: Path) -> None:
    """Remove half-written shards of processes that were killed."""
    for path in folder.glob(f".*{_SUFFIX}.*.tmp"):
        path.unlink(missing_ok=True)


def last_to_leave() -> bool:
    """Whether this process removes what all share; returns when all of them are here."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        # Before the group exists nobody knows whether others still read.
        return False
    dist.barrier()
    return bool(dist.get_rank() == 0)
