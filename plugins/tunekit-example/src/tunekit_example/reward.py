"""A reward: answers are to be about as long as was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunekit_example.options import WordsOptions

__all__ = ["WordsReward"]


class WordsReward:
    """0 for an answer of the wished number of words, and one less for each word too many or too few."""

    def __init__(self, options: WordsOptions) -> None:
        self._wished = options.words

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]
    ) -> list[float | None]:
        """One score for each completion."""
        return [-abs(float(len(_text(completion).split()) - self._wished)) for completion in completions]


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[-1]["content"])
