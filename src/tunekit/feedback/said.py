"""What users said, gathered by prompt and answer, and when they agree enough."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tunekit.errors import OptionsError
from tunekit.feedback.export import ExportReport
from tunekit.feedback.records import Record, Text, text_key

__all__ = ["Answer", "Asked", "Rules", "collected", "wrong_option"]


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


def collected(records: Iterable[Record], report: ExportReport) -> list[Asked]:
    """Prompts in the order of their first record, with what all records say about their answers."""
    found: dict[str, Asked] = {}
    seen: set[tuple[str, str, str]] = set()
    for record in sorted(records, key=lambda record: (record.time, record.id)):
        report.records += 1
        key = record.prompt_key
        asked = found.get(key)
        if asked is None:
            asked = found[key] = Asked(key, record.prompt, record.tools, record.time, record.id)
        answer = asked.answer(record.completion, record)
        if (key, answer.key, record.voter) in seen:
            report.merged += 1
        seen.add((key, answer.key, record.voter))
        _note(asked, answer, record, report)
    return list(found.values())


def _note(asked: Asked, answer: Answer, record: Record, report: ExportReport) -> None:
    voter = record.voter
    fraction = record.fraction()
    if fraction is not None and record.rating is not None and record.scale is not None:
        answer.ratings[voter] = (fraction, record.rating, record.scale)
        if record.thumbs is None:
            answer.votes.pop(voter, None)  # what counts is the last word
    if record.thumbs is not None:
        answer.votes[voter] = record.thumbs
    edited = None if record.edit is None else asked.answer(record.edit, record)
    if edited is answer:
        report.out("redacted", record.id)
    elif edited is not None:
        asked.edits.setdefault(edited.key, record.id)
        asked.choose(edited.key, answer.key, voter, record.id)
        edited.votes[voter] = True
        if record.thumbs is None and record.rating is None:
            answer.votes[voter] = False
    for text in record.chosen_over:
        other = asked.answer(text, record)
        if other is answer:
            report.out("redacted", record.id)
        else:
            asked.choose(answer.key, other.key, voter, record.id)


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
        if not 0 <= self.min_agreement <= 1:
            raise wrong_option("min_agreement", self.min_agreement, "a share from 0 to 1")
        if self.rating_split is not None and not 0 <= self.rating_split <= 1:
            raise wrong_option(
                "rating_split", self.rating_split, "a place on the scale from 0 (worst) to 1 (best), or None"
            )
        if not 0 < self.min_gap <= 1:
            raise wrong_option("min_gap", self.min_gap, "a share of the scale above 0, to 1")

    def verdict(self, yes: int, no: int) -> tuple[bool | None, str]:
        """What the majority says, or None and why."""
        if yes + no < self.min_votes:
            return None, "few-votes"
        if yes == no or max(yes, no) < self.min_agreement * (yes + no):
            return None, "conflict"
        return yes > no, ""


def wrong_option(name: str, value: Any, what: str) -> OptionsError:
    """The error for an option of an export."""
    return OptionsError(f"{name} is {value!r}; it is {what}.", code="export-option", asked=f"{name}={value!r}")
