"""A step's data as prompts that a model completes: tokenized, shown, and scored with what was written behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunekit.errors import DataError, OptionsError
from tunekit.plugins.hf.facts import token_text
from tunekit.plugins.hf.rewards import RewardScores, score
from tunekit.plugins.hf.sampling import Sampled, prompt_ids
from tunekit.plugins.hf.silence import quiet
from tunekit.plugins.views import PreviewRow, TokenView

if TYPE_CHECKING:
    from tunekit.context import StepContext
    from tunekit.data import Dataset
    from tunekit.plugins.views import ModelFacts, PreviewContext

__all__ = ["preview_prompts", "prompt_room", "prompt_rows", "score_samples"]

Row = Mapping[str, Any]

_LISTED = 5


def prompt_room(options: Any, facts: ModelFacts) -> int:
    """Most tokens of a prompt, with ``max_new_tokens`` behind it, within ``max_length`` and the model's positions.

    Raises:
        OptionsError: code ``no-room``, if there is none.
    """
    longest = min(options.max_length, facts.positions) if facts.positions else options.max_length
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


def _fitting_ids(tokenizer: Any, row: Row, room: int) -> list[int]:
    with quiet():
        ids = prompt_ids(tokenizer, row["prompt"], row.get("tools"))
    if len(ids) > room:
        raise DataError(
            f"The prompt leaves no room for max_new_tokens: it has {len(ids):,} tokens, and may have {room:,}.",
            code="prompt-too-long",
            asked=f"at most {room:,} tokens",
            found=f"{len(ids):,} tokens",
            fix='raise max_length, lower max_new_tokens, or leave such rows out: on_bad_row="skip"',
        )
    return ids


def prompt_rows(
    ctx: StepContext, data: Dataset | None, tokenizer: Any, room: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The prompts, tokenized, and facts about them for the artifact's details.

    Args:
        ctx: the step.
        data: rows of the schema ``prompt``.
        tokenizer: the model's.
        room: most tokens of a prompt; see :func:`prompt_room`.

    Returns:
        Rows with ``prompt_ids``, ``prompt`` (text or messages) and ``columns`` (mapping), and the facts.

    Raises:
        DataError: for no rows, or a prompt that cannot be used (unless ``on_bad_row="skip"``).
        RunCancelled: after a cancel.
    """
    if data is None:
        raise DataError(f"The step {ctx.step.name!r} has no prompts.", code="no-data", fix="pass prompts=...")
    made: list[dict[str, Any]] = []
    skipped: list[str] = []
    for count, (raw, row) in enumerate(data.read()):
        if count % 256 == 0:
            ctx.cancel.raise_if_cancelled()
            ctx.progress(count, None, "rows", "tokenizing")
        number = raw.number if raw.in_file is None else raw.in_file
        name = data.name if raw.file is None else raw.file.name
        try:
            ids = _fitting_ids(tokenizer, row, room)
        except DataError as problem:
            if ctx.options.on_bad_row == "skip":
                skipped.append(f"row {number}: {problem.message}")
                continue
            raise DataError(
                f"{name} row {number}: {problem.message}",
                code=problem.code,
                asked=problem.asked,
                found=problem.found,
                fix=problem.fix,
                details={**problem.details, "file": str(raw.file or data.source or data.name), "row": number},
            ) from problem
        made.append({"prompt_ids": ids, "prompt": row["prompt"], "columns": dict(row.get("columns") or {})})
    if not made:
        raise DataError(
            f"{data.name} has no prompt to complete.",
            code="empty-dataset",
            found=f"{len(skipped)} rows, which were left out" if skipped else "no rows",
            details={"file": str(data.source or data.name)},
        )
    if skipped:
        shown = "; ".join(skipped[:_LISTED])
        ctx.notice("rows-skipped", f"{len(skipped):,} of {len(made) + len(skipped):,} prompts were left out ({shown}).")
    return made, {
        "prompts": len(made),
        "skipped_rows": len(skipped),
        "longest_prompt": max(len(row["prompt_ids"]) for row in made),
        "template": "chat template" if getattr(tokenizer, "chat_template", None) else "plain text",
    }


def preview_prompts(ctx: PreviewContext) -> Iterator[PreviewRow]:
    """The prompts of a step, token by token, for the ``preview`` of a trainer that learns from what a model writes
    behind them: no token of theirs is learned."""
    tokenizer, facts = ctx.tokenizer()
    room = prompt_room(ctx.options, facts)
    special = set(tokenizer.all_special_ids)
    bos = tokenizer.bos_token_id
    for raw, row in ctx.data.read():
        try:
            ids = _fitting_ids(tokenizer, row, room)
        except DataError as problem:
            message = f"{raw.file.name} row {raw.in_file}: {problem.message}" if raw.file else problem.message
            yield PreviewRow(
                number=raw.number,
                tokens=(),
                problem=message,
                code=problem.code,
                fix=problem.fix or "",
                skipped=ctx.options.on_bad_row == "skip",
            )
            continue
        yield PreviewRow(
            number=raw.number,
            tokens=tuple(
                TokenView(
                    id=token,
                    text=token_text(tokenizer, token),
                    label=None,
                    weight=0.0,
                    turn=0,
                    role="prompt",
                    special=token in special,
                )
                for token in ids
            ),
            target="what the model writes next, scored",
            cut=0,
            stopped=None,
            bos=None if bos is None else next((n for n, token in enumerate(ids) if token != bos), len(ids)),
        )


def score_samples(ctx: StepContext, rows: Sequence[Row], samples: Sequence[Sampled]) -> RewardScores:
    """Scores of one completion for each row by the step's rewards; see :func:`tunekit.plugins.hf.score`.

    Rewards are given a completion as text, or after messages as a list with the assistant's message; of the columns of
    the rows all that any row has, None where one lacks it; and ``completion_ids`` and ``finished`` of each completion.
    """
    names = {name: None for row in rows for name in row.get("columns") or ()}
    columns: dict[str, list[Any]] = {name: [(row.get("columns") or {}).get(name) for row in rows] for name in names}
    columns["completion_ids"] = [list(one.ids) for one in samples]
    columns["finished"] = [one.finished for one in samples]
    texts = [
        one.text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": one.text}]
        for row, one in zip(rows, samples, strict=True)
    ]
    return score(ctx.rewards, [row["prompt"] for row in rows], texts, columns)
