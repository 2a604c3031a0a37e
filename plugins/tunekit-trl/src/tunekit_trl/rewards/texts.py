"""The text of completions, and the values of columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunekit.errors import StepError, nearest

__all__ = ["column_values", "completion_text"]


def completion_text(completion: Any) -> str:
    """What a completion says: the text itself, or the contents of its assistant messages."""
    if isinstance(completion, str):
        return completion
    parts = [message.get("content") for message in completion if message.get("role", "assistant") == "assistant"]
    return "\n".join(part for part in parts if isinstance(part, str))


def column_values(columns: Mapping[str, Sequence[Any]], name: str, reward: str, option: str) -> Sequence[Any]:
    """A column that a reward needs.

    Raises:
        StepError: if the rows have no such column.
    """
    if name not in columns:
        have = [column for column in columns if column not in ("completion_ids", "finished")]
        raise StepError(
            f"The reward {reward} needs a column {name!r}, and the prompts' rows have none.",
            code="reward-column",
            asked=name,
            found=", ".join(have) or "no further columns",
            suggestions=nearest(name, have),
            fix=f'reward={{"name": "{reward}", "{option}": "<column>"}} names another one',
            details={"reward": reward, "column": name},
        )
    return columns[name]
