"""Next-token prediction on plain text: from random weights, and from a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunekit_transformers.lm import Objective, post_pretrain, pretrain

if TYPE_CHECKING:
    from tunekit.artifacts import Artifact
    from tunekit.plugins import StepContext

__all__ = ["CausalPostPretraining", "CausalPretraining"]

_CAUSAL = Objective(name="causal", prepare=lambda rows, tokenizer, seed: rows)


class CausalPretraining:
    """``pretrain``: a tokenizer and a model, both from nothing but the corpus.

    Documents end with an end-of-text token and are packed into blocks; a document neither sees nor is predicted from
    another one.
    """

    def run(self, ctx: StepContext) -> Artifact:
        """Train tokenizer and model. Raises as :func:`tunekit.plugins.hf.train` does."""
        return pretrain(ctx, _CAUSAL)


class CausalPostPretraining:
    """``post_pretrain``: the input model reads more text, in full or through an adapter. Every token is trained."""

    def run(self, ctx: StepContext) -> Artifact:
        """Train. Raises as :func:`tunekit.plugins.hf.train` does.

        Raises:
            StepError: code ``objective`` if the model is an encoder for masked words.
        """
        return post_pretrain(ctx, _CAUSAL)
