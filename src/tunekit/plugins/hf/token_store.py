"""Token rows on disk: tokenized once, continued after a kill, shared by every step that asks for the same."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.errors import ArtifactError, DataError
from tunekit.plan import digest
from tunekit.plugins.hf.token_shards import (
    Shard,
    ShardWriter,
    TokenRow,
    drop_leftovers,
    find_shards,
    last_to_leave,
    shard_path,
)
from tunekit.storage import disk_errors, folder_digest, write_json

if TYPE_CHECKING:
    import numpy as np

    from tunekit.context import StepContext

__all__ = ["TokenStore", "token_key", "tokenizer_fingerprint"]

_VERSION = 1
"""Part of every folder name; raised when the same rows would be stored otherwise."""

_SHARD_ROWS = 1 << 14
_SHARD_TOKENS = 1 << 22
_BATCH_CHARACTERS = 1 << 22
_SAY_EVERY = 0.5
_OPEN_SHARDS = 64
_RELEASE_BYTES = 1 << 26
_LISTED = 100

Encode = Callable[[list[Any]], Sequence[TokenRow | DataError]]


class TokenStore:
    """Rows of token ids and labels, read from disk by memory map; :meth:`build` makes one.

    ``store[i]`` is a mapping with ``input_ids`` and ``labels`` (int64 arrays of the row's length; labels are the id or
    -100, not shifted) and one array per further column. Rows are in the order of the data, without those that could
    not be used. Reading a row costs some microseconds, in any order, and the memory of pages that were read is given
    back. Pickles as its paths, for the workers of a ``DataLoader``.

    Attributes:
        facts: JSON types: ``rows``, ``tokens``, ``targets`` (labels that are learned; the first token of a row never
            is), ``longest`` (tokens), ``problems`` (rows that could not be used, by error code), and every number of
            ``TokenRow.counts`` added up.
        problems: (1-based row of the data, error) of the first hundred rows that could not be used.
        encoded: rows that this call of :meth:`build` tokenized; 0 if everything was there.
        complete: whether the rows are all that the data has, and not the first ones up to a limit.
        folder: where the shards are.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], rows: int, *, complete: bool, encoded: int = 0) -> None:
        self.folder = folder
        self.encoded = encoded
        self._shards = [shard for shard in shards if shard.rows]
        self._first: list[int] = []
        kept = 0
        for shard in self._shards:
            self._first.append(kept)
            kept += shard.rows
        self._rows = min(rows, kept)
        self.complete = complete and self._rows == kept
        self.lengths: np.ndarray[Any, Any] = _column(self._shards, "lengths")[: self._rows]
        """Tokens of each row, int32."""
        self._first_token = [0]
        for shard in self._shards:
            self._first_token.append(self._first_token[-1] + shard.tokens)
        self._recent: OrderedDict[int, Shard] = OrderedDict()
        self._read = 0
        self.facts, self.problems = self._summary(shards, all_rows=self._rows == kept)

    def _summary(
        self, shards: Sequence[Shard], *, all_rows: bool
    ) -> tuple[dict[str, Any], list[tuple[int, DataError]]]:
        before = None if all_rows or not self._rows else self.number(self._rows - 1)
        counts: dict[str, int] = {}
        codes: dict[str, int] = {}
        listed: list[tuple[int, DataError]] = []
        rows = self._rows
        for shard in shards:
            _add(counts, shard.counts(rows))
            some, problems = shard.problems(before)
            _add(codes, some)
            listed += problems[: _LISTED - len(listed)]
            rows = max(0, rows - shard.rows)
            shard.close()
        facts = {
            **counts,
            "rows": self._rows,
            "tokens": int(self.lengths.sum()),
            "targets": int(self.targets.sum()),
            "longest": int(self.lengths.max(initial=0)),
            "problems": codes,
        }
        return facts, listed

    @property
    def targets(self) -> np.ndarray[Any, Any]:
        """Learned tokens of each row, int32; the first token of a row is never one."""
        return _column(self._shards, "targets")[: self._rows]

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> dict[str, np.ndarray[Any, Any]]:
        import numpy as np

        shard, at = self._locate(index)
        offsets = shard.array("offsets")
        begin, end = int(offsets[at]), int(offsets[at + 1])
        ids = shard.array("ids")[begin:end].astype(np.int64)
        row = {"input_ids": ids, "labels": shard.labels_of(ids, begin, end)}
        for name in shard.header["columns"]:
            borders = shard.array(f"column-offsets/{name}")
            row[name] = shard.array(f"column/{name}")[borders[at] : borders[at + 1]].astype(np.int64)
        self._note_read(end - begin)
        return row

    def __iter__(self) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        return (self[index] for index in range(self._rows))

    def number(self, index: int) -> int:
        """1-based number of the data's row that row ``index`` comes from."""
        shard, at = self._locate(index)
        return int(shard.array("numbers")[at])

    def tokens(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        """Tokens ``begin`` to ``end`` of all rows one after the other, int64. Ends where the store ends."""
        import numpy as np

        end = min(end, self.facts["tokens"])
        pieces: list[np.ndarray[Any, Any]] = [np.zeros(0, dtype=np.int64)]
        which = bisect_right(self._first_token, begin) - 1
        while begin < end:
            first, last = self._first_token[which], self._first_token[which + 1]
            shard = self._use(which)
            pieces.append(shard.array("ids")[begin - first : min(end, last) - first].astype(np.int64))
            self._note_read(min(end, last) - begin)
            begin, which = min(end, last), which + 1
        return np.concatenate(pieces)

    def discard(self) -> None:
        """Remove the files if they are in a step's own folder; those in the shared cache stay for others.

        In a group of processes all call it; the files go when the last one has.
        """
        if self.folder.parent.name == _OWN:
            for shard in self._shards:
                shard.close()
            if not last_to_leave():
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.folder.parent.rmdir()

    def _locate(self, index: int) -> tuple[Shard, int]:
        if index < 0:
            index += self._rows
        if not 0 <= index < self._rows:
            raise IndexError(f"row {index} of {self._rows}")
        which = bisect_right(self._first, index) - 1
        return self._use(which), index - self._first[which]

    def _use(self, which: int) -> Shard:
        shard = self._shards[which]
        self._recent[which] = shard
        self._recent.move_to_end(which)
        if len(self._recent) > _OPEN_SHARDS:
            self._recent.popitem(last=False)[1].close()
        return shard

    def _note_read(self, tokens: int) -> None:
        # A read touches whole pages of the ids, the labels and the offsets.
        self._read += 2 * tokens + 12288
        if self._read > _RELEASE_BYTES:
            self._read = 0
            for shard in self._recent.values():
                shard.release()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_recent": OrderedDict()}

    @classmethod
    def build(
        cls,
        ctx: StepContext,
        name: str,
        rows: Iterable[Any],
        encode: Encode,
        *,
        key: str,
        limit: int | None = None,
        limit_tokens: int | None = None,
        batch: int = 256,
        total: int | None = None,
        on_problem: Callable[[int, DataError], None] | None = None,
        shard_rows: int = _SHARD_ROWS,
        shard_tokens: int = _SHARD_TOKENS,
    ) -> TokenStore:
        """Tokenize ``rows``, or take what is there already.

        Complete shards of the same ``key`` in ``ctx.cache`` (or, without one, in ``ctx.dir``) are used whoever wrote
        them; if they hold enough, ``rows`` is not even started. After a kill, or when a limit was raised, the rows
        before are read again but not tokenized again. A damaged shard is replaced. Two processes that want the same
        take turns: the second finds the work done.

        Args:
            ctx: the step's context, for its folder, its cancel token and its progress.
            name: for people and for the folder, such as ``train``.
            rows: the data's rows, in an order that depends on ``key`` alone.
            encode: tokenizes a list of rows: one result per row, a ``DataError`` where a row cannot be used.
            key: all that the result depends on, as :func:`token_key` makes it.
            limit: use the first rows only: this many, rows that cannot be used not counted.
            limit_tokens: use the first rows only: as many as hold this many tokens.
            batch: rows that ``encode`` gets at a time; fewer when they are very long.
            total: rows there are, for the progress bar.
            on_problem: called with the 1-based number of the row and its error, when it is found, and again (for the
                first hundred) when the store is used again. It raises to stop. None: the error is raised.
            shard_rows: rows of the data in one file.
            shard_tokens: tokens after which a file is full.

        Raises:
            DataError: whatever ``encode`` or ``on_problem`` raises.
            RunCancelled: after a cancel; complete shards are kept.
            ArtifactError: if the disk is full or cannot be written; or ``data-changed`` if ``rows`` are fewer than
                they were.
        """
        folder = _folder(ctx, name, key)
        wanted = _Wanted(limit, limit_tokens)
        known = _Known(folder, key)
        found = known.find(wanted)
        fresh = 0
        if found is None:
            with disk_errors(folder, "keeping the token ids"):
                folder.mkdir(parents=True, exist_ok=True)
            with _locked(ctx, folder):
                work = _Build(ctx, known, wanted, encode, on_problem, batch, shard_rows, shard_tokens)
                found = work.run(rows, total)
                fresh = work.encoded
        shards, complete = found
        store = cls(folder, shards, wanted.rows_of(shards), complete=complete, encoded=fresh)
        if not fresh:
            for number, error in store.problems:
                _judge(on_problem, number, error)
        return store


_OWN = "tokens.own"


def _folder(ctx: StepContext, name: str, key: str) -> Path:
    cache = getattr(ctx, "cache", None)
    short = digest([_VERSION, name, key])[:24]
    return (ctx.dir / _OWN if cache is None else cache / "tokens") / f"{name}-{short}"


def _column(shards: Sequence[Shard], name: str) -> np.ndarray[Any, Any]:
    """An int32 array of all shards, copied; none stays mapped."""
    import numpy as np

    pieces = [np.zeros(0, dtype=np.int32)]
    for shard in shards:
        pieces.append(np.array(shard.array(name)))
        shard.close()
    return np.concatenate(pieces)


def _add(into: dict[str, int], more: Mapping[str, int]) -> None:
    for name, value in more.items():
        into[name] = into.get(name, 0) + value


def _judge(on_problem: Callable[[int, DataError], None] | None, number: int, error: DataError) -> None:
    if on_problem is None:
        raise error
    on_problem(number, error)


class _Wanted:
    """How much of the data is asked for."""

    def __init__(self, rows: int | None, tokens: int | None) -> None:
        if (rows is not None and rows < 1) or (tokens is not None and tokens < 1):
            raise ValueError("a limit must be at least 1")
        self.rows = rows
        self.tokens = tokens

    def enough(self, rows: int, tokens: int) -> bool:
        return (self.rows is not None and rows >= self.rows) or (self.tokens is not None and tokens >= self.tokens)

    def rows_of(self, shards: Sequence[Shard]) -> int:
        """Rows of the shards that are asked for."""
        import numpy as np

        rows = sum(shard.rows for shard in shards)
        if self.rows is not None:
            rows = min(rows, self.rows)
        if self.tokens is not None:
            sums = np.cumsum(_column(shards, "lengths"), dtype=np.int64)
            enough = int(np.searchsorted(sums, self.tokens)) + 1
            rows = min(rows, enough)
        return rows


class _Known:
    """The shards in a folder. The bytes of each are compared with its checksum once."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key
        self._good: dict[int, tuple[tuple[int, int], Shard]] = {}

    def begins(self) -> list[int]:
        """Where the files that are there begin, in rows of the data."""
        return [begin for begin, _ in find_shards(self.folder)]

    def open(self, begin: int) -> Shard | None:
        """The shard that begins at this row, if it is there and whole."""
        path = shard_path(self.folder, begin)
        try:
            state = path.stat()
        except OSError:
            return None
        stamp = (state.st_ino, state.st_mtime_ns)
        if begin in self._good and self._good[begin][0] == stamp:
            return self._good[begin][1]
        shard = Shard.open(path, self.key)
        if shard is None or shard.begin != begin or shard.end <= begin:
            return None
        self._good[begin] = (stamp, shard)
        return shard

    def end(self) -> int | None:
        """Rows that the data have, if a build came to their end."""
        try:
            return int(json.loads((self.folder / "end.json").read_text(encoding="utf-8"))["rows"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def find(self, wanted: _Wanted) -> tuple[list[Shard], bool] | None:
        """The shards from the first on, and whether they are all; None if they do not reach as far as is asked."""
        shards: list[Shard] = []
        rows = tokens = at = 0
        end = self.end()
        while at != end and not wanted.enough(rows, tokens):
            shard = self.open(at)
            if shard is None:
                return None
            shards.append(shard)
            rows, tokens, at = rows + shard.rows, tokens + shard.tokens, shard.end
        return shards, at == end


@contextlib.contextmanager
def _locked(ctx: StepContext, folder: Path) -> Iterator[None]:
    """Hold the folder; waits for another process that builds the same, and can be cancelled meanwhile."""
    import filelock

    lock = filelock.FileLock(folder / ".lock")
    while True:
        ctx.cancel.raise_if_cancelled()
        with disk_errors(folder, "locking the token ids"):
            try:
                lock.acquire(timeout=0.5)
                break
            except filelock.Timeout:
                pass
        ctx.progress(0, None, "rows", "waiting for another process that tokenizes the same")
    try:
        yield
    finally:
        lock.release()


class _Build:
    """One pass over the data that fills what is missing."""

    def __init__(
        self,
        ctx: StepContext,
        known: _Known,
        wanted: _Wanted,
        encode: Encode,
        on_problem: Callable[[int, DataError], None] | None,
        batch: int,
        shard_rows: int,
        shard_tokens: int,
    ) -> None:
        self.ctx = ctx
        self.known = known
        self.folder = known.folder
        self.wanted = wanted
        self.encode = encode
        self.on_problem = on_problem
        self.batch = batch
        self.shard_rows = shard_rows
        self.shard_tokens = shard_tokens
        self.encoded = 0
        self._given = 0
        self._kept = 0
        self._tokens = 0
        self._total: int | None = None
        self._said = 0.0

    def run(self, rows: Iterable[Any], total: int | None) -> tuple[list[Shard], bool]:
        """The shards that are asked for, and whether they are all."""
        done = self.known.find(self.wanted)  # another process may have been here meanwhile
        if done is not None:
            return done
        drop_leftovers(self.folder)
        self._total = total if self.wanted.rows is None else min(total or self.wanted.rows, self.wanted.rows)
        begins = self.known.begins()
        source = iter(rows)
        end = self.known.end()
        shards: list[Shard] = []
        at = 0
        while not self.wanted.enough(self._kept, self._tokens):
            shard = self.known.open(at)
            if shard is None:
                until = min((begin for begin in begins if begin > at), default=None)
                shard = self._shard(source, at, until)
                if shard is None:
                    if end != at:
                        write_json(self.folder / "end.json", {"rows": at})
                    self._say(at, last=True)
                    return shards, True
            else:
                for number, error in shard.problems()[1]:
                    _judge(self.on_problem, number, error)
            shards.append(shard)
            self._kept, self._tokens, at = self._kept + shard.rows, self._tokens + shard.tokens, shard.end
            if at == end:
                return shards, True
        self._say(self._kept, last=True)
        return shards, False

    def _shard(self, source: Iterator[Any], begin: int, until: int | None) -> Shard | None:
        """Write the shard that begins at row ``begin`` and ends before row ``until``; None if there are no rows."""
        skip = begin - self._given
        while skip:
            self.ctx.cancel.raise_if_cancelled()
            got = sum(1 for _ in islice(source, min(skip, 1000)))
            if not got:
                raise ArtifactError(
                    f"The data have {self._given} rows now; {begin} of them were tokenized before.",
                    code="data-changed",
                    fix="do not change the data while a run reads them",
                    details={"path": str(self.folder)},
                )
            self._given += got
            skip -= got
        writer = ShardWriter(begin, self.known.key)
        while not self._full(writer, until):
            self.ctx.cancel.raise_if_cancelled()
            batch = self._batch(source, writer, until)
            if not batch:
                break
            self._given += len(batch)
            made = self.encode(batch)
            if len(made) != len(batch):
                raise ValueError(f"the encoder made {len(made)} results of {len(batch)} rows")
            for number, result in enumerate(made, writer.end + 1):
                if isinstance(result, DataError):
                    _judge(self.on_problem, number, result)
            writer.add(made)
            self.encoded += len(batch)
            self._say(writer.end if self.wanted.rows is None else self._kept + writer.rows)
        if writer.end == begin:
            return None
        with disk_errors(self.folder, "keeping the token ids"):
            return writer.write(self.folder)

    def _full(self, writer: ShardWriter, until: int | None) -> bool:
        if self.wanted.enough(self._kept + writer.rows, self._tokens + writer.tokens):
            return True
        if until is not None and writer.end >= until:
            return True
        return writer.end - writer.begin >= self.shard_rows or writer.tokens >= self.shard_tokens

    def _batch(self, source: Iterator[Any], writer: ShardWriter, until: int | None) -> list[Any]:
        most = min(self.batch, self.shard_rows - (writer.end - writer.begin))
        if until is not None:
            most = min(most, until - writer.end)
        if self.wanted.rows is not None:
            most = min(most, self.wanted.rows - self._kept - writer.rows)
        batch: list[Any] = []
        size = 0
        for row in islice(source, most):
            batch.append(row)
            size += _characters(row)
            if size >= _BATCH_CHARACTERS:
                break
        return batch

    def _say(self, done: int, *, last: bool = False) -> None:
        now = time.monotonic()
        if last or now - self._said >= _SAY_EVERY:
            self._said = now
            self.ctx.progress(done, done if last else self._total, "rows", "tokenizing")


def _characters(value: Any) -> int:
    """About how much text is in a row."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_characters, value))
    return 1


def token_key(data: str, tokenizer: Any, settings: Mapping[str, Any]) -> str:
    """A key for :meth:`TokenStore.build`.

    Args:
        data: fingerprint of the data: ``ctx.data.fingerprint()``.
        tokenizer: a ``transformers`` tokenizer; see :func:`tokenizer_fingerprint`.
        settings: JSON types: everything else that decides about the rows, such as the length limit and a version of
            the encoder.
    """
    return digest({"data": data, "tokenizer": tokenizer_fingerprint(tokenizer), "settings": dict(settings)})


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 (hex) over all that decides which ids a text becomes.

    That is: the vocabulary, merges, normalizer and the like, added and special tokens, the chat template and what it
    makes of a fixed conversation (it may write the date), whether the begin and end tokens are added, and the versions
    of ``transformers`` and ``tokenizers``. Where it was loaded from, and truncation and padding of earlier calls, do
    not count.
    """
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in ("transformers", "tokenizers"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    special = getattr(tokenizer, "special_tokens_map", {})
    return digest(
        {
            "class": type(tokenizer).__name__,
            "content": _tokenizer_content(tokenizer),
            "template": getattr(tokenizer, "chat_template", None),
            "rendered": _rendered_probe(tokenizer),
            "special": json.loads(json.dumps(dict(special), default=str, sort_keys=True)),
            "flags": {
                name: getattr(tokenizer, name, None)
                for name in ("add_bos_token", "add_eos_token", "add_prefix_space", "split_special_tokens")
            },
            "versions": versions,
        }
    )


def _rendered_probe(tokenizer: Any) -> str | None:
    """A fixed conversation as the template renders it now: a template may write today's date."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        return str(tokenizer.apply_chat_template(talk, tokenize=False))
    except Exception:  # noqa: BLE001  (a template raises what it likes)
        return None


def _tokenizer_content(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "to_str"):
        content = json.loads(backend.to_str())
        # What the last call asked for, and no part of the tokenizer.
        content.pop("truncation", None)
        content.pop("padding", None)
        return digest(content)
    if hasattr(tokenizer, "save_pretrained"):
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            return folder_digest(Path(folder))
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else repr(tokenizer)
    return digest(vocabulary)
