"""Masked words: which tokens are hidden, and the trainers that learn to find them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tunekit.errors import StepError
from tunekit_transformers.lm import Objective, post_pretrain, pretrain

if TYPE_CHECKING:
    from tunekit.artifacts import Artifact
    from tunekit.plugins import StepContext

__all__ = ["MaskedPostPretraining", "MaskedPretraining", "MaskedRows", "Masking"]

IGNORE = -100
"""Label of positions without a target."""


class MaskedPretraining:
    """``pretrain`` with masked words: a tokenizer and an encoder, both from nothing but the corpus."""

    def run(self, ctx: StepContext) -> Artifact:
        """Train tokenizer and model. Raises as :func:`tunekit.plugins.hf.train` does."""
        return pretrain(ctx, _objective(ctx))


class MaskedPostPretraining:
    """``post_pretrain`` with masked words: the input encoder reads more text, in full or through an adapter."""

    def run(self, ctx: StepContext) -> Artifact:
        """Train. Raises as :func:`tunekit.plugins.hf.train` does.

        Raises:
            StepError: code ``objective`` if the model is no masked language model; ``no-mask`` if its tokenizer has no
                mask token.
        """
        return post_pretrain(ctx, _objective(ctx))


def _objective(ctx: StepContext) -> Objective:
    def prepare(rows: Any, tokenizer: Any, seed: int) -> MaskedRows:
        masking = Masking(tokenizer, probability=ctx.options.mask_probability, whole_words=ctx.options.whole_words)
        return MaskedRows(rows, masking, seed)

    return Objective(name="masked", prepare=prepare)


class Masking:
    """Chooses the tokens to predict and hides them, as BERT does (Devlin et al. 2019, arXiv:1810.04805, section 3.1).

    A token is chosen with ``probability``, independently of others; special tokens never are. Of those chosen 80 %
    become the mask token, 10 % a token drawn evenly from all that are not special, and 10 % stay as they are. With
    ``whole_words`` words are chosen instead, with the same probability, and all their tokens with them; a word is a
    token that begins one and those that go on with it: ``##ing`` of WordPiece, and letters or digits without a space
    before them of the others.

    Args:
        tokenizer: with a mask token.
        probability: of each token or word.
        whole_words: choose words.

    Raises:
        StepError: code ``no-mask``.
    """

    def __init__(self, tokenizer: Any, *, probability: float = 0.15, whole_words: bool = False) -> None:
        if tokenizer.mask_token_id is None:
            raise StepError(
                "The tokenizer has no mask token, so words cannot be hidden.",
                code="no-mask",
                fix="use an encoder with its own tokenizer, or objective='causal'",
            )
        self.mask = int(tokenizer.mask_token_id)
        self.probability, self.whole_words = probability, whole_words
        size = len(tokenizer)
        self._special = np.zeros(size, dtype=bool)
        added = [index for index, token in tokenizer.added_tokens_decoder.items() if token.special]
        self._special[[index for index in {*tokenizer.all_special_ids, *added} if index < size]] = True
        self._plain = np.flatnonzero(~self._special)
        self._goes_on = _continuing(tokenizer, size) if whole_words else None

    def __call__(
        self, ids: np.ndarray[Any, Any], positions: np.ndarray[Any, Any], draw: np.random.Generator
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """``ids`` as the model sees them, and labels (the id, or -100 where nothing is to be predicted).

        Args:
            ids: token ids, (tokens,).
            positions: position of each in its document; 0 begins one.
            draw: source of randomness.
        """
        ids = np.asarray(ids, dtype=np.int64)
        free = ~self._special[ids]
        if self._goes_on is None:
            chosen = draw.random(len(ids)) < self.probability
        else:
            before = np.concatenate([[False], free[:-1]])
            begins = ~(self._goes_on[ids] & before & (np.asarray(positions) > 0))
            word = np.cumsum(begins) - 1
            chosen = (draw.random(len(ids)) < self.probability)[word]
        chosen &= free
        labels = np.where(chosen, ids, IGNORE)
        fate = draw.random(len(ids))
        other = self._plain[draw.integers(len(self._plain), size=len(ids))]
        seen = np.where(chosen & (fate < 0.8), self.mask, ids)
        seen = np.where(chosen & (fate >= 0.8) & (fate < 0.9), other, seen)
        return seen, labels


def _continuing(tokenizer: Any, size: int) -> np.ndarray[Any, Any]:
    tokens = [token or "" for token in tokenizer.convert_ids_to_tokens(list(range(size)))]
    if any(token.startswith("##") for token in tokens):
        return np.array([token.startswith("##") for token in tokens])
    spaces = ("Ġ", "▁", "Ċ", " ")  # of byte-level and SentencePiece vocabularies
    return np.array([bool(token) and not token.startswith(spaces) and token[0].isalnum() for token in tokens])


class MaskedRows:
    """Token rows with hidden words.

    What is hidden depends on seed, epoch and row alone, so that an interrupted training goes on with the same words.

    Args:
        rows: token rows; their labels are not used.
        masking: what hides.
        seed: of the choice.
    """

    def __init__(self, rows: Any, masking: Masking, seed: int) -> None:
        self._rows, self._masking, self._seed = rows, masking, seed
        self._epoch = 0
        self.lengths = rows.lengths

    def set_epoch(self, epoch: int) -> None:
        """Choose anew for the epoch that begins."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        draw = np.random.default_rng((self._seed, self._epoch, index))
        ids = np.asarray(row["input_ids"], dtype=np.int64)
        positions = np.asarray(row.get("position_ids", np.arange(len(ids))), dtype=np.int64)
        seen, labels = self._masking(ids, positions, draw)
        return {"input_ids": seen, "labels": labels, "position_ids": positions}
