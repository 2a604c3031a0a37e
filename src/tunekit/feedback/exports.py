"""From judgements to rows: what users said about answers, as preference pairs, thumbs, ratings and demonstrations.

Every judgement belongs to an answer of a prompt. Texts that differ only in white space or Unicode form are the same. Of
several judgements that one user gave on one answer the last one counts; a record without a user is a voter of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from tunekit.data.messages import as_messages
from tunekit.data.rows import RowProblem
from tunekit.data.schemas import MOST_PAIRS, validate_row
from tunekit.errors import DataError, OptionsError
from tunekit.feedback.export import Export, ExportReport
from tunekit.feedback.records import Record, Text, redacted, text_key
from tunekit.feedback.splits import components

__all__ = ["Rules", "demonstrations", "labelled", "preferences", "prompts", "rated"]

Row = dict[str, Any]


# What was said, by prompt and answer.


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


def _shown(records: Sequence[Record], redact: Callable[[str], str] | None) -> Sequence[Record]:
    return records if redact is None else [redacted(record, redact) for record in records]


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
            raise _wrong("min_votes", self.min_votes, "a whole number from 1")
        if not 0 <= self.min_agreement <= 1:
            raise _wrong("min_agreement", self.min_agreement, "a share from 0 to 1")
        if self.rating_split is not None and not 0 <= self.rating_split <= 1:
            raise _wrong("rating_split", self.rating_split, "a place on the scale from 0 (worst) to 1 (best), or None")
        if not 0 < self.min_gap <= 1:
            raise _wrong("min_gap", self.min_gap, "a share of the scale above 0, to 1")

    def verdict(self, yes: int, no: int) -> tuple[bool | None, str]:
        """What the majority says, or None and why."""
        if yes + no < self.min_votes:
            return None, "few-votes"
        if yes == no or max(yes, no) < self.min_agreement * (yes + no):
            return None, "conflict"
        return yes > no, ""


def _wrong(name: str, value: Any, what: str) -> OptionsError:
    return OptionsError(f"{name} is {value!r}; it is {what}.", code="export-option", asked=f"{name}={value!r}")


def _with_tools(asked: Asked, row: Row) -> Row:
    return row | {"tools": copy.deepcopy(asked.tools)} if asked.tools else row


def _finished(
    name: str,
    schema: str,
    made: list[tuple[float, str, str, Row]],
    records: Sequence[Record],
    report: ExportReport,
    dedupe: str | None,
) -> Export:
    """Rows ``(time, record, prompt key, row)`` in order, near copies left out if asked for."""
    if dedupe not in ("exact", "near"):
        raise _wrong("dedupe", dedupe, "'exact' or 'near'")
    made.sort(key=lambda item: item[:2])
    if dedupe == "near":
        from tunekit.data.dedupe import Near

        near, kept = Near(), []
        for number, item in enumerate(made):
            if near.look(item[3], number) is None:
                kept.append(item)
            else:
                report.out("near-duplicate", item[1])
        made = kept
    together = components(records)
    return Export(name, schema, [(together.get(key, key), row) for _, _, key, row in made], report)


# The shapes.


def labelled(
    name: str,
    records: Sequence[Record],
    *,
    rules: Rules,
    comparisons: bool = False,
    dedupe: str = "exact",
    redact: Callable[[str], str] | None = None,
) -> Export:
    """Rows ``{prompt, completion, label}``: see :meth:`tunekit.feedback.Judgements.labelled`."""
    records = _shown(records, redact)
    report = ExportReport("feedback")
    made = []
    for asked in collected(records, report):
        compared = _compared(asked) if comparisons else {}
        for answer in asked.answers.values():
            opinions = compared.get(answer.key, {}) | answer.opinions(rules.rating_split)
            if not opinions:
                continue
            label, why = rules.verdict(sum(opinions.values()), len(opinions) - sum(opinions.values()))
            if label is None:
                report.out(why, answer.record)
                continue
            row = _row(asked, {"completion": answer.text}, "prompt_completion", report, answer.record)
            if row is not None:
                made.append((answer.time, answer.record, asked.key, row | {"label": label}))
    return _finished(name, "feedback", made, records, report, dedupe)


def _compared(asked: Asked) -> dict[str, dict[str, bool]]:
    """Answer -> voter -> whether it was the better one, for voters who always preferred or always rejected it."""
    found: dict[str, dict[str, set[bool]]] = {}
    for pair, voters in asked.choices.items():
        for voter, (better, _) in voters.items():
            for key in pair:
                found.setdefault(key, {}).setdefault(voter, set()).add(key == better)
    return {
        key: {voter: True in said for voter, said in voters.items() if len(said) == 1} for key, voters in found.items()
    }


def _row(asked: Asked, answers: Mapping[str, Text], schema: str, report: ExportReport, record: str) -> Row | None:
    """A checked row; None, counted, if redaction left nothing of a text."""
    row: Row = {"prompt": asked.prompt, **answers}
    if not all(isinstance(value, str) for value in row.values()):
        row = {key: as_messages(value, "user" if key == "prompt" else "assistant") for key, value in row.items()}
    try:
        return validate_row(_with_tools(asked, copy.deepcopy(row)), schema)
    except RowProblem:
        report.out("redacted", record)
        return None


def preferences(
    name: str,
    records: Sequence[Record],
    *,
    rules: Rules,
    derived: bool = True,
    max_pairs: int | None = MOST_PAIRS,
    margins: bool = False,
    dedupe: str = "exact",
    redact: Callable[[str], str] | None = None,
) -> Export:
    """Rows ``{prompt, chosen, rejected}``: see :meth:`tunekit.feedback.Judgements.preferences`."""
    if max_pairs is not None and (isinstance(max_pairs, bool) or not isinstance(max_pairs, int) or max_pairs < 1):
        raise _wrong("max_pairs", max_pairs, "a whole number from 1, or None")
    records = _shown(records, redact)
    report = ExportReport("preference")
    made = []
    for asked in collected(records, report):
        pairs = _decided(asked, rules, derived, report)
        pairs = _without_circles(pairs, report)
        pairs.sort(key=lambda pair: (not pair.direct, -pair.votes, -pair.gap, pair.time))
        if max_pairs is not None:
            for pair in pairs[max_pairs:]:
                report.out("cap", pair.record)
            pairs = pairs[:max_pairs]
        for pair in pairs:
            chosen, rejected = asked.answers[pair.better], asked.answers[pair.worse]
            row = _row(asked, {"chosen": chosen.text, "rejected": rejected.text}, "preference", report, pair.record)
            if row is None:
                continue
            high, low = chosen.mean(), rejected.mean()
            if margins and high is not None and low is not None and high > low:
                row["margin"] = round(high - low, 6)
            made.append((pair.time, pair.record, asked.key, row))
    return _finished(name, "preference", made, records, report, dedupe)


@dataclass(frozen=True)
class _Pair:
    better: str
    worse: str
    direct: bool
    votes: int
    gap: float
    time: float
    record: str


def _decided(asked: Asked, rules: Rules, derived: bool, report: ExportReport) -> list[_Pair]:
    """The pairs on which voters agree: by direct comparison, by what one voter said of both answers, and between the
    verdicts of different voters where nobody compared them."""
    found: list[_Pair] = []
    answers = list(asked.answers.values())
    for first, second in combinations(answers, 2):
        low, high = sorted((first.key, second.key))
        direct = {voter: better for voter, (better, _) in asked.choices.get((low, high), {}).items()}
        voters = dict(direct)
        if derived:
            voters = _both_judged(first, second, rules) | direct
        time = max(first.time, second.time)
        ids = [record for _, record in asked.choices.get((low, high), {}).values()]
        record = ids[-1] if ids else max((first, second), key=lambda answer: answer.time).record
        gap = abs((first.mean() or 0.0) - (second.mean() or 0.0)) if first.ratings and second.ratings else 0.0
        if voters:
            wins = sum(better == first.key for better in voters.values())
            verdict, why = rules.verdict(wins, len(voters) - wins)
            if verdict is None:
                report.out(why, record)
                continue
            better, worse = (first, second) if verdict else (second, first)
            found.append(_Pair(better.key, worse.key, bool(direct), len(voters), gap, time, record))
        elif derived:
            better_key = _across(first, second, rules)
            if better_key is not None:
                worse_key = second.key if better_key == first.key else first.key
                found.append(_Pair(better_key, worse_key, False, 0, gap, time, record))
    return found


def _both_judged(first: Answer, second: Answer, rules: Rules) -> dict[str, str]:
    """Voter -> the answer he judged better, for those who judged both."""
    found = {}
    for voter in (first.votes.keys() | first.ratings.keys()) & (second.votes.keys() | second.ratings.keys()):
        if voter in first.ratings and voter in second.ratings:
            gap = first.ratings[voter][0] - second.ratings[voter][0]
            if abs(gap) >= rules.min_gap:
                found[voter] = first.key if gap > 0 else second.key
                continue
        one, other = (answer.opinions(rules.rating_split).get(voter) for answer in (first, second))
        if one is not None and other is not None and one != other:
            found[voter] = first.key if one else second.key
    return found


def _across(first: Answer, second: Answer, rules: Rules) -> str | None:
    """The better of two answers by the verdicts of different voters: thumbs against thumbs, ratings against ratings."""
    one, other = first.mean(), second.mean()
    if one is not None and other is not None and min(len(first.ratings), len(second.ratings)) >= rules.min_votes:
        if abs(one - other) >= rules.min_gap:
            return first.key if one > other else second.key
        return None
    verdicts = []
    for answer in (first, second):
        said = answer.opinions(rules.rating_split)
        verdicts.append(rules.verdict(sum(said.values()), len(said) - sum(said.values()))[0] if said else None)
    if None in verdicts or verdicts[0] == verdicts[1]:
        return None
    return first.key if verdicts[0] else second.key


def _without_circles(pairs: list[_Pair], report: ExportReport) -> list[_Pair]:
    """Leave out the pairs that lie on a circle of preferences: no order of the answers fits them."""
    beats: dict[str, set[str]] = {}
    for pair in pairs:
        beats.setdefault(pair.better, set()).add(pair.worse)
    reached: dict[str, set[str]] = {}
    for start in beats:
        seen: set[str] = set()
        waiting = list(beats[start])
        while waiting:
            key = waiting.pop()
            if key not in seen:
                seen.add(key)
                waiting += beats.get(key, ())
        reached[start] = seen
    kept = []
    for pair in pairs:
        if pair.better in reached.get(pair.worse, ()):
            report.out("cycle", pair.record)
        else:
            kept.append(pair)
    return kept


def rated(
    name: str,
    records: Sequence[Record],
    *,
    rules: Rules,
    scale: tuple[float, float] | None = None,
    dedupe: str = "exact",
    redact: Callable[[str], str] | None = None,
) -> Export:
    """Rows ``{prompt, completion, score}``: see :meth:`tunekit.feedback.Judgements.rated`."""
    records = _shown(records, redact)
    report = ExportReport("rated")
    gathered = collected(records, report)
    scales = {entry[2] for asked in gathered for answer in asked.answers.values() for entry in answer.ratings.values()}
    if scale is None:
        if len(scales) > 1:
            shown = ", ".join(f"{low:g} to {high:g}" for low, high in sorted(scales))
            raise DataError(
                f"The ratings in {name} are on {len(scales)} scales.",
                code="mixed-scales",
                found=shown,
                fix="say which scale the scores are to have, such as scale=(0, 1)",
            )
        scale = next(iter(scales), (0.0, 1.0))
    low, high = float(scale[0]), float(scale[1])
    if not low < high:
        raise _wrong("scale", scale, "the lowest and the highest score")
    made = []
    for asked in gathered:
        for answer in asked.answers.values():
            ratings = sorted(entry[0] for entry in answer.ratings.values())
            if not ratings:
                continue
            if len(ratings) < rules.min_votes:
                report.out("few-votes", answer.record)
                continue
            if agreement(ratings) < rules.min_agreement:
                report.out("conflict", answer.record)
                continue
            score = low + (high - low) * sum(ratings) / len(ratings)
            row = _row(asked, {"completion": answer.text}, "prompt_completion", report, answer.record)
            if row is not None:
                made.append((answer.time, answer.record, asked.key, row | {"score": round(score, 9)}))
    return _finished(name, "rated", made, records, report, dedupe)


def agreement(ratings: Sequence[float]) -> float:
    """How far sorted ratings from 0 to 1 agree: 1 minus twice their mean distance from the median. 1: all are equal;
    0: half of them at each end of the scale."""
    middle = len(ratings) // 2
    median = ratings[middle] if len(ratings) % 2 else (ratings[middle - 1] + ratings[middle]) / 2
    return 1 - 2 * sum(abs(rating - median) for rating in ratings) / len(ratings)


def demonstrations(
    name: str,
    records: Sequence[Record],
    *,
    rules: Rules,
    dedupe: str = "exact",
    redact: Callable[[str], str] | None = None,
) -> Export:
    """Rows ``{prompt, completion}``: see :meth:`tunekit.feedback.Judgements.demonstrations`."""
    records = _shown(records, redact)
    report = ExportReport("prompt_completion")
    made = []
    for asked in collected(records, report):
        good: list[Answer] = []
        better: list[Answer] = []
        for answer in asked.answers.values():
            opinions = answer.opinions(rules.rating_split)
            if not opinions:
                continue
            label, why = rules.verdict(sum(opinions.values()), len(opinions) - sum(opinions.values()))
            if label is None:
                report.out(why, answer.record)
            elif label:
                (better if answer.key in asked.edits else good).append(answer)
        for answer in better or good:  # what users wrote themselves is what they want
            row = _row(asked, {"completion": answer.text}, "prompt_completion", report, answer.record)
            if row is not None:
                made.append((answer.time, answer.record, asked.key, row))
    return _finished(name, "prompt_completion", made, records, report, dedupe)


def prompts(
    name: str, records: Sequence[Record], *, dedupe: str = "exact", redact: Callable[[str], str] | None = None
) -> Export:
    """Rows ``{prompt}``, each prompt once: see :meth:`tunekit.feedback.Judgements.prompts`."""
    records = _shown(records, redact)
    report = ExportReport("prompt")
    made: list[tuple[float, str, str, Row]] = []
    for asked in collected(records, report):
        row = _row(asked, {}, "prompt", report, asked.record)
        if row is not None:
            made.append((asked.time, asked.record, asked.key, row))
    return _finished(name, "prompt", made, records, report, dedupe)
