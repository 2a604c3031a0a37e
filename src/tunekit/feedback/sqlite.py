"""The feedback store in one SQLite file: many write at once, and a kill loses nothing that was acknowledged."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import threading
import time
import weakref
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from tunekit.errors import ArtifactError, OptionsError
from tunekit.feedback.backends import SAME, Where, busy, check_same, other_scale, read_scale
from tunekit.feedback.entries import Entry, scale_mark
from tunekit.storage import disk_errors, free_space

__all__ = ["APPLICATION", "SqliteBackend", "is_store_file"]

APPLICATION = 0x746B6662
"""``tkfb``, the application id in the header of the file."""

VERSION = 1
_HEADER = b"SQLite format 3\x00"
_APPLICATION_AT = 68
_LONGEST_PAUSE = 0.05
_PAGE = 1000

_SCHEMA = """
CREATE TABLE records (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    micros INTEGER NOT NULL,
    prompt_key TEXT NOT NULL,
    user_hash TEXT NOT NULL,
    model_hash TEXT NOT NULL,
    source TEXT NOT NULL,
    body TEXT NOT NULL,
    checksum TEXT NOT NULL
) STRICT;
CREATE INDEX records_user ON records (user_hash);
CREATE INDEX records_time ON records (micros, id);
"""
_SETTINGS = "CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT"
_COLUMNS = "id, micros, prompt_key, user_hash, model_hash, source, body, checksum"

_Answer = TypeVar("_Answer")


def is_store_file(path: Path) -> bool:
    """Whether a file is a feedback store."""
    try:
        with path.open("rb") as file:
            head = file.read(_APPLICATION_AT + 4)
    except OSError:
        return False
    return head.startswith(_HEADER) and head[_APPLICATION_AT:] == APPLICATION.to_bytes(4, "big")


class _Forks:
    """Closes the connections of this process before it forks.

    SQLite keeps account, once a process, of which locks on a file the process holds. A child inherits the account but
    not the locks: it would write without any, and others would take away the log under it. So nothing of SQLite may be
    open across a fork (https://sqlite.org/howtocorrupt.html, section 2.6), not even for a connection that the child
    makes anew.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: weakref.WeakSet[SqliteBackend] = weakref.WeakSet()
        self._held: list[SqliteBackend] = []
        self._registered = False

    def add(self, backend: SqliteBackend) -> None:
        """From now on no connection of ``backend`` outlives a fork."""
        with self._lock:
            self._known.add(backend)
            if not self._registered and hasattr(os, "register_at_fork"):
                os.register_at_fork(before=self._before, after_in_parent=self._in_parent, after_in_child=self._in_child)
                self._registered = True

    def _before(self) -> None:
        self._lock.acquire()
        for backend in list(self._known):
            backend.hold()
            self._held.append(backend)

    def _in_parent(self) -> None:
        held, self._held = self._held, []
        for backend in held:
            backend.release()
        self._lock.release()

    def _in_child(self) -> None:
        self._held = []
        self._lock = threading.Lock()
        for backend in list(self._known):
            backend.renew()


_FORKS = _Forks()


class SqliteBackend:
    """Records in a file with a write-ahead log.

    A write is over, and acknowledged, when the log is on the disk (``synchronous=FULL``): it survives a kill of the
    process and a loss of power. Writers wait for each other up to ``timeout`` seconds.

    Args:
        path: the file; made if it is not there.
        timeout: seconds.
        durability: ``full``, or ``normal``: a loss of power may take the last records, a kill takes none.
        create: whether the file may be made.
    """

    def __init__(self, path: Path, *, timeout: float = 60.0, durability: str = "full", create: bool = True) -> None:
        if durability not in ("full", "normal"):
            raise OptionsError(
                f"durability is {durability!r}; it is 'full' or 'normal'.", code="durability", asked=repr(durability)
            )
        self.path = path
        self.timeout = timeout
        self.durability = durability
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._create_file = create
        self._pid = os.getpid()
        if path.is_dir():
            raise ArtifactError(
                f"{path} is a folder; a feedback store is a file.",
                code="not-a-store",
                fix=f'give the file a name, such as "{path / "feedback.db"}"',
            )
        if not path.parent.is_dir():
            raise ArtifactError(
                f"There is no folder {path.parent} for the feedback store.", code="missing-folder", fix="make it first"
            )
        _FORKS.add(self)
        self._run(lambda connection: None)

    @property
    def name(self) -> str:
        """For people."""
        return self.path.name

    def insert(self, entries: Sequence[Entry]) -> int:
        """Write all of them, or none. An entry that is there already stays as it is. Gives how many were not there.

        Raises:
            DataError: if another record has the id of one of them.
            ArtifactError: if the file cannot be written.
        """
        places = ", ".join("?" * 8)

        def work(connection: sqlite3.Connection) -> int:
            new = 0
            with _writing(connection):
                for entry in entries:
                    done = connection.execute(
                        f"INSERT INTO records ({_COLUMNS}) VALUES ({places}) ON CONFLICT (id) DO NOTHING", entry.row()
                    )
                    new += done.rowcount
                    if done.rowcount == 0:
                        held = connection.execute(
                            f"SELECT {', '.join(SAME)} FROM records WHERE id = ?", (entry.id,)
                        ).fetchone()
                        check_same(entry, held)
            return new

        return self._run(work)

    def read(self, where: Where) -> Iterator[Entry]:
        """The entries as of now, oldest first. What is written meanwhile is not among them, nor what is erased."""
        condition, values = where.sql("?")

        def numbers(connection: sqlite3.Connection) -> array[int]:
            found = connection.execute(f"SELECT seq FROM records {condition} ORDER BY micros, id", values)
            return array("q", (row[0] for row in found))

        # By numbers, and no cursor left open between the pages: a reader that is not finished yet must neither hold up
        # writers nor be carried over a fork.
        wanted = self._run(numbers)
        for at in range(0, len(wanted), _PAGE):
            yield from self._page(wanted[at : at + _PAGE])

    def _page(self, wanted: array[int]) -> list[Entry]:
        marks = ", ".join("?" * len(wanted))

        def work(connection: sqlite3.Connection) -> list[Entry]:
            found = connection.execute(
                f"SELECT {_COLUMNS} FROM records WHERE seq IN ({marks}) ORDER BY micros, id", list(wanted)
            )
            return [Entry(*row) for row in found]

        return self._run(work)

    def count(self, where: Where) -> int:
        """Number of entries."""
        condition, values = where.sql("?")

        def work(connection: sqlite3.Connection) -> int:
            (number,) = connection.execute(f"SELECT COUNT(*) FROM records {condition}", values).fetchone()
            return int(number)

        return self._run(work)

    def delete(self, where: Where) -> int:
        """Remove entries, and overwrite what they stood in."""
        condition, values = where.sql("?")

        def work(connection: sqlite3.Connection) -> int:
            with _writing(connection):
                return connection.execute(f"DELETE FROM records {condition}", values).rowcount

        removed = self._run(work)
        # Else the log still holds the texts. It cannot be emptied under a reader; the next checkpoint does it then.
        self._run(lambda connection: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
        return removed

    def scale(self, wanted: tuple[float, float] | None) -> tuple[float, float]:
        """The scale of ratings that name none; see :class:`Backend`."""

        def held(connection: sqlite3.Connection) -> tuple[float, float]:
            there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'settings'").fetchone()
            row = connection.execute("SELECT value FROM settings WHERE name = 'scale'").fetchone() if there else None
            return read_scale(None if row is None else row[0])

        def work(connection: sqlite3.Connection) -> tuple[float, float]:
            before = held(connection)
            if wanted is None or wanted == before:
                return before
            with _writing(connection):
                before = held(connection)
                mark = scale_mark(before)
                used = connection.execute("SELECT 1 FROM records WHERE instr(body, ?) LIMIT 1", (mark,)).fetchone()
                if used is not None and before != wanted:
                    raise other_scale(self.name, before, wanted)
                connection.execute(_SETTINGS)
                connection.execute("INSERT OR REPLACE INTO settings VALUES ('scale', ?)", (json.dumps(wanted),))
            return wanted

        return self._run(work)

    def problems(self) -> list[str]:
        """What SQLite finds wrong with its own file."""

        def work(connection: sqlite3.Connection) -> list[str]:
            found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check").fetchall()]
            return [] if found == ["ok"] else found

        return self._run(work)

    def close(self) -> None:
        """Close the connection of this process. The next call opens one again."""
        with self._lock:
            if self._pid == os.getpid():
                self._close()

    # Over a fork.

    def hold(self) -> None:
        """Wait until no thread is at work, let none begin, and leave nothing open."""
        self._lock.acquire()
        with contextlib.suppress(sqlite3.Error):
            if self._pid == os.getpid():
                self._close()

    def release(self) -> None:
        """Go on, in the process that has forked."""
        self._lock.release()

    def renew(self) -> None:
        """Go on, in the process that was forked; with an error, where the fork came past :meth:`hold`."""
        self._lock = threading.RLock()
        if self._connection is None:
            self._pid = os.getpid()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # One connection a process, and patience.

    def _run(self, work: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        """Do some work, again while others hold the file."""
        until = time.monotonic() + self.timeout
        pause = 0.001
        while True:
            try:
                with self._lock:
                    if self._pid != os.getpid():
                        self._adopt()
                    if self._connection is None:
                        self._connection = self._connect()
                    self._check_file()
                    with self._errors("writing"):
                        answer = work(self._connection)
                    self._check_file()  # else what was written now may have gone with the file
                    return answer
            except _Busy:
                if time.monotonic() > until:
                    raise busy(self.name, self.timeout) from None
            # Pauses of random length: those of SQLite's own handler let the same writers lose again and again.
            time.sleep(pause * random.random())
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _adopt(self) -> None:
        if self._connection is not None:
            raise ArtifactError(
                f"The feedback store {self.name} was open while this process was forked past Python.",
                code="forked-store",
                found="a connection of the parent process; to write through it, or beside it, would lose records",
                fix="close() the store before the server forks, or open it in the workers (uWSGI: lazy-apps = true)",
            )
        self._pid = os.getpid()

    def _check_file(self) -> None:
        found = _file_id(self.path)
        if found != self._file:
            raise ArtifactError(
                f"The file of the feedback store {self.name} was "
                f"{'removed' if found is None else 'replaced by another one'} while it was open.",
                code="store-moved",
                found=f"{self.path}: {'no file' if found is None else 'another file'}; what was written before went "
                "with the one that was there",
                fix="put the file back, or close() the store to go on with what is at the path now",
                details={"path": str(self.path)},
            )

    def _connect(self) -> sqlite3.Connection:
        if not self._create_file and not self.path.is_file():
            raise ArtifactError(f"There is no feedback store {self.path}.", code="missing-store", fix="check the path")
        with self._errors("opening"):
            connection = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            with self._errors("opening"):
                self._prepare(connection)
            self._file = _file_id(self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if application != APPLICATION:
            self._create(connection)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise ArtifactError(
                f"The feedback store {self.name} was written by a newer tunekit.",
                code="newer-store",
                found=f"version {version}; this tunekit knows {VERSION}",
                fix="pip install -U tunekit",
            )
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise ArtifactError(
                f"The file system of {self.path} cannot hold a write-ahead log.",
                code="no-wal",
                found=f"journal mode {mode}",
                fix="put the store on a local disk, or use PostgreSQL",
            )
        connection.execute(f"PRAGMA synchronous={self.durability.upper()}")
        connection.execute("PRAGMA secure_delete=ON")

    def _create(self, connection: sqlite3.Connection) -> None:
        with _writing(connection):
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            if application == APPLICATION:  # another process was faster
                return
            (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            if tables or application:
                raise ArtifactError(
                    f"{self.path} is the database of another program.",
                    code="foreign-database",
                    found=f"{tables} tables or indices, none of a feedback store",
                    fix="give the feedback a file of its own",
                )
            for statement in _SCHEMA.split(";"):
                if statement.strip():
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id={APPLICATION}")
            connection.execute(f"PRAGMA user_version={VERSION}")

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            with disk_errors(self.path, f"{doing} the feedback store {self.name}"):
                yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise _Busy from error
            raise self._translated(error, code, doing) from error

    def _translated(self, error: sqlite3.Error, code: int, doing: str) -> ArtifactError:
        name, fix = {
            sqlite3.SQLITE_FULL: ("disk-full", "free some space; what was acknowledged is safe"),
            sqlite3.SQLITE_READONLY: ("not-writable", "give write permission to the file and its folder"),
            sqlite3.SQLITE_CANTOPEN: ("not-writable", "give write permission to the file and its folder"),
            sqlite3.SQLITE_NOTADB: ("not-a-store", "give the path of a feedback store, or of a file to be made"),
            sqlite3.SQLITE_CORRUPT: ("damaged-store", "restore a backup; sqlite3's .recover may save the rest"),
            sqlite3.SQLITE_IOERR: ("disk-error", "look at the disk; what was acknowledged before is in the file"),
        }.get(code, ("feedback-store", ""))
        free = free_space(self.path)
        room = "" if free is None else f" ({free / 1e6:,.0f} MB free)"
        return ArtifactError(
            f"Failed {doing} the feedback store {self.name}: {error}.",
            code=name,
            found=f"{self.path}{room}",
            fix=fix,
            details={"path": str(self.path)},
        )


def _file_id(path: Path) -> tuple[int, int] | None:
    """What a path leads to, whatever its name; None without a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class _Busy(Exception):
    """Another process holds the file."""


@contextlib.contextmanager
def _writing(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that is the only one to write from its first statement on."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
