"""The step ``extend_vocabulary``: new tokens for a new domain or language, with embeddings to start from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from tunekit.errors import StepError
from tunekit.plugins import Artifact, DataOptions, DataRequest, ModelCard, hf

if TYPE_CHECKING:
    from tunekit.plugins import StepContext

__all__ = ["NEW_TOKENS", "ExtendOptions", "ExtendVocabulary"]

NEW_TOKENS = "tunekit_new_tokens"
"""Entry of the model's config: first id and number of the tokens that were added, by all such steps so far. Adapters
train their rows."""

_LEARNED = 1000


class ExtendOptions(DataOptions):
    """Options of ``extend_vocabulary``: learn tokens from text, name tokens, or both."""

    size: int | None = Field(default=None, ge=0, json_schema_extra={"unit": "tokens"})
    """Most tokens to learn from ``data``. None: 1000, or 0 where only named tokens are asked for."""
    tokens: list[str] = Field(default_factory=list)
    """Tokens to add as they are."""
    special_tokens: list[str] = Field(default_factory=list)
    """Tokens to add that are left out of decoded text, such as ``<|think|>``."""
    min_frequency: int = Field(default=2, ge=1)
    """How often a piece must appear in ``data`` to be learned."""
    init: Literal["subtokens", "mean", "random"] = "subtokens"
    """Where an embedding starts: the mean of the tokens it was written with before, the mean of all, or at random."""
    languages: dict[str, Any] = Field(default_factory=dict)
    """Texts to measure fertility on, by language: path or rows each. Empty: the texts of ``data``, by script."""

    @model_validator(mode="after")
    def _tokens_are_text(self) -> Self:
        for name in ("tokens", "special_tokens"):
            if any(not token.strip() for token in getattr(self, name)):
                raise ValueError(f"{name} holds an empty token")
        return self

    def resolve(self, *, adapter: str | None) -> Self:
        """Fill in how many tokens are learned."""
        if self.size is not None:
            return self
        only_named = self.data is None and bool(self.tokens or self.special_tokens)
        return self.model_copy(update={"size": 0 if only_named else _LEARNED})

    def further_data(self) -> Mapping[str, DataRequest]:
        """Texts to measure on."""
        return {f"languages.{name}": DataRequest(ref=ref, accepts=("text",)) for name, ref in self.languages.items()}


class ExtendVocabulary:
    """Adds tokens to the input model's tokenizer and rows to its embeddings. No other weight changes."""

    def run(self, ctx: StepContext) -> Artifact:
        """Learn, extend, measure, save.

        Raises:
            StepError: if nothing is there to add, or the tokenizer cannot be extended.
            DataError: for bad rows.
        """
        from tunekit_transformers.fertility import Fertility, fertility_by_language
        from tunekit_transformers.vocabulary import extend_embeddings, extend_tokenizer

        options: ExtendOptions = ctx.options
        loaded = ctx.model()
        old = loaded.tokenizer
        ctx.progress(0, None, "tokens", "learning the vocabulary")
        scratch = ctx.dir / "tokenizer"
        shutil.rmtree(scratch, ignore_errors=True)
        with hf.storage_errors(scratch), hf.quiet():
            made = extend_tokenizer(
                old,
                _texts(ctx),
                size=options.size or 0,
                folder=scratch,
                tokens=options.tokens,
                special_tokens=options.special_tokens,
                min_frequency=options.min_frequency,
            )
            shutil.rmtree(scratch, ignore_errors=True)
        if not made.tokens:
            raise StepError(
                "There is nothing to add to the vocabulary: no piece of the text saves a token.",
                code="nothing-to-add",
                asked=f"size={options.size}, min_frequency={options.min_frequency}",
                fix="pass more text, lower min_frequency, or name tokens: tokens=[...]",
            )
        rows_before = int(loaded.model.get_input_embeddings().weight.shape[0])
        with hf.quiet():
            extend_embeddings(loaded.model, made, options.init, ctx.seed)
        end = made.first_id + len(made.tokens)
        begin = min([made.first_id, *(getattr(loaded.model.config, NEW_TOKENS, None) or ())[:1]])
        setattr(loaded.model.config, NEW_TOKENS, [begin, end - begin])

        def measured(tokenizer: Any) -> dict[str, Fertility]:
            if options.languages:
                named = {
                    name: (row["text"] for row in ctx.further_data[f"languages.{name}"].rows())
                    for name in options.languages
                }
                return fertility_by_language(tokenizer, named)
            return fertility_by_language(tokenizer, _texts(ctx))

        before, after = measured(old), measured(made.tokenizer)
        for name in before:
            ctx.notice(
                "fertility",
                f"{name}: {before[name].tokens_per_word:.2f} -> {after[name].tokens_per_word:.2f} tokens per word "
                f"({before[name].tokens:,} -> {after[name].tokens:,} tokens).",
            )
        folder = hf.save_model(loaded.model, made.tokenizer, ctx.dir / "model")
        loaded.tokenizer = made.tokenizer
        ctx.keep(loaded)
        total, _ = hf.count_parameters(loaded.model)
        embeddings = loaded.model.get_input_embeddings().weight
        return Artifact(
            kind="model",
            model=ModelCard(path=folder.name, parameters=total, dtype=str(embeddings.dtype).removeprefix("torch.")),
            metrics={"new_tokens": len(made.tokens)},
            details={
                "vocabulary": {"before": made.first_id, "after": made.first_id + len(made.tokens)},
                "embeddings": {"before": rows_before, "after": int(embeddings.shape[0])},
                "init": options.init,
                "tokens": list(made.tokens[:200]),
                "fertility": {
                    "before": {name: value.to_dict() for name, value in before.items()},
                    "after": {name: value.to_dict() for name, value in after.items()},
                },
            },
        )


def _texts(ctx: StepContext) -> Iterator[str]:
    assert ctx.data is not None
    for row in ctx.data.rows():
        ctx.cancel.raise_if_cancelled()
        yield row["text"]
