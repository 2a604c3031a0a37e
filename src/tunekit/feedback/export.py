"""What an export gives: rows of one shape, and a report of what was left out."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunekit.data.dataset import Dataset
from tunekit.data.objects import MemorySource
from tunekit.data.schemas import conversion
from tunekit.errors import DataError
from tunekit.feedback.methods import learners, method_for
from tunekit.storage import write_text

__all__ = ["Export", "ExportReport"]

Row = dict[str, Any]
_LISTED = 5


@dataclass
class ExportReport:
    """What became of the judgements."""

    schema: str
    records: int = 0
    """Judgements that were looked at."""
    merged: int = 0
    """Judgements that a later one of the same user on the same answer, or on the same two, replaced or repeats."""
    rows: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> answers or pairs: ``conflict`` (no majority, or less agreement than asked for), ``few-votes``,
    ``cycle`` (a over b over c over a), ``cap`` (pairs of a prompt beyond the most), ``near-duplicate``, ``redacted``
    (nothing is left of a text, or of the difference between an answer and what was made of it or chosen over)."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> some record ids."""

    def out(self, reason: str, record: str) -> None:
        """Count one that is left out."""
        self.left_out[reason] = self.left_out.get(reason, 0) + 1
        listed = self.examples.setdefault(reason, [])
        if len(listed) < _LISTED:
            listed.append(record)

    def text(self) -> str:
        """One line for people."""
        parts = [f"of {_count(self.records, 'judgement')}"]
        if self.merged:
            parts.append(f"{self.merged:,} replaced by later ones of the same user")
        parts += [f"{number:,} left out: {_REASONS[reason]}" for reason, number in sorted(self.left_out.items())]
        return ", ".join(parts)


_REASONS = {
    "cap": "beyond the most pairs of a prompt",
    "conflict": "users disagree",
    "cycle": "preferences in a circle",
    "few-votes": "too few votes",
    "near-duplicate": "nearly the words of an earlier row",
    "redacted": "empty or equal once redacted",
}


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' * (number != 1)}"


class Export(Sequence[Row]):
    """Rows of one shape, oldest first, ready for ``data=``, and a report of what was left out.

    Attributes:
        schema: ``preference``, ``feedback``, ``rated``, ``prompt_completion`` or ``prompt``.
        rows: canonical rows.
        report: counts.
    """

    def __init__(self, name: str, schema: str, rows: Sequence[tuple[str, Row]], report: ExportReport) -> None:
        self.name = name
        self.schema = schema
        self.report = report
        self.rows: list[Row] = [row for _, row in rows]
        self._groups: dict[str, list[Row]] = {}
        for group, row in rows:
            self._groups.setdefault(group, []).append(row)
        report.rows = len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __repr__(self) -> str:
        return f"<{self.schema} rows of {self.name}: {len(self.rows):,}>"

    def as_dataset(
        self, accepts: Sequence[str] = (), *, limit: int | None = None, on_bad_row: str = "error"
    ) -> Dataset:
        """The rows as a data set. Rows whose prompts belong together stay on one side of a ``validation`` split.

        Args:
            accepts: shapes the step takes, best first; empty: any.
            limit: most rows.
            on_bad_row: as everywhere; the rows are checked already.

        Raises:
            DataError: if the step does not take them, or there are none.
        """
        found = conversion(self.schema, tuple(accepts))
        if found is None:
            there = "".join(f"; {text}" for text in learners({self.schema: self.rows}))
            raise DataError(
                f"{self.name}: the step takes {' or '.join(accepts)}, not {self.schema} rows.",
                code="wrong-shape",
                found=repr(self),
                fix=f"pass the store itself, which gives the shape that a step takes{there}",
            )
        if not self.rows:
            raise DataError(
                f"{self.name} gives no {self.schema} rows.",
                code="empty-dataset",
                found=self.report.text(),
                fix="collect more feedback, or ask for less agreement (min_agreement=, min_votes=)",
                details={"left_out": dict(self.report.left_out)},
            )
        schema, change = found

        def convert(value: Row) -> Row | list[Row]:
            made: list[Row] = []
            for row in copy.deepcopy(value["rows"]):
                done = change(row) if change is not None else row
                made += done if isinstance(done, list) else [done]
            return made

        return Dataset(
            MemorySource(self.name, [{"rows": rows} for rows in self._groups.values()]),
            schema=schema,
            format="feedback-store",
            native=self.schema,
            convert=convert,
            accepts=tuple(accepts),
            limit=limit,
            on_bad_row=on_bad_row,
            note=self.report.text(),
            expands=True,
        )

    def best_method(self, stage: str = "align") -> tuple[str, str] | None:
        """``(method, reason)`` for ``align(data=...)`` without a method; None for other stages.

        Raises:
            DataError: if no method learns from such rows.
        """
        return None if stage != "align" else method_for({self.schema: self}, self.name)

    def write_jsonl(self, path: str | Path) -> Path:
        """Write the rows as JSON Lines; the file is whole or not there.

        Raises:
            ArtifactError: if it cannot be written.
        """
        target = Path(path)
        write_text(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows))
        return target
