"""Records out of what is there already: data files, logs of applications, message trees."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    from tunekit.feedback.store import FeedbackStore

__all__ = ["LOG_FIELDS", "import_data", "import_log", "import_trees"]

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


def import_log(
    store: FeedbackStore,
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    hash_user: Callable[[str], str] | None = None,
    user: str = "user",
    silent: str = "error",
    **defaults: Any,
) -> int:
    """Records out of a log in JSON Lines (also ``.gz``), one judgement a line. Importing it again adds nothing.

    ``input`` or ``context`` beside an ``instruction``, ``question`` or ``query`` is added to it after a blank line.
    Where no column holds the answer, the conversation in ``messages`` ends with it.

    Args:
        store: where they go.
        path: the file.
        columns: field of a record -> column of the log, where :data:`LOG_FIELDS` do not say it.
        hash_user: makes a pseudonym of the column ``user``, such as ``lambda user: hash_user(user, secret)``. Without
            it that column is not read.
        user: name of that column.
        silent: ``error``, or ``skip`` to leave out lines that judge nothing, as logs of all answers have them.
        defaults: fields of every record that the log does not have, such as ``source="chat"`` or ``scale=(0, 10)``.

    Returns:
        Number of records.

    Raises:
        DataError: naming file and line. What stands before that line has been written; what stands after it has not.
    """
    if silent not in ("error", "skip"):
        raise OptionsError(f"silent is {silent!r}; it is 'error' or 'skip'.", code="silent")
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

    def made() -> Iterator[_Placed]:
        times: dict[str, int] = {}
        for raw in source.rows():
            try:
                if raw.problem is not None:
                    raise raw.problem
                record = {**defaults, **_log_record(raw, given, user if hash_user is not None else "", hash_user)}
                if silent == "skip" and all(record.get(name) in (None, [], "") for name in _JUDGING):
                    continue
                _complete(record, raw.value)
            except RowProblem as problem:
                raise row_error(source, raw, problem) from None
            yield _row_of(source, raw), _with_id(record, raw.value, str(defaults["source"]), times)

    return _written(store, made())


_JUDGING = ("thumbs", "rating", "edit", "chosen_over")


def _log_record(
    raw: RawRow, given: Mapping[str, str], user: str, hash_user: Callable[[str], str] | None
) -> dict[str, Any]:
    row = raw.value
    if not isinstance(row, dict):
        raise RowProblem("", "is no object with named fields")
    found: dict[str, Any] = {}
    for name, others in LOG_FIELDS.items():
        column = given.get(name) or next((other for other in (name, *others) if row.get(other) is not None), None)
        if column is not None and row.get(column) is not None:
            found[name] = row[column]
            if name == "prompt" and column in _QUESTIONS and name not in given:
                found[name] = _with_beside(row, column)
    if hash_user is not None and row.get(user) is not None:
        found["user_hash"] = hash_user(str(row[user]))
    time = found.get("time")
    if isinstance(time, int | float) and not isinstance(time, bool) and time > 1e11:
        found["time"] = time / 1000  # milliseconds, as JavaScript has them
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


def _row_of(source: FileSource, raw: RawRow) -> _Place:
    def place(error: DataError) -> DataError:
        due = row_error(source, raw, RowProblem("", "", ""))
        where = due.message.rpartition(": ")[0]
        return _at(error, where, due.details)

    return place


def _at(error: DataError, where: str, details: Mapping[str, Any]) -> DataError:
    """The same error, beginning with the place."""
    number = error.details.get("row")
    message = error.message.removeprefix(f"Record {number}: ")
    made = DataError(
        f"{where}: {message}",
        code=error.code,
        asked=error.asked,
        found=error.found,
        fix=error.fix,
        details={**error.details, **{name: value for name, value in details.items() if name != "reason"}},
    )
    made.__cause__ = error
    return made


def _written(store: FeedbackStore, records: Iterable[_Placed]) -> int:
    """Write in batches. What stands before a record that is refused is written."""
    count = 0
    waiting = iter(records)
    more = True
    while more:
        batch: list[_Placed] = []
        refused: DataError | None = None
        try:
            while len(batch) < _BATCH:
                batch.append(next(waiting))
        except StopIteration:
            more = False
        except DataError as error:
            refused = error
        try:
            store.record_many([record for _, record in batch])
        except DataError as error:
            number = _number(error, batch)
            if number is None:
                raise
            store.record_many([record for _, record in batch[:number]])
            raise batch[number][0](error) from None
        if refused is not None:
            raise refused
        count += len(batch)
    return count


def _number(error: DataError, batch: list[_Placed]) -> int | None:
    """Which one of a batch an error is about."""
    number, id = error.details.get("row"), error.details.get("id")
    if isinstance(number, int):
        return number - 1
    return next((at for at, (_, record) in enumerate(batch) if id is not None and record.get("id") == id), None)


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
) -> int:
    """Records out of anything that ``data=`` takes: pairs, ranked answers, thumbs, ratings, OpenAssistant trees.

    A pair becomes a choice, a ranking a choice of each answer over all that are ranked lower, a label a thumb. Message
    trees give both their rankings and every single thumb, where data sets keep the majority alone. Importing the same
    data again adds nothing.

    Args:
        store: where they go.
        ref: a path, a hub id, rows ...
        format: as for ``load_dataset``.
        columns: as for ``load_dataset``.
        source: of the records; default: the name of the data.
        scale: of ratings; default: that of the store.
        model_hash: whose answers.
        user_hash: whose judgements.
        time: when; default: 1970, so that records of the application are younger.

    Returns:
        Number of records.

    Raises:
        DataError: as ``load_dataset`` raises it, or if the data judge nothing.
    """
    common = {"model_hash": model_hash, "user_hash": user_hash, "time": time}
    if format is None and columns is None and isinstance(ref, str | Path) and _holds_trees(Path(ref)):
        return import_trees(store, ref, source=source, **common)
    data = load_dataset(ref, accepts=SHAPES, format=format, columns=columns)
    common["source"] = source or data.name
    if scale is not None:
        common["scale"] = scale

    def made() -> Iterator[_Placed]:
        times: dict[str, int] = {}
        for at, row in enumerate(data, 1):

            def place(error: DataError, at: int = at) -> DataError:
                return _at(error, f"{data.name}: row {at} of those that are used", {"row": at})

            for number, record in enumerate(_judgements(row, data.schema)):
                yield place, _with_id({**common, **record}, [number, row], common["source"], times)

    return _written(store, made())


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
        for answer, rank in zip(answers, ranks, strict=True):
            worse = [other for other, below in zip(answers, ranks, strict=True) if below > rank and other != answer]
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


def import_trees(store: FeedbackStore, path: str | Path, *, source: str | None = None, **common: Any) -> int:
    """Records out of message trees in JSON Lines, as OpenAssistant publishes them: every thumb of every answer, each as
    a voter of its own, and every ranking. Importing them again adds nothing.

    Args:
        store: where they go.
        path: the file.
        source: of the records; default: the name of the file.
        common: further fields of every record: ``model_hash``, ``user_hash``, ``time``.

    Returns:
        Number of records.

    Raises:
        DataError: naming file and row.
    """
    file = FileSource(Path(path), "json")
    common["source"] = source or Path(path).name

    def made() -> Iterator[_Placed]:
        times: dict[str, int] = {}
        for raw in file.rows():
            try:
                if raw.problem is not None:
                    raise raw.problem
                found = list(_tree(raw.value))
            except RowProblem as problem:
                raise row_error(file, raw, problem) from None
            for record in found:
                yield _row_of(file, raw), _with_id({**common, **record}, record, common["source"], times)

    return _written(store, made())


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
        for answer, rank in answers:
            worse = [other for other, below in answers if below > rank and other != answer]
            if worse:
                yield {"prompt": prompt, "completion": answer, "chosen_over": worse}
