"""The canonical row shapes, how a row is validated, and which shape can be turned into which.

========================  ==========================================================================
``text``                  ``{text}``
``prompt_completion``     ``{prompt, completion, tools?}``
``conversation``          ``{messages, tools?}``
``prompt``                ``{prompt, columns?, tools?}``; columns: what else the row says, by column
``preference``            ``{prompt, chosen, rejected, margin?, tools?}``; chosen and rejected: assistant turns only
``feedback``              ``{prompt, completion, label, tools?}``; label: bool, True is good
``rated``                 ``{prompt, completion, score, tools?}``; score: finite float, the higher the better
``ranked``                ``{prompt, completions, ranks, tools?}``; one rank for each completion, 0 is best
``classification``        ``{text, label, text_pair?}``; label: text
``token_classification``  ``{tokens, tags}``; one tag for each token, both text
``regression``            ``{text, score, text_pair?}``; score: finite float
========================  ==========================================================================

Prompts and answers are strings, or lists of messages ``{role, content, tool_calls?, reasoning_content?, ...}``. Within
one row they are all strings or all message lists. ``text``, ``text_pair``, ``label``, ``tokens`` and ``tags`` are
strings.

The ``columns`` of a prompt are for rewards, such as ``answer``: JSON types, called as in the data; an answer that the
row holds is ``completion`` besides. Columns called ``prompts``, ``completions``, ``completion_ids`` and ``finished``
are left out: rewards have arguments of these names. ``margin`` says by how much ``chosen`` is better: a finite float.

Ranks are whole numbers, the lower the better, ties allowed; a row's ranks are counted from 0 without gaps, so that
``[1, 2, 2, 7]`` becomes ``[0, 1, 1, 2]``. Labels and tags that are whole numbers become their decimal text, booleans
``true`` and ``false``.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

from tunekit.data.columns import checked_columns
from tunekit.data.messages import as_messages, normalize_messages, normalize_tools, to_text
from tunekit.data.rows import RowProblem, clean_text, kind_of

__all__ = ["CONVERSIONS", "MOST_PAIRS", "SCHEMAS", "SHAPES", "Change", "conversion", "validate_row"]

Row = dict[str, Any]
Change = Callable[[Row], Row | list[Row]]
"""From one shape to another; a list where a row becomes any number of rows, also none."""

MOST_PAIRS = 10
"""Most preference pairs that are made of one ranked row: all pairs of five answers."""

SCHEMAS: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "prompt_completion": ("prompt", "completion"),
    "conversation": ("messages",),
    "prompt": ("prompt",),
    "preference": ("prompt", "chosen", "rejected"),
    "feedback": ("prompt", "completion", "label"),
    "rated": ("prompt", "completion", "score"),
    "ranked": ("prompt", "completions", "ranks"),
    "classification": ("text", "label"),
    "token_classification": ("tokens", "tags"),
    "regression": ("text", "score"),
}
"""Schema to the fields every row of it has."""

SHAPES: Mapping[str, str] = {
    "text": "text: {text}",
    "prompt_completion": "prompt_completion: {prompt, completion}",
    "conversation": "conversation: {messages}",
    "prompt": "prompt: {prompt}",
    "preference": "preference: {prompt, chosen, rejected}",
    "feedback": "feedback: {prompt, completion, label}",
    "rated": "rated: {prompt, completion, score}",
    "ranked": "ranked: {prompt, completions, ranks}",
    "classification": "classification: {text, label}",
    "token_classification": "token_classification: {tokens, tags}",
    "regression": "regression: {text, score}",
}
"""Schema to one line for people."""

_TOOLED = ("prompt_completion", "conversation", "prompt", "preference", "feedback", "rated", "ranked")


def validate_row(row: Mapping[str, Any], schema: str) -> Row:
    """A canonical row of ``schema`` with exactly its fields, checked and copied.

    Raises:
        RowProblem: naming the field.
    """
    for field in SCHEMAS[schema]:
        if field not in row:
            raise RowProblem(field, "is missing")
        if row[field] is None:
            raise RowProblem(field, "is null")
    made = _VALIDATORS[schema](row)
    tools = normalize_tools(row["tools"]) if schema in _TOOLED and row.get("tools") is not None else None
    if tools:
        made["tools"] = tools
    return made


def _text(row: Mapping[str, Any]) -> Row:
    return {"text": clean_text(row["text"], "text")}


def _prompt_completion(row: Mapping[str, Any]) -> Row:
    prompt = _prompt(row["prompt"])
    completion = _reply(row["completion"], "completion", prompt)
    if not _says_something(completion):
        raise RowProblem("completion", "is empty, so the row has nothing to train on")
    return _alike({"prompt": prompt, "completion": completion})


def _conversation(row: Mapping[str, Any]) -> Row:
    messages = normalize_messages(row["messages"], "messages", keep_nulls=True)
    if not any(message["role"] == "assistant" and _says_something([message]) for message in messages):
        raise RowProblem("messages", "has no assistant message with content, so the row has nothing to train on")
    return {"messages": messages}


def _prompt_alone(row: Mapping[str, Any]) -> Row:
    made: Row = {"prompt": _prompt(row["prompt"])}
    columns = checked_columns(row["columns"]) if row.get("columns") is not None else {}
    return made | {"columns": columns} if columns else made


def _preference(row: Mapping[str, Any]) -> Row:
    prompt = _prompt(row["prompt"])
    chosen = _reply(row["chosen"], "chosen", prompt)
    rejected = _reply(row["rejected"], "rejected", prompt)
    made = _alike({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    # One empty side is a real preference (HH has such rows); equal sides teach nothing and are a data error.
    if made["chosen"] == made["rejected"]:
        raise RowProblem("rejected", "equals 'chosen'")
    return made if row.get("margin") is None else made | {"margin": _score(row["margin"], "margin")}


def _feedback(row: Mapping[str, Any]) -> Row:
    prompt = _prompt(row["prompt"])
    completion = _reply(row["completion"], "completion", prompt)
    if not _says_something(completion):
        raise RowProblem("completion", "is empty")
    return {**_alike({"prompt": prompt, "completion": completion}), "label": _label(row["label"])}


def _rated(row: Mapping[str, Any]) -> Row:
    prompt = _prompt(row["prompt"])
    completion = _reply(row["completion"], "completion", prompt)
    return {**_alike({"prompt": prompt, "completion": completion}), "score": _score(row["score"])}


def _ranked(row: Mapping[str, Any]) -> Row:
    prompt = _prompt(row["prompt"])
    answers, ranks = _list(row["completions"], "completions"), _list(row["ranks"], "ranks")
    if len(answers) < 2:
        raise RowProblem("completions", f"holds {len(answers)} answer{'s' * (len(answers) != 1)}; a ranking needs two")
    if len(answers) != len(ranks):
        raise RowProblem("ranks", f"has {len(ranks)} entries for {len(answers)} completions")
    completions = [_reply(answer, f"completions[{number}]", prompt) for number, answer in enumerate(answers)]
    if not any(_says_something(completion) for completion in completions):
        raise RowProblem("completions", "are all empty")
    numbers = [_whole(rank, f"ranks[{number}]") for number, rank in enumerate(ranks)]
    place = {rank: number for number, rank in enumerate(sorted(set(numbers)))}
    if isinstance(prompt, str) and not all(isinstance(completion, str) for completion in completions):
        prompt = as_messages(prompt)
    if not isinstance(prompt, str):
        completions = [as_messages(completion, "assistant") for completion in completions]
    return {"prompt": prompt, "completions": completions, "ranks": [place[number] for number in numbers]}


def _classification(row: Mapping[str, Any]) -> Row:
    return {"text": clean_text(row["text"], "text"), "label": _class(row["label"], "label"), **_pair_text(row)}


def _token_classification(row: Mapping[str, Any]) -> Row:
    tokens, tags = _list(row["tokens"], "tokens"), _list(row["tags"], "tags")
    if not tokens:
        raise RowProblem("tokens", "is empty")
    if len(tokens) != len(tags):
        raise RowProblem("tags", f"has {len(tags)} entries for {len(tokens)} tokens")
    for number, token in enumerate(tokens):
        # Blank tokens are in real corpora (a line break in OntoNotes); an empty one has no place in the text.
        if not clean_text(token, f"tokens[{number}]", empty=True):
            raise RowProblem(f"tokens[{number}]", "is empty")
    return {"tokens": list(tokens), "tags": [_class(tag, f"tags[{number}]") for number, tag in enumerate(tags)]}


def _regression(row: Mapping[str, Any]) -> Row:
    return {"text": clean_text(row["text"], "text"), "score": _score(row["score"]), **_pair_text(row)}


_VALIDATORS: Mapping[str, Callable[[Mapping[str, Any]], Row]] = {
    "text": _text,
    "prompt_completion": _prompt_completion,
    "conversation": _conversation,
    "prompt": _prompt_alone,
    "preference": _preference,
    "feedback": _feedback,
    "rated": _rated,
    "ranked": _ranked,
    "classification": _classification,
    "token_classification": _token_classification,
    "regression": _regression,
}


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise RowProblem(field, f"is {kind_of(value)}, not a list")
    return list(value)


def _pair_text(row: Mapping[str, Any]) -> Row:
    return {} if row.get("text_pair") is None else {"text_pair": clean_text(row["text_pair"], "text_pair")}


def _whole(value: Any, field: str) -> int:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise RowProblem(field, f"is {value!r:.40}, not a whole number") from None
    whole = value.is_integer() if isinstance(value, float) else isinstance(value, int) and not isinstance(value, bool)
    if not whole:
        raise RowProblem(field, f"is {kind_of(value)}; ranks are whole numbers, the lower the better")
    return int(value)


def _class(value: Any, field: str) -> str:
    """A label as text: that of a whole number is its decimal digits."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return _digits(value, field)
    if isinstance(value, float):
        # Columnar files store whole numbers as floats as soon as one value is missing.
        if not value.is_integer():
            raise RowProblem(field, f"is {kind_of(value)}; a class is text or a whole number, a measure is a score")
        return _digits(int(value), field)
    if isinstance(value, list | tuple):
        raise RowProblem(field, f"is a list of {len(value)}; a row has one class")
    text = clean_text(value, field).strip()
    # Tables write the same numbers as text.
    return _digits(int(float(text)), field) if _WHOLE_FLOAT.fullmatch(text) else text


_WHOLE_FLOAT = re.compile(r"[+-]?[0-9]{1,15}\.0+")


def _digits(value: int, field: str) -> str:
    try:
        return str(value)
    except ValueError:
        raise RowProblem(field, "is a number of thousands of digits") from None


def _score(value: Any, field: str = "score") -> float:
    if isinstance(value, str):
        try:
            number = float(clean_text(value, field))
        except ValueError:
            raise RowProblem(field, f"is {value!r:.40}, not a number") from None
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise RowProblem(field, f"is {kind_of(value)}, not a number")
    else:
        try:
            number = float(value)
        except OverflowError:
            raise RowProblem(field, "is too large a number") from None
    if not math.isfinite(number):
        raise RowProblem(field, f"is {number}, not a finite number")
    return number


def _prompt(value: Any) -> str | list[dict[str, Any]]:
    if isinstance(value, str):
        return clean_text(value, "prompt")
    messages = normalize_messages(value, "prompt", keep_nulls=True)
    if messages[-1]["role"] == "assistant":
        raise RowProblem("prompt", "ends with an assistant message; the answer belongs in another field")
    return messages


def _reply(value: Any, field: str, prompt: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    if isinstance(value, str):
        return clean_text(value, field, empty=True)
    if isinstance(value, Mapping):
        value = [value]
    messages = normalize_messages(value, field, keep_nulls=True)
    start = as_messages(prompt)
    if len(messages) > len(start) and messages[: len(start)] == start:
        messages = messages[len(start) :]  # UltraFeedback repeats the prompt in chosen and rejected
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            raise RowProblem(f"{field}[{number}]", f"is a {message['role']} message; only assistant messages answer")
    return messages


def _alike(row: Row) -> Row:
    """All strings, or all message lists: a mixed row becomes messages."""
    if all(isinstance(value, str) for value in row.values()):
        return row
    return {
        key: as_messages(value, "user" if key == "prompt" else "assistant") if isinstance(value, str) else value
        for key, value in row.items()
    }


def _says_something(value: str | list[dict[str, Any]]) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return any(
        message["content"].strip() or message.get("tool_calls") or str(message.get("reasoning_content", "")).strip()
        for message in value
    )


def _label(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("true", "false", "0", "1"):
        return value.strip().lower() in ("true", "1")
    shown = f" {value!r:.40}" if isinstance(value, str) else ""
    raise RowProblem("label", f"is {kind_of(value)}{shown}; a label is true or false")


def _pair_to_conversation(row: Row) -> Row:
    messages = as_messages(row["prompt"]) + as_messages(row["completion"], "assistant")
    return _with_tools(row, {"messages": messages})


def _conversation_to_pair(row: Row) -> Row:
    messages = row["messages"]
    if messages[-1]["role"] != "assistant":
        raise RowProblem("messages", f"ends with a {messages[-1]['role']} message; the step trains on the last answer")
    start = len(messages) - 1
    if start == 0 or not any(message["role"] != "assistant" for message in messages[:start]):
        raise RowProblem("messages", "has no message before the answer")
    if not _says_something(messages[start:]):
        raise RowProblem("messages", "ends with an empty answer")
    return _with_tools(row, {"prompt": messages[:start], "completion": messages[start:]})


def _pair_to_text(row: Row) -> Row:
    _plain(row, "prompt", "completion")
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        return {"text": prompt + completion}
    if len(prompt) == 1:
        return {"text": f"{to_text(prompt)}\n\n{to_text(completion)}"}
    return {"text": to_text([*prompt, *completion])}


def _conversation_to_text(row: Row) -> Row:
    _plain(row, "messages")
    return {"text": to_text(row["messages"])}


def _ranked_to_pairs(row: Row) -> list[Row]:
    """Every pair of unequal rank and text, better against worse; of more than MOST_PAIRS those furthest apart.

    All pairs of one prompt use what the ranking says (InstructGPT and the reward models of OpenAssistant train on
    them); the bound keeps one prompt with many answers from outweighing the others.
    """
    answers, ranks = row["completions"], row["ranks"]
    order = sorted(range(len(ranks)), key=lambda number: ranks[number])
    pairs = [
        (better, worse)
        for better, worse in combinations(order, 2)
        if ranks[better] < ranks[worse] and answers[better] != answers[worse]
    ]
    if len(pairs) > MOST_PAIRS:
        far = sorted(range(len(pairs)), key=lambda number: ranks[pairs[number][0]] - ranks[pairs[number][1]])
        pairs = [pairs[number] for number in sorted(far[:MOST_PAIRS])]
    return [
        copy.deepcopy(
            _with_tools(row, {"prompt": row["prompt"], "chosen": answers[better], "rejected": answers[worse]})
        )
        for better, worse in pairs
    ]


def _to_prompt(row: Row) -> Row:
    """The prompt of a row; its answers and what is said of them are columns."""
    columns = {name: value for name, value in row.items() if name not in ("prompt", "tools")}
    return _with_tools(row, {"prompt": row["prompt"], "columns": checked_columns(columns)})


def _conversation_to_prompt(row: Row) -> Row:
    """The messages before the last answer, or all of them where the last one is not an answer."""
    messages = row["messages"]
    if messages[-1]["role"] == "assistant":
        return _to_prompt(_conversation_to_pair(row))
    return _with_tools(row, {"prompt": messages})


def _text_to_prompt(row: Row) -> Row:
    columns = {name: value for name, value in row.items() if name != "text"}
    return {"prompt": row["text"]} | ({"columns": columns} if columns else {})


def _with_tools(row: Row, made: Row) -> Row:
    return made | {"tools": row["tools"]} if "tools" in row else made


_FLAGS = ("train", "loss", "weight")
"""Keys of a message that say whether it is to be learned."""


def _plain(row: Row, *fields: str) -> None:
    """Refuse what plain text cannot say: tools, reasoning, and messages that are not to be learned."""
    if "tools" in row:
        raise RowProblem("tools", "cannot be written as plain text")
    for field in fields:
        for number, message in enumerate(row[field] if isinstance(row[field], list) else ()):
            if str(message.get("reasoning_content") or "").strip():
                raise RowProblem(f"{field}[{number}]", "has reasoning_content, which plain text would leave out")
            if message["role"] == "assistant" and any(
                message.get(flag) in (0, 0.0) for flag in _FLAGS if flag in message
            ):
                raise RowProblem(f"{field}[{number}]", "is not to be learned, and plain text is learned as a whole")


CONVERSIONS: Mapping[tuple[str, str], tuple[Change, str]] = {
    ("prompt_completion", "conversation"): (_pair_to_conversation, "prompt and completion as one conversation"),
    ("conversation", "prompt_completion"): (_conversation_to_pair, "the last assistant message is the completion"),
    ("prompt_completion", "text"): (_pair_to_text, "prompt and completion written as one plain text"),
    ("conversation", "text"): (_conversation_to_text, "messages written as one plain text"),
    ("prompt_completion", "prompt"): (_to_prompt, "the prompt alone; the completion is a column for rewards"),
    ("conversation", "prompt"): (_conversation_to_prompt, "the messages before the last answer"),
    ("preference", "prompt"): (_to_prompt, "the prompt alone; chosen and rejected are columns for rewards"),
    ("feedback", "prompt"): (_to_prompt, "the prompt alone; completion and label are columns for rewards"),
    ("rated", "prompt"): (_to_prompt, "the prompt alone; completion and score are columns for rewards"),
    ("ranked", "prompt"): (_to_prompt, "the prompt alone; ranks are a column for rewards"),
    ("text", "prompt"): (_text_to_prompt, "the text as the prompt"),
    ("classification", "prompt"): (_text_to_prompt, "the text as the prompt; the label is a column for rewards"),
    ("ranked", "preference"): (_ranked_to_pairs, f"better against worse answers, at most {MOST_PAIRS} pairs of a row"),
}
"""(from, to) to the function (row to row, or to a list of rows) and one line for people.

Everything else is refused: it would drop what the data says, or say what they do not."""


def conversion(have: str, accepts: tuple[str, ...]) -> tuple[str, Change | None] | None:
    """The schema a step gets and the function that makes it; (schema, None) if none is needed; None if impossible."""
    if not accepts or have in accepts:
        return have, None
    for want in accepts:
        if (have, want) in CONVERSIONS:
            return want, CONVERSIONS[have, want][0]
    return None
