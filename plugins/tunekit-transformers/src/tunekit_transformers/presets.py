"""Shapes of models by their number of parameters. Torch-free arithmetic."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "Shape",
    "learning_rate_for",
    "parse_count",
    "read_architecture",
    "shape_for",
    "vocabulary_for",
    "vocabulary_in",
]

Family = Literal["llama", "modernbert"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}


def parse_count(value: int | float | str) -> int:
    """A whole number of things: ``1e9``, ``5_000_000``, ``"10M"``, ``"1.5B"``.

    Raises:
        ValueError: if it is none, or less than 1.
    """
    if isinstance(value, str):
        found = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:e[0-9]+)?)\s*([kmbgt]?)\s*", value.lower())
        if not found:
            raise ValueError(f'{value!r} is no number; write 10_000_000, "10M" or "1.5B"')
        value = float(found[1].replace("_", "")) * _UNITS[found[2]]
    if isinstance(value, bool) or not math.isfinite(value) or value < 1:
        raise ValueError(f"{value!r} is no number from 1 up")
    return round(value)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Widths and depths of a model, and how many parameters they make."""

    family: Family = "llama"
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    """Equal to ``heads`` for ``modernbert``."""
    intermediate_size: int
    tie_embeddings: bool = True

    @property
    def parameters(self) -> int:
        """All weights, embeddings included; tied ones once."""
        wide, inner = self.hidden_size, self.intermediate_size
        if self.family == "modernbert":
            # Fused query-key-value and output, a gated feed-forward layer, two norms; the first layer lacks one of
            # them. Around: the table and its norm, the last norm, the head's dense layer and norm, the output bias.
            layer = 4 * wide**2 + 3 * wide * inner + 2 * wide
            return self.vocab_size * (wide + 1) + self.layers * layer + wide**2 + 2 * wide
        keys = wide // self.heads * self.kv_heads
        layer = 2 * wide**2 + 2 * wide * keys + 3 * wide * inner + 2 * wide
        return self.vocab_size * wide * (1 if self.tie_embeddings else 2) + self.layers * layer + wide


def shape_for(size: int, vocab_size: int, *, family: Family = "llama", tie_embeddings: bool = True) -> Shape:
    """The shape of a model of about ``size`` parameters, embeddings included; within 5 %, mostly within 1 %.

    The rule, after what is used for small Llama-like models (SmolLM2, MobileLLM, Llama 3.2, Pythia):

    - heads of 32 below 30M parameters, of 64 below 2B, of 128 from there;
    - as many key-value heads as a third of the heads, else a quarter, else a half, where that comes out even;
    - about 32 times as wide as deep up to 360M (SmolLM2: 19 to 30), growing to 128 times at 7B (Llama);
    - the feed-forward layer is 8/3 as wide as the model, then fitted in multiples of 64 (32 below a width of 256) to
      meet the size.

    Args:
        size: parameters that are wanted.
        vocab_size: rows of the embedding table.
        family: ``llama`` (causal) or ``modernbert`` (masked words).
        tie_embeddings: whether input and output embeddings share their weights.

    Raises:
        ValueError: if no shape comes within 5 %, as when the embeddings alone are larger.
    """
    ratio = 32 * max(1.0, (size / 360e6) ** 0.47)
    candidates = list(_candidates(size, vocab_size, family, tie_embeddings))
    close = [shape for shape in candidates if abs(shape.parameters / size - 1) <= 0.05]
    if not close:
        table = vocab_size * 64 * (1 if tie_embeddings else 2)
        raise ValueError(
            f"no model of {size:,} parameters has a vocabulary of {vocab_size:,} tokens "
            f"(embeddings of width 64 alone are {table:,} parameters); choose a smaller vocab_size or a larger size"
        )

    def unusual(shape: Shape) -> float:
        aspect = abs(math.log(shape.hidden_size / shape.layers / ratio))
        inner = abs(math.log(shape.intermediate_size / (8 / 3 * shape.hidden_size)))
        return aspect + 2 * inner + 10 * abs(shape.parameters / size - 1)

    return min(close, key=unusual)


def _candidates(size: int, vocab_size: int, family: Family, tie: bool) -> Iterator[Shape]:
    head = 32 if size < 30e6 else 64 if size < 2e9 else 128
    for heads in range(1, 16384 // head + 1):
        wide = heads * head
        if vocab_size * wide > size:
            return
        shared = next((heads // part for part in (3, 4, 2) if heads % part == 0), None)
        if shared is None and heads > 1 and family == "llama":
            continue
        plain = Shape(
            family=family,
            vocab_size=vocab_size,
            hidden_size=wide,
            layers=1,
            heads=heads,
            kv_heads=heads if family == "modernbert" else shared or 1,
            intermediate_size=max(64, round(8 * wide / 3 / 64) * 64),
            tie_embeddings=tie,
        )
        each = replace(plain, layers=2).parameters - plain.parameters
        for layers in {math.floor(about := (size - plain.parameters) / each + 1), math.ceil(about)}:
            if not 2 <= layers <= 256:
                continue
            made = replace(plain, layers=layers)
            unit = 32 if wide < 256 else 64
            inner = made.intermediate_size + round((size - made.parameters) / (3 * wide * unit * layers)) * unit
            if 1.5 * wide <= inner <= 4.5 * wide:
                yield replace(made, intermediate_size=inner)


def vocabulary_for(size: int | None) -> int:
    """Tokens of a vocabulary for a model of ``size`` parameters: embeddings take a tenth to a quarter of them."""
    if size is None or size < 5e6:
        return 2048
    for limit, tokens in ((30e6, 8192), (100e6, 16384), (300e6, 32768)):
        if size < limit:
            return tokens
    return 49152


def vocabulary_in(folder: str) -> int | None:
    """Tokens of the tokenizer in ``folder``, read from its ``tokenizer.json``. None: there is none to read."""
    try:
        content = json.loads((Path(folder).expanduser() / "tokenizer.json").read_text(encoding="utf-8"))
        added = max((int(token["id"]) + 1 for token in content.get("added_tokens") or ()), default=0)
        vocabulary = content["model"]["vocab"]
        largest = max(vocabulary.values()) + 1 if isinstance(vocabulary, dict) else len(vocabulary)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return max(added, int(largest)) or None


def read_architecture(value: Any) -> dict[str, Any]:
    """A config as a mapping: as it is, or out of a ``config.json`` or the folder that holds one.

    Raises:
        ValueError: if it cannot be read, or names no ``model_type``.
    """
    read = value
    if isinstance(value, str):
        path = Path(value).expanduser()
        path = path / "config.json" if path.is_dir() else path
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"there is no config to read at {value}: {error}") from error
    if not isinstance(read, dict) or not isinstance(read.get("model_type"), str):
        raise ValueError('an architecture needs a model_type, such as {"model_type": "llama", ...}')
    return dict(read)


def learning_rate_for(size: int | None) -> float:
    """Peak learning rate of AdamW for a model of ``size`` parameters: 0.003 up to a million, then falling with its
    fifth root (0.001 at 250M), which follows what Pythia, SmolLM2 and Llama report within a factor of two."""
    return 3e-3 if size is None else float(f"{3e-3 * min(1.0, (1e6 / size) ** 0.2):.2g}")
