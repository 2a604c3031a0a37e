"""The columns of a prompt: what a row says besides, for the rewards that judge the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.data.rows import RowProblem, kind_of

__all__ = ["RESERVED", "checked_columns"]

RESERVED = ("prompts", "completions", "completion_ids", "finished")
"""Arguments that every reward is called with; no column reaches it under such a name."""


def checked_columns(value: Any) -> dict[str, Any]:
    """The columns of a prompt as JSON types, without those of :data:`RESERVED` names.

    Raises:
        RowProblem: if they are no object with named fields.
    """
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise RowProblem("columns", f"is {kind_of(value)}, not an object with named fields")
    return {name: _plain(item) for name, item in value.items() if name not in RESERVED}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)
