"""From training text to token ids and labels, exactly.

The boundary between prompt and completion is where the prompt's own tokens end: the model is trained on the context
that it is given when it is used. Where a tokenizer would merge characters across the boundary, the two sides are
tokenized apart; where even that is impossible without changing the text, the merged token counts as completion. Both
are counted, and the trainer says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tunekit.errors import DataError
from tunekit_trl.rendering import ChatRenderer, Rendered, renderer_for

__all__ = ["IGNORED", "Encoder", "Example", "Pair"]

IGNORED = -100
"""Label of a token that is not learned; what torch's cross-entropy leaves out."""

_DEFAULT_TRAIN_ON = {"prompt_completion": "completion", "conversation": "all-assistant", "text": "all"}
_ALLOWED_TRAIN_ON = {
    "prompt_completion": ("completion", "all"),
    "conversation": ("all-assistant", "last", "all"),
    "text": ("all",),
}


@dataclass
class Example:
    """One training example, cut to the length limit."""

    input_ids: list[int]
    labels: list[int]
    """``input_ids`` where a token is learned, ``IGNORED`` elsewhere. Not shifted."""
    cut: int = 0
    """Tokens that were cut off at the end."""
    boundary: str = "exact"
    """``exact``, ``split`` (both sides tokenized apart) or ``merged`` (a token holds characters of both sides)."""

    @property
    def targets(self) -> int:
        """Tokens that are learned; the first token of a row never is."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass
class Pair:
    """One preference pair, cut to the length limit."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    cut: int = 0
    boundary: str = "exact"


@dataclass
class _Tokens:
    ids: list[int]
    spans: list[tuple[int, int]]
    boundary: str = "exact"


@dataclass
class Encoder:
    """Tokenizes rows for one tokenizer and length limit.

    Attributes:
        tokenizer: a ``transformers`` tokenizer.
        max_length: longest example in tokens; the end of longer ones is cut.
        stop_ids: ids that end a turn besides the tokenizer's end-of-text token, such as the model's own list.
        vocabulary: number of the model's embeddings; None: unknown.
    """

    tokenizer: Any
    max_length: int
    stop_ids: frozenset[int] = frozenset()
    vocabulary: int | None = None
    appended_stops: int = field(default=0, init=False)
    """Rows to which the end-of-text token was added, since their text had none."""

    def __post_init__(self) -> None:
        self.renderer = renderer_for(self.tokenizer)
        self.eos_id: int | None = self.tokenizer.eos_token_id
        self.prefix = self._special_prefix()
        if self.eos_id is None and not isinstance(self.renderer, ChatRenderer):
            raise DataError(
                "The tokenizer has no end-of-text token, so the model could not learn to stop.",
                code="no-eos",
                fix="set tokenizer.eos_token and save the tokenizer with the model",
            )

    @property
    def template(self) -> str:
        """``chat template`` or ``plain text``."""
        return self.renderer.name

    def train_on(self, schema: str, asked: str | None) -> str:
        """Which tokens are targets.

        Raises:
            DataError: if ``asked`` has no meaning for rows of ``schema``.
        """
        allowed = _ALLOWED_TRAIN_ON[schema]
        if asked is not None and asked not in allowed:
            raise DataError(
                f"train_on={asked!r} has no meaning for rows of the shape {schema}.",
                code="train-on",
                asked=f"train_on={asked!r}",
                found=f"data of the shape {schema}",
                suggestions=allowed,
                fix=f"train_on={allowed[0]!r}",
            )
        return asked or _DEFAULT_TRAIN_ON[schema]

    def example(self, row: Mapping[str, Any], schema: str, train_on: str) -> Example:
        """The ids and labels of a row.

        Raises:
            DataError: if the row cannot be rendered, or nothing of it is left to learn (code ``no-targets``).
        """
        if schema == "text":
            text = str(row["text"])
            tokens = self._finish(self._spans(text, [(0, len(text))]), plain=True, ends_turn=False)
        else:
            if schema == "conversation":
                rendered = self.renderer.conversation(row, train_on)
            else:
                rendered = self.renderer.pair(row)
                if train_on == "all":
                    rendered = Rendered(rendered.text, ((0, len(rendered.text)),), rendered.ends_turn)
            tokens = self._tokens(rendered)
        labels = [IGNORED] * len(tokens.ids)
        for begin, end in tokens.spans:
            labels[begin:end] = tokens.ids[begin:end]
        example = Example(
            tokens.ids[: self.max_length],
            labels[: self.max_length],
            cut=max(0, len(tokens.ids) - self.max_length),
            boundary=tokens.boundary,
        )
        if example.targets == 0:
            raise _nothing_to_learn(len(tokens.ids), example.cut, self.max_length)
        return example

    def pair(self, row: Mapping[str, Any]) -> Pair:
        """The ids of a preference row: one prompt, two answers.

        Raises:
            DataError: if the row cannot be rendered, or nothing of it is left to learn (code ``no-targets``), or the
                answers differ only behind the length limit (code ``equal-answers``).
        """
        sides = [self._tokens(self.renderer.pair(row, name)) for name in ("chosen", "rejected")]
        (chosen, rejected) = sides
        begin = min(side.spans[0][0] for side in sides)
        if chosen.ids[:begin] != rejected.ids[:begin]:
            raise DataError(
                "the chat template renders the prompt differently before the chosen and before the rejected answer",
                code="template-boundary",
                fix="give the tokenizer a chat template that renders a prompt the same way whatever follows",
            )
        room = self.max_length - begin
        pair = Pair(
            chosen.ids[:begin],
            chosen.ids[begin:][: max(0, room)],
            rejected.ids[begin:][: max(0, room)],
            cut=sum(max(0, len(side.ids) - self.max_length) for side in sides),
            boundary=next((side.boundary for side in sides if side.boundary != "exact"), "exact"),
        )
        if not pair.chosen_ids or not pair.rejected_ids:
            raise _nothing_to_learn(max(len(side.ids) for side in sides), pair.cut, self.max_length)
        if pair.chosen_ids == pair.rejected_ids:
            raise DataError(
                f"chosen and rejected are the same in the first {self.max_length} tokens",
                code="equal-answers",
                fix=f"raise max_length above {max(len(side.ids) for side in sides)}",
            )
        return pair

    def _tokens(self, rendered: Rendered) -> _Tokens:
        tokens = self._spans(rendered.text, list(rendered.spans))
        return self._finish(tokens, plain=not isinstance(self.renderer, ChatRenderer), ends_turn=rendered.ends_turn)

    def _finish(self, tokens: _Tokens, *, plain: bool, ends_turn: bool) -> _Tokens:
        """Begin-of-text in front of plain text, exactly one; the stop token at the end where the text has none."""
        ids = tokens.ids
        bos = self.tokenizer.bos_token_id
        if plain and ids[: len(self.prefix)] != self.prefix:
            shift = len(self.prefix)
            ids = [*self.prefix, *ids]
            tokens.spans = [(begin + shift, end + shift) for begin, end in tokens.spans]
        elif not plain and bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
            tokens.spans = [(max(0, begin - 1), end - 1) for begin, end in tokens.spans]
        stops = self.stop_ids | ({self.eos_id} if self.eos_id is not None else set())
        begin, end = tokens.spans[-1]
        ended = ends_turn or (begin < end and ids[-1] in stops)
        if not ended and end == len(ids):
            if self.eos_id is None:
                raise DataError(
                    "neither the chat template nor the tokenizer has a token that ends an answer",
                    code="no-eos",
                    fix="set tokenizer.eos_token, or use a chat template that ends turns with a special token",
                )
            ids = [*ids, self.eos_id]
            tokens.spans[-1] = (begin, len(ids))
            self.appended_stops += 1
        if self.vocabulary is not None and ids and max(ids) >= self.vocabulary:
            raise DataError(
                f"the tokenizer makes a token that the model has no embedding for "
                f"({self.tokenizer.convert_ids_to_tokens(max(ids))!r})",
                code="vocabulary",
                found=f"token id {max(ids)}, {self.vocabulary} embeddings",
                fix="use the model's own tokenizer, or resize its embeddings (model.resize_token_embeddings) and train "
                "them in full first",
            )
        tokens.ids = ids
        return tokens

    def _spans(self, text: str, spans: Sequence[tuple[int, int]]) -> _Tokens:
        """Tokens of ``text`` without special tokens added, and the token ranges of the character ``spans``."""
        cuts = sorted({at for span in spans for at in span if 0 < at < len(text)})
        heads = self._ids([text, *(text[:at] for at in cuts)])
        full, known = heads[0], {0: 0, len(text): len(heads[0])}
        starts = {begin for begin, _ in spans}
        merged = False
        for at, head in zip(cuts, heads[1:], strict=True):
            shared = _common(head, full)
            if shared < len(head) and at in starts:
                merged = True
            known[at] = shared
        if not merged:
            return _Tokens(full, [(known[begin], known[end]) for begin, end in spans])
        apart = self._apart(text, spans, full)
        if apart is not None:
            return apart
        return _Tokens(full, [(known[begin], known[end]) for begin, end in spans], "merged")

    def _apart(self, text: str, spans: Sequence[tuple[int, int]], full: list[int]) -> _Tokens | None:
        """Tokens of the pieces between the span borders, one after the other; None if that is another text."""
        borders = sorted({0, len(text), *(at for span in spans for at in span)})
        pieces = self._ids([text[begin:end] for begin, end in pairwise(borders)])
        ids: list[int] = []
        known = {0: 0}
        for end, piece in zip(borders[1:], pieces, strict=True):
            ids += piece
            known[end] = len(ids)
        if self._text(ids) != self._text(full):
            return None
        return _Tokens(ids, [(known[begin], known[end]) for begin, end in spans], "split")

    def _ids(self, texts: list[str]) -> list[list[int]]:
        made = self.tokenizer(texts, add_special_tokens=False, truncation=False, padding=False)["input_ids"]
        return [list(ids) for ids in made]

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _special_prefix(self) -> list[int]:
        """What the tokenizer itself puts in front of a text: the begin-of-text token, or nothing."""
        bare = self._ids(["a"])[0]
        dressed = list(self.tokenizer("a", truncation=False, padding=False)["input_ids"])
        for at in range(len(dressed) - len(bare) + 1):
            if dressed[at : at + len(bare)] == bare:
                return dressed[:at]
        return []


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return length


def _nothing_to_learn(length: int, cut: int, limit: int) -> DataError:
    if cut:
        return DataError(
            f"nothing to learn is left after cutting the row from {length} to {limit} tokens",
            code="no-targets",
            fix=f'max_length={length}, or on_bad_row="skip" to leave out and count such rows',
            details={"tokens": length, "max_length": limit},
        )
    return DataError("the row has no token to learn", code="no-targets", details={"tokens": length})
