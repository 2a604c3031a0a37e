"""Documents to blocks of tokens: nothing is lost, and no document sees another."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunekit.errors import DataError, StepError
from tunekit.plugins.hf import quiet, storage_errors

if TYPE_CHECKING:
    from tunekit.plugins import StepContext

__all__ = ["BlockDataset", "TokenFile", "collate"]

IGNORE = -100
"""Label of positions without a target."""


@dataclass(frozen=True, kw_only=True)
class TokenFacts:
    """What is in a token file."""

    documents: int
    tokens: int
    """Tokens in all, special ones included."""
    fingerprint: str
    """Fingerprint of the data they come from."""


class TokenFile:
    """All documents of a data set as token ids, one after the other, on disk; read by memory map.

    Each document is what the tokenizer makes of it (with one beginning-of-text token if it adds one) plus one
    end-of-text token.
    """

    def __init__(self, folder: Path, facts: TokenFacts) -> None:
        self.folder = folder
        self.facts = facts
        self.tokens = np.memmap(folder / "tokens.bin", dtype=np.uint32, mode="r")
        self.starts = np.fromfile(folder / "starts.bin", dtype=np.int64)
        """Index of each document's first token."""

    @classmethod
    def build(cls, ctx: StepContext, texts: Iterable[str], tokenizer: Any, fingerprint: str) -> TokenFile:
        """Tokenize ``texts`` below ``ctx.dir``; a complete file of the same data is taken as it is.

        Raises:
            DataError: if there is no text.
            StepError: if the tokenizer has no end-of-text token.
        """
        folder = ctx.dir / "tokens"
        known = _read_facts(folder)
        if known is not None and known.fingerprint == fingerprint:
            return cls(folder, known)
        if tokenizer.eos_token_id is None:
            raise StepError(
                "The tokenizer has no end-of-text token, so the model could not learn where a text ends.",
                code="no-eos",
                fix="set tokenizer.eos_token and save the tokenizer in the model folder",
            )
        with storage_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            starts: list[int] = []
            total = 0
            with (folder / "tokens.bin").open("wb") as stream:
                for ids in _encode(ctx, texts, tokenizer):
                    starts.append(total)
                    total += len(ids)
                    stream.write(np.asarray(ids, dtype=np.uint32).tobytes())
            if not starts:
                raise DataError("There is no text to train on.", code="empty-dataset")
            np.asarray(starts, dtype=np.int64).tofile(folder / "starts.bin")
            facts = TokenFacts(documents=len(starts), tokens=total, fingerprint=fingerprint)
            aside = folder / "facts.json.tmp"
            aside.write_text(json.dumps(asdict(facts)), encoding="utf-8")
            os.replace(aside, folder / "facts.json")  # noqa: PTH105
        return cls(folder, facts)


def _read_facts(folder: Path) -> TokenFacts | None:
    try:
        facts = TokenFacts(**json.loads((folder / "facts.json").read_text(encoding="utf-8")))
        if (folder / "tokens.bin").stat().st_size != 4 * facts.tokens:
            return None
        if (folder / "starts.bin").stat().st_size != 8 * facts.documents:
            return None
    except (OSError, ValueError, TypeError):
        return None
    return facts


def _encode(ctx: StepContext, texts: Iterable[str], tokenizer: Any) -> Iterator[list[int]]:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = iter(texts)
    done = 0
    while batch := list(islice(rows, 256)):
        ctx.cancel.raise_if_cancelled()
        with quiet():
            encoded = tokenizer(batch, add_special_tokens=True, truncation=False, padding=False)["input_ids"]
        for ids in encoded:
            # A text that spells the beginning-of-text token itself would start with two of them.
            while len(ids) > 1 and bos is not None and ids[0] == bos and ids[1] == bos:
                ids = ids[1:]
            yield ids if ids and ids[-1] == eos and len(ids) > 1 else [*ids, eos]
        done += len(batch)
        ctx.progress(done, None, "rows", "tokenizing")


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
        self._rows = [index for index in range(self._blocks) if self._targets(index) > 0]
        self.targets = file.facts.tokens - file.facts.documents
        """Target tokens per epoch."""
        self.cut = self._count_cut()
        """Documents that do not fit in one block; their later parts are predicted without the earlier ones."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        begin, end = self._range(self._rows[index])
        ids = self._tokens[begin:end].astype(np.int64)
        first = np.zeros(end - begin, dtype=np.int64)
        inside = self._starts[np.searchsorted(self._starts, begin) : np.searchsorted(self._starts, end)] - begin
        first[inside] = inside
        positions = np.arange(end - begin) - np.maximum.accumulate(first)
        labels = np.where(positions == 0, IGNORE, ids)
        return {"input_ids": ids.tolist(), "position_ids": positions.tolist(), "labels": labels.tolist()}

    def _range(self, block: int) -> tuple[int, int]:
        begin = block * (self._length - 1)
        return begin, min(begin + self._length, len(self._tokens))

    def _targets(self, block: int) -> int:
        begin, end = self._range(block)
        starts = np.searchsorted(self._starts, end) - np.searchsorted(self._starts, begin + 1)
        return end - begin - 1 - int(starts)

    def _count_cut(self) -> int:
        ends = np.append(self._starts[1:], len(self._tokens))
        stride = self._length - 1
        # A document lies in one block if its last token is at most at the end of the block its first token begins in.
        return int(np.count_nonzero((ends - 1 - (self._starts // stride) * stride) > stride))


class collate:  # noqa: N801  (a callable with a name that reads as one)
    """Rows of a :class:`BlockDataset` to a batch of tensors, (rows, longest).

    Only the last block of an epoch can be shorter. Padding has positions from 0 on, like a document of its own, and
    no labels.
    """

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, Any]:
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        batch: dict[str, list[list[int]]] = {"input_ids": [], "position_ids": [], "labels": []}
        for row in rows:
            short = longest - len(row["input_ids"])
            batch["input_ids"].append(row["input_ids"] + [self.pad] * short)
            batch["position_ids"].append(row["position_ids"] + list(range(short)))
            batch["labels"].append(row["labels"] + [IGNORE] * short)
        return {name: torch.tensor(values) for name, values in batch.items()}
