"""Options of the trainers. Torch-free."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tunekit.plugins.options import TrainOptions

__all__ = ["PostPretrainOptions", "PretrainOptions"]

EMBEDDED_STEPS = 500
"""Optimizer steps of a bare ``pretrain()``: enough to see the loss fall, short enough for a laptop."""

EMBEDDED_STEPS_POST = 8
"""Optimizer steps of a bare ``post_pretrain()``."""


class PretrainOptions(TrainOptions):
    """Options of ``pretrain``: a Llama model from random weights, and its tokenizer."""

    batch_size: int = Field(default=4, ge=1, json_schema_extra={"unit": "examples"})
    """Blocks per device and micro-batch."""
    max_length: int = Field(default=128, ge=8, json_schema_extra={"unit": "tokens"})
    """Tokens per block. Documents are packed one after the other; a longer one continues in the next block."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate. None: 0.003, which suits models of about a million parameters."""
    warmup: float = Field(default=0.05, ge=0)
    """Warm-up: a share of all steps below 1, a number of steps from 1."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """Course of the learning rate after warm-up."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay."""
    tokenizer: str = "bpe"
    """Kind of the tokenizer that is trained on the corpus: ``bpe``, ``unigram`` or ``wordpiece``; or the folder or hub
    id of a tokenizer to use as it is."""
    vocab_size: int = Field(default=2048, ge=300, json_schema_extra={"unit": "tokens"})
    """Most tokens of the tokenizer that is trained."""
    byte_level: bool | None = None
    """Read text as bytes. None: for ``bpe`` only; other kinds read characters."""
    byte_fallback: bool = True
    """Write unknown characters in byte tokens, where text is read as characters."""
    special_tokens: list[str] = Field(default_factory=list)
    """Further tokens of the tokenizer that stand for themselves."""
    hidden_size: int = Field(default=128, ge=8)
    """Width of the model."""
    layers: int = Field(default=2, ge=1)
    """Transformer blocks."""
    heads: int = Field(default=4, ge=1)
    """Attention heads."""
    kv_heads: int = Field(default=2, ge=1)
    """Key-value heads; they must divide the attention heads."""
    intermediate_size: int | None = Field(default=None, ge=8)
    """Width of the feed-forward layers. None: 8/3 of the hidden size, rounded up to a multiple of 128."""
    context: int = Field(default=4096, ge=8, json_schema_extra={"unit": "tokens"})
    """Longest input the model accepts, in tokens; few-shot prompts must fit."""
    tie_embeddings: bool = True
    """Share the weights of input and output embeddings."""

    @model_validator(mode="after")
    def _shape(self) -> Self:
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ValueError(f"hidden_size {self.hidden_size} must be an even multiple of heads {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads {self.kv_heads} must divide heads {self.heads}")
        if self.max_length > self.context:
            raise ValueError(f"max_length {self.max_length} is longer than context {self.context}")
        return self

    def resolve(self, *, adapter: str | None) -> Self:
        """Fill in learning rate and feed-forward width; a bare step on the embedded text is kept short."""
        update: dict[str, Any] = {}
        if self.learning_rate is None:
            update["learning_rate"] = 3e-3
        if self.intermediate_size is None:
            update["intermediate_size"] = -(-8 * self.hidden_size // 3 // 128) * 128
        update |= _short_if_bare(self, EMBEDDED_STEPS)
        return self.model_copy(update=update)


class PostPretrainOptions(TrainOptions):
    """Options of ``post_pretrain``: next-token prediction on plain text, starting from a model."""

    max_length: int = Field(default=1024, ge=8, json_schema_extra={"unit": "tokens"})
    """Tokens per block, at most the model's context. Documents are packed one after the other."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate. None: 2e-5 for full training, 2e-4 through an adapter."""
    warmup: float = Field(default=0.03, ge=0)
    """Warm-up: a share of all steps below 1, a number of steps from 1."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """Course of the learning rate after warm-up."""

    def resolve(self, *, adapter: str | None) -> Self:
        """Fill in the learning rate; a bare step on the embedded text is kept short."""
        update: dict[str, Any] = {}
        if self.learning_rate is None:
            update["learning_rate"] = 2e-5 if adapter is None else 2e-4
        update |= _short_if_bare(self, EMBEDDED_STEPS_POST)
        return self.model_copy(update=update)


def _short_if_bare(options: TrainOptions, steps: int) -> dict[str, Any]:
    if options.data is None and options.max_steps is None and "epochs" not in options.model_fields_set:
        return {"max_steps": steps}
    return {}
