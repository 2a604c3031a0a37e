"""From judgements to rows: what users said about answers, as preference pairs, thumbs, ratings and demonstrations.

Every judgement belongs to an answer of a prompt. Texts that differ only in white space or Unicode form are the same. Of
several judgements that one user gave on one answer the last one counts; a record without a user is a voter of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunekit.data.messages import as_messages
from tunekit.data.rows import RowProblem
from tunekit.data.schemas import MOST_PAIRS, validate_row
from tunekit.data.text import words
from tunekit.errors import DataError
from tunekit.feedback.export import Export, ExportReport
from tunekit.feedback.pairs import decided, without_circles
from tunekit.feedback.records import Record, Text, checked_scale, redacted
from tunekit.feedback.said import Answer, Asked, Rules, agreement, at_least, collected, wrong_option
from tunekit.feedback.splits import components

__all__ = ["Rules", "demonstrations", "labelled", "preferences", "prompts", "rated"]

Row = dict[str, Any]


def _shown(records: Sequence[Record], redact: Callable[[str], str] | None) -> Sequence[Record]:
    return records if redact is None else [redacted(record, redact) for record in records]


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
        raise wrong_option("dedupe", dedupe, "'exact' or 'near'")
    made.sort(key=lambda item: item[:2])
    if dedupe == "near":
        made = _without_near(made, report)
    together = components(records)
    return Export(name, schema, [(together.get(key, key), row) for _, _, key, row in made], report)


def _without_near(made: list[tuple[float, str, str, Row]], report: ExportReport) -> list[tuple[float, str, str, Row]]:
    """Without near copies of earlier rows that say the same: a bad answer is no copy of a good one, whatever its words,
    nor is a pair of one that prefers the other answer."""
    from tunekit.data.dedupe import Near

    seen: dict[Any, Near] = {}
    kept = []
    for number, item in enumerate(made):
        row = item[3]
        label = row.get("label")
        if label not in seen:
            seen[label] = Near()
        like = seen[label].look(row, number)
        if like is None or ("chosen" in row and _turned(row, made[like["like"]][3])):
            kept.append(item)
        else:
            report.out("near-duplicate", item[1])
    return kept


def _turned(row: Row, earlier: Row) -> bool:
    """Whether the chosen answer of a pair is more like the one that was rejected in an earlier pair."""
    chosen, before, rejected = (_words(text) for text in (row["chosen"], earlier["chosen"], earlier["rejected"]))
    return _likeness(chosen, rejected) > _likeness(chosen, before)


def _words(value: Text) -> set[str]:
    return {word for message in as_messages(value, "assistant") for word in words(str(message.get("content") or ""))}


def _likeness(one: set[str], other: set[str]) -> float:
    return len(one & other) / max(1, len(one | other))


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
    for asked in collected(records, report, rules.rating_split):
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
        raise wrong_option("max_pairs", max_pairs, "a whole number from 1, or None")
    records = _shown(records, redact)
    report = ExportReport("preference")
    made = []
    for asked in collected(records, report, rules.rating_split):
        pairs = without_circles(decided(asked, rules, derived, max_pairs, report), report)
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
    low, high = checked_scale(scale)
    made = []
    for asked in gathered:
        for answer in asked.answers.values():
            ratings = [entry[0] for entry in answer.ratings.values()]
            if not ratings:
                continue
            if len(ratings) < rules.min_votes:
                report.out("few-votes", answer.record)
                continue
            if not at_least(agreement(ratings), rules.min_agreement):
                report.out("conflict", answer.record)
                continue
            score = low + (high - low) * sum(ratings) / len(ratings)
            row = _row(asked, {"completion": answer.text}, "prompt_completion", report, answer.record)
            if row is not None:
                made.append((answer.time, answer.record, asked.key, row | {"score": round(score, 9)}))
    return _finished(name, "rated", made, records, report, dedupe)


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
    for asked in collected(records, report, rules.rating_split):
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
