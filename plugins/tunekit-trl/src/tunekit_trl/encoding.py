"""From training text to token ids and labels, exactly.

The boundary between prompt and completion is where the prompt's own tokens end: the model is trained on the context
that it is given when it is used. Where a tokenizer would merge characters across the boundary, the two sides are
tokenized apart; where even that is impossible without changing the text, the merged token counts as completion. Both
are counted, and the trainer says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ParamSpec, TypeVar

from tunekit.errors import DataError
from tunekit.plugins import ModelFacts
from tunekit_trl.rendering import ChatRenderer, Rendered, renderer_for

__all__ = ["IGNORED", "SKIPPABLE", "Encoder", "Example", "Pair", "encoder_from"]

IGNORED = -100
"""Label of a token that is not learned; what torch's cross-entropy leaves out."""

SKIPPABLE = ("no-targets", "equal-answers")
"""Codes of rows that ``on_bad_row="skip"`` leaves out; any other error ends the training."""

T = TypeVar("T")
P = ParamSpec("P")
Row = Mapping[str, Any]

_DEFAULT_TRAIN_ON = {"prompt_completion": "completion", "conversation": "all-assistant", "text": "all"}
_ALLOWED_TRAIN_ON = {
    "prompt_completion": ("completion", "all-assistant", "last", "all"),
    "conversation": ("all-assistant", "completion", "last", "all"),
    "text": ("all",),
}

_REMEMBERED_HEADS = 4096
_LONGEST_HEAD = 64


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
    stopped: bool = False
    """Whether the last learned token, blanks aside, is one that generation stops at."""
    appended_stop: bool = False
    """Whether the end-of-text token was added, since the text had none."""
    lost_thoughts: int = 0
    """Assistant turns whose thoughts the chat template left out."""

    @property
    def targets(self) -> int:
        """Tokens that are learned; the first token of a row never is."""
        return sum(label != IGNORED for label in self.labels[1:])

    def stop_learned(self, schema: str) -> bool | None:
        """Whether the example learns to stop; None for plain text that was cut: its end is no answer's end."""
        return None if schema == "text" and self.cut else self.stopped


@dataclass
class Pair:
    """One preference pair, cut to the length limit."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    cuts: tuple[int, int] = (0, 0)
    """Tokens that were cut off the end of chosen and rejected."""
    boundary: str = "exact"
    stopped: tuple[bool, bool] = (False, False)
    """Whether the last token of chosen and rejected, blanks aside, is one that generation stops at."""
    margin: float | None = None
    """By how much the chosen answer is better, where the row says so."""

    @property
    def cut(self) -> int:
        """Tokens that were cut off both."""
        return sum(self.cuts)


@dataclass
class _Tokens:
    ids: list[int]
    spans: list[tuple[int, int]]
    boundary: str = "exact"
    appended_stop: bool = False


@dataclass(frozen=True)
class _Head:
    """The text before a border, from the last special token on: what stands before that one changes no token of it."""

    text: str
    anchor: int
    """Where in the whole text it begins."""


@dataclass
class Encoder:
    """Tokenizes rows for one tokenizer and length limit.

    Attributes:
        tokenizer: a ``transformers`` tokenizer.
        max_length: longest example in tokens; the end of longer ones is cut.
        stop_ids: ids that end a turn besides the tokenizer's end-of-text token, such as the model's own list.
        vocabulary: number of the model's embeddings; None: unknown.
        positions: tokens that the model has positions for; None: unknown or without end.
    """

    tokenizer: Any
    max_length: int
    stop_ids: frozenset[int] = frozenset()
    vocabulary: int | None = None
    positions: int | None = None
    appended_stops: int = field(default=0, init=False)
    """Rows to which the end-of-text token was added, since their text had none."""

    def __post_init__(self) -> None:
        self.eos_id: int | None = self.tokenizer.eos_token_id
        self.stops = self.stop_ids | ({self.eos_id} if self.eos_id is not None else set())
        """Every id that generation stops at."""
        names = self.tokenizer.convert_ids_to_tokens(sorted(self.stops))
        self.renderer = renderer_for(self.tokenizer, [str(name) for name in names if name is not None])
        self.prefix = self._special_prefix()
        if self.eos_id is None and not isinstance(self.renderer, ChatRenderer):
            raise DataError(
                "The tokenizer has no end-of-text token, so the model could not learn to stop.",
                code="no-eos",
                fix="set tokenizer.eos_token and save the tokenizer with the model",
            )
        self._special = set(map(int, self.tokenizer.all_special_ids))
        self._anchors = self._anchor_ids()
        self._anchor = re.compile("|".join(map(re.escape, sorted(self._anchors, key=len, reverse=True))) or r"(?!)")
        self._heads: dict[str, list[int]] = {}
        self._blank: dict[int, bool] = {}

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

    def example(self, row: Row, schema: str, train_on: str) -> Example:
        """The ids and labels of a row.

        Raises:
            DataError: if the row cannot be rendered, or nothing of it is left to learn (code ``no-targets``).
        """
        return _one(self.examples([row], schema, train_on))

    def examples(self, rows: Sequence[Row], schema: str, train_on: str) -> list[Example | DataError]:
        """What :meth:`example` gives for each of ``rows``, or raises for it.

        All texts go to the tokenizer at once, which spreads them over its threads. Hundreds of rows are a good number.
        """
        rendered = [_attempt(self.rendered, row, schema, train_on) for row in rows]
        return [
            found if isinstance(found, DataError) else _attempt(self._example, *found)
            for found in self._tokens(rendered)
        ]

    def pair(self, row: Row) -> Pair:
        """The ids of a preference row: one prompt, two answers.

        Raises:
            DataError: if the row cannot be rendered, or nothing of it is left to learn (code ``no-targets``), or the
                answers differ only behind the length limit (code ``equal-answers``).
        """
        return _one(self.pairs([row]))

    def pairs(self, rows: Sequence[Row]) -> list[Pair | DataError]:
        """What :meth:`pair` gives for each of ``rows``, or raises for it; all texts are tokenized at once."""
        sides = ("chosen", "rejected")
        rendered = [_attempt(self.renderer.pair, row, side) for row in rows for side in sides]
        tokens = self._tokens(rendered)
        made: list[Pair | DataError] = []
        for chosen, rejected in zip(tokens[::2], tokens[1::2], strict=True):
            if isinstance(chosen, DataError):
                made.append(chosen)
            elif isinstance(rejected, DataError):
                made.append(rejected)
            else:
                made.append(_attempt(self._pair, chosen[1], rejected[1]))
        return made

    def rendered(self, row: Row, schema: str, train_on: str, *, turns: bool = False) -> Rendered:
        """The text of a row and its target spans; ``turns`` asks where each message begins.

        Raises:
            DataError: as :meth:`example` does for rows that cannot be rendered.
        """
        if schema == "text":
            text = str(row["text"])
            return Rendered(text, ((0, len(text)),), ends_turn=False, plain=True, turns=((0, ""),))
        if schema == "conversation":
            rendered = self.renderer.conversation(row, train_on, turns=turns)
        else:
            rendered = self.renderer.pair(row, train_on=train_on, turns=turns)
        if not rendered.spans:
            raise DataError(
                "no message of the row is learned: flags leave every assistant turn out",
                code="no-targets",
                fix='take the flag off one of them, or on_bad_row="skip" to leave out and count such rows',
            )
        return rendered

    def longer(self, length: int) -> str:
        """What to do about a row of ``length`` tokens that ``max_length`` cuts too short, in words."""
        skip = 'on_bad_row="skip" to leave out and count such rows'
        if self.positions is None or length <= self.positions:
            return f"max_length={length}, or {skip}"
        known = f"the model has {self.positions} positions"
        if self.max_length < self.positions:
            return f"max_length={self.positions} ({known}) if that is enough, a shorter row, or {skip}"
        return f"shorten the row ({known}), or {skip}"

    # ---------------------------------------------------------------- one row

    def _example(self, rendered: Rendered, tokens: _Tokens) -> Example:
        labels = [IGNORED] * len(tokens.ids)
        for begin, end in tokens.spans:
            labels[begin:end] = tokens.ids[begin:end]
        labels = labels[: self.max_length]
        example = Example(
            tokens.ids[: self.max_length],
            labels,
            cut=max(0, len(tokens.ids) - self.max_length),
            boundary=tokens.boundary,
            stopped=self._ends(labels),
            appended_stop=tokens.appended_stop,
            lost_thoughts=rendered.lost_thoughts,
        )
        if example.targets == 0:
            raise self._nothing_to_learn(len(tokens.ids), example.cut)
        self.appended_stops += tokens.appended_stop
        return example

    def _pair(self, chosen: _Tokens, rejected: _Tokens) -> Pair:
        sides = (chosen, rejected)
        begin = min(side.spans[0][0] for side in sides)
        if chosen.ids[:begin] != rejected.ids[:begin]:
            raise DataError(
                "the chat template renders the prompt differently before the chosen and before the rejected answer",
                code="template-boundary",
                fix="give the tokenizer a chat template that renders a prompt the same way whatever follows",
            )
        room = max(0, self.max_length - begin)
        answers = [side.ids[begin:][:room] for side in sides]
        pair = Pair(
            chosen.ids[:begin],
            answers[0],
            answers[1],
            cuts=(max(0, len(chosen.ids) - self.max_length), max(0, len(rejected.ids) - self.max_length)),
            boundary=next((side.boundary for side in sides if side.boundary != "exact"), "exact"),
            stopped=(self._ends(answers[0]), self._ends(answers[1])),
        )
        if not pair.chosen_ids or not pair.rejected_ids:
            raise self._nothing_to_learn(max(len(side.ids) for side in sides), pair.cut)
        if pair.chosen_ids == pair.rejected_ids:
            raise DataError(
                f"chosen and rejected are the same in the first {self.max_length} tokens",
                code="equal-answers",
                fix=self.longer(max(len(side.ids) for side in sides)),
            )
        self.appended_stops += sum(side.appended_stop for side in sides)
        return pair

    def _nothing_to_learn(self, length: int, cut: int) -> DataError:
        if not cut:
            return DataError("the row has no token to learn", code="no-targets", details={"tokens": length})
        return DataError(
            f"nothing to learn is left after cutting the row from {length} to {self.max_length} tokens",
            code="no-targets",
            fix=self.longer(length),
            details={"tokens": length, "max_length": self.max_length},
        )

    def _finish(self, rendered: Rendered, tokens: _Tokens) -> _Tokens:
        """Begin-of-text in front of plain text, exactly one; the stop token at the end where the text has none."""
        ids = tokens.ids
        bos = self.tokenizer.bos_token_id
        if rendered.plain and ids[: len(self.prefix)] != self.prefix:
            shift = len(self.prefix)
            ids = [*self.prefix, *ids]
            tokens.spans = [(begin + shift, end + shift) for begin, end in tokens.spans]
        if bos is not None and ids[:2] == [bos, bos]:
            raise _double_bos(self.tokenizer.bos_token, plain=rendered.plain)
        begin, end = tokens.spans[-1]
        ended = self._ends(ids[begin:end]) or (rendered.ends_turn and (rendered.plain or not self.stops))
        if not ended and end == len(ids):
            if self.eos_id is None:
                raise DataError(
                    "neither the chat template nor the tokenizer has a token that ends an answer",
                    code="no-eos",
                    fix="set tokenizer.eos_token, or use a chat template that ends turns with a special token",
                )
            ids = [*ids, self.eos_id]
            tokens.spans[-1] = (begin, len(ids))
            tokens.appended_stop = True
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

    def _ends(self, labels: Sequence[int]) -> bool:
        """Whether the last of ``labels`` that is learned, blanks aside, is a stop token."""
        stops = self.stops or self._special
        for label in reversed(labels):
            if label == IGNORED:
                continue
            if label in stops:
                return True
            if not self._is_blank(label):
                return False
        return False

    def _is_blank(self, token: int) -> bool:
        known = self._blank.get(token)
        if known is None:
            known = self._blank[token] = not self.text([token]).strip()
        return known

    # ---------------------------------------------------------------- many texts at once

    def _tokens(self, rendered: Sequence[Rendered | DataError]) -> list[tuple[Rendered, _Tokens] | DataError]:
        """Token ids and token spans of each text."""
        texts = [item for item in rendered if isinstance(item, Rendered)]
        located = iter(self._locate(texts))
        made: list[tuple[Rendered, _Tokens] | DataError] = []
        for item in rendered:
            if isinstance(item, DataError):
                made.append(item)
                continue
            tokens = next(located)
            done = _attempt(self._finish, item, tokens)
            made.append(done if isinstance(done, DataError) else (item, done))
        return made

    def _locate(self, rendered: Sequence[Rendered]) -> list[_Tokens]:
        """Tokens of the texts without special tokens added, and the token ranges of their character spans."""
        if not rendered:
            return []
        heads = [self._heads_of(item) for item in rendered]
        missing = list(
            dict.fromkeys(head.text for of_one in heads for head in of_one.values() if head.text not in self._heads)
        )
        batch = self._encode([*(item.text for item in rendered), *missing])
        found = dict(zip(missing, batch["input_ids"][len(rendered) :], strict=True))
        made: list[_Tokens] = []
        again: list[int] = []
        for number, item in enumerate(rendered):
            full = list(batch["input_ids"][number])
            known, merged = self._borders(item, full, heads[number], found, self._finder(batch, number))
            made.append(_Tokens(full, [(known[begin], known[end]) for begin, end in item.spans]))
            if merged:
                again.append(number)
        for text, ids in found.items():
            if len(text) <= _LONGEST_HEAD and len(self._heads) < _REMEMBERED_HEADS:
                self._heads[text] = list(ids)
        if again:
            apart = self._apart([rendered[number] for number in again], [made[number] for number in again])
            for number, tokens in zip(again, apart, strict=True):
                made[number] = tokens
        return made

    def _borders(
        self,
        item: Rendered,
        full: list[int],
        heads: Mapping[int, _Head],
        found: Mapping[str, list[int]],
        finder: Callable[[int], int | None],
    ) -> tuple[dict[int, int], bool]:
        """Character border to token index, and whether a token holds characters of both sides of a span's begin."""
        known, merged = {0: 0, len(item.text): len(full)}, False
        starts = {begin for begin, _ in item.spans}
        for at, head in heads.items():
            ids = self._heads.get(head.text) or found[head.text]
            first = finder(head.anchor) if head.anchor else 0
            if first is None or (head.anchor and full[first : first + 1] != ids[:1]):
                # The tokenizer took the special token for something else: look at everything before the border.
                first, ids = 0, self._ids([item.text[:at]])[0]
            shared = _common(ids, full, first)
            merged = merged or (shared < len(ids) and at in starts)
            known[at] = first + shared
        return known, merged

    def _heads_of(self, item: Rendered) -> dict[int, _Head]:
        """The text before each border that lies inside of the text."""
        borders = sorted({at for span in item.spans for at in span if 0 < at < len(item.text)})
        heads: dict[int, _Head] = {}
        begin, matches = 0, self._anchor.finditer(item.text) if borders else iter(())
        coming = next(matches, None)
        for at in borders:
            while coming is not None and coming.end() <= at:
                begin, coming = coming.start(), next(matches, None)
            heads[at] = _Head(item.text[begin:at], begin)
        return heads

    def _apart(self, rendered: Sequence[Rendered], joint: Sequence[_Tokens]) -> list[_Tokens]:
        """Tokens of the pieces between the span borders, one after the other; as they were where that is another
        text."""
        borders = [sorted({0, len(item.text), *(at for span in item.spans for at in span)}) for item in rendered]
        pieces = iter(
            self._ids(
                [
                    item.text[begin:end]
                    for item, of_one in zip(rendered, borders, strict=True)
                    for begin, end in pairwise(of_one)
                ]
            )
        )
        made: list[_Tokens] = []
        for item, of_one, tokens in zip(rendered, borders, joint, strict=True):
            ids: list[int] = []
            known = {0: 0}
            for end in of_one[1:]:
                ids += next(pieces)
                known[end] = len(ids)
            if self.text(ids) == self.text(tokens.ids):
                made.append(_Tokens(ids, [(known[begin], known[end]) for begin, end in item.spans], "split"))
            else:
                made.append(_Tokens(tokens.ids, tokens.spans, "merged"))
        return made

    def _encode(self, texts: list[str]) -> Any:
        return self.tokenizer(
            texts,
            add_special_tokens=False,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return [list(ids) for ids in self._encode(texts)["input_ids"]]

    def text(self, ids: list[int]) -> str:
        """What ids stand for, special tokens included."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    @staticmethod
    def _finder(batch: Any, number: int) -> Callable[[int], int | None]:
        """Character to token index in one text of a batch."""
        encodings = getattr(batch, "encodings", None)
        if not encodings:
            return lambda at: None
        return lambda at: encodings[number].char_to_token(at)

    def _anchor_ids(self) -> set[str]:
        """Special tokens that split a text before anything else does: on either side of one, tokens are the same
        whatever stands on the other. Only tokenizers with offsets are trusted with it."""
        if not getattr(self.tokenizer, "is_fast", False):
            return set()
        added = self.tokenizer.added_tokens_decoder.values()
        return {
            str(token.content)
            for token in added
            if token.special
            and token.content
            and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
        }

    def _special_prefix(self) -> list[int]:
        """What the tokenizer itself puts in front of a text: the begin-of-text token, or nothing."""
        bare = self._ids(["a"])[0]
        dressed = list(self.tokenizer("a", truncation=False, padding=False)["input_ids"])
        for at in range(len(dressed) - len(bare) + 1):
            if dressed[at : at + len(bare)] == bare:
                return dressed[:at]
        return []


def encoder_from(tokenizer: Any, facts: ModelFacts, max_length: int) -> Encoder:
    """An encoder for a model that need not be there; its length limit is never above what the model has positions for.

    Args:
        tokenizer: the model's tokenizer.
        facts: what is known of the model.
        max_length: longest example in tokens.
    """
    positions = facts.positions if facts.positions is not None and facts.positions > 0 else None
    if positions is not None:
        max_length = min(max_length, positions)
    return Encoder(tokenizer, max_length, frozenset(map(int, facts.stop_ids)), facts.embeddings, positions)


def _attempt(make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | DataError:
    try:
        return make(*args, **kwargs)
    except DataError as error:
        return error


def _one(made: Sequence[T | DataError]) -> T:
    (result,) = made
    if isinstance(result, DataError):
        raise result
    return result


def _common(head: Sequence[int], full: Sequence[int], first: int) -> int:
    """How many tokens of ``head`` stand in ``full`` from ``first`` on."""
    length = 0
    for at, token in enumerate(head, first):
        if at >= len(full) or full[at] != token:
            break
        length += 1
    return length


def _double_bos(token: str, *, plain: bool) -> DataError:
    if plain:
        return DataError(
            f"the text begins with two begin-of-text tokens ({token})",
            code="double-bos",
            fix=f"take {token} out of the data; the tokenizer puts one in front",
        )
    return DataError(
        f"the chat template begins with two begin-of-text tokens ({token})",
        code="double-bos",
        found="models are trained and used with one",
        fix=f"take one {token} out of the template",
    )
