"""Next-token prediction on plain text: from random weights, and from a model."""

from __future__ import annotations

import inspect
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunekit.errors import StepError
from tunekit.plugins import hf
from tunekit_transformers.packing import BlockDataset, TokenFile, collate
from tunekit_transformers.tokenizer import KINDS

if TYPE_CHECKING:
    from tunekit.artifacts import Artifact
    from tunekit.plugins import StepContext
    from tunekit_transformers.options import PostPretrainOptions, PretrainOptions

__all__ = ["CausalPostPretraining", "CausalPretraining"]

_ISOLATION = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}


class CausalPretraining:
    """``pretrain``: a tokenizer and a small Llama model, both from nothing but the corpus.

    Documents end with ``<|endoftext|>`` and are packed into blocks; a document neither sees nor is predicted from
    another one.
    """

    def run(self, ctx: StepContext) -> Artifact:
        """Train tokenizer and model. Raises as :func:`tunekit.plugins.hf.train` does."""
        options: PretrainOptions = ctx.options
        with hf.quiet():
            tokenizer = _own_tokenizer(ctx, options)
            model = _new_model(options, tokenizer, ctx.seed)
        facts = {
            "vocab_size": len(tokenizer),
            "hidden_size": options.hidden_size,
            "layers": options.layers,
            "context": options.context,
        }
        artifact = _train(ctx, model, tokenizer, facts)
        shutil.rmtree(ctx.dir / "tokenizer", ignore_errors=True)
        return artifact


class CausalPostPretraining:
    """``post_pretrain``: the input model reads more text, in full or through an adapter. Every token is trained."""

    def run(self, ctx: StepContext) -> Artifact:
        """Train. Raises as :func:`tunekit.plugins.hf.train` does."""
        loaded = ctx.model()
        with hf.quiet():
            model = ctx.adapter.attach(loaded.model, seed=ctx.seed) if ctx.adapter else loaded.model
        return _train(ctx, model, loaded.tokenizer, {})


def _train(ctx: StepContext, model: Any, tokenizer: Any, facts: dict[str, Any]) -> Artifact:
    options: PretrainOptions | PostPretrainOptions = ctx.options
    assert ctx.data is not None
    file = TokenFile.build(ctx, _texts(ctx), tokenizer, ctx.data.fingerprint())
    length = _block_length(ctx, model, options.max_length)
    blocks = BlockDataset(file, length)
    if len(blocks) == 0:
        raise StepError("The texts hold no token to predict.", code="no-targets", fix="pass longer texts")
    with hf.quiet():
        from transformers import Trainer, TrainingArguments

        _check_isolation(model, file)
        arguments = hf.training_arguments(
            TrainingArguments, ctx, options, remove_unused_columns=False, label_names=["labels"]
        )
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=blocks,
            data_collator=collate(pad),
            processing_class=tokenizer,
            callbacks=[hf.TunekitCallback(ctx)],
        )
    if blocks.cut:
        ctx.notice(
            "documents-cut",
            f"{blocks.cut} of {file.facts.documents} documents do not fit in one block of {length} tokens and "
            "continue in the next one without their beginning; no token is left out.",
        )
    outcome = hf.train(ctx, trainer)
    share = outcome.metrics["epochs"]
    if share < 1:
        ctx.notice(
            "partial-epoch",
            f"{outcome.global_step} steps read {share:.0%} of the text; max_steps or epochs sets how much.",
        )
    artifact = hf.finish(
        ctx,
        trainer.model,
        tokenizer,
        outcome=outcome,
        probes=[blocks[index]["input_ids"] for index in range(min(4, len(blocks)))],
        details={
            **facts,
            "documents": file.facts.documents,
            "tokens_per_epoch": file.facts.tokens,
            "targets_per_epoch": blocks.targets,
            "blocks": len(blocks),
            "block_length": length,
            "documents_cut": blocks.cut,
            "tokens_dropped": 0,
            "packing": "documents one after the other with an end-of-text token; attention stays within a document",
        },
    )
    del blocks, trainer
    file.discard()
    return artifact


def _texts(ctx: StepContext) -> Iterator[str]:
    assert ctx.data is not None
    for row in ctx.data.rows():
        ctx.cancel.raise_if_cancelled()
        yield row["text"]


def _own_tokenizer(ctx: StepContext, options: PretrainOptions) -> Any:
    """Train the tokenizer, or read the one that an interrupted run of this step trained."""
    from transformers import AutoTokenizer

    from tunekit_transformers.tokenizer import given_tokenizer, train_tokenizer

    folder = ctx.dir / "tokenizer"
    if folder.is_dir():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if options.tokenizer not in KINDS:
        return given_tokenizer(options.tokenizer)
    ctx.progress(0, None, "tokens", "training the tokenizer")
    tokenizer = train_tokenizer(
        _texts(ctx),
        options.vocab_size,
        options.context,
        kind=options.tokenizer,
        byte_level=options.byte_level,
        byte_fallback=options.byte_fallback,
        special_tokens=options.special_tokens,
    )
    aside = Path(f"{folder}.partial")
    with hf.storage_errors(folder):
        shutil.rmtree(aside, ignore_errors=True)
        tokenizer.save_pretrained(aside)
        aside.rename(folder)
    return tokenizer


def _new_model(options: PretrainOptions, tokenizer: Any, seed: int) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from tunekit_transformers.tokenizer import TURN_END

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden_size,
        intermediate_size=options.intermediate_size,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads,
        max_position_embeddings=options.context,
        tie_word_embeddings=options.tie_embeddings,
        # Nguyen & Salazar 2019 (arXiv 1910.05895), section 2.2: the library's 0.02 learns slowly in narrow models.
        initializer_range=math.sqrt(2 / (5 * options.hidden_size)),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # A text ends with one token, a turn with another; generation stops at both.
    known = tokenizer.get_vocab()
    ends = (tokenizer.eos_token_id, known.get(TURN_END))
    model.generation_config.eos_token_id = [end for end in dict.fromkeys(ends) if end is not None]
    return model.to(hf.default_device())


def _block_length(ctx: StepContext, model: Any, wanted: int) -> int:
    context = getattr(model.config, "max_position_embeddings", None)
    if context is None or wanted <= context:
        return wanted
    ctx.notice("block-length", f"Blocks are {context} tokens, the model's context, in place of max_length={wanted}.")
    return int(context)


def _check_isolation(model: Any, file: TokenFile) -> None:
    """Make sure that this model keeps packed documents apart: a document's logits must not depend on the one before.

    Raises:
        StepError: code ``packing`` if they do, or if the model takes no ``position_ids``.
    """
    import torch

    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "position_ids" not in inspect.signature(plain.forward).parameters:
        raise _cannot_pack(model, "it takes no position_ids")
    ids = [int(token) for token in file.tokens[:48]]
    if len(ids) < 4:
        return
    half = len(ids) // 2
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.no_grad():
        positions = [*range(half), *range(len(ids) - half)]
        packed = model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
        ).logits[0, half:]
        alone = model(input_ids=torch.tensor([ids[half:]], device=device), use_cache=False).logits[0]
    model.train(was_training)
    scale = max(1.0, float(alone.abs().max()))
    difference = float((packed - alone).abs().max())
    if not difference <= _ISOLATION[str(alone.dtype).removeprefix("torch.")] * scale:
        raise _cannot_pack(model, f"its logits change by {difference:.3g} with the document before")


def _cannot_pack(model: Any, why: str) -> StepError:
    return StepError(
        f"{type(model).__name__} cannot keep packed documents apart: {why}.",
        code="packing",
        fix="use a model whose attention follows position_ids (attn_implementation sdpa or eager)",
    )
