"""What a database must do for a feedback store, and what is asked of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tunekit.errors import ArtifactError, DataError, OptionsError
from tunekit.feedback.entries import Entry
from tunekit.feedback.records import SCALE

__all__ = ["SAME", "Backend", "Where", "busy", "check_same", "other_scale", "read_scale"]


SAME = ("user_hash", "model_hash", "source", "body")
"""What two entries with one id must have in common. The time may differ: a record that is sent again was made again."""


@dataclass(frozen=True, kw_only=True)
class Where:
    """Which records; empty fields leave none out."""

    since: int | None = None
    """Microseconds since the epoch, inclusive."""
    until: int | None = None
    """Microseconds, exclusive."""
    user_hash: str | None = None
    model_hash: str | None = None
    source: str | None = None
    ids: tuple[str, ...] | None = None

    def sql(self, mark: str) -> tuple[str, list[Any]]:
        """A WHERE clause with ``mark`` in the places of the values, and these."""
        parts: list[str] = []
        values: list[Any] = []
        for column, sign, value in (
            ("micros", ">=", self.since),
            ("micros", "<", self.until),
            ("user_hash", "=", self.user_hash),
            ("model_hash", "=", self.model_hash),
            ("source", "=", self.source),
        ):
            if value is not None:
                parts.append(f"{column} {sign} {mark}")
                values.append(value)
        if self.ids is not None:
            parts.append(f"id IN ({', '.join([mark] * len(self.ids))})" if self.ids else "1 = 0")
            values += self.ids
        return ("WHERE " + " AND ".join(parts) if parts else ""), values


class Backend(Protocol):
    """A database with one table of entries."""

    @property
    def name(self) -> str:
        """For people, without passwords."""
        ...

    def insert(self, entries: Sequence[Entry]) -> int:
        """All or none; safe on the disk when it returns. Entries that are there already stay; another one with the id
        of one that is there is refused. Gives how many were not there."""
        ...

    def read(self, where: Where) -> Iterator[Entry]:
        """As of now, oldest first."""
        ...

    def count(self, where: Where) -> int:
        """How many."""
        ...

    def delete(self, where: Where) -> int:
        """How many are gone."""
        ...

    def scale(self, wanted: tuple[float, float] | None) -> tuple[float, float]:
        """The scale of ratings that name none. ``wanted`` is kept from now on, for every process; refused where records
        have ratings on the scale that was kept."""
        ...

    def problems(self) -> list[str]:
        """What the database finds wrong with itself."""
        ...

    def close(self) -> None:
        """Give connections back."""
        ...


def busy(name: str, timeout: float) -> ArtifactError:
    """The error when others have held the store for too long."""
    return ArtifactError(
        f"The feedback store {name} was busy for {timeout:g} seconds.",
        code="feedback-busy",
        found="other processes write to it without a pause, or hold a transaction open",
        fix="record several judgements at once with record_many, give a longer timeout=, or use PostgreSQL",
    )


def read_scale(value: str | None) -> tuple[float, float]:
    """A scale as a database keeps it; without one, the scale of all stores that were given none."""
    if value is None:
        return SCALE
    low, high = json.loads(value)
    return float(low), float(high)


def other_scale(name: str, held: tuple[float, float], wanted: tuple[float, float]) -> OptionsError:
    """The error for a scale that would give ratings another meaning."""
    return OptionsError(
        f"The ratings in the feedback store {name} are on a scale from {held[0]:g} to {held[1]:g}.",
        code="scale",
        asked=f"scale=({wanted[0]:g}, {wanted[1]:g})",
        fix="leave scale= out of the store, and give it to record() or an import where it is another one",
    )


def check_same(entry: Entry, held: Sequence[str]) -> None:
    """Compare an entry with :data:`SAME` of the one that has its id.

    Raises:
        DataError: if they are two.
    """
    other = [name for name, value in zip(SAME, held, strict=True) if value != getattr(entry, name)]
    if other:
        raise DataError(
            f"The feedback store has another record with the id {entry.id!r}.",
            code="feedback-id-taken",
            found=f"other: {', '.join('what it says' if name == 'body' else name for name in other)}",
            fix="send the same record again, or give a new one an id of its own",
            details={"id": entry.id, "fields": other},
        )
