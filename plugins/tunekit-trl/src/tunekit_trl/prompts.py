"""A step's data as prompts to be completed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.data import Dataset as Data
from tunekit.errors import DataError, OptionsError, StepError
from tunekit.plugins import StepContext, hf

__all__ = ["PromptRow", "check_rewards", "completion_for", "prompt_room", "prompt_rows", "reward_columns"]

PromptRow = Mapping[str, Any]
"""``prompt_ids``, ``prompt`` (text or messages), ``columns`` (mapping)."""

_LISTED = 5


def check_rewards(ctx: StepContext) -> None:
    """Raises:
    StepError: if the step has no reward to learn from.
    """
    if not ctx.rewards:
        raise StepError(
            f"The step {ctx.step.name!r} has no reward.",
            code="no-reward",
            fix='name one: reward="exact-match", reward=my_function, or a reward step before this one',
        )


def prompt_room(ctx: StepContext, model: Any) -> int:
    """Most tokens of a prompt, with ``max_new_tokens`` behind it.

    Raises:
        OptionsError: if the model has no positions for a prompt and its completion.
    """
    options = ctx.options
    positions = hf.model_facts(model).positions
    longest = min(options.max_length, positions) if positions else options.max_length
    room = int(longest - options.max_new_tokens)
    if room < 1:
        raise OptionsError(
            "The model has no positions for a prompt and its completion.",
            code="no-room",
            asked=f"max_new_tokens={options.max_new_tokens}",
            found=f"{longest} positions",
            fix=f"lower max_new_tokens: {max(1, longest // 2)}",
        )
    return room


def prompt_rows(ctx: StepContext, data: Data, tokenizer: Any, room: int) -> tuple[list[PromptRow], dict[str, Any]]:
    """The prompts, tokenized, and facts about them.

    Args:
        ctx: the step.
        data: rows of the schema ``prompt``.
        tokenizer: the model's.
        room: most tokens of a prompt.

    Raises:
        DataError: for no rows, or a prompt that cannot be used (unless ``on_bad_row="skip"``).
        RunCancelled: after a cancel.
    """
    skip = ctx.options.on_bad_row == "skip"
    made: list[PromptRow] = []
    skipped: list[str] = []
    count = 0
    for raw, row in data.read():
        if count % 256 == 0:
            ctx.cancel.raise_if_cancelled()
        count += 1
        number = raw.number if raw.in_file is None else raw.in_file
        name = data.name if raw.file is None else raw.file.name
        try:
            with hf.quiet():
                ids = hf.prompt_ids(tokenizer, row["prompt"], row.get("tools"))
            if len(ids) > room:
                raise DataError(
                    "The prompt leaves no room for max_new_tokens.",
                    code="prompt-too-long",
                    asked=f"at most {room} tokens",
                    found=f"{len(ids)} tokens",
                    fix='raise max_length, lower max_new_tokens, or leave such rows out: on_bad_row="skip"',
                )
        except DataError as problem:
            if not skip:
                raise DataError(
                    f"{name} row {number}: {problem.message}",
                    code=problem.code,
                    asked=problem.asked,
                    found=problem.found,
                    fix=problem.fix,
                    details={**problem.details, "file": str(raw.file or data.source or data.name), "row": number},
                ) from problem
            skipped.append(f"row {number}: {problem.message}")
            continue
        made.append({"prompt_ids": ids, "prompt": row["prompt"], "columns": dict(row.get("columns") or {})})
    if not made:
        raise DataError(
            f"{data.name} has no prompt to complete.",
            code="empty-dataset",
            found=f"{count} rows, {len(skipped)} of them left out",
            details={"file": str(data.source or data.name)},
        )
    if skipped:
        shown = "; ".join(skipped[:_LISTED])
        ctx.notice("rows-skipped", f"{len(skipped):,} of {count:,} prompts were left out ({shown}).")
    return made, {
        "prompts": len(made),
        "skipped_rows": len(skipped),
        "longest_prompt": max(len(row["prompt_ids"]) for row in made),
        "template": "chat template" if getattr(tokenizer, "chat_template", None) else "plain text",
    }


def completion_for(prompt: Any, text: str) -> Any:
    """A completion in the form rewards take it in: text, or after messages a list with the assistant's message."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def reward_columns(rows: list[PromptRow], samples: list[hf.Sampled]) -> dict[str, list[Any]]:
    """The rows' columns, and what is known of each completion; None where a row lacks a column."""
    names = {name: None for row in rows for name in row["columns"]}
    columns: dict[str, list[Any]] = {name: [row["columns"].get(name) for row in rows] for name in names}
    columns["completion_ids"] = [list(made.ids) for made in samples]
    columns["finished"] = [made.finished for made in samples]
    return columns
