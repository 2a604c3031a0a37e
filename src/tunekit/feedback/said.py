"""What users said, gathered by prompt and answer, and when they agree enough."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tunekit.errors import OptionsError
from tunekit.feedback.export import ExportReport
from tunekit.feedback.records import Record, Text, text_key

__all__ = ["Answer", "Asked", "Rules", "agreement", "at_least", "collected", "wrong_option"]

_MIDDLE = 0.5


@dataclass
class Answer:
    """One answer to a prompt, and every voter's last word on it."""

    key: str
    text: Text
    time: float
    record: str
    votes: dict[str, bool] = field(default_factory=dict)
    ratings: dict[str, tuple[float, float, tuple[float, float]]] = field(default_factory=dict)
    """Voter -> (0 to 1, as given, scale)."""

    def vote(self, voter: str, good: bool, split: float | None) -> None:
        """A thumb of a voter; an earlier rating of the same voter that says the opposite no longer counts."""
        self.votes[voter] = good
        middle = _MIDDLE if split is None else split
        rating = self.ratings[voter][0] if voter in self.ratings else middle
        if rating != middle and (rating > middle) != good:
            del self.ratings[voter]

    def mean(self) -> float | None:
        """Mean rating from 0 to 1."""
        if not self.ratings:
            return None
        return sum(rating for rating, _, _ in self.ratings.values()) / len(self.ratings)

    def opinions(self, split: float | None) -> dict[str, bool]:
        """Voter -> good or bad. A thumb says more than a rating; a rating in the middle says nothing."""
        found = {}
        if split is not None:
            found = {voter: rating > split for voter, (rating, _, _) in self.ratings.items() if rating != split}
        return found | self.votes


@dataclass
class Asked:
    """One prompt, its answers, and comparisons between them."""

    key: str
    prompt: Text
    tools: Any
    time: float
    record: str
    answers: dict[str, Answer] = field(default_factory=dict)
    choices: dict[tuple[str, str], dict[str, tuple[str, str]]] = field(default_factory=dict)
    """(key, key), the lower first -> voter -> (key of the better one, record id)."""
    edits: dict[str, str] = field(default_factory=dict)
    """Key of what a user wrote -> record id."""

    def answer(self, text: Text, record: Record) -> Answer:
        """The answer of that text."""
        key = text_key(text, "assistant")
        if key not in self.answers:
            self.answers[key] = Answer(key, text, record.time, record.id)
        return self.answers[key]

    def choose(self, better: str, worse: str, voter: str, record: str) -> None:
        """A voter's choice between two answers; a later one replaces it."""
        first, second = sorted((better, worse))
        self.choices.setdefault((first, second), {})[voter] = (better, record)


def collected(records: Iterable[Record], report: ExportReport, split: float | None = _MIDDLE) -> list[Asked]:
    """Prompts in the order of their first record, with what all records say about their answers.

    Args:
        records: in any order.
        report: counts them.
        split: as :attr:`Rules.rating_split`: where a rating says the opposite of a thumb.
    """
    found: dict[str, Asked] = {}
    seen: set[tuple[str, ...]] = set()
    for record in sorted(records, key=lambda record: (record.time, record.id)):
        report.records += 1
        key = record.prompt_key
        asked = found.get(key)
        if asked is None:
            asked = found[key] = Asked(key, record.prompt, record.tools, record.time, record.id)
        answer = asked.answer(record.completion, record)
        subjects = [(key, record.voter, *subject) for subject in _note(asked, answer, record, report, split)]
        report.merged += any(subject in seen for subject in subjects)
        seen.update(subjects)
    return list(found.values())


def _note(
    asked: Asked, answer: Answer, record: Record, report: ExportReport, split: float | None
) -> list[tuple[str, ...]]:
    """Keep what a record says; gives what it is about: an answer, or two that are compared."""
    voter = record.voter
    subjects: list[tuple[str, ...]] = []
    if record.thumbs is not None or record.rating is not None:
        subjects.append((answer.key,))
    fraction = record.fraction()
    if fraction is not None and record.rating is not None and record.scale is not None:
        answer.ratings[voter] = (fraction, record.rating, record.scale)
        if record.thumbs is None:
            answer.votes.pop(voter, None)  # what counts is the last word
    if record.thumbs is not None and record.rating is not None:
        answer.votes[voter] = record.thumbs
    elif record.thumbs is not None:
        answer.vote(voter, record.thumbs, split)
    edited = None if record.edit is None else asked.answer(record.edit, record)
    if edited is answer:
        report.out("redacted", record.id)
    elif edited is not None:
        asked.edits.setdefault(edited.key, record.id)
        asked.choose(edited.key, answer.key, voter, record.id)
        edited.vote(voter, True, split)
        if record.thumbs is None and record.rating is None:
            answer.vote(voter, False, split)
        subjects.append((min(edited.key, answer.key), max(edited.key, answer.key)))
    for text in record.chosen_over:
        other = asked.answer(text, record)
        if other is answer:
            report.out("redacted", record.id)
        else:
            asked.choose(answer.key, other.key, voter, record.id)
            subjects.append((min(answer.key, other.key), max(answer.key, other.key)))
    return subjects


def agreement(ratings: Iterable[float]) -> float:
    """How far ratings from 0 to 1 agree: 1 minus twice their mean distance from the median. 1: all are equal; 0: half
    of them at each end of the scale."""
    ordered = sorted(ratings)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return 1 - 2 * sum(abs(rating - median) for rating in ordered) / len(ordered)


def at_least(value: float, least: float) -> bool:
    """``value >= least``, whatever rounding did to a difference such as 0.7 - 0.6."""
    return value >= least - 1e-9


@dataclass(frozen=True)
class Rules:
    """When users agree enough."""

    min_votes: int = 1
    min_agreement: float = 0.5
    rating_split: float | None = 0.5
    min_gap: float = 0.25

    def __post_init__(self) -> None:
        if isinstance(self.min_votes, bool) or not isinstance(self.min_votes, int) or self.min_votes < 1:
            raise wrong_option("min_votes", self.min_votes, "a whole number from 1")
        if not _is_share(self.min_agreement):
            raise wrong_option("min_agreement", self.min_agreement, "a share from 0 to 1")
        if self.rating_split is not None and not _is_share(self.rating_split):
            raise wrong_option(
                "rating_split", self.rating_split, "a place on the scale from 0 (worst) to 1 (best), or None"
            )
        if not _is_share(self.min_gap) or self.min_gap == 0:
            raise wrong_option("min_gap", self.min_gap, "a share of the scale above 0, to 1")

    def verdict(self, yes: int, no: int) -> tuple[bool | None, str]:
        """What the majority says, or None and why."""
        if yes + no < self.min_votes:
            return None, "few-votes"
        if yes == no or not at_least(max(yes, no) / (yes + no), self.min_agreement):
            return None, "conflict"
        return yes > no, ""


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def wrong_option(name: str, value: Any, what: str) -> OptionsError:
    """The error for an option of an export."""
    return OptionsError(f"{name} is {value!r}; it is {what}.", code="export-option", asked=f"{name}={value!r}")
