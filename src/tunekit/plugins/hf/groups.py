"""Prompts with their completions, and how several of them share one sequence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from tunekit.errors import StepError
from tunekit.plugins.hf.arguments import computing
from tunekit.plugins.hf.pieces import CPU_TOKENS, FULL_CPU_TOKENS, Piece, PieceLoss
from tunekit.plugins.hf.saving import count_parameters
from tunekit.plugins.hf.segments import Extent, Layout

__all__ = ["GroupModel", "LaidGroups", "Place", "PromptGroup", "lay_out", "longest"]


class PromptGroup(NamedTuple):
    """A prompt with its completions, as token ids."""

    prompt: Sequence[int]
    """May be empty: the first token of a completion then has no log-probability and is not counted."""
    completions: Sequence[Sequence[int]]

    @property
    def tokens(self) -> int:
        """Tokens, the prompt once."""
        return len(self.prompt) + sum(map(len, self.completions))


class Place(NamedTuple):
    """Where in a sequence a completion is."""

    prompt: Sequence[int]
    completion: Sequence[int]
    front: int
    """Where its prompt begins."""
    begin: int
    """Where it begins itself."""


class LaidGroups(NamedTuple):
    """Groups as one sequence."""

    ids: list[int]
    positions: list[int]
    extents: tuple[Extent, ...]
    places: list[Place]
    """Of each completion of the groups, in order."""

    def piece(self, targets: Any, target_count: int, device: Any) -> Piece:
        """The sequence for :class:`PieceLoss`; ``targets``: (1, tokens)."""
        import torch

        return Piece(
            input_ids=torch.tensor(self.ids, device=device)[None],
            position_ids=torch.tensor(self.positions, device=device)[None],
            targets=targets,
            lengths=tuple(extent if isinstance(extent, int) else sum(extent) for extent in self.extents),
            target_count=target_count,
            extents=self.extents,
        )


def lay_out(groups: Sequence[PromptGroup], share: bool) -> LaidGroups:
    """Groups one after the other: the prompt of each once, with its completions behind it, the longest first; or,
    without ``share``, before each completion."""
    ids: list[int] = []
    positions: list[int] = []
    extents: list[Extent] = []
    places: list[Place] = []

    def lay(tokens: Sequence[int], first: int) -> int:
        begin = len(ids)
        ids.extend(tokens)
        positions.extend(range(first, first + len(tokens)))
        return begin

    for prompt, completions in groups:
        if share and prompt and len(completions) > 1:
            front = lay(prompt, 0)
            order = sorted(range(len(completions)), key=lambda number: -len(completions[number]))
            begins = {number: lay(completions[number], len(prompt)) for number in order}
            places += [Place(prompt, tokens, front, begins[number]) for number, tokens in enumerate(completions)]
            extents.append((len(prompt), *(len(completions[number]) for number in order)))
            continue
        for tokens in completions:
            front = lay(prompt, 0)
            places.append(Place(prompt, tokens, front, lay(tokens, len(prompt))))
            extents.append(len(prompt) + len(tokens))
    return LaidGroups(ids, positions, tuple(extents), places)


def longest(group: PromptGroup) -> int:
    """Tokens of the longest row of a group: its prompt with one completion."""
    return len(group.prompt) + max((len(completion) for completion in group.completions), default=0)


class GroupModel:
    """What puts groups to a model, whatever it asks about them: how wide they are, and what they are computed in.

    A subclass sets :attr:`layout`, :attr:`shares` and ``_pieces``.

    Args:
        model: the model without the wrappers of a distributed run; with its adapter, if there is one.
        whole: never cut a batch into pieces.

    Raises:
        StepError: code ``virtual-tokens`` for an adapter that puts tokens of its own before a row.
    """

    layout: Layout
    shares: bool
    _pieces: PieceLoss

    def __init__(self, model: Any, whole: bool) -> None:
        refuse_virtual_tokens(model)
        self._model, self._whole = model, whole
        self._computing: AbstractContextManager[Any] = contextlib.nullcontext()
        self._on_cpu = next(model.parameters()).device.type == "cpu"
        total, trained = count_parameters(model)
        self._most = FULL_CPU_TOKENS if 2 * trained > total else CPU_TOKENS

    def width(self, groups: Sequence[PromptGroup]) -> int:
        """Tokens that the model computes for these groups in one piece, padding included."""
        if not self.layout.packs:
            return max(map(longest, groups)) * sum(len(group.completions) for group in groups)
        if self.shares:
            return sum(group.tokens for group in groups)
        return sum(len(group.prompt) + len(made) for group in groups for made in group.completions)

    @contextlib.contextmanager
    def attending(self) -> Iterator[None]:
        """The model attends within rows inside this context, and computes with weights of several types; call the model
        in it."""
        before, self._computing = self._computing, computing(self._model)
        try:
            with self._pieces.attending():
                yield
        finally:
            self._computing = before

    def _ordered(self, groups: Sequence[PromptGroup]) -> Sequence[int]:
        """Numbers of the groups; where rows are padded, long groups with long ones."""
        order: Sequence[int] = range(len(groups))
        return order if self.layout.packs else sorted(order, key=lambda number: -longest(groups[number]))


def refuse_virtual_tokens(model: Any) -> None:
    """Raise if the adapter puts tokens of its own before a row, as prompt and prefix tuning do: all positions would be
    others, and rows that share a sequence would have them once.

    Raises:
        StepError: code ``virtual-tokens``.
    """
    config = getattr(model, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        kind = getattr(config, "peft_type", None)
        raise StepError(
            "The adapter puts virtual tokens before the text, and completions cannot be told apart behind them.",
            code="virtual-tokens",
            found=str(getattr(kind, "value", kind)),
            fix='use an adapter that changes weights, such as adapter="lora"',
        )
