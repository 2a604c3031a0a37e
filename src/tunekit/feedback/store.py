"""The store that an application calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit._secrets import refuse_passwords
from tunekit.errors import DataError, OptionsError
from tunekit.feedback.backends import Backend, Where
from tunekit.feedback.entries import Entry, is_whole, make_entry, read_record
from tunekit.feedback.records import (
    Record,
    Text,
    as_micros,
    check_fields,
    checked_scale,
    make_record,
    redacted,
    shown,
)
from tunekit.feedback.views import Judgements, Time

if TYPE_CHECKING:
    from tunekit.feedback.importers import Imported

__all__ = ["FeedbackStore", "is_feedback", "opened"]

_SCHEMES = ("postgresql://", "postgres://", "postgresql+")
_FILE = "sqlite:///"
_SUFFIXES = (".db", ".sqlite", ".sqlite3")
_BATCH = 500


class FeedbackStore(Judgements):
    """Judgements in a file or a database; many processes and threads may write and read at once.

    Args:
        where: a file name (SQLite; made if it is not there), ``sqlite:///name``, or ``postgresql://user@host/database``
            (the password from ``PGPASSWORD`` or ``~/.pgpass``; needs ``tunekit[postgres]``; the table
            ``tunekit_feedback`` is made).
        scale: lowest and highest rating, for records that name no other. The store keeps it: leave it out when the
            store is opened again. Default: that of the store, 1 to 5 for a new one.
        redact: what texts pass before they are written: text to text, such as :func:`redact_pii`. It sees prompts,
            answers, edits, tool calls and the texts in ``meta``.
        timeout: seconds to wait for other writers.
        durability: for a file: ``full``: an acknowledged record survives a loss of power; ``normal``: it survives a
            kill of the process, and is written faster.
        create: whether a file may be made.

    Raises:
        ArtifactError: if it cannot be opened, or is something else.
        OptionsError: for a wrong argument, or another scale than that of the ratings in the store.
        MissingDependencyError: if PostgreSQL's packages are not installed.
    """

    def __init__(
        self,
        where: str | Path,
        *,
        scale: tuple[float, float] | None = None,
        redact: Callable[[str], str] | None = None,
        timeout: float = 60.0,
        durability: str = "full",
        create: bool = True,
    ) -> None:
        _check_arguments(where, redact, timeout)
        wanted = None if scale is None else checked_scale(scale)
        self._arguments = {
            "scale": wanted,
            "redact": redact,
            "timeout": timeout,
            "durability": durability,
            "create": create,
        }
        self._where = where
        self._redact = redact
        self._backend = _backend(where, timeout, durability, create)
        try:
            self._scale = self._backend.scale(wanted)
        except BaseException:
            self._backend.close()
            raise
        self.name = self._backend.name

    def __repr__(self) -> str:
        return f"<feedback store {self.name}>"

    def __reduce__(self) -> Any:
        return _reopened, (self._where, self._arguments)

    def __enter__(self) -> FeedbackStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give connections back. The store can still be used; it connects anew."""
        self._backend.close()

    # In.

    def record(
        self,
        prompt: Text,
        completion: Text,
        *,
        thumbs: bool | str | int | None = None,
        rating: float | None = None,
        scale: tuple[float, float] | None = None,
        edit: Text | None = None,
        chosen_over: Text | Sequence[Text] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        user_hash: str = "",
        model_hash: str = "",
        source: str = "",
        meta: Mapping[str, Any] | None = None,
        time: Time | None = None,
        id: str | None = None,
    ) -> str:
        """Write what a user said about an answer. When this returns, the record is on the disk.

        Args:
            prompt: what was asked: a string, or the messages of the conversation up to the answer.
            completion: the answer that is judged: a string, or assistant messages.
            thumbs: True, ``"up"`` or 1: good; False, ``"down"`` or -1: bad.
            rating: within ``scale``.
            scale: lowest and highest rating; default: that of the store.
            edit: what the user made of the answer.
            chosen_over: another answer that the user saw and did not choose, or several.
            tools: schemas of the tools that the model could call.
            user_hash: who, as :func:`hash_user` gives it. Only with it do two judgements of one user count once.
            model_hash: whose answer.
            source: which application or experiment.
            meta: anything else, JSON types.
            time: when; default: now.
            id: unique; a record that is sent again with the same id is written once. Default: a new one.

        Returns:
            The id of the record.

        Raises:
            DataError: if the record says nothing, is malformed, or its id belongs to another one.
            ArtifactError: if it cannot be written; then it is not in the store, or it is and a second try with its id
                does no harm.
        """
        made = make_record(
            prompt,
            completion,
            thumbs=thumbs,
            rating=rating,
            scale=self._scale if scale is None else scale,
            edit=edit,
            chosen_over=chosen_over,
            tools=tools,
            user_hash=user_hash,
            model_hash=model_hash,
            source=source,
            meta=meta,
            time=time,
            id=id,
            redact=self._redact,
        )
        self._backend.insert([make_entry(made)])
        return made.id

    def record_many(self, judgements: Iterable[Mapping[str, Any]]) -> list[str]:
        """Write several at once, all or none; each a mapping of the arguments of :meth:`record`. Gives their ids.

        Raises:
            DataError: naming the number of the record that is wrong, from 1.
            ArtifactError: as :meth:`record`.
        """
        entries = []
        for number, judgement in enumerate(judgements, 1):
            try:
                entries.append(self._entry(judgement))
            except DataError as error:
                error.message = f"Record {number}: {error.message}"
                error.details["row"] = number
                raise
        self._insert(entries)
        return [entry.id for entry in entries]

    def _entry(self, judgement: Mapping[str, Any]) -> Entry:
        check_fields(judgement)
        return make_entry(make_record(**{"scale": self._scale, **judgement}, redact=self._redact))

    def _insert(self, entries: Sequence[Entry]) -> int:
        return self._backend.insert(entries) if entries else 0

    def import_data(self, ref: Any, **options: Any) -> Imported:
        """Records out of data: files of prompts with thumbs, pairs, ranks or ratings, logs, message trees. Gives their
        number, and how many were new. See :func:`tunekit.feedback.importers.import_data` for the options."""
        from tunekit.feedback.importers import import_data

        return import_data(self, ref, **options)

    def import_log(self, path: str | Path, **options: Any) -> Imported:
        """Records out of an application's own log in JSON Lines. Gives their number, and how many were new. See
        :func:`tunekit.feedback.importers.import_log` for the options."""
        from tunekit.feedback.importers import import_log

        return import_log(self, path, **options)

    def add(self, records: Iterable[Record]) -> int:
        """Copy records of another store, with their ids and times; their texts pass the ``redact`` of this one. What is
        there already is not written again. Gives how many were handed over.

        Raises:
            DataError: if another record has the id of one of them.
            ArtifactError: as :meth:`record`.
        """
        count = 0
        batch = []
        for record in records:
            batch.append(make_entry(record if self._redact is None else redacted(record, self._redact)))
            count += 1
            if len(batch) == _BATCH:
                self._backend.insert(batch)
                batch = []
        if batch:
            self._backend.insert(batch)
        return count

    # Out.

    def records(self) -> Iterator[Record]:
        """All records as of now, oldest first."""
        return map(read_record, self._backend.read(Where()))

    def __len__(self) -> int:
        return self._backend.count(Where())

    def __bool__(self) -> bool:
        return True

    def forget(
        self, *, user_hash: str | None = None, ids: Sequence[str] | None = None, before: Time | None = None
    ) -> int:
        """Erase the records of a user, those of some ids, or those that are older than a time. Gives how many.

        A record must meet every condition that is given. In a file the place is overwritten; copies and backups are
        yours to clean.

        Raises:
            OptionsError: without any condition, or if ``ids`` is one text and no list of ids.
        """
        if user_hash is None and ids is None and before is None:
            raise OptionsError(
                "forget needs to know what.",
                code="forget",
                fix="pass user_hash=, ids= or before=; an empty store is a new file",
            )
        if isinstance(ids, str):
            raise OptionsError(f"ids is {ids!r:.60}, one text.", code="forget", fix="pass a list: ids=[...]")
        if user_hash == "":
            raise OptionsError("An empty user_hash stands for every unknown user.", code="forget", fix="pass ids=")
        listed = None if ids is None else tuple(ids)
        parts = [None] if listed is None else [listed[at : at + _BATCH] for at in range(0, len(listed), _BATCH)]
        until = as_micros(before)
        return sum(self._backend.delete(Where(user_hash=user_hash, ids=part, until=until)) for part in parts)

    def verify(self) -> int:
        """Read everything and compare it with its checksums. Gives the number of records.

        Raises:
            DataError: listing damaged records, or what the database finds wrong with its file.
        """
        count, damaged = 0, []
        for entry in self._backend.read(Where()):
            count += 1
            if not is_whole(entry):
                damaged.append(entry.id)
        problems = self._backend.problems()
        if damaged or problems:
            raise DataError(
                f"The feedback store {self.name} is damaged.",
                code="damaged-feedback",
                found="; ".join([*problems[:5], *(f"record {id} does not fit its checksum" for id in damaged[:5])]),
                fix="restore a backup, or store.forget(ids=[...]) what is damaged",
                details={"ids": damaged, "problems": problems},
            )
        return count


def _reopened(where: str | Path, arguments: Mapping[str, Any]) -> FeedbackStore:
    return FeedbackStore(where, **arguments)


def _check_arguments(where: Any, redact: Any, timeout: Any) -> None:
    if not isinstance(where, str | Path):
        raise OptionsError(
            f"where is {shown(where)}; it is a file name or the URL of a database.",
            code="store-url",
            fix='pass a file name, such as "feedback.db"',
        )
    if redact is not None and not callable(redact):
        raise OptionsError(
            f"redact is {shown(redact)}; it is a function from text to text.",
            code="redact",
            fix="pass redact=tunekit.feedback.redact_pii, or a function of your own",
        )
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise OptionsError(f"timeout is {shown(timeout)}; it is a number of seconds.", code="timeout")


def _backend(where: str | Path, timeout: float, durability: str, create: bool) -> Backend:
    text = str(where)
    if isinstance(where, str) and text.startswith(_SCHEMES):
        from tunekit.feedback.postgres import PostgresBackend

        return PostgresBackend(text, timeout=timeout)
    if isinstance(where, str) and text.startswith(_FILE):
        text = text[len(_FILE) :]
    elif "://" in text:
        raise OptionsError(
            "A feedback store cannot be kept there.",
            code="store-url",
            asked=text.partition("://")[0] + "://...",
            fix="use a file name (SQLite), or postgresql://user@host/database",
        )
    if not text or ":memory:" in text:
        raise OptionsError(
            "A feedback store needs a file: what is in memory is lost with the process.",
            code="store-url",
            fix='pass a file name, such as "feedback.db"',
        )
    refuse_passwords({"where": text})
    from tunekit.feedback.sqlite import SqliteBackend

    return SqliteBackend(Path(text).expanduser().absolute(), timeout=timeout, durability=durability, create=create)


def is_feedback(ref: Any) -> bool:
    """Whether ``ref`` means a feedback store: a store, a view or an export, the URL of one, or a file that is one."""
    if isinstance(ref, str | Path):
        text = str(ref)
        if isinstance(ref, str) and text.startswith((*_SCHEMES, _FILE)):
            return True
        if not text.lower().endswith(_SUFFIXES):
            return False
        from tunekit.feedback.sqlite import is_store_file

        return is_store_file(Path(text).expanduser())
    return callable(getattr(ref, "as_dataset", None)) and callable(getattr(ref, "best_method", None))


def opened(ref: Any) -> Any:
    """What ``ref`` means: the store of a path or URL, which must be there, or ``ref`` itself; None if it is none.

    Raises:
        ArtifactError: if it cannot be opened.
        OptionsError: if a URL holds a password: plans, reports and logs would show it.
    """
    if not is_feedback(ref):
        return None
    refuse_passwords({"data": ref})
    return FeedbackStore(ref, create=False) if isinstance(ref, str | Path) else ref
