"""Records out of what is there already: data files, logs of applications, message trees."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit._secrets import refuse_passwords
from tunekit.data.formats_base import BESIDE
from tunekit.data.formats_trees import tree_messages
from tunekit.data.load import load_dataset
from tunekit.data.messages import as_messages, is_messages
from tunekit.data.readers import FileSource
from tunekit.data.rows import RawRow, RowProblem, row_error
from tunekit.errors import DataError, OptionsError, nearest
from tunekit.feedback.records import text_key

if TYPE_CHECKING:
    from tunekit.feedback.entries import Entry
    from tunekit.feedback.store import FeedbackStore

__all__ = ["LOG_FIELDS", "Imported", "import_data", "import_log", "import_trees"]

_BATCH = 500
SHAPES = ("ranked", "preference", "feedback", "rated")

LOG_FIELDS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("messages", "question", "query", "instruction", "input"),
    "completion": ("response", "answer", "output", "reply"),
    "thumbs": ("thumb", "vote", "feedback", "verdict"),
    "rating": ("stars",),
    "scale": (),
    "edit": ("edited", "correction", "corrected", "rewrite"),
    "chosen_over": ("rejected", "alternatives"),
    "tools": (),
    "user_hash": ("user_id_hash", "hashed_user"),
    "model_hash": ("model",),
    "source": ("app", "application"),
    "meta": ("metadata",),
    "time": ("timestamp", "created_at", "date", "ts"),
    "id": ("record_id", "uuid", "event_id"),
}
"""Field of a record -> other names of its column in a log, the first that is there."""
_QUESTIONS = ("question", "query", "instruction")
"""Columns to which those of ``BESIDE`` belong, as in data sets."""


class Imported(int):
    """Number of records that an import gave, and what became of them.

    Attributes:
        new: records that were not in the store before.
        bad_rows: reasons, with their places, why rows were left out with ``on_bad_row="skip"``.
    """

    new: int
    bad_rows: tuple[str, ...]

    def __new__(cls, records: int, new: int = 0, bad_rows: Sequence[str] = ()) -> Imported:
        made = super().__new__(cls, records)
        made.new, made.bad_rows = new, tuple(bad_rows)
        return made

    def text(self) -> str:
        """One line for people."""
        parts = [f"{int(self):,} record{'s' * (self != 1)}, {self.new:,} of them new"]
        if self.bad_rows:
            parts.append(f"{len(self.bad_rows):,} bad rows left out, such as {self.bad_rows[0]}")
        return "; ".join(parts)


def import_log(
    store: FeedbackStore,
    path: str | Path,
    *,
    columns: Mapping[str, str | None] | None = None,
    hash_user: Callable[[str], str] | None = None,
    user: str = "user",
    silent: str = "error",
    on_bad_row: str = "error",
    **defaults: Any,
) -> Imported:
    """Records out of a log in JSON Lines (also ``.gz``), one judgement a line.

    Importing it again adds nothing: where no column holds an id, it follows from ``source`` and the line. A log that
    was renamed in between needs the same ``source=`` for that, and two logs with one name need two, or their equal
    lines are taken for one; ``result.new`` tells how many records were new.

    ``input`` or ``context`` beside an ``instruction``, ``question`` or ``query`` is added to it after a blank line.
    Where no column holds the answer, the conversation in ``messages`` ends with it.

    Args:
        store: where they go.
        path: the file.
        columns: field of a record -> column of the log, where :data:`LOG_FIELDS` do not say it; None: no column holds
            it.
        hash_user: makes a pseudonym of the column ``user``, such as ``lambda user: hash_user(user, secret)``. Without
            it that column is not read.
        user: name of that column.
        silent: ``error``, or ``skip`` to leave out lines that judge nothing, as logs of all answers have them.
        on_bad_row: ``error``, or ``skip`` to leave out lines that are wrong, such as one that a crash tore, and list
            them in ``result.bad_rows``.
        defaults: fields of every record that the log does not have, such as ``source="chat"`` or ``scale=(0, 10)``.

    Returns:
        Number of records, and how many were new.

    Raises:
        DataError: naming file and line: what stands before that line has been written, what stands after it has not.
            Or if a column that ``columns`` or ``user`` names is in no line, or no line has a column that judges: then
            nothing has been written.
    """
    _check_choice("silent", silent)
    _check_choice("on_bad_row", on_bad_row)
    given = dict(columns or {})
    for name in (*given, *defaults):
        if name not in LOG_FIELDS:
            raise OptionsError(
                f"A record has no field {name!r}.",
                code="unknown-field",
                suggestions=nearest(name, LOG_FIELDS),
                fix=f"use one of {', '.join(LOG_FIELDS)}",
            )
    refuse_passwords({"path": path})
    defaults.setdefault("source", Path(path).name)
    source = FileSource(Path(path), "json")
    named = {f'columns={{"{name}": "{column}"}}': column for name, column in given.items() if column is not None}
    if hash_user is not None:
        named[f'user="{user}"'] = user
    _check_columns(source, named, () if any(name in defaults for name in _JUDGING) else _judging(given))

    def made() -> Iterator[_Placed | DataError]:
        times: dict[str, int] = {}
        for raw in source.rows():
            used: dict[str, str] = {}
            try:
                if raw.problem is not None:
                    raise raw.problem
                record = {**defaults, **_log_record(raw, given, user, hash_user, used)}
                if silent == "skip" and all(record.get(name) in (None, [], "") for name in _JUDGING):
                    continue
                _complete(record, raw.value)
            except RowProblem as problem:
                yield row_error(source, raw, problem)
                continue
            yield _row_of(source, raw, used), _with_id(record, raw.value, str(defaults["source"]), times)

    return _written(store, made(), on_bad_row)


_JUDGING = ("thumbs", "rating", "edit", "chosen_over")


def _check_choice(name: str, value: str) -> None:
    if value not in ("error", "skip"):
        raise OptionsError(f"{name} is {value!r}; it is 'error' or 'skip'.", code=name)


def _judging(given: Mapping[str, str | None]) -> tuple[str, ...]:
    """Columns that can hold a judgement."""
    found: list[str] = []
    for name in _JUDGING:
        found += [given[name] or ""] if name in given else [name, *LOG_FIELDS[name]]
    return tuple(filter(None, found))


def _check_columns(source: FileSource, named: Mapping[str, str], judging: Sequence[str]) -> None:
    """Look for the columns that were named, each by what the caller wrote, and for one of those that judge; in a log
    that has them, few lines need to be read for it.

    Raises:
        DataError: if one is in no line.
    """
    missing = dict(named)
    seen: dict[str, None] = {}
    judges = not judging
    for raw in source.rows():
        if not missing and judges:
            return
        if isinstance(raw.value, dict):
            seen.update(dict.fromkeys(map(str, raw.value)))
            missing = {asked: column for asked, column in missing.items() if column not in raw.value}
            judges = judges or any(column in raw.value for column in judging)
    if not seen or (not missing and judges):
        return
    asked, column = next(iter(missing.items()), ("", ""))
    raise DataError(
        f"No line of {source.name} has a column {column!r}."
        if missing
        else f"No line of {source.name} judges anything.",
        code="unknown-column" if missing else "no-judgements",
        asked=asked or f"one of the columns {', '.join(judging)}",
        found=f"columns {', '.join(list(seen)[:20])}",
        suggestions=nearest(column, seen) if missing else (),
        fix="name a column that is there" if missing else 'say which column it is: columns={"thumbs": "..."}',
        details={"file": str(source.path or source.name), "columns": list(seen)},
    )


_DIGITS = re.compile(r"[0-9]{9,19}(\.[0-9]+)?")
_UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
"""Numbers above are in parts of a second: nanoseconds, microseconds, milliseconds."""


def _log_record(
    raw: RawRow,
    given: Mapping[str, str | None],
    user: str,
    hash_user: Callable[[str], str] | None,
    used: dict[str, str],
) -> dict[str, Any]:
    """The fields of a record out of a line; ``used`` is told field -> column."""
    row = raw.value
    if not isinstance(row, dict):
        raise RowProblem("", "is no object with named fields")
    found: dict[str, Any] = {}
    for name, others in LOG_FIELDS.items():
        if name in given:
            column = given[name]
        else:
            column = next((other for other in (name, *others) if row.get(other) is not None), None)
        if column is not None and row.get(column) is not None:
            found[name] = row[column]
            used[name] = column
            if name == "prompt" and column in _QUESTIONS and name not in given:
                found[name] = _with_beside(row, column)
    if hash_user is not None and row.get(user) is not None:
        found["user_hash"] = hash_user(str(row[user]))
        used["user_hash"] = user
    time = found.get("time")
    if isinstance(time, str) and _DIGITS.fullmatch(time.strip()):
        time = found["time"] = float(time)
    if isinstance(time, int | float) and not isinstance(time, bool):
        unit = next((unit for least, unit in _UNITS if time > least), 1)
        found["time"] = time if unit == 1 else time / unit
    elif isinstance(time, str):
        with contextlib.suppress(ValueError):
            parsed = datetime.datetime.fromisoformat(time.strip())
            # Logs that name no zone are in UTC, or their order is all that is known.
            found["time"] = parsed if parsed.tzinfo else parsed.replace(tzinfo=datetime.UTC)
    return found


def _with_beside(row: Mapping[str, Any], column: str) -> Any:
    parts = [row[column], *(row[other] for other in BESIDE if row.get(other))]
    if len(parts) == 1:
        return parts[0]
    if not all(isinstance(part, str) for part in parts):
        raise RowProblem(
            column,
            f"has {' or '.join(BESIDE)} beside it, and not all are text",
            f'pass columns={{"prompt": "{column}"}}',
        )
    return "\n\n".join(part for part in parts if part.strip())


def _complete(record: dict[str, Any], row: Mapping[str, Any]) -> None:
    """Split the answer off a conversation that ends with it, and refuse a record without one."""
    prompt: Any = record.get("prompt")
    answer = record.get("completion")
    if is_messages(prompt) and prompt[-1].get("role", prompt[-1].get("from")) in _ANSWERING:
        if answer is None:
            record["completion"] = prompt[-1:]
            record["prompt"] = prompt[:-1]
        elif isinstance(answer, str) and text_key(as_messages(prompt)[-1:], "assistant") == text_key(
            [{"role": prompt[-1].get("role"), "content": answer}], "assistant"
        ):
            record["prompt"] = prompt[:-1]
    for name in ("prompt", "completion"):
        if record.get(name) is None:
            raise RowProblem(
                name,
                f"is in none of the columns {', '.join(row)}",
                f'say which one it is: columns={{"{name}": "..."}}',
            )


_ANSWERING = ("assistant", "gpt", "model")


def _with_id(record: dict[str, Any], row: Any, source: str, times: dict[str, int]) -> dict[str, Any]:
    """The record with an id that follows from the row, so that the same row is not imported twice; the same row twice
    in one source is two records."""
    if record.get("id") is not None:
        return {**record, "id": str(record["id"])}
    text = json.dumps([source, row], sort_keys=True, ensure_ascii=False, default=str)
    key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=14).hexdigest()
    times[key] = times.get(key, 0) + 1
    return {**record, "id": f"i{key}{times[key] - 1 or ''}"}


_Place = Callable[[DataError], DataError]
_Placed = tuple[_Place, dict[str, Any]]
"""Names the place of a record in an error about it, and the record."""


_SKIP = 'mend the row, or pass on_bad_row="skip" to leave out and list such rows'


def _row_of(source: FileSource, raw: RawRow, used: Mapping[str, str]) -> _Place:
    def place(error: DataError) -> DataError:
        due = row_error(source, raw, RowProblem("", "", ""))
        where = due.message.rpartition(": ")[0]
        field = str(error.details.get("field", "")).partition("[")[0].partition(".")[0]
        column = used.get(field, field)
        if column == field:
            return _at(error, where, due.details)
        fix = f'pass columns={{"{field}": ...}} to name another column, or None where there is none; or {_SKIP}'
        return _at(error, f"{where}: column {column!r}", {**due.details, "column": column}, fix)

    return place


def _at(error: DataError, where: str, details: Mapping[str, Any], fix: str = _SKIP) -> DataError:
    """The same error, beginning with the place."""
    made = DataError(
        f"{where}: {error.message}",
        code=error.code,
        asked=error.asked,
        found=error.found,
        fix=error.fix or fix,
        details={**error.details, **{name: value for name, value in details.items() if name != "reason"}},
    )
    made.__cause__ = error
    return made


def _written(store: FeedbackStore, records: Iterable[_Placed | DataError], on_bad_row: str) -> Imported:
    """Write in batches. What stands before a record that is refused is written."""
    bad_rows: list[str] = []
    batch: list[tuple[_Place, Entry]] = []
    count = new = 0

    def write() -> None:
        nonlocal count, new
        waiting = list(batch)
        batch.clear()
        while waiting:
            try:
                new += store._insert([entry for _, entry in waiting])
                count += len(waiting)
                return
            except DataError as error:
                # The id is taken by another record: of the store, or of the batch itself.
                at = next((at for at, (_, entry) in enumerate(waiting) if entry.id == error.details.get("id")), None)
                if at is None:
                    raise
            new += store._insert([entry for _, entry in waiting[:at]])
            count += at
            place, taken = waiting[at]
            try:
                new += store._insert([taken])
                count += 1
            except DataError as error:
                refuse(place(error))
            waiting = waiting[at + 1 :]

    def refuse(error: DataError) -> None:
        if on_bad_row != "skip":
            raise error
        bad_rows.append(error.message)

    for item in records:
        refused = item if isinstance(item, DataError) else None
        if not isinstance(item, DataError):
            place, record = item
            try:
                batch.append((place, store._entry(record)))
            except DataError as error:
                refused = place(error)
        if refused is not None:
            write()
            refuse(refused)
        elif len(batch) == _BATCH:
            write()
    write()
    return Imported(count, new, bad_rows)


def import_data(
    store: FeedbackStore,
    ref: Any,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    source: str | None = None,
    scale: tuple[float, float] | None = None,
    model_hash: str = "",
    user_hash: str = "",
    time: Any = 0.0,
    on_bad_row: str = "error",
) -> Imported:
    """Records out of anything that ``data=`` takes: pairs, ranked answers, thumbs, ratings, OpenAssistant trees.

    A pair becomes a choice, a ranking a choice of each answer over all that are ranked lower, a label a thumb. Message
    trees give both their rankings and every single thumb, where data sets keep the majority alone. Importing the same
    data again adds nothing, as :func:`import_log` says. One side of a pair may be empty; of a ranking, answers that
    differ in white space only are not compared.

    Args:
        store: where they go.
        ref: a path, a hub id, rows ...
        format: as for ``load_dataset``.
        columns: as for ``load_dataset``.
        source: of the records, part of their ids; default: the name of the data.
        scale: of ratings; default: that of the store.
        model_hash: whose answers.
        user_hash: whose judgements; refused for message trees, where every vote is that of another user.
        time: when; default: 1970, so that records of the application are younger.
        on_bad_row: ``error``, or ``skip`` to leave out rows that are wrong, such as a pair of equal answers, and list
            them in ``result.bad_rows``.

    Returns:
        Number of records, and how many were new.

    Raises:
        DataError: as ``load_dataset`` raises it, or if the data judge nothing.
    """
    _check_choice("on_bad_row", on_bad_row)
    common = {"model_hash": model_hash, "user_hash": user_hash, "time": time}
    if format is None and columns is None and isinstance(ref, str | Path) and _holds_trees(Path(ref)):
        return import_trees(store, ref, source=source, on_bad_row=on_bad_row, **common)
    data = load_dataset(ref, accepts=SHAPES, format=format, columns=columns, on_bad_row=on_bad_row)
    common["source"] = source or data.name
    if scale is not None:
        common["scale"] = scale

    def made() -> Iterator[_Placed | DataError]:
        times: dict[str, int] = {}
        for at, row in enumerate(data, 1):

            def place(error: DataError, at: int = at) -> DataError:
                return _at(error, f"{data.name}: row {at} of those that are used", {"row": at})

            for number, record in enumerate(_judgements(row, data.schema)):
                yield place, _with_id({**common, **record}, [number, row], common["source"], times)

    done = _written(store, made(), on_bad_row)
    unread = [f"{data.name}: row {number}: {reason}" for number, reason in data.bad_rows]
    return Imported(done, done.new, (*unread, *done.bad_rows))


def _judgements(row: Mapping[str, Any], schema: str) -> Iterator[dict[str, Any]]:
    asked = {name: row[name] for name in ("prompt", "tools") if name in row}
    if schema == "feedback":
        yield {**asked, "completion": row["completion"], "thumbs": row["label"]}
    elif schema == "rated":
        yield {**asked, "completion": row["completion"], "rating": row["score"]}
    elif schema == "preference":
        yield {**asked, "completion": row["chosen"], "chosen_over": [row["rejected"]]}
    else:
        answers, ranks = row["completions"], row["ranks"]
        yield from _choices(asked, list(zip(answers, ranks, strict=True)))


def _choices(asked: Mapping[str, Any], ranked: Sequence[tuple[Any, int]]) -> Iterator[dict[str, Any]]:
    """Each answer over all others that are ranked lower."""
    keyed = [(answer, rank, text_key(answer, "assistant")) for answer, rank in ranked]
    for answer, rank, key in keyed:
        worse = [other for other, below, its in keyed if below > rank and its != key]
        if worse:
            yield {**asked, "completion": answer, "chosen_over": worse}


def _holds_trees(path: Path) -> bool:
    """Whether a file is one of message trees, by its first row."""
    if not path.is_file() or not path.name.endswith((".jsonl", ".jsonl.gz")):
        return False
    first = next(iter(FileSource(path, "json").rows()), None)
    value = None if first is None else first.value
    root = value.get("prompt", value) if isinstance(value, dict) else None
    return isinstance(root, dict) and isinstance(root.get("replies"), list)


def import_trees(
    store: FeedbackStore, path: str | Path, *, source: str | None = None, on_bad_row: str = "error", **common: Any
) -> Imported:
    """Records out of message trees in JSON Lines, as OpenAssistant publishes them: every thumb of every answer, each as
    a voter of its own, and every ranking. Importing them again adds nothing.

    Args:
        store: where they go.
        path: the file.
        source: of the records; default: the name of the file.
        on_bad_row: as for :func:`import_log`.
        common: further fields of every record: ``model_hash``, ``time``.

    Returns:
        Number of records, and how many were new.

    Raises:
        DataError: naming file and row.
        OptionsError: for a ``user_hash``: all votes on an answer would count as one.
    """
    if common.get("user_hash"):
        raise OptionsError(
            "Message trees hold votes of many users; with one user_hash all votes on an answer would count as one.",
            code="user-hash",
            asked=f"user_hash={common['user_hash']!r}",
            fix="leave user_hash= out, and name the data with source=",
        )
    file = FileSource(Path(path), "json")
    common["source"] = source or Path(path).name

    def made() -> Iterator[_Placed | DataError]:
        times: dict[str, int] = {}
        for raw in file.rows():
            try:
                if raw.problem is not None:
                    raise raw.problem
                found = list(_tree(raw.value))
            except RowProblem as problem:
                yield row_error(file, raw, problem)
                continue
            for record in found:
                yield _row_of(file, raw, {}), _with_id({**common, **record}, record, common["source"], times)

    return _written(store, made(), on_bad_row)


def _tree(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    ranked: dict[str, tuple[list[Any], list[tuple[Any, int]]]] = {}
    for message in tree_messages(row):
        path = message.path
        if len(path) < 2 or path[-1]["role"] != "assistant" or path[-2]["role"] == "assistant":
            continue
        prompt, answer = path[:-1], path[-1:]
        for thumbs, count in ((True, message.up), (False, message.down)):
            for _ in range(count):
                yield {"prompt": prompt, "completion": answer, "thumbs": thumbs}
        if message.rank is not None:
            ranked.setdefault(message.parent, (prompt, []))[1].append((answer, message.rank))
    for prompt, answers in ranked.values():
        yield from _choices({"prompt": prompt}, answers)
