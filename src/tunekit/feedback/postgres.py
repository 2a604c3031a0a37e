"""The feedback store in PostgreSQL, through SQLAlchemy."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from tunekit.errors import ArtifactError, MissingDependencyError, OptionsError
from tunekit.feedback.backends import SAME, Where, check_same, other_scale, read_scale
from tunekit.feedback.entries import Entry, scale_mark

__all__ = ["INSTALL", "PostgresBackend"]

INSTALL = 'pip install "tunekit[postgres]"'
VERSION = 1
_TABLE = "tunekit_feedback"
_SETTINGS = "tunekit_feedback_settings"
_LOCK = 0x746B6662
_PAGE = 1000
_COLUMNS = ("id", "micros", "prompt_key", "user_hash", "model_hash", "source", "body", "checksum")
_TRIES = 5

_SCHEMA = (
    f"""CREATE TABLE IF NOT EXISTS {_TABLE} (
        seq BIGSERIAL PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        micros BIGINT NOT NULL,
        prompt_key TEXT NOT NULL,
        user_hash TEXT NOT NULL,
        model_hash TEXT NOT NULL,
        source TEXT NOT NULL,
        body TEXT NOT NULL,
        checksum TEXT NOT NULL
    )""",
    f"CREATE INDEX IF NOT EXISTS {_TABLE}_user ON {_TABLE} (user_hash)",
    f"CREATE INDEX IF NOT EXISTS {_TABLE}_time ON {_TABLE} (micros)",
    f"COMMENT ON TABLE {_TABLE} IS 'tunekit feedback store, version {VERSION}'",
)

_Answer = TypeVar("_Answer")


class PostgresBackend:
    """Records in the table ``tunekit_feedback``, which is made if it is not there.

    Writes are acknowledged when the server has committed them. A lost connection is made anew, and the write is sent
    again: records have ids, so that none comes twice.

    Args:
        url: ``postgresql://user@host/database``, the password from ``PGPASSWORD`` or ``~/.pgpass``; a driver may be
            named (``postgresql+psycopg2://``).
        timeout: seconds to wait for a connection.

    Raises:
        MissingDependencyError: without SQLAlchemy or the driver.
        ArtifactError: if the server cannot be reached, or the table cannot be made.
    """

    def __init__(self, url: str, *, timeout: float = 60.0) -> None:
        sqlalchemy = _sqlalchemy()
        try:
            parsed = sqlalchemy.engine.make_url(url)
        except sqlalchemy.exc.ArgumentError as error:
            raise OptionsError("The URL of the feedback store cannot be read.", code="store-url") from error
        if parsed.get_backend_name() not in ("postgresql", "postgres"):
            raise OptionsError(
                f"A feedback store cannot be kept in {parsed.get_backend_name()!r}.",
                code="store-url",
                fix="use a file name (SQLite), or postgresql://user@host/database",
            )
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        self._url = parsed
        self._timeout = timeout
        self._sql = sqlalchemy
        self._pid = os.getpid()
        self._engine = self._connected()
        self._prepare()

    @property
    def name(self) -> str:
        """The URL without the password, and without options, which may hold one."""
        shown: str = self._url.set(drivername="postgresql", query={}).render_as_string(hide_password=True)
        return shown

    def insert(self, entries: Sequence[Entry]) -> int:
        """Write all of them, or none. Raises as the SQLite store does."""
        marks = ", ".join(f":{column}" for column in _COLUMNS)
        add = self._sql.text(
            f"INSERT INTO {_TABLE} ({', '.join(_COLUMNS)}) VALUES ({marks}) ON CONFLICT (id) DO NOTHING RETURNING id"
        )
        look = self._sql.text(f"SELECT {', '.join(SAME)} FROM {_TABLE} WHERE id = :id")

        def work(connection: Any) -> int:
            new = len(entries)
            # In one order, so that two writers of the same ids do not wait for each other for ever.
            for entry in sorted(entries, key=lambda entry: entry.id):
                values = dict(zip(_COLUMNS, entry.row(), strict=True))
                if connection.execute(add, values).first() is None:
                    new -= 1
                    held = connection.execute(look, {"id": entry.id}).first()
                    if held is not None:
                        check_same(entry, held)
            return new

        return self._run(work, "writing")

    def read(self, where: Where) -> Iterator[Entry]:
        """The entries as of now, oldest first. What is written meanwhile is not among them, nor what is erased."""
        order = ' ORDER BY micros, id COLLATE "C"'
        statement, values = self._statement(f"SELECT seq FROM {_TABLE} ", where, order)
        # By numbers, and no cursor left open between the pages: none is carried over a fork, and the rows may be more
        # than fit into memory.
        wanted = self._run(
            lambda connection: array("q", (row[0] for row in connection.execute(statement, values))), "reading"
        )
        listed = self._sql.bindparam("wanted", expanding=True)
        page = self._sql.text(
            f"SELECT {', '.join(_COLUMNS)} FROM {_TABLE} WHERE seq IN :wanted {order}"
        ).bindparams(listed)  # fmt: skip

        def work(connection: Any) -> list[Entry]:
            return [Entry(*row) for row in connection.execute(page, {"wanted": part})]

        for at in range(0, len(wanted), _PAGE):
            part = list(wanted[at : at + _PAGE])
            yield from self._run(work, "reading")

    def count(self, where: Where) -> int:
        """Number of entries."""
        statement, values = self._statement(f"SELECT COUNT(*) FROM {_TABLE} ", where)
        return int(self._run(lambda connection: connection.execute(statement, values).scalar_one(), "reading"))

    def delete(self, where: Where) -> int:
        """Remove entries. The server frees their space at its next vacuum."""
        statement, values = self._statement(f"DELETE FROM {_TABLE} ", where)
        return int(self._run(lambda connection: connection.execute(statement, values).rowcount, "writing"))

    def scale(self, wanted: tuple[float, float] | None) -> tuple[float, float]:
        """The scale of ratings that name none; see :class:`Backend`."""
        sql = self._sql.text

        def held(connection: Any) -> tuple[float, float]:
            if connection.execute(sql("SELECT to_regclass(:table)"), {"table": _SETTINGS}).scalar_one() is None:
                return read_scale(None)
            return read_scale(
                connection.execute(sql(f"SELECT value FROM {_SETTINGS} WHERE name = 'scale'")).scalar_one_or_none()
            )

        def work(connection: Any) -> tuple[float, float]:
            before = held(connection)
            if wanted is None or wanted == before:
                return before
            connection.execute(sql("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            before = held(connection)
            on_it = sql(f"SELECT 1 FROM {_TABLE} WHERE strpos(body, :mark) > 0 LIMIT 1")
            if before != wanted and connection.execute(on_it, {"mark": scale_mark(before)}).first() is not None:
                raise other_scale(self.name, before, wanted)
            connection.execute(
                sql(f"CREATE TABLE IF NOT EXISTS {_SETTINGS} (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
            )
            keep = f"INSERT INTO {_SETTINGS} VALUES ('scale', :value) ON CONFLICT (name) DO UPDATE SET value = :value"
            connection.execute(sql(keep), {"value": json.dumps(wanted)})
            return wanted

        return self._run(work, "opening")

    def problems(self) -> list[str]:
        """Nothing: the server checks its own pages."""
        return []

    def close(self) -> None:
        """Give the connections of this process back."""
        self._current().dispose()

    def _statement(self, query: str, where: Where, after: str = "") -> tuple[Any, dict[str, Any]]:
        condition, listed = where.sql("\0")
        names = [f"value_{number}" for number in range(len(listed))]
        for name in names:
            condition = condition.replace("\0", f":{name}", 1)
        return self._sql.text(query + condition + after), dict(zip(names, listed, strict=True))

    def _connected(self) -> Any:
        try:
            return self._sql.create_engine(
                self._url, pool_pre_ping=True, pool_timeout=self._timeout, connect_args={"connect_timeout": 10}
            )
        except ImportError as error:
            raise MissingDependencyError(
                f"The driver {self._url.get_driver_name()} for PostgreSQL is not installed.",
                asked=self.name,
                fix=INSTALL,
                details={"requirements": ["psycopg[binary]>=3.2"]},
            ) from error

    def _current(self) -> Any:
        if self._pid != os.getpid():
            self._engine.dispose(close=False)  # the connections belong to the process that this one was forked from
            self._pid = os.getpid()
        return self._engine

    def _prepare(self) -> None:
        def work(connection: Any) -> None:
            found = connection.execute(
                self._sql.text("SELECT obj_description(to_regclass(:table), 'pg_class'), to_regclass(:table)::text"),
                {"table": _TABLE},
            ).one()
            if found[1] is not None:
                self._check_version(found[0])
                return
            # CREATE TABLE IF NOT EXISTS of two sessions at once fails in one of them.
            connection.execute(self._sql.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            for statement in _SCHEMA:
                connection.execute(self._sql.text(statement))

        self._run(work, "opening")

    def _check_version(self, comment: str | None) -> None:
        known = f"tunekit feedback store, version {VERSION}"
        if comment != known:
            raise ArtifactError(
                f"The table {_TABLE} in {self.name} is no feedback store that this tunekit knows.",
                code="foreign-database",
                found=comment or "a table of that name without tunekit's comment",
                fix=f"expected {known!r}: update tunekit, or give the feedback a database or schema of its own",
            )

    def _run(self, work: Callable[[Any], _Answer], doing: str) -> _Answer:
        for number in range(_TRIES):
            try:
                with self._errors(doing), self._current().begin() as connection:
                    return work(connection)
            except _Again as again:
                if number == _TRIES - 1:
                    raise self._error(again.error, doing) from again.error
                time.sleep(0.05 * 2**number)
        raise AssertionError

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except self._sql.exc.DBAPIError as error:
            # Serialisation failures, deadlocks and lost connections: the same again may well work.
            state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None) or ""
            lost = error.connection_invalidated or isinstance(error, self._sql.exc.OperationalError)
            if state.startswith("40") or (lost and doing != "opening"):
                raise _Again(error) from error
            raise self._error(error, doing) from error
        except self._sql.exc.SQLAlchemyError as error:
            raise self._error(error, doing) from error

    def _error(self, error: Exception, doing: str) -> ArtifactError:
        text = str(getattr(error, "orig", None) or error)
        if self._url.password:
            text = text.replace(str(self._url.password), "***")
        reason = text.strip().splitlines()
        return ArtifactError(
            f"Failed {doing} the feedback store {self.name}.",
            code="feedback-store",
            found=reason[0][:300] if reason else type(error).__name__,
            fix="see whether the server runs and the user may create and use a table in the database",
        )


class _Again(Exception):
    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _sqlalchemy() -> Any:
    try:
        importlib.import_module("sqlalchemy.exc")
        return importlib.import_module("sqlalchemy")
    except ImportError as error:
        raise MissingDependencyError(
            "A feedback store in PostgreSQL needs the package SQLAlchemy.",
            fix=INSTALL,
            details={"requirements": ["sqlalchemy>=2,<3", "psycopg[binary]>=3.2"]},
        ) from error
