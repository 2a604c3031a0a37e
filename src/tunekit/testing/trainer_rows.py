"""Rows for the laws of trainers: rows that teach where to stop, rows that teach nothing, and what both look like."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["row_length", "stop_probes", "stopping_rows", "unlearnable_rows"]

_SAYINGS = (("Say red.", "red"), ("Say blue.", "blue"), ("Say green.", "green"), ("Say pink.", "pink"))
_FAR = "".join(hashlib.sha256(bytes([number])).hexdigest() for number in range(32))
"""2,048 characters without a pattern that a tokenizer could have learned: more tokens than ``max_length``."""


def stopping_rows(shape: str) -> list[dict[str, Any]]:
    """Four short rows whose answers end, and in which nothing but the end tells a good answer from a bad one.

    Preferences: the rejected answer is the chosen one and one character more. Feedback: likewise, in two rows.

    Raises:
        ValueError: for a shape that is not known.
    """
    rows: list[dict[str, Any]] = []
    for prompt, answer in _SAYINGS:
        # One character: a longer rest would push the end of text down with it, as long bad answers do.
        more = f"{answer}!"
        if shape == "text":
            rows.append({"text": f"{prompt} {answer}"})
        elif shape == "prompt_completion":
            rows.append({"prompt": prompt, "completion": answer})
        elif shape == "conversation":
            rows.append({"messages": [_turn("user", prompt), _turn("assistant", answer)]})
        elif shape == "preference":
            rows.append({"prompt": prompt, "chosen": answer, "rejected": more})
        elif shape == "feedback":
            rows += [
                {"prompt": prompt, "completion": answer, "label": True},
                {"prompt": prompt, "completion": more, "label": False},
            ]
        else:
            raise ValueError(f"there are no rows of the shape {shape!r}: override stopping_rows")
    return rows


def unlearnable_rows(shape: str) -> dict[str, dict[str, Any]]:
    """Rows of which nothing is left to learn, by why: answers behind the length limit, and empty ones.

    Raises:
        ValueError: for a shape that is not known.
    """
    far = _FAR
    if shape == "text":
        return {"an empty text": {"text": ""}}
    if shape == "prompt_completion":
        return {
            "the prompt fills max_length": {"prompt": far, "completion": "never seen"},
            "an empty completion": {"prompt": "Say red.", "completion": ""},
        }
    if shape == "conversation":
        return {
            "the question fills max_length": {"messages": [_turn("user", far), _turn("assistant", "never seen")]},
            "an empty answer": {"messages": [_turn("user", "Say red."), _turn("assistant", "")]},
        }
    if shape == "preference":
        return {
            "the prompt fills max_length": {"prompt": far, "chosen": "yes", "rejected": "no"},
            "the answers differ behind max_length": {"prompt": "p", "chosen": far + "a", "rejected": far + "b"},
        }
    if shape == "feedback":
        return {"the prompt fills max_length": {"prompt": far, "completion": "never seen", "label": True}}
    if shape == "classification":
        return {"an empty text": {"text": "", "label": "red"}}
    if shape == "regression":
        return {"an empty text": {"text": "", "score": 1.0}}
    if shape == "token_classification":
        return {"no words": {"tokens": [], "tags": []}}
    raise ValueError(f"there are no rows of the shape {shape!r}: override unlearnable_rows")


def stop_probes(rows: Sequence[Mapping[str, Any]], tokenizer: Any) -> list[tuple[list[int], int]]:
    """For each row with a good answer: the token ids up to the end of that answer, and the id that should come next.

    Prompts are rendered with the tokenizer's chat template where it has one, as they are when the model is used. The
    next id is the special token that the template ends a turn with, else the tokenizer's end-of-text token.
    """
    probes = []
    for row in rows:
        if row.get("label") is False:
            continue
        if "text" in row:
            probes.append((list(tokenizer(row["text"])["input_ids"]), int(tokenizer.eos_token_id)))
            continue
        messages, answer = _dialogue(row)
        if getattr(tokenizer, "chat_template", None):
            head = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            whole = tokenizer.apply_chat_template([*messages, _turn("assistant", answer)], tokenize=False)
            tail = tokenizer(whole[whole.rindex(answer) + len(answer) :], add_special_tokens=False)["input_ids"]
            stop = tail[0] if tail and tail[0] in tokenizer.all_special_ids else tokenizer.eos_token_id
            ids = tokenizer(head + answer, add_special_tokens=False)["input_ids"]
        else:
            ids, stop = tokenizer(messages[-1]["content"] + answer)["input_ids"], tokenizer.eos_token_id
        probes.append((list(ids), int(stop)))
    return probes


def row_length(row: Mapping[str, Any]) -> int:
    """Characters of all texts in a row."""
    return sum(len(text) for text in _texts(row))


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for each in value.values() for text in _texts(each)]
    return [text for each in value for text in _texts(each)] if isinstance(value, list | tuple) else []


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _dialogue(row: Mapping[str, Any]) -> tuple[list[dict[str, str]], str]:
    if "messages" in row:
        *messages, last = row["messages"]
        return [dict(message) for message in messages], str(last["content"])
    prompt, answer = row["prompt"], row.get("chosen", row.get("completion"))
    messages = [_turn("user", prompt)] if isinstance(prompt, str) else [dict(message) for message in prompt]
    return messages, str(answer if isinstance(answer, str) else answer[-1]["content"])
