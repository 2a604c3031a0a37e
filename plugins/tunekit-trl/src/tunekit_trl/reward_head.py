"""A head with one output on the body of a language model, and a padding token that no answer ends in."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch

from tunekit.errors import StepError
from tunekit.plugins import hf

__all__ = ["HEAD_NAME", "give_padding", "with_reward_head"]

HEAD_NAME = "reward"
"""Name of the one output in the config."""


def give_padding(model: Any, tokenizer: Any, stops: Collection[int]) -> str:
    """Give the model and the tokenizer a padding token that is not among ``stops``; returns what to tell, if anything.

    The models of ``transformers`` read a score at the last token that is not the padding token. Where the token that
    ends an answer is the padding token, too, its score would be read before the end, whether the answer ends or not.

    Raises:
        StepError: code ``no-pad-token`` if the tokenizer has no special token that the model knows.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    own = tokenizer.pad_token_id
    named = [own, tokenizer.bos_token_id, tokenizer.unk_token_id]
    others = [number for number, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    known = [number for number in (*named, *others) if number is not None and 0 <= number < rows]
    chosen = next((number for number in known if number not in stops), None)
    if chosen is None:
        chosen = next(iter(known), None)
    if chosen is None:
        raise StepError(
            "The tokenizer has no padding token, and no special token that could stand in.",
            code="no-pad-token",
            fix='set tokenizer.pad_token = "..." and save the tokenizer with the model',
        )
    if chosen != own:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(chosen)
    model.config.pad_token_id = chosen
    model.config.get_text_config().pad_token_id = chosen
    if chosen in stops:
        return (
            f"The padding token {tokenizer.pad_token!r} also ends answers, and there is no other special token: "
            "rewards are read before the end of an answer."
        )
    if own is not None and chosen != own:
        return (
            f"The tokenizer pads with {tokenizer.convert_ids_to_tokens(own)!r}, which also ends answers. The reward "
            f"model pads with {tokenizer.pad_token!r}, so that a reward is read at the end of an answer."
        )
    return ""


def with_reward_head(model: Any, seed: int) -> tuple[Any, bool]:
    """The model with a head of one output, and whether that is new.

    The weights of the body are those of ``model``, which gives them away. A head of one output is kept. A new one is
    drawn from ``seed`` with the standard deviation ``1 / sqrt(hidden size + 1)`` (Huang et al. 2024, arXiv:2403.17031,
    detail 11), or as ``transformers`` initialises it where it is more than one linear layer; the global random state is
    left as it was. ``tunekit_new_modules`` of the result names the head, for adapters to train in full.

    Raises:
        StepError: code ``no-head`` if the architecture has no head for sequences, ``reward-classes`` if the model is a
            classifier.
    """
    name = type(model).__name__
    if name.endswith("ForSequenceClassification"):
        if model.config.num_labels != 1:
            raise StepError(
                f"The model is a classifier of {model.config.num_labels} classes; a reward model has one output.",
                code="reward-classes",
                found=name,
                fix="start from a language model, or from a model with one output",
            )
        _mark(model)
        return model, False
    body = model.base_model
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    config.id2label, config.label2id = {0: HEAD_NAME}, {HEAD_NAME: 0}
    config.problem_type = None
    made = _drawn(config, body, seed)
    _mark(made)
    return made.to(next(body.parameters()).device).eval(), True


def _drawn(config: Any, body: Any, seed: int) -> Any:
    from transformers import AutoModelForSequenceClassification

    dtype = next(body.parameters()).dtype
    try:
        with hf.quiet(), torch.device("meta"):
            made = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    except ValueError as error:
        raise StepError(
            f"transformers has no head for sequences on the architecture {config.model_type}.",
            code="no-head",
            found=str(error).splitlines()[0][:200],
            fix="use another base model, such as one of the Llama, Qwen or BERT kind",
        ) from error
    own = made.base_model
    if type(own) is not type(body):
        raise StepError(
            f"The weights of {type(body).__name__} do not fit the body of {type(made).__name__}.",
            code="no-head",
            found=type(own).__name__,
            fix="start from a language model of that architecture",
        )
    missing = {name for name, _ in own.named_parameters()} - {name for name, _ in body.named_parameters()}
    setattr(made, made.base_model_prefix, body)
    body.config = made.config
    made.config.architectures = [type(made).__name__]
    if missing and all(name.startswith("pooler.") for name in missing):
        body.pooler = own.pooler  # an encoder from under a head that needs none
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in made.modules():
            fresh = [part for part in module.parameters(recurse=False) if part.is_meta]
            if not fresh:
                continue
            module.to_empty(device="cpu", recurse=False)
            if module is getattr(made, "score", None) and isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=(module.in_features + 1) ** -0.5)
                if module.bias is not None:
                    torch.nn.init.zeros_(module.bias)
            else:
                for part in module.parameters(recurse=False):
                    if part.dim() > 1:
                        torch.nn.init.normal_(part, std=float(getattr(config, "initializer_range", 0.02)))
                    else:
                        torch.nn.init.zeros_(part)
    return made


def _mark(model: Any) -> None:
    model.tunekit_new_modules = tuple(
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    )
