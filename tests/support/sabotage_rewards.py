"""A small honest reward, and the same with one bug each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from tunekit.plugins import Options, RewardSpec, hookimpl

api_version = 1


class MatchOptions(Options):
    answer: str = "answer"


class Match:
    """1 for the answer of the row, else minus the share of letters that are not its."""

    def __init__(self, options: MatchOptions) -> None:
        self.column = options.answer

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Any:
        return [self.score(self.text(one), two) for one, two in zip(completions, columns[self.column], strict=True)]

    def text(self, completion: Any) -> str:
        return completion if isinstance(completion, str) else str(completion[-1]["content"])

    def score(self, completion: str, answer: str) -> float:
        if completion == answer:
            return 1.0
        return -sum(letter not in answer for letter in completion) / max(1, len(completion))


class Constant(Match):
    def score(self, completion: str, answer: str) -> float:
        return 0.5


class Normalised(Match):
    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Any:
        scores = super().__call__(prompts, completions, **columns)
        mean = sum(scores) / len(scores)
        return [score - mean for score in scores]


class OneForAll(Match):
    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Any:
        scores = super().__call__(prompts, completions, **columns)
        return scores[:1]


class Divides(Match):
    def score(self, completion: str, answer: str) -> float:
        return 1.0 if completion == answer else -sum(one not in answer for one in completion) / len(completion)


class NotFinite(Match):
    def score(self, completion: str, answer: str) -> float:
        return super().score(completion, answer) if completion.strip() else float("-inf")


class Changing(Match):
    def __call__(self, prompts: Sequence[Any], completions: Any, **columns: Any) -> Any:
        scores = super().__call__(prompts, completions, **columns)
        completions[:] = [self.text(one).strip() + "." for one in completions]
        return scores


class Counting(Match):
    calls = itertools.count()

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Any:
        bonus = 0.01 * next(self.calls)
        return [score + bonus for score in super().__call__(prompts, completions, **columns)]


class Stringly(Match):
    def text(self, completion: Any) -> str:
        return str(completion)


class Closed(Match):
    def __call__(  # type: ignore[override]
        self, prompts: Any, completions: Any, completion_ids: Any, finished: Any, answer: Any
    ) -> Any:
        return super().__call__(prompts, completions, answer=answer)


class Undeclared(Match):
    """Its spec names no column."""


class Silent(Match):
    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Any:
        columns.setdefault(self.column, [""] * len(completions))
        return super().__call__(prompts, completions, **columns)


@hookimpl
def tunekit_rewards() -> list[RewardSpec]:
    classes = [
        Match, Constant, Normalised, OneForAll, Divides, NotFinite, Changing, Counting, Stringly, Closed, Undeclared,
        Silent,
    ]  # fmt: skip
    return [
        RewardSpec(
            name=each.__name__.lower(),
            target=f"sabotage_rewards:{each.__name__}",
            options="sabotage_rewards:MatchOptions",
            columns=() if each is Undeclared else ("answer",),
        )
        for each in classes
    ]
