"""The prompts of a step as token ids, and the order in which they are asked."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunekit.errors import DataError, OptionsError
from tunekit.plugins import ModelFacts, StepContext, hf

__all__ = ["Prompt", "PromptOrder", "columns_of", "encode", "prompts_of", "room_for"]

SKIPPABLE = ("prompt-too-long", "empty-prompt")
"""Codes of rows that ``on_bad_row="skip"`` leaves out."""
_LISTED = 5


@dataclass(frozen=True)
class Prompt:
    """One prompt."""

    ids: list[int]
    """Token ids, up to where the model is to write."""
    prompt: Any
    """Text, or a list of messages."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The row's other columns, for rewards."""

    @property
    def messages(self) -> bool:
        """Whether it is a conversation."""
        return not isinstance(self.prompt, str)


def room_for(options: Any, facts: ModelFacts) -> int:
    """Longest prompt in tokens.

    Raises:
        OptionsError: if the model has no positions for a prompt and its completion.
    """
    positions = options.max_length if facts.positions is None else min(options.max_length, facts.positions)
    room = int(positions - options.max_new_tokens)
    if room < 1:
        raise OptionsError(
            "The model has no positions for a prompt and its completion.",
            code="no-room",
            asked=f"max_new_tokens={options.max_new_tokens}",
            found=f"{positions} positions",
            fix=f"lower max_new_tokens: {max(1, positions // 2)}",
        )
    return room


def encode(tokenizer: Any, row: Mapping[str, Any], room: int) -> Prompt:
    """A row as a prompt.

    Raises:
        DataError: codes ``prompt-too-long`` and ``empty-prompt``, and for what the chat template refuses.
    """
    ids = hf.prompt_ids(tokenizer, row["prompt"], row.get("tools"))
    if len(ids) > room:
        raise DataError(
            "the prompt leaves no room for a completion",
            code="prompt-too-long",
            asked=f"at most {room:,} tokens",
            found=f"{len(ids):,} tokens",
            fix='raise max_length, lower max_new_tokens, or on_bad_row="skip"',
        )
    return Prompt(ids, row["prompt"], dict(row.get("columns") or {}))


def prompts_of(ctx: StepContext, tokenizer: Any, facts: ModelFacts) -> list[Prompt]:
    """All prompts of a step.

    Raises:
        DataError: for no prompt, or one that cannot be used (unless ``on_bad_row="skip"``).
    """
    data = ctx.data
    if data is None:
        raise DataError(f"The step {ctx.step.name!r} has no prompts.", code="no-data", fix="pass prompts=...")
    room = room_for(ctx.options, facts)
    made: list[Prompt] = []
    left_out: list[str] = []
    for raw, row in data.read():
        try:
            made.append(encode(tokenizer, row, room))
        except DataError as error:
            place = raw.number if raw.in_file is None else raw.in_file
            file = data.name if raw.file is None else Path(raw.file).name
            if ctx.options.on_bad_row == "skip" and error.code in SKIPPABLE:
                left_out.append(f"row {place}: {error.message}")
                continue
            raise DataError(
                f"{file} row {place}: {error.message.rstrip('.')}.",
                code=error.code,
                asked=error.asked,
                found=error.found,
                fix=error.fix,
                details={**error.details, "row": place, "file": str(raw.file or data.source or data.name)},
            ) from error
        if len(made) % 256 == 0:
            ctx.cancel.raise_if_cancelled()
            ctx.progress(len(made), None, "rows", "tokenizing")
    if left_out:
        ctx.notice("rows-skipped", f"{len(left_out):,} prompts were left out ({'; '.join(left_out[:_LISTED])}).")
    if not made:
        raise DataError(
            f"{data.name} has no prompt to ask.", code="empty-dataset", found=f"{len(left_out)} rows left out"
        )
    return made


def columns_of(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    """Column to one value for each prompt; None where a row has no such column."""
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    return {name: [prompt.columns.get(name) for prompt in prompts] for name in names}


class PromptOrder:
    """Prompts pass by pass, each pass in an order of its own, which only ``seed`` and the number of the pass decide."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def numbers(self, begin: int, size: int) -> list[int]:
        """The prompts at places ``begin`` to ``begin + size`` of the endless order."""
        return [number for number, _ in zip(self._from(begin), range(size), strict=False)]

    def _from(self, place: int) -> Iterator[int]:
        done, rest = divmod(place, self.count)
        while True:
            order = list(range(self.count))
            random.Random(f"{self.seed} {done}").shuffle(order)
            yield from order[rest:]
            done, rest = done + 1, 0
