"""Documents to blocks of tokens: nothing is lost, and no document sees another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tunekit.errors import DataError, StepError
from tunekit.plugins import hf

if TYPE_CHECKING:
    from pathlib import Path

    from tunekit.plugins import StepContext

__all__ = ["BlockDataset", "TokenFile", "document_rows", "tokens_for"]

IGNORE = -100
"""Label of positions without a target."""

_AT_ONCE = 1 << 20
"""Blocks or documents that are looked at together: bounds the memory that numpy needs meanwhile."""


@dataclass(frozen=True, kw_only=True)
class TokenFacts:
    """What is in a token file."""

    documents: int
    tokens: int
    """Tokens in all, special ones included."""
    fingerprint: str
    """Fingerprint of the data they come from."""
    complete: bool = True
    """Whether these are all documents of the data, and not the first ones up to a limit."""


class TokenFile:
    """All documents of a data set as token ids, one after the other, on disk; read by memory map.

    Each document is what the tokenizer makes of it (with one beginning-of-text token if it adds one) plus one
    end-of-text token. Memory: 12 bytes a document, whatever its length.

    Attributes:
        tokens: the token ids as one array; slices are read from disk (int64).
        starts: index of each document's first token, int64.
        encoded: documents that were tokenized by this call of :meth:`build`; 0 if all were there.
    """

    def __init__(self, store: hf.TokenStore, fingerprint: str) -> None:
        self._store = store
        self.folder: Path = store.folder
        self.encoded = store.encoded
        self.facts = TokenFacts(
            documents=len(store), tokens=store.facts["tokens"], fingerprint=fingerprint, complete=store.complete
        )
        self.tokens = _Stream(store)
        ends = np.cumsum(store.lengths, dtype=np.int64)
        self.starts: np.ndarray[Any, Any] = ends - store.lengths

    @classmethod
    def build(
        cls,
        ctx: StepContext,
        texts: Iterable[str],
        tokenizer: Any,
        fingerprint: str,
        *,
        name: str = "documents",
        vocabulary: int | None = None,
        limit_tokens: int | None = None,
        total: int | None = None,
        masked: bool = False,
    ) -> TokenFile:
        """Tokenize ``texts`` into the shared cache; what is there already is used, and an interrupted call continued.

        Args:
            ctx: the step's context.
            texts: the documents.
            tokenizer: a ``transformers`` tokenizer.
            fingerprint: of ``texts``.
            name: of the folder.
            vocabulary: rows of the model's embedding matrix; a token beyond it is an error.
            limit_tokens: stop after the document that brings this many tokens, see :func:`tokens_for`.
            total: number of texts, for the progress bar.
            masked: words are hidden and nothing is generated: a separator token may end a document.

        Raises:
            DataError: if there is no text (``empty-dataset``), or a token that the model has no embedding for
                (``vocabulary``).
            StepError: if the tokenizer has no end-of-text token.
            ArtifactError: if the disk is full or cannot be written.
        """
        if _end(tokenizer, masked) is None:
            raise StepError(
                "The tokenizer has no end-of-text token, so the model could not learn where a text ends.",
                code="no-eos",
                fix="set tokenizer.eos_token and save the tokenizer in the model folder",
            )
        store = hf.TokenStore.build(
            ctx,
            name,
            texts,
            _Documents(tokenizer, vocabulary, masked),
            key=hf.token_key(
                fingerprint,
                tokenizer,
                {
                    "encoder": "documents",
                    "version": 1,
                    "vocabulary": vocabulary,
                    "end": _end(tokenizer, masked),
                },
            ),
            limit_tokens=limit_tokens,
            total=total,
        )
        if not len(store):
            raise DataError("There is no text to train on.", code="empty-dataset")
        return cls(store, fingerprint)

    def discard(self) -> None:
        """Remove the tokens if they are in the step's own folder; those in the shared cache stay for others."""
        self._store.discard()


class _Stream:
    """The tokens of a store as one array."""

    def __init__(self, store: hf.TokenStore) -> None:
        self._store = store
        self._size = int(store.facts["tokens"])

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> np.ndarray[Any, Any]:
        begin, end, step = part.indices(self._size)
        return self._store.tokens(begin, end)[::step]


class _Documents:
    """Encodes texts as documents, many at once."""

    def __init__(self, tokenizer: Any, vocabulary: int | None, masked: bool = False) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self._end = _end(tokenizer, masked)

    def __call__(self, texts: list[str]) -> list[hf.TokenRow | DataError]:
        with hf.quiet():
            made = self.tokenizer(texts, add_special_tokens=True, truncation=False, padding=False)["input_ids"]
        return [hf.TokenRow(self._document(list(ids))) for ids in made]

    def _document(self, ids: list[int]) -> list[int]:
        bos, eos = self.tokenizer.bos_token_id, self._end
        # A text that spells the beginning-of-text token itself would start with two of them.
        while len(ids) > 1 and bos is not None and ids[0] == bos and ids[1] == bos:
            ids = ids[1:]
        if not (ids and ids[-1] == eos and len(ids) > 1):
            ids = [*ids, eos]
        if self.vocabulary is not None and max(ids) >= self.vocabulary:
            raise DataError(
                f"The tokenizer makes a token that the model has no embedding for "
                f"({self.tokenizer.convert_ids_to_tokens(max(ids))!r}).",
                code="vocabulary",
                found=f"token id {max(ids)}, {self.vocabulary} embeddings",
                fix="use the model's own tokenizer, or extend the model's vocabulary first",
            )
        return ids


def _end(tokenizer: Any, masked: bool) -> Any:
    """The token that ends a document: end-of-text, or with masked words the separator of a tokenizer without one."""
    end = tokenizer.eos_token_id
    return tokenizer.sep_token_id if end is None and masked else end


def document_rows(
    texts: list[str], tokenizer: Any, vocabulary: int | None, masked: bool = False
) -> list[hf.TokenRow | DataError]:
    """Texts as documents: what the tokenizer makes of each, and one end-of-text token.

    Raises:
        DataError: code ``vocabulary`` for a token that a model of ``vocabulary`` embeddings has none for.
    """
    return _Documents(tokenizer, vocabulary, masked)(texts)


def tokens_for(steps: int, rows: int, length: int) -> int:
    """Tokens that training reads in ``steps`` optimizer steps of ``rows`` blocks of ``length`` tokens.

    Args:
        steps: optimizer steps.
        rows: blocks per optimizer step: batch size times accumulation times devices.
        length: tokens in a block; neighbours share one.
    """
    return steps * rows * (length - 1) + 1


class BlockDataset:
    """Blocks of ``length`` tokens over a token file. A map-style data set for ``torch.utils.data.DataLoader``.

    Neighbouring blocks share one token, so that every token but the first of each document is a target exactly once
    per epoch. Positions start at 0 with each document and with each block: from them the model makes a block-diagonal
    attention mask, and no document sees another. Rows: ``input_ids``, ``position_ids``, ``labels``, each a list of at
    most ``length`` ids; labels are -100 where there is no target.
    """

    def __init__(self, file: TokenFile, length: int) -> None:
        if length < 2:
            raise ValueError("a block needs at least two tokens")
        self._tokens = file.tokens
        self._starts = file.starts
        self._length = length
        # The last token of a block is the first of the next one; a rest of one token holds no target.
        self._blocks = max(0, -(-(file.facts.tokens - 1) // (length - 1)))
        self._empty = self._without_targets()
        self._before_empty = self._empty - np.arange(len(self._empty))
        self.targets = file.facts.tokens - file.facts.documents
        """Target tokens per epoch."""
        self.cut = self._count_cut()
        """Documents that do not fit in one block; their later parts are predicted without the earlier ones."""

    def __len__(self) -> int:
        return self._blocks - len(self._empty)

    @property
    def lengths(self) -> np.ndarray[Any, Any]:
        """Tokens of each row, int32."""
        lengths = np.full(len(self), self._length, dtype=np.int32)
        if len(self):
            begin, end = self._range(self._block(len(self) - 1))
            lengths[-1] = end - begin
        return lengths

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        begin, end = self._range(self._block(index))
        ids = self._tokens[begin:end]
        first = np.zeros(end - begin, dtype=np.int64)
        inside = self._starts[np.searchsorted(self._starts, begin) : np.searchsorted(self._starts, end)] - begin
        first[inside] = inside
        positions = np.arange(end - begin) - np.maximum.accumulate(first)
        labels = np.where(positions == 0, IGNORE, ids)
        return {"input_ids": ids.tolist(), "position_ids": positions.tolist(), "labels": labels.tolist()}

    def _block(self, index: int) -> int:
        """The block that row ``index`` is: blocks without a target are no rows."""
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        return index + int(np.searchsorted(self._before_empty, index, side="right"))

    def _range(self, block: int) -> tuple[int, int]:
        begin = block * (self._length - 1)
        return begin, min(begin + self._length, len(self._tokens))

    def _without_targets(self) -> np.ndarray[Any, Any]:
        """Blocks in which every token but the first begins a document. Few, so that a list of them is small."""
        found: list[np.ndarray[Any, Any]] = [np.zeros(0, dtype=np.int64)]
        for low in range(0, self._blocks, _AT_ONCE):
            begins = np.arange(low, min(low + _AT_ONCE, self._blocks)) * (self._length - 1)
            ends = np.minimum(begins + self._length, len(self._tokens))
            starting = np.searchsorted(self._starts, ends) - np.searchsorted(self._starts, begins + 1)
            found.append(np.flatnonzero(ends - begins - 1 == starting) + low)
        return np.concatenate(found)

    def _count_cut(self) -> int:
        stride = self._length - 1
        cut = 0
        for low in range(0, len(self._starts), _AT_ONCE):
            starts = self._starts[low : low + _AT_ONCE + 1]
            last = len(starts) <= _AT_ONCE
            ends = np.append(starts[1:], len(self._tokens)) if last else starts[1:]
            starts = starts[:_AT_ONCE]
            # A document lies in one block if its last token is at most at the end of the block its first begins in.
            cut += int(np.count_nonzero((ends - 1 - (starts // stride) * stride) > stride))
        return cut
