"""A reward step's data as token rows: answers that share the tokens of their prompt, and what is said of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from tunekit.data import Dataset as Data
from tunekit.errors import DataError
from tunekit.plugins import StepContext
from tunekit_trl.encoding import Encoder, Example
from tunekit_trl.rows import DataFacts, encode_rows

__all__ = [
    "REPEATED",
    "RewardFacts",
    "RewardRow",
    "RewardRows",
    "Scale",
    "answers_of",
    "encode_answers",
    "reward_rows",
    "shared_prompt",
]

Row = Mapping[str, Any]

REPEATED = "repeated-answers"
"""Code of a ranked list whose answers are all the same text, such as a refusal. Real lists hold them; they are left out
and counted."""


@dataclass
class RewardRow:
    """One row: its answers as token ids, in four bytes each, and what is learned of them."""

    prompt: array[int]
    """What all answers begin with; empty for one answer."""
    rests: list[array[int]]
    """The rest of each answer, at least one token."""
    ranks: list[int] = field(default_factory=list)
    pairs: list[tuple[int, int, float]] = field(default_factory=list)
    """(better, worse, margin) for each pair of unequal rank."""
    score: float = 0.0
    cuts: tuple[int, ...] = ()
    """Tokens that were cut off the end, for each answer."""
    margin: bool = False
    """Whether the row has a margin."""
    appended: int = 0
    """Answers to which the end-of-text token was added."""

    def sequence(self, number: int) -> list[int]:
        """Prompt and answer."""
        return [*self.prompt, *self.rests[number]]


class RewardRows:
    """Rows for :class:`tunekit_trl.reward_losses.RewardObjective`: ``{prompt_ids, completion_ids, ...}``.

    Args:
        rows: as they were encoded.
        scale: what ratings are learned as.
    """

    def __init__(self, rows: Sequence[RewardRow], scale: Scale) -> None:
        self.rows, self.scale = rows, scale

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row = self.rows[number]
        made: dict[str, Any] = {
            "prompt_ids": row.prompt.tolist(),
            "completion_ids": [ids.tolist() for ids in row.rests],
        }
        if row.pairs:
            return {**made, "ranks": row.ranks, "pairs": row.pairs}
        return {**made, "target": (row.score - self.scale.mean) / self.scale.deviation, "score": row.score}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[number] for number in range(len(self)))


@dataclass(frozen=True)
class Scale:
    """What a rating is learned as: ``(score - mean) / deviation``."""

    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def of(cls, scores: Sequence[float]) -> Scale:
        """Mean and standard deviation of ``scores``; a deviation of 0 becomes 1."""
        mean = sum(scores) / len(scores)
        deviation = (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5
        return cls(mean, deviation or 1.0)


@dataclass
class RewardFacts(DataFacts):
    """Counts over the rows a reward step learns from."""

    answers: int = 0
    pairs: int = 0
    computed_tokens: int = 0
    """With what answers share counted once."""
    margins: int = 0
    """Rows with a margin."""
    repeated: int = 0
    """Lists that were left out, since all their answers are one text."""

    def add(self, row: RewardRow) -> None:
        """Count one row."""
        rest = sum(map(len, row.rests))
        self.rows += 1
        self.answers += len(row.rests)
        self.pairs += len(row.pairs)
        self.tokens += len(row.prompt) * len(row.rests) + rest
        self.computed_tokens += len(row.prompt) + rest
        self.longest = max(self.longest, len(row.prompt) + max(map(len, row.rests)))
        self.cut_rows += any(row.cuts)
        self.cut_tokens += sum(row.cuts)
        self.margins += row.margin
        self.appended_stops += row.appended

    def to_details(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "template": self.template,
            "rows": self.rows,
            "answers": self.answers,
            "pairs": self.pairs,
            "tokens": self.tokens,
            "computed_tokens": self.computed_tokens,
            "longest_row": self.longest,
            "max_length": self.max_length,
            "cut_rows": self.cut_rows,
            "cut_tokens": self.cut_tokens,
            "rows_with_margin": self.margins,
            "appended_stop_tokens": self.appended_stops,
            "skipped_rows": self.skipped_rows,
            "repeated_rows": self.repeated,
        }


def reward_rows(
    ctx: StepContext, encoder: Encoder, data: Data, margin_weight: float = 1.0
) -> tuple[list[RewardRow], RewardFacts]:
    """The rows of ``data``, each with its answers tokenized whole.

    Raises:
        DataError: for no rows, or a row that cannot be used (unless ``on_bad_row="skip"`` leaves it out).
    """
    template = "plain text" if data.schema == "regression" else encoder.template
    facts = RewardFacts(template, encoder.max_length, "the answer as a whole")

    def encode(rows: list[dict[str, Any]]) -> list[RewardRow | DataError]:
        made = encode_answers(encoder, rows, data.schema, margin_weight)
        return [
            RewardRow(array("i"), []) if isinstance(row, DataError) and row.code == REPEATED else row for row in made
        ]

    rows = []
    for row in encode_rows(ctx, data, facts, encode):
        if row.rests:
            facts.add(row)
            rows.append(row)
        else:
            facts.repeated += 1
    if not rows:
        raise DataError(f"{data.name} has no row to train on.", code="empty-dataset", found="lists of one answer each")
    return rows, facts


def encode_answers(
    encoder: Encoder, rows: Sequence[Row], schema: str, margin_weight: float = 1.0
) -> list[RewardRow | DataError]:
    """The token ids of each row's answers, and what is said of them; an error for a row that cannot be used. All texts
    are tokenized at once."""
    plain = schema == "regression"
    answers = [answers_of(row, schema) for row in rows]
    flat = [answer for of_one in answers for answer in of_one]
    # As one text, as anyone will tokenize it who uses the model.
    examples = iter(encoder.examples(flat, "text" if plain else "prompt_completion", "all"))
    made: list[RewardRow | DataError] = []
    for row, of_one in zip(rows, answers, strict=True):
        found = [_with_answer(encoder, answer, next(examples), plain) for answer in of_one]
        error = next((each for each in found if isinstance(each, DataError)), None)
        if error is None and row.get("text_pair") is not None:
            error = DataError("the row has a second text; a reward is of one", code="text-pair", fix="leave it out")
        whole = [each for each in found if isinstance(each, Example)]
        made.append(_judged(encoder, row, schema, whole, margin_weight) if error is None else error)
    return made


def _with_answer(encoder: Encoder, answer: Row, found: Example | DataError, plain: bool) -> Example | DataError:
    """``found``, unless nothing of the answer is left in it."""
    if isinstance(found, Example) and found.cut and not plain:
        (asked,) = encoder.examples([answer], "prompt_completion", "completion")
        return asked if isinstance(asked, DataError) else found
    return found


def answers_of(row: Row, schema: str) -> list[dict[str, Any]]:
    """A row for each answer, in the order of the row: ``{prompt, completion, tools?}``, or ``{text}``."""
    if schema == "regression":
        return [{"text": row["text"]}]
    if schema == "preference":
        answers = [row["chosen"], row["rejected"]]
    else:
        answers = list(row["completions"]) if schema == "ranked" else [row["completion"]]
    shared = {"prompt": row["prompt"]} | ({"tools": row["tools"]} if row.get("tools") else {})
    return [{**shared, "completion": answer} for answer in answers]


def _judged(
    encoder: Encoder, row: Row, schema: str, examples: Sequence[Example], margin_weight: float
) -> RewardRow | DataError:
    prompt, rests = shared_prompt([example.input_ids for example in examples])
    made = RewardRow(
        array("i", prompt),
        [array("i", ids) for ids in rests],
        cuts=tuple(example.cut for example in examples),
        appended=sum(example.appended_stop for example in examples),
    )
    if schema in ("rated", "regression", "feedback"):
        made.score = float(row["label"] if schema == "feedback" else row["score"])
        return made
    made.ranks = [0, 1] if schema == "preference" else list(row["ranks"])
    made.margin = row.get("margin") is not None
    margin = float(row.get("margin") or 0.0) * margin_weight
    unequal = [
        (better, worse)
        for first, second in combinations(range(len(examples)), 2)
        for better, worse in [(first, second) if made.ranks[first] < made.ranks[second] else (second, first)]
        if made.ranks[first] != made.ranks[second]
    ]
    made.pairs = [(i, j, margin) for i, j in unequal if made.rests[i] != made.rests[j]]
    if made.pairs:
        return made
    if not unequal:
        return DataError("all answers have the same rank, so there is nothing to learn", code="no-targets")
    if schema == "ranked" and not any(made.cuts):
        return DataError("all answers are one text, so there is nothing to learn", code=REPEATED)
    lengths = [len(example.input_ids) for example in examples]
    longest = max(length + cut for length, cut in zip(lengths, made.cuts, strict=True))
    return DataError(
        f"the answers are the same in the first {max(lengths)} tokens",
        code="equal-answers",
        fix=encoder.longer(longest),
    )


def shared_prompt(sequences: Sequence[list[int]]) -> tuple[list[int], list[list[int]]]:
    """The tokens that all of ``sequences`` begin with, and the rest of each, at least one token."""
    length = min(len(ids) for ids in sequences) - 1 if len(sequences) > 1 else 0
    first, last = min(sequences), max(sequences)  # what these two share, all share
    shared = next((at for at in range(length) if first[at] != last[at]), max(length, 0))
    return list(sequences[0][:shared]), [list(ids[shared:]) for ids in sequences]
