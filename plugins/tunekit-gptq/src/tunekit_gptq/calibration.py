"""From the run's data to calibration rows: rendered as in training, chosen by seed, recorded."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunekit.data import as_messages, plain_pair, to_text
from tunekit.errors import StepError

if TYPE_CHECKING:
    from tunekit.data import Dataset

__all__ = ["Calibration", "choose"]

POOL = 20_000
"""Rows of a data set that are looked at; a larger one is sampled from its beginning."""
HELD_OUT = 8
"""Most rows kept aside to measure what quantization costs."""
_SHORTEST = 4
"""Rows with fewer tokens say nothing about activations."""
_LONGEST_TEXT = 1_000_000
"""Characters of one document that are looked at."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Token ids for calibration, and others to measure with."""

    rows: list[list[int]]
    held_out: list[list[int]]
    sources: list[dict[str, Any]]
    """Per data set: name, schema, fingerprint, and how many rows were taken."""
    seed: int
    max_length: int
    template: str
    """``chat template`` or ``plain text``."""
    template_sha256: str
    """SHA-256 of the chat template; empty without one."""
    cut: int
    """Chats that were cut to ``max_length``."""

    @property
    def tokens(self) -> int:
        """Calibration tokens."""
        return sum(map(len, self.rows))

    @property
    def sha256(self) -> str:
        """SHA-256 of the calibration token ids, as JSON without spaces."""
        return hashlib.sha256(json.dumps(self.rows, separators=(",", ":")).encode()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """What goes into the step's result."""
        return {
            "rows": len(self.rows),
            "tokens": self.tokens,
            "sources": self.sources,
            "sha256": self.sha256,
            "seed": self.seed,
            "max_length": self.max_length,
            "template": self.template,
            "template_sha256": self.template_sha256,
            "cut_rows": self.cut,
            "held_out_rows": len(self.held_out),
        }

    def to_data(self) -> dict[str, Any]:
        """Everything, token ids included: enough to calibrate again without the data sets."""
        return {**self.facts(), "token_ids": self.rows, "held_out_token_ids": self.held_out}


def choose(
    datasets: Sequence[Dataset], tokenizer: Any, *, rows: int, tokens: int, max_length: int, seed: int
) -> Calibration:
    """Calibration rows of ``datasets``, taken in turn from each, in an order that depends on ``seed`` only.

    Rows are rendered as training renders them: messages through the chat template if the tokenizer has one, preference
    rows with the chosen answer, plain text with begin and end tokens. Equal rows count once. Up to eight rows, at most
    a fifth of all, are held out for measuring.

    Args:
        rows: most calibration rows.
        tokens: calibration ends with the row that reaches this many tokens.
        max_length: longest row; documents are cut to pieces of this length, chats at their end.

    Raises:
        StepError: if no row is long enough.
        DataError: if a row is bad.
    """
    encoder = _Encoder(tokenizer, max_length)
    wanted = 2 * (rows + HELD_OUT)
    pools = [_sample(dataset, encoder, wanted, random.Random(f"{seed}/{n}")) for n, dataset in enumerate(datasets)]
    picked = _distinct(_in_turn(pools), rows + HELD_OUT)
    if not picked:
        raise StepError(
            "There is no row to calibrate with.",
            code="no-calibration",
            found=f"{', '.join(data.name for data in datasets) or 'no data'}: no row of {_SHORTEST} tokens or more",
            fix="give rows of the kind the model will see: quantize(..., data=...)",
        )
    aside = min(HELD_OUT, len(picked) // 5 or len(picked) // 2)
    chosen: list[tuple[int, list[int]]] = []
    total = 0
    for number, ids in picked[aside:]:
        if len(chosen) == rows or total >= tokens:
            break
        chosen.append((number, ids))
        total += len(ids)
    template = getattr(tokenizer, "chat_template", None)
    return Calibration(
        rows=[ids for _, ids in chosen],
        held_out=[ids for _, ids in picked[:aside]],
        sources=[
            {
                "name": dataset.name,
                "schema": dataset.schema,
                "fingerprint": dataset.fingerprint(),
                "rows": sum(1 for number, _ in chosen if number == n),
            }
            for n, dataset in enumerate(datasets)
        ],
        seed=seed,
        max_length=max_length,
        template="chat template" if template else "plain text",
        template_sha256=hashlib.sha256(str(template).encode()).hexdigest() if template else "",
        cut=encoder.cut,
    )


def _sample(dataset: Dataset, encoder: _Encoder, wanted: int, source: random.Random) -> list[list[int]]:
    """Up to ``wanted`` encoded rows (or pieces of documents) in random order. Memory does not grow with the data."""
    kept: list[dict[str, Any]] = []
    for number, row in enumerate(dataset.rows()):
        if number >= POOL:
            break
        if len(kept) < wanted:
            kept.append(row)
            continue
        at = source.randrange(number + 1)  # reservoir sampling: every row is equally likely to stay
        if at < wanted:
            kept[at] = row
    source.shuffle(kept)
    pieces: list[list[int]] = []
    for row in kept:
        pieces.extend(ids for ids in encoder.encode(row, dataset.schema) if len(ids) >= _SHORTEST)
    if dataset.schema == "text":
        source.shuffle(pieces)
    return pieces[:wanted]


def _in_turn(pools: Sequence[Sequence[list[int]]]) -> Iterator[tuple[int, list[int]]]:
    for at in range(max(map(len, pools), default=0)):
        for number, pool in enumerate(pools):
            if at < len(pool):
                yield number, pool[at]


def _distinct(rows: Iterator[tuple[int, list[int]]], limit: int) -> list[tuple[int, list[int]]]:
    seen: set[tuple[int, ...]] = set()
    made: list[tuple[int, list[int]]] = []
    for number, ids in rows:
        key = tuple(ids)
        if key in seen:
            continue
        seen.add(key)
        made.append((number, ids))
        if len(made) == limit:
            break
    return made


class _Encoder:
    """Token ids of canonical rows, as training makes them."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.cut = 0
        self.chat = bool(getattr(tokenizer, "chat_template", None))
        self.special = tuple(text for text in tokenizer.all_special_tokens if text)
        self.prefix = self._prefix()

    def encode(self, row: Mapping[str, Any], schema: str) -> list[list[int]]:
        if schema == "text":
            ids = self._plain(str(row["text"])[:_LONGEST_TEXT])
            return [ids[at : at + self.max_length] for at in range(0, len(ids), self.max_length)]
        if schema == "conversation":
            messages = as_messages(row["messages"])
            prompt, answer = messages[:-1], messages[-1:]
        else:
            prompt, answer = row["prompt"], row["chosen" if schema == "preference" else "completion"]
        if self.chat:
            ids = self._chat(as_messages(prompt) + as_messages(answer, "assistant"), row.get("tools"))
        else:
            ids = self._plain("".join(plain_pair(prompt, answer)) if prompt else to_text(answer))
        self.cut += len(ids) > self.max_length
        return [ids[: self.max_length]]

    def _chat(self, messages: list[dict[str, Any]], tools: Any) -> list[int]:
        text = str(self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False))
        ids = self._ids(text)
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        if eos is not None and not text.rstrip().endswith(self.special):
            ids.append(eos)
        return ids

    def _plain(self, text: str) -> list[int]:
        ids = self._ids(text)
        if ids[: len(self.prefix)] != self.prefix:
            ids = self.prefix + ids
        eos = self.tokenizer.eos_token_id
        if eos is not None and ids[-1:] != [eos]:
            ids.append(eos)
        return ids

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, truncation=False, padding=False)["input_ids"])

    def _prefix(self) -> list[int]:
        bare, dressed = self._ids("a"), list(self.tokenizer("a", truncation=False, padding=False)["input_ids"])
        for at in range(len(dressed) - len(bare) + 1):
            if dressed[at : at + len(bare)] == bare:
                return dressed[:at]
        return []
