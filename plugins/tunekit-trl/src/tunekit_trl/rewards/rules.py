"""Rewards that check completions by rule."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tunekit.errors import StepError
from tunekit.plugins import StepContext
from tunekit_trl.rewards.answers import right_answer, wanted_answer
from tunekit_trl.rewards.options import ExactMatchOptions, FormatOptions, LengthOptions
from tunekit_trl.rewards.texts import column_values, completion_text

__all__ = ["ExactMatch", "Format", "Length"]


class ExactMatch:
    """The reward ``exact-match``; see :class:`tunekit_trl.rewards.options.ExactMatchOptions`."""

    def __init__(self, options: ExactMatchOptions) -> None:
        self.options = options

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]
    ) -> list[float | None]:
        """One score for each completion; None where the row has no answer.

        Raises:
            StepError: if the rows have no such column.
        """
        answers = column_values(columns, self.options.answer, "exact-match", "answer")
        return [self._score(completion_text(made), right) for made, right in zip(completions, answers, strict=True)]

    def _score(self, completion: str, right: Any) -> float | None:
        rights = right if isinstance(right, list | tuple) else [right]
        wanted = [self._wanted(one) for one in rights if one is not None]
        if not wanted:
            return None
        options = self.options
        good = any(right_answer(completion, one, options.extract, options.tolerance) for one in wanted)
        return options.right if good else options.wrong

    def _wanted(self, right: Any) -> str:
        return wanted_answer(right, self.options.extract) if isinstance(right, str) else str(right)


class Format:
    """The reward ``format``; see :class:`tunekit_trl.rewards.options.FormatOptions`."""

    def __init__(self, options: FormatOptions) -> None:
        self.options = options
        expression = re.compile(options.pattern, re.DOTALL)
        self._matches = {"full": expression.fullmatch, "start": expression.match, "search": expression.search}[
            options.match
        ]

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]
    ) -> list[float | None]:
        """One score for each completion."""
        good = [self._matches(completion_text(made).strip()) is not None for made in completions]
        return [self.options.right if one else self.options.wrong for one in good]


class Length:
    """The reward ``length``; see :class:`tunekit_trl.rewards.options.LengthOptions`."""

    def __init__(self, options: LengthOptions) -> None:
        self.options = options
        self._max = options.max

    def start(self, ctx: StepContext) -> None:
        """Look up how long completions may become.

        Raises:
            StepError: if no length is known, or the punishment would begin before the first token.
        """
        if self.options.target is not None:
            return
        if self._max is None:
            self._max = getattr(ctx.options, "max_new_tokens", None)
        longest = self._longest()
        if (self.options.buffer or 0) > longest:
            raise StepError(
                "The reward length would punish every completion: its buffer is longer than completions may become.",
                code="reward-options",
                asked=f"buffer={self.options.buffer}",
                found=f"at most {longest} {self.options.unit}",
                fix=f"lower buffer; None takes a fifth: {longest // 5}",
                details={"reward": "length"},
            )

    def _longest(self) -> int:
        if self._max is None:
            raise StepError(
                "The reward length knows no length: the step has no option max_new_tokens.",
                code="reward-options",
                fix='reward={"name": "length", "max": 256}, or "target"',
                details={"reward": "length"},
            )
        return self._max

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]
    ) -> list[float | None]:
        """One score for each completion, from -1 to 0.

        Raises:
            StepError: if tokens are to be counted and nobody says which there are, or no length is known.
        """
        if self.options.target is None:
            self._longest()
        return [self._score(length) for length in self._lengths(completions, columns)]

    def _lengths(self, completions: Sequence[Any], columns: dict[str, Sequence[Any]]) -> list[int]:
        if self.options.unit == "tokens":
            if "completion_ids" not in columns:
                raise StepError(
                    "The reward length counts tokens, and the completions come without any.",
                    code="reward-column",
                    asked="completion_ids",
                    fix='reward={"name": "length", "unit": "words"} counts words',
                    details={"reward": "length"},
                )
            return [len(ids) for ids in columns["completion_ids"]]
        texts = [completion_text(made) for made in completions]
        return [len(text) if self.options.unit == "characters" else len(text.split()) for text in texts]

    def _score(self, length: int) -> float:
        options = self.options
        if options.target is not None:
            return -min(1.0, abs(length - options.target) / options.target)
        longest = self._longest()
        if length > longest:
            return -1.0
        buffer = longest // 5 if options.buffer is None else options.buffer
        begin = longest - buffer
        return 0.0 if length <= begin else (begin - length) / buffer
