"""Records as a database keeps them, each with a checksum."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from tunekit.errors import DataError
from tunekit.feedback.records import MICRO, Record

__all__ = ["Entry", "is_whole", "make_entry", "read_record", "scale_mark"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A record as a database keeps it."""

    id: str
    micros: int
    prompt_key: str
    user_hash: str
    model_hash: str
    source: str
    body: str
    """JSON of everything that is no column."""
    checksum: str
    """Over id, time and body: a record that was torn or changed does not fit it."""

    def row(self) -> tuple[str, int, str, str, str, str, str, str]:
        """The columns in order."""
        return (
            self.id,
            self.micros,
            self.prompt_key,
            self.user_hash,
            self.model_hash,
            self.source,
            self.body,
            self.checksum,
        )


_BODY = ("prompt", "completion", "thumbs", "rating", "scale", "edit", "chosen_over", "tools", "meta")


def make_entry(record: Record) -> Entry:
    """A record for a database."""
    held = {name: getattr(record, name) for name in _BODY}
    body = json.dumps(
        {name: value for name, value in held.items() if value not in (None, (), {})},
        ensure_ascii=False,
        allow_nan=False,
        sort_keys=True,
        separators=(",", ":"),
    )
    micros = round(record.time * MICRO)
    return Entry(
        id=record.id,
        micros=micros,
        prompt_key=record.prompt_key,
        user_hash=record.user_hash,
        model_hash=record.model_hash,
        source=record.source,
        body=body,
        checksum=_checksum(record.id, micros, record.user_hash, record.model_hash, record.source, body),
    )


def scale_mark(scale: tuple[float, float]) -> str:
    """What the body of every record with a rating on a scale holds."""
    return f'"scale":{json.dumps(scale, separators=(",", ":"))}'


def _checksum(*parts: Any) -> str:
    return hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=16).hexdigest()


def is_whole(entry: Entry) -> bool:
    """Whether the entry is as it was written."""
    parts = (entry.id, entry.micros, entry.user_hash, entry.model_hash, entry.source, entry.body)
    return _checksum(*parts) == entry.checksum


def read_record(entry: Entry) -> Record:
    """The record of an entry.

    Raises:
        DataError: if the entry is not as it was written.
    """
    if not is_whole(entry):
        raise DataError(
            f"Record {entry.id} of the feedback store is damaged.",
            code="damaged-feedback",
            found="its checksum does not fit",
            fix="store.verify() lists every damaged record; restore them, or store.forget(ids=[...]) them",
            details={"id": entry.id},
        )
    body = json.loads(entry.body)
    scale = body.pop("scale", None)
    return Record(
        id=entry.id,
        time=entry.micros / MICRO,
        user_hash=entry.user_hash,
        model_hash=entry.model_hash,
        source=entry.source,
        scale=None if scale is None else (scale[0], scale[1]),
        chosen_over=tuple(body.pop("chosen_over", ())),
        **body,
    )
