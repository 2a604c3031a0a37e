"""Options of the language-model trainers. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from tunekit.plugins.options import DataRequest, Options, SupervisedOptions
from tunekit_transformers.presets import (
    Family,
    Shape,
    learning_rate_for,
    parse_count,
    read_architecture,
    shape_for,
    vocabulary_for,
    vocabulary_in,
)

__all__ = [
    "LanguageOptions",
    "MaskedPostPretrainOptions",
    "MaskedPretrainOptions",
    "PostPretrainOptions",
    "PretrainOptions",
]

EMBEDDED_STEPS = 500
"""Optimizer steps of a bare ``pretrain()``: enough to see the loss fall, short enough for a laptop."""

EMBEDDED_STEPS_POST = 8
"""Optimizer steps of a bare ``post_pretrain()``."""

_SHAPE = ("hidden_size", "layers", "heads", "kv_heads", "intermediate_size")
_DEFAULTS = {"hidden_size": 128, "layers": 2, "heads": 4, "kv_heads": 2}


class LanguageOptions(SupervisedOptions):
    """What pretraining and continued pretraining share."""

    optimizer: str = "adamw_torch_fused"
    """Optimizer name as transformers spells it."""
    tokens: int | float | str | None = Field(default=None, json_schema_extra={"unit": "tokens"})
    """Token budget, such as 5_000_000, 1e9 or "10B": sets the number of optimizer steps, so that about this many tokens
    are trained on (``batch_size`` x ``gradient_accumulation`` x block length per step). In place of ``max_steps``."""
    min_lr_ratio: float = Field(default=0.0, ge=0, lt=1)
    """``cosine`` only: the learning rate at the end, as a share of the peak."""
    general_data: Any = None
    """Other text, on which perplexity is measured before and after: shows what the model forgets."""
    measure_tokens: int | None = Field(default=65536, ge=2, json_schema_extra={"unit": "tokens"})
    """Perplexity is measured on at most this many tokens of held-out and general text, from their beginning. None:
    all of them."""

    @field_validator("tokens")
    @classmethod
    def _countable(cls, value: Any) -> Any:
        if value is not None:
            parse_count(value)
        return value

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.tokens is not None and self.max_steps is not None:
            raise ValueError("tokens and max_steps both set the number of steps; give one of them")
        if self.min_lr_ratio and self.schedule != "cosine":
            raise ValueError(f"min_lr_ratio has no effect with schedule={self.schedule!r}; it belongs to 'cosine'")
        if self.packing:
            raise ValueError("packing is always on here: texts fill blocks of max_length tokens; leave packing out")
        return self

    def further_data(self) -> Mapping[str, DataRequest]:
        """The general text, if there is one."""
        if self.general_data is None:
            return {}
        return {"general_data": DataRequest(ref=self.general_data, accepts=("text",))}

    def steps(self, length: int, world: int = 1) -> int | None:
        """Optimizer steps that ``tokens`` makes. None: there is no budget.

        Args:
            length: tokens in a block.
            world: processes that train together.
        """
        if self.tokens is None:
            return None
        return max(1, -(-parse_count(self.tokens) // (self.rows_per_step(length, world) * length)))

    def steps_over(self, blocks: int, held: int, length: int, world: int = 1) -> int | None:
        """Optimizer steps that ``tokens`` makes over ``blocks`` blocks, epoch after epoch. None: no budget.

        Args:
            blocks: blocks of an epoch.
            held: tokens in all of them.
            length: tokens in a full block.
            world: processes that train together.
        """
        if self.tokens is None:
            return None
        each = self.rows_per_step(length, world)
        epochs, rest = divmod(parse_count(self.tokens), held)
        per_epoch = -(-blocks // each)
        return max(1, epochs * per_epoch + min(per_epoch, -(-rest // (each * length))))

    def rows_per_step(self, length: int, world: int = 1) -> int:
        """Blocks of an optimizer step, over all processes."""
        rows = self.batch_size
        if self.max_tokens_per_batch is not None:
            rows = max(1, min(rows, self.max_tokens_per_batch // length))
        return rows * self.gradient_accumulation * world


class MaskingOptions(Options):
    """How words are hidden from a model that learns to find them."""

    mask_probability: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that are to be predicted, chosen anew in each epoch. Of these 80 % become the mask token,
    10 % any other token, and 10 % stay (Devlin et al. 2019, arXiv:1810.04805)."""
    whole_words: bool = False
    """Choose whole words, all of whose tokens are then to be predicted."""


class PretrainOptions(LanguageOptions):
    """Options of ``pretrain``: a model from random weights, and its tokenizer."""

    family: ClassVar[Family] = "llama"

    batch_size: int = Field(default=4, ge=1, json_schema_extra={"unit": "examples"})
    """Blocks per device and micro-batch."""
    max_length: int = Field(default=128, ge=8, json_schema_extra={"unit": "tokens"})
    """Tokens per block. Documents are packed one after the other; a longer one continues in the next block."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate. None: 0.003; with ``size`` less from a million parameters on."""
    warmup: float = Field(default=0.05, ge=0)
    """Warm-up: a share of all steps below 1, a number of steps from 1."""
    schedule: Literal["linear", "cosine", "constant", "wsd"] = "cosine"  # type: ignore[assignment]
    """Course of the learning rate after warm-up. ``wsd``: constant, then a linear decay over the last ``decay``."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay."""
    tokenizer: str = "bpe"
    """Kind of the tokenizer that is trained on the corpus: ``bpe``, ``unigram`` or ``wordpiece``; or the folder or hub
    id of a tokenizer to use as it is."""
    tokenizer_sample: int = Field(default=20_000_000, ge=1000, json_schema_extra={"unit": "characters"})
    """The tokenizer is trained on at most this much text: documents drawn at random (by the seed) from the first four
    times as much. A smaller corpus is used whole."""
    vocab_size: int | None = Field(default=None, ge=300, json_schema_extra={"unit": "tokens"})
    """Most tokens of the tokenizer that is trained. None: 2048, and up to 49152 with ``size``."""
    byte_level: bool | None = None
    """Read text as bytes. None: for ``bpe`` only; other kinds read characters."""
    byte_fallback: bool = True
    """Write unknown characters in byte tokens, where text is read as characters."""
    special_tokens: list[str] = Field(default_factory=list)
    """Further tokens of the tokenizer that stand for themselves."""
    size: int | float | str | None = Field(default=None, json_schema_extra={"unit": "parameters"})
    """Parameters of the model, embeddings included, such as "10M", "135M" or 1e9: chooses width and depth by a fixed
    rule. In place of ``hidden_size``, ``layers``, ``heads``, ``kv_heads`` and ``intermediate_size``."""
    architecture: str | dict[str, Any] | None = None
    """Any architecture of transformers, in place of ``size`` and widths: a config as a mapping with ``model_type``, a
    config object, or the path of a config.json. The tokenizer's size and special tokens are filled in."""
    hidden_size: int | None = Field(default=None, ge=8)
    """Width of the model. None: 128."""
    layers: int | None = Field(default=None, ge=1)
    """Transformer blocks. None: 2."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads. None: 4."""
    kv_heads: int | None = Field(default=None, ge=1)
    """Key-value heads; they must divide the attention heads. None: 2, or all heads for masked words."""
    intermediate_size: int | None = Field(default=None, ge=8)
    """Width of the feed-forward layers. None: 8/3 of the hidden size, rounded up to a multiple of 128."""
    context: int = Field(default=4096, ge=8, json_schema_extra={"unit": "tokens"})
    """Longest input the model accepts, in tokens; few-shot prompts must fit."""
    tie_embeddings: bool = True
    """Share the weights of input and output embeddings."""
    parameters: int | None = Field(default=None, ge=1, json_schema_extra={"unit": "parameters"})
    """Computed: weights of the model with a full vocabulary, embeddings included. Not to be set; use ``size``."""

    @field_validator("size")
    @classmethod
    def _sizable(cls, value: Any) -> Any:
        if value is not None:
            parse_count(value)
        return value

    @model_validator(mode="after")
    def _one_shape(self) -> Self:
        written = [name for name in _SHAPE if getattr(self, name) is not None]
        if self.architecture is not None:
            others = [*(["size"] if self.size is not None else []), *written]
            if others:
                raise ValueError(f"architecture and {', '.join(others)} both say what the model looks like; give one")
            read_architecture(self.architecture)
        shape = self.shape()
        if shape is None:
            return self
        if self.size is not None:
            other = {name: getattr(self, name) for name in written if getattr(self, name) != getattr(shape, name)}
            if other:
                raise ValueError(
                    f"size={self.size!r} means {', '.join(f'{name}={getattr(shape, name)}' for name in other)}, and "
                    f"{', '.join(f'{name}={value}' for name, value in other.items())} was given; leave one of them out"
                )
        if shape.hidden_size % shape.heads or (shape.hidden_size // shape.heads) % 2:
            raise ValueError(f"hidden_size {shape.hidden_size} must be an even multiple of heads {shape.heads}")
        if shape.heads % shape.kv_heads:
            raise ValueError(f"kv_heads {shape.kv_heads} must divide heads {shape.heads}")
        if self.max_length > self.context:
            raise ValueError(f"max_length {self.max_length} is longer than context {self.context}")
        if self.parameters not in (None, shape.parameters):
            raise ValueError(f"parameters is computed ({shape.parameters:,} here); use size={self.parameters}")
        return self

    def shape(self) -> Shape | None:
        """Widths and depths. None: ``architecture`` says it all.

        Raises:
            ValueError: if no model of this size has this vocabulary.
        """
        if self.architecture is not None:
            return None
        size = None if self.size is None else parse_count(self.size)
        vocabulary = self._vocabulary()
        if size is not None:
            return shape_for(size, vocabulary, family=self.family, tie_embeddings=self.tie_embeddings)
        values = {name: getattr(self, name) or default for name, default in _DEFAULTS.items()}
        if self.family == "modernbert":
            values["kv_heads"] = self.kv_heads or values["heads"]
        inner = self.intermediate_size or -(-8 * values["hidden_size"] // 3 // 128) * 128
        return Shape(
            family=self.family,
            vocab_size=vocabulary,
            intermediate_size=inner,
            tie_embeddings=self.tie_embeddings,
            **values,
        )

    def _vocabulary(self) -> int:
        given = None if self.tokenizer in ("bpe", "unigram", "wordpiece") else vocabulary_in(self.tokenizer)
        return self.vocab_size or given or vocabulary_for(None if self.size is None else parse_count(self.size))

    def resolve(self, *, adapter: str | None) -> Self:
        """Fill in the shape, the vocabulary and the learning rate; a bare step on embedded text is kept short."""
        shape = self.shape()
        update: dict[str, Any] = {"vocab_size": self._vocabulary()}
        if isinstance(self.architecture, str):
            update["architecture"] = read_architecture(self.architecture)
        if shape is not None:
            update |= {name: getattr(shape, name) for name in _SHAPE} | {"parameters": shape.parameters}
        if self.learning_rate is None:
            update["learning_rate"] = learning_rate_for(None if self.size is None else parse_count(self.size))
        update |= _short_if_bare(self, EMBEDDED_STEPS)
        return self.model_copy(update=update)


class MaskedPretrainOptions(PretrainOptions, MaskingOptions):
    """Options of ``pretrain`` with masked words: an encoder from random weights, and its tokenizer."""

    family: ClassVar[Family] = "modernbert"

    context: int = Field(default=512, ge=8, json_schema_extra={"unit": "tokens"})
    """Longest input the model accepts, in tokens."""

    @model_validator(mode="after")
    def _encoder(self) -> Self:
        if self.kv_heads is not None and self.heads is not None and self.kv_heads != self.heads:
            raise ValueError("kv_heads: encoders have as many key-value heads as heads; leave it out")
        if not self.tie_embeddings:
            raise ValueError("tie_embeddings: the encoder's output layer is its embedding table; leave it out")
        return self


class PostPretrainOptions(LanguageOptions):
    """Options of ``post_pretrain``: next-token prediction on plain text, starting from a model."""

    max_length: int = Field(default=1024, ge=8, json_schema_extra={"unit": "tokens"})
    """Tokens per block, at most the model's context. Documents are packed one after the other."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate. None: 2e-5 for full training, 2e-4 through an adapter."""
    warmup: float = Field(default=0.03, ge=0)
    """Warm-up: a share of all steps below 1, a number of steps from 1."""
    schedule: Literal["linear", "cosine", "constant", "wsd"] = "cosine"  # type: ignore[assignment]
    """Course of the learning rate after warm-up. ``wsd``: constant, then a linear decay over the last ``decay``."""

    def resolve(self, *, adapter: str | None) -> Self:
        """Fill in the learning rate; a bare step on the embedded text is kept short."""
        update: dict[str, Any] = {}
        if self.learning_rate is None:
            update["learning_rate"] = 2e-5 if adapter is None else 2e-4
        update |= _short_if_bare(self, EMBEDDED_STEPS_POST)
        return self.model_copy(update=update)


class MaskedPostPretrainOptions(PostPretrainOptions, MaskingOptions):
    """Options of ``post_pretrain`` with masked words, starting from an encoder."""

    max_length: int = Field(default=512, ge=8, json_schema_extra={"unit": "tokens"})
    """Tokens per block, at most the model's context. Documents are packed one after the other."""


def _short_if_bare(options: LanguageOptions, steps: int) -> dict[str, Any]:
    bare = options.data is None and options.max_steps is None and options.tokens is None
    return {"max_steps": steps} if bare and "epochs" not in options.model_fields_set else {}
