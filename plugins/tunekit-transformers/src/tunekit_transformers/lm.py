"""Language-model training on plain text, whatever the objective: data, trainer, and what is measured around it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tunekit.errors import StepError
from tunekit.plugins import hf
from tunekit_transformers.corpus import measured_blocks, training_blocks
from tunekit_transformers.scratch import new_model, own_tokenizer
from tunekit_transformers.tasks.heads import context_limit

if TYPE_CHECKING:
    from tunekit.artifacts import Artifact
    from tunekit.plugins import StepContext
    from tunekit_transformers.options import LanguageOptions, PretrainOptions

__all__ = ["Objective", "post_pretrain", "pretrain"]

_BEFORE = "before.json"
_SAMPLED = 64
"""Blocks that the mean length of documents is estimated from."""


@dataclass(frozen=True)
class Objective:
    """What is predicted."""

    name: str
    """``causal`` or ``masked``."""
    prepare: Callable[[Any, Any, int], Any]
    """Blocks, tokenizer and seed to token rows with the labels of the objective."""

    @property
    def masked(self) -> bool:
        """Whether words are hidden."""
        return self.name == "masked"


def pretrain(ctx: StepContext, objective: Objective) -> Artifact:
    """Train a tokenizer and a model from nothing but the corpus."""
    options: PretrainOptions = ctx.options
    with hf.quiet():
        tokenizer = own_tokenizer(ctx, options, masked=objective.masked)
        model = new_model(options, tokenizer, ctx.seed, masked=objective.masked)
    config = model.config.get_text_config()
    facts = {
        "vocab_size": len(tokenizer),
        "model_type": config.model_type,
        "hidden_size": getattr(config, "hidden_size", None),
        "layers": getattr(config, "num_hidden_layers", None),
        "context": getattr(config, "max_position_embeddings", None),
    }
    made, _ = hf.count_parameters(model)
    if options.size is not None and options.parameters and abs(made / options.parameters - 1) > 0.05:
        ctx.notice(
            "smaller-vocabulary",
            f"The model has {made:,} parameters and not {options.parameters:,}: the tokenizer has {len(tokenizer):,} "
            f"tokens and not {options.vocab_size:,}. The text is too short for more; vocab_size={len(tokenizer)} makes "
            "the rest of the model larger instead.",
        )
    artifact = _train(ctx, objective, model, tokenizer, facts, before={})
    shutil.rmtree(ctx.dir / "tokenizer", ignore_errors=True)
    return artifact


def post_pretrain(ctx: StepContext, objective: Objective) -> Artifact:
    """Train the input model on the corpus."""
    loaded = ctx.model()
    if type(loaded.model).__name__.endswith("ForMaskedLM") != objective.masked:
        other = "causal" if objective.masked else "masked"
        raise StepError(
            f"{type(loaded.model).__name__} does not predict "
            f"{'hidden words' if objective.masked else 'the next token'}.",
            code="objective",
            asked=f"objective={objective.name!r}",
            fix=f"post_pretrain(objective={other!r})",
        )
    length = _block_length(ctx, loaded.model, ctx.options.max_length, tell=False)
    before = _before(ctx, objective, loaded.model, loaded.tokenizer, length)
    with hf.quiet():
        model = ctx.adapter.attach(loaded.model, seed=ctx.seed) if ctx.adapter else loaded.model
    artifact = _train(ctx, objective, model, loaded.tokenizer, {}, before=before)
    (ctx.dir / _BEFORE).unlink(missing_ok=True)
    return artifact


def _train(
    ctx: StepContext,
    objective: Objective,
    model: Any,
    tokenizer: Any,
    facts: Mapping[str, Any],
    *,
    before: Mapping[str, hf.Perplexity],
) -> Artifact:
    options: LanguageOptions = ctx.options
    length = _block_length(ctx, model, options.max_length)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    steps = options.steps(length, world)
    if steps is not None:
        options = options.model_copy(update={"max_steps": steps})
        ctx = replace(ctx, options=options)
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    file, blocks = training_blocks(ctx, tokenizer, vocabulary, length, options, world, objective.masked)
    if steps is not None and file.facts.complete:
        # Batches at the end of an epoch may be smaller: counted on the blocks that there are.
        steps = options.steps_over(len(blocks), int(blocks.lengths.sum(dtype="int64")), length, world)
        options = options.model_copy(update={"max_steps": steps})
        ctx = replace(ctx, options=options)
    rows = objective.prepare(blocks, tokenizer, ctx.seed)
    held_out, held_file = None, None
    if ctx.validation is not None:
        held_file, kept = measured_blocks(
            ctx,
            ctx.validation,
            "validation",
            tokenizer,
            vocabulary,
            length,
            options.measure_tokens,
            objective.masked,
        )
        held_out = objective.prepare(kept, tokenizer, ctx.seed)
    with hf.quiet():
        trainer = hf.TokenTrainer(ctx, model, tokenizer, rows, held_out, objective=objective.name)
        _end_of_cosine(trainer, options)
    if blocks.cut:
        ctx.notice(
            "documents-cut",
            f"{blocks.cut} of {file.facts.documents} documents do not fit in one block of {length} tokens and "
            "continue in the next one without their beginning; no token is left out.",
        )
    outcome = hf.train(ctx, trainer)
    _tell_share(ctx, outcome, file.facts)
    after = _after(ctx, objective, trainer, tokenizer, length, held_out)
    numbers = _speed(trainer, outcome, rows, objective) | _perplexities(before, after)
    if after:
        ctx.notice("perplexity", _in_words(numbers, after))
    artifact = hf.finish(
        ctx,
        trainer.model,
        tokenizer,
        outcome=outcome,
        probes=[blocks[index]["input_ids"] for index in range(min(4, len(blocks)))],
        details={
            **facts,
            "objective": objective.name,
            "documents": file.facts.documents,
            "tokens_per_epoch": file.facts.tokens,
            "targets_per_epoch": blocks.targets,
            "blocks": len(blocks),
            "block_length": length,
            "documents_cut": blocks.cut,
            "tokens_dropped": 0,
            "packing": "documents one after the other with an end-of-text token; attention stays within a document",
        },
        metrics=numbers,
    )
    del blocks, rows, held_out, trainer
    file.discard()
    if held_file is not None:
        held_file.discard()
    return artifact


def _end_of_cosine(trainer: Any, options: LanguageOptions) -> None:
    if options.schedule == "cosine" and options.min_lr_ratio:
        from transformers import SchedulerType

        trainer.args.lr_scheduler_type = SchedulerType.COSINE_WITH_MIN_LR
        trainer.args.lr_scheduler_kwargs = {"min_lr_rate": options.min_lr_ratio}


def _block_length(ctx: StepContext, model: Any, wanted: int, *, tell: bool = True) -> int:
    # The tokenizer's model_max_length is no limit here: blocks are made of tokens, and the model reads them.
    context = context_limit(model, None, wanted)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    context = context if positions is None else min(context, int(positions))
    if wanted <= context:
        return wanted
    if tell:
        ctx.notice(
            "block-length", f"Blocks are {context} tokens, the model's context, in place of max_length={wanted}."
        )
    return context


def _tell_share(ctx: StepContext, outcome: hf.TrainOutcome, facts: Any) -> None:
    share = outcome.metrics["epochs"]
    if not facts.complete:
        ctx.notice(
            "partial-epoch",
            f"{outcome.global_step} steps need no more than the first {facts.documents:,} documents "
            f"({facts.tokens:,} tokens) of the text; shuffle=True draws from all of it.",
        )
    elif share < 1:
        ctx.notice(
            "partial-epoch",
            f"{outcome.global_step} steps read {share:.0%} of the text; max_steps, tokens or epochs sets how much.",
        )


# ---------------------------------------------------------------- measuring


def _before(ctx: StepContext, objective: Objective, model: Any, tokenizer: Any, length: int) -> dict[str, Any]:
    """Perplexities of the input model; those that an interrupted run of this step measured."""
    path = ctx.dir / _BEFORE
    try:
        return {name: hf.Perplexity(*values) for name, values in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError):
        pass
    made = {
        name: _measured(ctx, objective, model, tokenizer, length, name, data)
        for name, data in (("validation", ctx.validation), ("general", ctx.further_data.get("general_data")))
        if data is not None
    }
    if made:
        with hf.storage_errors(path):
            path.write_text(json.dumps(made))
    return made


def _after(
    ctx: StepContext, objective: Objective, trainer: Any, tokenizer: Any, length: int, held_out: Any
) -> dict[str, hf.Perplexity]:
    made: dict[str, hf.Perplexity] = {}
    if held_out is not None:
        made["validation"] = _just_measured(ctx, trainer) or hf.measure_perplexity(
            trainer.model, held_out, objective=objective.name
        )
    general = ctx.further_data.get("general_data")
    if general is not None:
        made["general"] = _measured(ctx, objective, trainer.model, tokenizer, length, "general", general)
    return made


def _just_measured(ctx: StepContext, trainer: Any) -> hf.Perplexity | None:
    """What the trainer itself measured on the held-out rows after the last step, on the weights that are handed on."""
    row = next((row for row in reversed(trainer.state.log_history) if "eval_loss" in row), None)
    if row is None or row["step"] != trainer.state.global_step or ctx.options.keep_best:
        return None
    return hf.Perplexity(row["eval_perplexity"], row["eval_loss"], round(row["eval_tokens"]))


def _measured(
    ctx: StepContext, objective: Objective, model: Any, tokenizer: Any, length: int, name: str, data: Any
) -> hf.Perplexity:
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    file, blocks = measured_blocks(
        ctx, data, name, tokenizer, vocabulary, length, ctx.options.measure_tokens, objective.masked
    )
    rows = objective.prepare(blocks, tokenizer, ctx.seed)

    def tick(done: int) -> None:
        ctx.cancel.raise_if_cancelled()
        ctx.progress(done, len(rows), "blocks", f"measuring perplexity ({name})")

    made = hf.measure_perplexity(model, rows, objective=objective.name, tick=tick)
    file.discard()
    return made


def _perplexities(before: Mapping[str, hf.Perplexity], after: Mapping[str, hf.Perplexity]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, key in (("validation", "perplexity"), ("general", "general_perplexity")):
        if name in before:
            numbers[f"{key}_before"] = before[name].value
        if name in after:
            numbers[key] = after[name].value
            numbers[f"{key}_tokens"] = after[name].tokens
        if name in before and name in after:
            numbers[f"{key}_change_percent"] = round(100 * (after[name].value / before[name].value - 1), 2)
    return numbers


def _in_words(numbers: Mapping[str, float], after: Mapping[str, hf.Perplexity]) -> str:
    parts = []
    for name, key, said in (
        ("validation", "perplexity", "Held-out perplexity"),
        ("general", "general_perplexity", "general perplexity"),
    ):
        if name not in after:
            continue
        text = f"{said} {numbers[key]:.4g}"
        if f"{key}_before" in numbers:
            change = numbers[f"{key}_change_percent"]
            text = f"{said} {numbers[f'{key}_before']:.4g} -> {numbers[key]:.4g} ({change:+.1f} %)"
        parts.append(f"{text} over {after[name].tokens:,} tokens")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _speed(trainer: Any, outcome: hf.TrainOutcome, rows: Any, objective: Objective) -> dict[str, float]:
    """Tokens per second and share of the machine's peak, of the steps that this process did."""
    fresh = [row for row in trainer.state.log_history if row.get("step", 0) > (outcome.resumed_from_step or 0)]
    tokens = round(sum(row.get("input_tokens", 0.0) for row in fresh))
    targets = sum(row.get("tokens", 0) for row in fresh)
    if not tokens:
        return {}
    return hf.speed_metrics(
        trainer.model,
        seconds=outcome.metrics["seconds"],
        tokens=tokens,
        targets=targets,
        length=_mean_document(rows),
        causal=not objective.masked,
    )


def _mean_document(rows: Any) -> float:
    """Tokens of the document a token is in, on average over the tokens of some rows."""
    import numpy as np

    tokens = squares = 0
    for index in range(0, len(rows), max(1, len(rows) // _SAMPLED)):
        positions = np.asarray(rows[index]["position_ids"])
        lengths = np.diff(np.append(np.flatnonzero(positions == 0), len(positions)))
        tokens += int(lengths.sum())
        squares += int((lengths**2).sum())
    return squares / max(1, tokens)
