"""Records out of what is there already: data files, logs of applications, message trees."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.data.formats_trees import tree_messages
from tunekit.data.load import load_dataset
from tunekit.data.readers import FileSource
from tunekit.data.rows import RawRow, RowProblem, row_error
from tunekit.errors import DataError, OptionsError, nearest

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
        DataError: naming file and line. What stood before it has been written.
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
    defaults.setdefault("source", Path(path).name)
    source = FileSource(Path(path), "json")

    def made() -> Iterator[dict[str, Any]]:
        times: dict[str, int] = {}
        for raw in source.rows():
            if raw.problem is not None:
                raise row_error(source, raw, raw.problem)
            record = _log_record(raw, given, user if hash_user is not None else "", hash_user)
            if silent == "skip" and all(record.get(name) in (None, [], "") for name in _JUDGING):
                continue
            yield _with_id({**defaults, **record}, raw.value, str(defaults["source"]), times)

    return _written(store, made())


_JUDGING = ("thumbs", "rating", "edit", "chosen_over")


def _log_record(
    raw: RawRow, given: Mapping[str, str], user: str, hash_user: Callable[[str], str] | None
) -> dict[str, Any]:
    row: dict[str, Any] = raw.value
    found: dict[str, Any] = {}
    for name, others in LOG_FIELDS.items():
        column = given.get(name) or next((other for other in (name, *others) if row.get(other) is not None), None)
        if column is not None and row.get(column) is not None:
            found[name] = row[column]
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


def _with_id(record: dict[str, Any], row: Any, source: str, times: dict[str, int]) -> dict[str, Any]:
    """The record with an id that follows from the row, so that the same row is not imported twice; the same row twice
    in one source is two records."""
    if record.get("id") is not None:
        return {**record, "id": str(record["id"])}
    text = json.dumps([source, row], sort_keys=True, ensure_ascii=False, default=str)
    key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=14).hexdigest()
    times[key] = times.get(key, 0) + 1
    return {**record, "id": f"i{key}{times[key] - 1 or ''}"}


def _written(store: FeedbackStore, records: Iterable[dict[str, Any]]) -> int:
    count = 0
    waiting = iter(records)
    while batch := list(itertools.islice(waiting, _BATCH)):
        try:
            store.record_many(batch)
        except DataError as error:
            number = error.details.get("row")
            if isinstance(number, int):
                error.details["row"] = count + number
                error.message = error.message.replace(f"Record {number}:", f"Record {count + number}:", 1)
            raise
        count += len(batch)
    return count


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

    def made() -> Iterator[dict[str, Any]]:
        times: dict[str, int] = {}
        for row in data:
            for number, record in enumerate(_judgements(row, data.schema)):
                yield _with_id({**common, **record}, [number, row], common["source"], times)

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

    def made() -> Iterator[dict[str, Any]]:
        times: dict[str, int] = {}
        for raw in file.rows():
            try:
                if raw.problem is not None:
                    raise raw.problem
                found = list(_tree(raw.value))
            except RowProblem as problem:
                raise row_error(file, raw, problem) from None
            for record in found:
                yield _with_id({**common, **record}, record, common["source"], times)

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
