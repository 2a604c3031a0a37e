"""Single answers, each judged good or bad, as token ids. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunekit.errors import DataError
from tunekit_trl.encoding import IGNORED, Encoder

__all__ = ["Judged", "judged"]


@dataclass
class Judged:
    """One judged answer, cut to the length limit."""

    prompt_ids: list[int]
    completion_ids: list[int]
    label: bool
    cut: int = 0
    """Tokens that were cut off the end."""
    boundary: str = "exact"
    stopped: bool = False
    """Whether the last token, blanks aside, is one that generation stops at."""
    lost_thoughts: int = 0


def judged(encoder: Encoder, rows: Sequence[Mapping[str, Any]]) -> list[Judged | DataError]:
    """The token ids of canonical rows ``{prompt, completion, label}``, or why a row cannot be used."""
    made: list[Judged | DataError] = []
    for row, found in zip(rows, encoder.examples(rows, "prompt_completion", "completion"), strict=True):
        if isinstance(found, DataError):
            made.append(found)
            continue
        # As in a preference pair, everything behind the prompt is the answer: what a template writes between and
        # behind assistant turns has a probability close to 1 under any policy.
        begin = next(at for at, label in enumerate(found.labels) if label != IGNORED)
        made.append(
            Judged(
                found.input_ids[:begin],
                found.input_ids[begin:],
                bool(row["label"]),
                cut=found.cut,
                boundary=found.boundary,
                stopped=found.stopped,
                lost_thoughts=found.lost_thoughts,
            )
        )
    return made
