"""Final numbers out of a trainer's log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["course"]


def course(history: Sequence[Mapping[str, Any]], keys: Sequence[str] = ()) -> dict[str, float]:
    """How the loss went: ``loss_first_quarter`` and ``loss_last_quarter`` are means over the first and the last quarter
    of the optimizer steps. Each of ``keys`` is given as its mean over the last quarter."""
    rows = [row for row in history if "loss" in row]
    if not rows:
        return {}
    quarter = max(1, len(rows) // 4)
    made = {
        "loss_first_quarter": _mean(rows[:quarter], "loss"),
        "loss_last_quarter": _mean(rows[-quarter:], "loss"),
    }
    for key in keys:
        if all(key in row for row in rows[-quarter:]):
            made[key] = _mean(rows[-quarter:], key)
    return made


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(float(row[key]) for row in rows) / len(rows)
