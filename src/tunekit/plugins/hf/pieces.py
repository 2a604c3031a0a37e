"""A micro-batch in pieces of bounded size, and the loss of a piece."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from tunekit.plugins.hf.batches import IGNORED
from tunekit.plugins.hf.losses import TokenLoss, logits_at, token_loss
from tunekit.plugins.hf.saving import count_parameters
from tunekit.plugins.hf.segments import Extent, Layout, segmented

__all__ = ["CPU_TOKENS", "FULL_CPU_TOKENS", "LOGITS", "Piece", "PieceLoss"]

CPU_TOKENS = 256
"""Most tokens of a piece on a CPU, where more at once compute no faster, but keep more activations: on a model of 135M
parameters 64, 128, 256 and 512 tokens take the same time per token within the noise (8 to 10 ms on one core). A longer
document is a piece of its own."""

FULL_CPU_TOKENS = 2048
"""As ``CPU_TOKENS``, where most weights are trained: each piece adds to the gradients of all of them, which costs as
much for a short piece as for a long one."""

PADDED_TOKENS = 8192
"""Most tokens of a piece with padding, on any device: rows of a micro-batch may be of very different lengths."""

LOGITS = 2**27
"""Most logits of a piece: 512 MB in float32."""


@dataclass(frozen=True)
class Piece:
    """Some of the documents of a micro-batch, one after the other."""

    input_ids: Any
    """(1, tokens)"""
    position_ids: Any
    """(1, tokens)"""
    targets: Any
    """(1, tokens): what is to be predicted at each position; -100: nothing."""
    lengths: tuple[int, ...]
    target_count: int
    extents: tuple[Extent, ...] = ()
    """As ``lengths``, where documents branch; empty: none does."""


class PieceLoss:
    """Cuts micro-batches into pieces, and puts a piece to the model in the layout it can take.

    Args:
        model: the model without the wrappers of a distributed run; with its adapter, if there is one.
        layout: how the model is given several documents.
        smoothing: see :func:`tunekit.plugins.hf.losses.token_loss`.
        whole: never cut a micro-batch, as when all processes must do the same number of forward passes.
    """

    def __init__(self, model: Any, layout: Layout, *, smoothing: float = 0.0, whole: bool = False) -> None:
        self.layout, self.smoothing, self.whole = layout, smoothing, whole
        self._model = model
        self._enter: Callable[[tuple[Extent, ...]], AbstractContextManager[None]] = _nothing
        self.lengths: tuple[int, ...] = ()
        """Documents of the forward pass that is under way."""
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        config = plain.config.get_text_config()
        self._vocabulary = int(getattr(config, "vocab_size", 0) or 1)
        self._routing = float(getattr(config, "router_aux_loss_coef", 0.0) or 0.0)
        self._cache = "use_cache" in inspect.signature(plain.forward).parameters
        self._on_cpu = next(model.parameters()).device.type == "cpu"
        total, trained = count_parameters(model)
        self._most = FULL_CPU_TOKENS if 2 * trained > total else CPU_TOKENS

    def cut(self, batch: Mapping[str, Any]) -> list[Piece]:
        """The pieces of a micro-batch of :class:`tunekit.plugins.hf.batches.Collator`, at least one. Documents without
        a target are left out if there are others, since they change nothing."""
        lengths, counts = batch["lengths"], batch["document_targets"]
        most_targets = max(1, LOGITS // self._vocabulary)
        order: Sequence[int] = range(len(lengths))
        if not self.layout.packs and not self.whole:
            order = sorted(order, key=lambda number: -lengths[number])
        groups: list[list[int]] = []
        tokens = targets = 0
        for number in order:
            if counts[number] == 0 and batch["target_count"] > 0 and not self.whole:
                continue
            if not groups:
                fits = False
            elif self.whole:
                fits = True
            else:
                now = tokens + lengths[number] if self.layout.packs else lengths[groups[-1][0]] * (len(groups[-1]) + 1)
                most = self._most if self._on_cpu else now if self.layout.packs else PADDED_TOKENS
                wanted = targets + counts[number]
                if not self.layout.packs:
                    # Padded rows have logits at every position at which any of them has a target.
                    wanted = min(wanted, lengths[groups[-1][0]]) * (len(groups[-1]) + 1)
                fits = now <= most and wanted <= most_targets
            if fits:
                groups[-1].append(number)
                tokens, targets = tokens + lengths[number], targets + counts[number]
            else:
                groups.append([number])
                tokens, targets = lengths[number], counts[number]
        return [self._piece(batch, group) for group in groups]

    def _piece(self, batch: Mapping[str, Any], documents: list[int]) -> Piece:
        import torch

        lengths, counts = batch["lengths"], batch["document_targets"]
        names = ("input_ids", "position_ids", "targets")
        if documents == list(range(len(lengths))):
            made = {name: batch[name] for name in names}
        else:
            parts = {name: batch[name].split(lengths, 1) for name in names}
            made = {name: torch.cat([parts[name][number] for number in documents], 1) for name in names}
        return Piece(
            **made,
            lengths=tuple(lengths[number] for number in documents),
            target_count=sum(counts[number] for number in documents),
        )

    def __call__(self, model: Any, piece: Piece) -> TokenLoss:
        """Summed loss over the targets of a piece. ``model`` may be wrapped; call it inside :meth:`attending`."""
        outputs, logits, targets = self._forward(model, piece, None)
        made = token_loss(logits, targets, smoothing=self.smoothing)
        routing = getattr(outputs, "aux_loss", None)
        if routing is not None and self._routing:
            extra = self._routing * piece.target_count * routing.to(made.loss.device)
            made = TokenLoss(made.loss + extra, made.correct)
        return made

    def logits(self, model: Any, piece: Piece, where: Any) -> Any:
        """Logits at the positions where the boolean tensor ``where`` (1, tokens) is true, (positions, vocabulary).
        Packed layouts only."""
        return self._forward(model, piece, where)[1]

    def _forward(self, model: Any, piece: Piece, where: Any) -> tuple[Any, Any, Any]:
        inputs, targets = self.inputs(piece)
        where = targets != IGNORED if where is None else where
        self.lengths = piece.lengths
        with logits_at(self._model, where) as (arguments, select), self.entered(piece):
            outputs = model(**inputs, **arguments)
            logits = select(outputs.logits)
        return outputs, logits, targets[where]

    @contextlib.contextmanager
    def attending(self) -> Iterator[None]:
        """The model attends within documents inside this context."""
        if self.layout.kind != "segments":
            yield
            return
        before = self._enter
        try:
            with segmented(self._model) as self._enter:
                yield
        finally:
            self._enter = before

    def width(self, piece: Piece) -> int:
        """Tokens that the model computes for a piece, padding included."""
        return sum(piece.lengths) if self.layout.packs else max(piece.lengths) * len(piece.lengths)

    def entered(self, piece: Piece) -> AbstractContextManager[None]:
        """The context of a forward pass over a piece."""
        return self._enter(piece.extents or piece.lengths)

    def inputs(self, piece: Piece) -> tuple[dict[str, Any], Any]:
        """Keyword arguments of the forward pass over a piece, and its targets in the same layout."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        more: dict[str, Any] = {"use_cache": False} if self._cache else {}
        if self.layout.kind == "segments":
            return {"input_ids": piece.input_ids, "position_ids": piece.position_ids, **more}, piece.targets
        if self.layout.kind == "flash":
            ends = torch.tensor((0, *piece.lengths), dtype=torch.int32, device=piece.input_ids.device).cumsum(0)
            borders = {"cu_seq_lens_q": ends.int(), "cu_seq_lens_k": ends.int()}
            longest = {"max_length_q": max(piece.lengths), "max_length_k": max(piece.lengths)}
            flat = {"input_ids": piece.input_ids, "position_ids": piece.position_ids}
            return {**flat, **borders, **longest, **more}, piece.targets
        ids, targets = (
            pad_sequence(list(whole[0].split(piece.lengths)), batch_first=True, padding_value=padding)
            for whole, padding in ((piece.input_ids, 0), (piece.targets, IGNORED))
        )
        inputs = {"input_ids": ids, **more}
        if len(set(piece.lengths)) > 1:
            # Padding goes by length, never by id: an end-of-text token that is also the padding token stays a token.
            widths = torch.tensor(piece.lengths, device=ids.device)
            inputs["attention_mask"] = (torch.arange(ids.shape[1], device=ids.device) < widths[:, None]).long()
        return inputs, targets


def _nothing(lengths: tuple[Extent, ...]) -> AbstractContextManager[None]:
    return contextlib.nullcontext()
