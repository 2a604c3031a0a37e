"""Formats in which people or models judged answers: pairs, thumbs, votes, ranks and scores."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunekit.data.formats_base import (
    BESIDE,
    JUDGED,
    NO,
    SYSTEM,
    YES,
    Columns,
    Format,
    Row,
    answer,
    conversation,
    keep,
    led,
    mostly,
    need,
    question,
    reply,
    tools_of,
)
from tunekit.data.formats_labelled import number_of
from tunekit.data.messages import is_messages, normalize_messages
from tunekit.data.rows import RowProblem, clean_text, kind_of

__all__ = ["FEEDBACK_FORMATS", "PREFERENCE_FORMATS", "RANKED_FORMATS", "RATED_FORMATS", "transcript", "votes"]

_HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")

_ASKED: Columns = {"prompt": ("instruction question query", "input")}
_PAIR: Columns = {**_ASKED, "response": ("answer output completion reply",)}
_MANY: Columns = {**_ASKED, "completions": ("responses answers outputs replies candidates",)}
_VERDICT = (
    "thumb thumbs thumbs_up_down vote feedback verdict kto_tag is_good is_helpful desirable",
    "rating",
    "?score",
)

_GOOD = ("true", "yes", "y", "up", "thumbs_up", "thumbs up", "thumbsup", "good", "like", "liked", "positive",
         "accept", "accepted", "desirable", "helpful", "\N{THUMBS UP SIGN}", "1", "+1", "1.0")  # fmt: skip
_BAD = ("false", "no", "n", "down", "thumbs_down", "thumbs down", "thumbsdown", "bad", "dislike", "disliked",
        "negative", "reject", "rejected", "undesirable", "unhelpful", "\N{THUMBS DOWN SIGN}", "0", "-1", "0.0",
        "-1.0")  # fmt: skip


# Two answers


def transcript(text: Any, name: str) -> list[Row]:
    r"""The messages of a ``\n\nHuman: ... \n\nAssistant: ...`` transcript; a message list goes through.

    Raises:
        RowProblem: if it is neither.
    """
    if not isinstance(text, str):
        return normalize_messages(text, name)
    text = clean_text(text, name)
    marks = list(_HH_TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        raise RowProblem(name, r"does not start with '\n\nHuman:'")
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [
        {"role": "user" if mark[1] == "Human" else "assistant", "content": text[mark.end() : end].strip()}
        for mark, end in zip(marks, ends, strict=True)
    ]


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and _HH_TURN.match(value.lstrip()) is not None


def _common_prefix(row: Row) -> Row:
    """Two transcripts that start alike: what they share is the prompt, what differs are the answers."""
    chosen, rejected = (transcript(need(row, side), side) for side in ("chosen", "rejected"))
    if chosen == rejected:
        raise RowProblem("rejected", "equals 'chosen'")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0:
        raise RowProblem("rejected", "does not start with the same message as 'chosen'")
    return {"prompt": led(row, chosen[:shared]), "chosen": chosen[shared:], "rejected": rejected[shared:]} | tools_of(
        row
    )


def _turn_preference(name: str) -> Callable[[Row], Row]:
    messages = conversation(name)

    def convert(row: Row) -> Row:
        made = messages(row)
        made["prompt"] = made.pop("messages")
        return made | {side: reply(need(row, side), side) for side in ("chosen", "rejected")}

    return convert


def _question_preference(name: str) -> Callable[[Row], Row]:
    def convert(row: Row) -> Row:
        answers = {side: reply(need(row, side), side) for side in ("chosen", "rejected")}
        return {"prompt": question(row, name), **answers}

    return convert


def _with_margin(convert: Callable[[Row], Row]) -> Callable[[Row], Row]:
    """The conversion of pairs that may say by how much the chosen answer is better."""

    def converted(row: Row) -> Row:
        made = convert(row)
        return made if row.get("margin") is None else made | {"margin": row["margin"]}

    return converted


def _both_transcripts(row: Row) -> bool:
    return _is_transcript(row.get("chosen")) and _is_transcript(row.get("rejected"))


def _both_messages(row: Row) -> bool:
    return is_messages(row.get("chosen")) and is_messages(row.get("rejected"))


PREFERENCE_FORMATS: tuple[Format, ...] = (
    *(
        Format(
            name="sharegpt_preference" if name == "conversations" else "messages_preference",
            schema="preference",
            columns=(name, "chosen", "rejected"),
            optional=(*SYSTEM, "tools", "margin"),
            convert=_with_margin(_turn_preference(name)),
            looks=mostly(lambda row: "prompt" not in row and not _both_messages(row)),
            summary="a conversation and two answers to it (LLaMA-Factory)",
        )
        for name in ("conversations", "messages")
    ),
    Format(
        name="preference",
        schema="preference",
        columns=("prompt", "chosen", "rejected"),
        optional=("tools", "margin", *SYSTEM),
        convert=_with_margin(keep("prompt", "chosen", "rejected")),
        summary="a prompt and two answers, as strings or messages (UltraFeedback repeats the prompt in them)",
    ),
    *(
        Format(
            name=f"{name}_preference",
            schema="preference",
            columns=(name, "chosen", "rejected"),
            optional=(*BESIDE, *SYSTEM, "history", "margin"),
            convert=_with_margin(_question_preference(name)),
            summary=f"{name} as the user's turn, and two answers",
        )
        for name in ("instruction", "question")
    ),
    Format(
        name="hh",
        schema="preference",
        columns=("chosen", "rejected"),
        optional=(*SYSTEM, "margin"),
        convert=_with_margin(_common_prefix),
        looks=mostly(_both_transcripts),
        summary=r"two '\n\nHuman: ... \n\nAssistant: ...' transcripts that start alike",
    ),
    Format(
        name="chosen_rejected",
        schema="preference",
        columns=("chosen", "rejected"),
        optional=("tools", "margin", *SYSTEM),
        convert=_with_margin(_common_prefix),
        looks=mostly(_both_messages),
        summary="two message lists that start alike",
    ),
)


# One answer


def _turn_feedback(name: str) -> Callable[[Row], Row]:
    read = conversation(name)

    def convert(row: Row) -> Row:
        made = read(row)
        messages = made.pop("messages")
        if messages[-1]["role"] != "assistant" or len(messages) < 2:
            raise RowProblem(name, "does not end with the assistant message that the label judges")
        return made | {"prompt": messages[:-1], "completion": messages[-1:], "label": _verdict(row, "label")}

    return convert


def _messages_in(name: str) -> Callable[[Row], bool]:
    def looks(row: Row) -> bool:
        value = row.get(name)
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return False
        return is_messages(value)

    return looks


def _tagged_feedback(row: Row) -> Row:
    return {
        "prompt": question(row, "instruction"),
        "completion": answer(row, "output"),
        "label": _verdict(row, "kto_tag"),
    }


def _verdict(row: Row, name: str) -> bool:
    """A judgement as a boolean: booleans, 1 and 0 or -1, and the usual words."""
    value = need(row, name)
    word = str(value).strip().lower() if isinstance(value, bool | str) else ""
    if isinstance(value, int | float) and value in (0, 1, -1):
        return value == 1
    if word in _GOOD or word in _BAD:
        return word in _GOOD
    raise RowProblem(
        name,
        f"is {kind_of(value)}{f' {value[:20]!r}' if isinstance(value, str) else ''}, neither good nor bad",
        "write true or false: where good ends on your scale is for you to say",
    )


def _kept_feedback(row: Row) -> Row:
    return keep("prompt", "completion")(row) | {"label": _verdict(row, "label")}


def _judged(row: Row) -> bool:
    try:
        _verdict(row, "label")
    except RowProblem:
        return False
    return True


def _binary(rows: Sequence[Row]) -> int:
    """Whether the verdicts are of two kinds: beside -1, a 0 is no opinion, and nobody knows what it is beside 2."""
    values = {None if isinstance(row.get("label"), bool) else number_of(row.get("label")) for row in rows}
    if {-1, 0} <= values:
        return NO
    # Only ones may be the start of a scale, or of data that were filtered.
    return min(mostly(_judged)(rows), 1 if values == {1} else YES)


def _pair(row: Row) -> Row:
    return {"prompt": question(row, "prompt"), "completion": answer(row, "response")}


def _thumbs(row: Row) -> Row:
    return _pair(row) | {"label": _verdict(row, "label")}


def votes(up: Any, down: Any, name: str) -> bool | None:
    """What the majority says; None where there is none."""
    counts = []
    for value in (up, down):
        number = 0 if value is None else value
        if isinstance(number, str) and re.fullmatch(r"\s*[0-9]{1,9}\s*", number):
            number = int(number)
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
            raise RowProblem(name, f"has a count that is {kind_of(value)}")
        counts.append(number)
    return None if counts[0] == counts[1] else counts[0] > counts[1]


def _voted(row: Row) -> list[Row]:
    label = votes(need(row, "thumbs_up"), need(row, "thumbs_down"), "thumbs_up")
    pair = _pair(row)
    return [] if label is None else [pair | {"label": label}]


def _reacted(row: Row) -> list[Row]:
    emojis = row.get("emojis")
    if emojis is not None and not isinstance(emojis, Mapping):
        raise RowProblem("emojis", f"is {kind_of(emojis)}, not an object of counts")
    label = votes((emojis or {}).get("+1"), (emojis or {}).get("-1"), "emojis")
    pair = _pair(row)
    return [] if label is None else [pair | {"label": label}]


_BY_MAJORITY = "the majority of the votes; answers without one are left out"

FEEDBACK_FORMATS: tuple[Format, ...] = (
    *(
        Format(
            name="kto" if name == "messages" else "sharegpt_kto",
            schema="feedback",
            columns=(name, "label"),
            optional=(*SYSTEM, "tools"),
            aliases={"label": _VERDICT[:1]},
            convert=_turn_feedback(name),
            looks=mostly(_messages_in(name)),
            summary="a conversation and whether its last answer is good",
        )
        for name in ("messages", "conversations")
    ),
    Format(
        name="feedback",
        schema="feedback",
        columns=("prompt", "completion", "label"),
        optional=("tools", *SYSTEM),
        convert=_kept_feedback,
        summary="a prompt, an answer, and whether it is good; strings become turns of the chat template, if any",
    ),
    Format(
        name="alpaca_kto",
        schema="feedback",
        columns=("instruction", "output", "kto_tag"),
        optional=(*BESIDE, *SYSTEM, "history"),
        convert=_tagged_feedback,
        summary="Alpaca columns and whether the output is good",
    ),
    Format(
        name="votes",
        schema="feedback",
        columns=("prompt", "response", "thumbs_up", "thumbs_down"),
        optional=(*BESIDE, *SYSTEM, "history"),
        aliases={
            **_PAIR,
            "thumbs_up": ("upvotes up likes up_votes ups num_up n_up positive",),
            "thumbs_down": ("downvotes down dislikes down_votes downs num_down n_down negative",),
        },
        convert=_voted,
        note=_BY_MAJORITY,
        summary="a question, an answer, and how many liked and disliked it",
    ),
    Format(
        name="emojis",
        schema="feedback",
        columns=("prompt", "response", "emojis"),
        optional=(*BESIDE, *SYSTEM, "history"),
        aliases={**_PAIR, "emojis": ("reactions",)},
        convert=_reacted,
        looks=mostly(lambda row: row.get("emojis") is None or isinstance(row["emojis"], Mapping)),
        note=_BY_MAJORITY,
        summary='a question, an answer, and counts {"+1": ..., "-1": ...}',
    ),
    Format(
        name="thumbs",
        schema="feedback",
        columns=("prompt", "response", "label"),
        optional=(*BESIDE, *SYSTEM, "history"),
        aliases={**_PAIR, "label": _VERDICT},
        convert=_thumbs,
        looks=_binary,
        without=("chosen", "rejected"),
        summary="a question, an answer, and a thumb: a boolean, 1 and 0 or -1, up and down, good and bad",
    ),
)


# Several answers

_BODIES = ("text", "response", "answer", "completion", "content", "output", "reply", "generation", "message")
_SCORES = ("fine-grained_score", "score", "overall_score", "rating", "reward", "grade")


def _asked(row: Row) -> str | list[Row]:
    prompt = need(row, "prompt")
    if isinstance(prompt, str) and not _is_transcript(prompt):
        return question(row, "prompt")
    messages = transcript(prompt, "prompt")
    if len(messages) > 1 and messages[-1]["role"] == "assistant" and not messages[-1]["content"].strip():
        messages.pop()  # Nectar ends its transcripts in 'Assistant:'
    return led(row, messages)


def _list(row: Row, name: str) -> list[Any]:
    value = need(row, name)
    if not isinstance(value, list):
        raise RowProblem(name, f"is {kind_of(value)}, not a list")
    return value


def _body(item: Any, name: str) -> list[Row]:
    if isinstance(item, Mapping) and "role" not in item and "from" not in item:
        item = next((item[key] for key in _BODIES if item.get(key) is not None), None)
        if item is None:
            raise RowProblem(name, f"has no answer under one of {', '.join(_BODIES)}")
    return reply(item, name)


def _best_first(row: Row) -> Row:
    answers = _list(row, "output")
    return {
        "prompt": question(row, "instruction"),
        "completions": [reply(item, f"output[{number}]") for number, item in enumerate(answers)],
        "ranks": list(range(len(answers))),
    }


def _number(value: Any, name: str) -> float:
    """A score: a finite number, or its text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise RowProblem(name, f"is {value[:20]!r}, not a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < math.inf:
        raise RowProblem(name, f"is {kind_of(value)}, not a score")
    return value


def by_score(scores: Sequence[float]) -> list[int]:
    """Ranks of scores, the highest 0; equal scores have equal ranks."""
    places = {score: rank for rank, score in enumerate(sorted(set(scores), reverse=True))}
    return [places[score] for score in scores]


def _scored_lists(row: Row) -> Row:
    answers, scores = _list(row, "completions"), _list(row, "scores")
    if len(answers) != len(scores):
        raise RowProblem("scores", f"has {len(scores)} entries for {len(answers)} answers")
    return {
        "prompt": _asked(row),
        "completions": [_body(item, f"completions[{number}]") for number, item in enumerate(answers)],
        "ranks": by_score([_number(score, f"scores[{number}]") for number, score in enumerate(scores)]),
    }


def _ratings(item: Mapping[str, Any]) -> list[float]:
    """The ratings of UltraFeedback's aspects; those it calls N/A are left out."""
    aspects = item.get("annotations")
    found = []
    for aspect in aspects.values() if isinstance(aspects, Mapping) else ():
        for one in aspect if isinstance(aspect, list) else [aspect]:
            rating = one.get("Rating") if isinstance(one, Mapping) else None
            if isinstance(rating, str | int | float) and not isinstance(rating, bool):
                try:
                    found.append(float(rating))
                except (ValueError, OverflowError):
                    continue
    return [rating for rating in found if math.isfinite(rating)]


def _item_score(item: Any, name: str) -> float:
    """What an answer is worth. UltraFeedback's overall_score is wrong in many rows, so its ratings come first."""
    if isinstance(item, Mapping):
        ratings = _ratings(item)
        if ratings:
            return sum(ratings) / len(ratings)
        for key in _SCORES:
            if item.get(key) is not None:
                return _number(item[key], f"{name}.{key}")
    raise RowProblem(name, f"has no score under one of {', '.join(_SCORES)}")


def _rated_items(row: Row) -> Row:
    answers = _list(row, "completions")
    names = [f"completions[{number}]" for number in range(len(answers))]
    ranked = any(isinstance(item, Mapping) and item.get("rank") is not None for item in answers)
    ranks: list[Any]
    if ranked:
        ranks = [need(item, "rank") if isinstance(item, dict) else None for item in answers]
    else:
        ranks = by_score([_item_score(item, name) for item, name in zip(answers, names, strict=True)])
    completions = [_body(item, name) for item, name in zip(answers, names, strict=True)]
    return {"prompt": _asked(row), "completions": completions, "ranks": ranks}


def _rated(row: Row) -> bool:
    answers = row.get("completions")
    keys = ("rank", "annotations", *_SCORES)
    return (
        isinstance(answers, list)
        and bool(answers)
        and all(isinstance(item, Mapping) and any(item.get(key) is not None for key in keys) for item in answers)
    )


RANKED_FORMATS: tuple[Format, ...] = (
    Format(
        name="ranked",
        schema="ranked",
        columns=("prompt", "completions", "ranks"),
        aliases={"completions": _MANY["completions"]},
        optional=("tools", *SYSTEM),
        convert=keep("prompt", "completions", "ranks"),
        summary="a prompt, answers, and their ranks: the lower the better",
    ),
    Format(
        name="best_first",
        schema="ranked",
        columns=("instruction", "output"),
        optional=(*BESIDE, *SYSTEM, "history"),
        convert=_best_first,
        without=JUDGED,
        looks=mostly(lambda row: isinstance(row.get("output"), list)),
        note="output is ranked, best first",
        summary="Alpaca columns with a list of outputs, best first",
    ),
    Format(
        name="scored",
        schema="ranked",
        columns=("prompt", "completions", "scores"),
        optional=(*BESIDE, *SYSTEM, "history"),
        aliases={**_MANY, "scores": ("rewards ratings",)},
        convert=_scored_lists,
        looks=mostly(lambda row: isinstance(row.get("completions"), list) and isinstance(row.get("scores"), list)),
        note="the higher the score the better",
        summary="a question, answers, and their scores: the higher the better",
    ),
    Format(
        name="rated",
        schema="ranked",
        columns=("prompt", "completions"),
        optional=(*BESIDE, *SYSTEM, "history"),
        aliases=_MANY,
        convert=_rated_items,
        looks=mostly(_rated),
        note="by rank, or by mean rating or score, the higher the better",
        summary="a question, and answers that carry their ranks, ratings or scores (UltraFeedback, Nectar)",
    ),
)


# One answer and its rating


def _rating(row: Row) -> Row:
    prompt = need(row, "prompt")
    if isinstance(prompt, str) and not any(row.get(name) for name in (*BESIDE, "history")):
        made = keep("prompt", "completion")(row)
    else:
        asked = question(row, "prompt") if isinstance(prompt, str) else led(row, normalize_messages(prompt, "prompt"))
        made = {"prompt": asked, "completion": reply(need(row, "completion"), "completion")} | tools_of(row)
    return made | {"score": _number(need(row, "score"), "score")}


def _scored(rows: Sequence[Row]) -> int:
    """Whether there are numbers; what else they may be only a step that asks for ratings decides."""
    return min(mostly(lambda row: number_of(row.get("score")) is not None)(rows), 1)


RATED_FORMATS: tuple[Format, ...] = (
    Format(
        name="rating",
        schema="rated",
        columns=("prompt", "completion", "score"),
        optional=(*BESIDE, *SYSTEM, "history", "tools"),
        aliases={
            **_ASKED,
            "completion": ("response answer output reply",),
            "score": ("rating reward stars grade quality",),
        },
        convert=_rating,
        without=("chosen", "rejected"),
        looks=_scored,
        note="the higher the score the better",
        summary="a question, an answer, and a number that rates it: the higher the better",
    ),
)
