"""What a sequence-classification model says about completions of prompts: one row of outputs for each of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from tunekit.plugins.hf.arguments import computing, evaluating
from tunekit.plugins.hf.batches import IGNORED
from tunekit.plugins.hf.groups import GroupModel, LaidGroups, Place, PromptGroup, lay_out
from tunekit.plugins.hf.isolation import PROBE_TOKENS, tolerance
from tunekit.plugins.hf.pieces import PADDED_TOKENS, PieceLoss
from tunekit.plugins.hf.segments import Layout, NotSegmentable, layout_of

__all__ = ["ScoreModel"]

_TOKENS_AT_ONCE = 16384
"""Tokens that are scored together without a gradient, on any device but a CPU."""


class ScoreModel(GroupModel):
    """Puts prompts with completions to an ``AutoModelForSequenceClassification`` in as few tokens as it provably can
    take.

    The outputs are those of the model's own forward on each row alone: for a decoder, at the last token that is not the
    padding token. Several groups share a sequence without padding, and the completions of a group share their prompt,
    where the hidden states and outputs are proven, on some groups, to be the same; otherwise each completion is a
    padded row of the model's own forward.

    Args:
        model: the model without the wrappers of a distributed run; with its adapter, if there is one.
        groups: some of the groups that will be asked for.
        share: compute a prompt once where that is exact.
        whole: never cut a batch into pieces, as when all processes must do the same number of forward passes.

    Attributes:
        layout: how rows are put to the model.
        shares: whether the completions of a group share their prompt.

    Raises:
        StepError: code ``virtual-tokens`` for an adapter that puts tokens of its own before a row.
    """

    def __init__(self, model: Any, groups: Sequence[PromptGroup], *, share: bool = True, whole: bool = False) -> None:
        super().__init__(model, whole)
        plain = _plain(model)
        self.pad = getattr(plain.config.get_text_config(), "pad_token_id", None)
        """Padding token of the model; None: it has none, and rows that cannot be packed are run one by one."""
        layout = layout_of(model) if _head(model) is not None else Layout("padded", "it has no head on every token")
        self.shares = share and layout.kind == "segments"
        self.layout, self._pieces = layout, PieceLoss(model, layout, whole=whole)
        if layout.packs:
            self._prove([group for group in groups if group.completions][:3])

    def _use(self, layout: Layout, shares: bool) -> None:
        self.layout, self.shares = layout, shares
        self._pieces = PieceLoss(self._model, layout, whole=self._whole)

    def _prove(self, groups: Sequence[PromptGroup]) -> None:
        """Take the best layout in which the model computes what it does for each row alone."""
        packed = self.layout
        if self.shares and not _problem(self, _probes(groups)):
            return
        self._use(packed, False)
        problem = _problem(self, _probes(groups))
        if problem:
            self._use(Layout("padded", problem), False)

    def pieces(self, groups: Sequence[PromptGroup]) -> list[list[int]]:
        """Numbers of the groups that are put to the model together, so that activations stay small."""
        if self._whole:
            return [list(range(len(groups)))] if groups else []
        return self._cut(groups, self._most if self._on_cpu else None if self.layout.packs else PADDED_TOKENS)

    def _cut(self, groups: Sequence[PromptGroup], most: int | None) -> list[list[int]]:
        made: list[list[int]] = []
        used = 0
        for number in self._ordered(groups):
            own = self.width([groups[number]])
            if self.layout.packs or not made:
                now = used + own
            else:
                now = self.width([groups[other] for other in (*made[-1], number)])
            if made and (most is None or now <= most):
                made[-1].append(number)
                used = now
            else:
                made.append([number])
                used = own
        return made

    def __call__(self, model: Any, groups: Sequence[PromptGroup]) -> Any:
        """One forward pass over the groups. ``model`` may be wrapped; call it inside :meth:`attending`.

        Returns:
            (completions, labels) float32: the outputs for the completions of the groups, in order; differentiable.
        """
        import torch

        device = next(self._model.parameters()).device
        if not self.layout.packs:
            return self._padded(model, groups, device)
        made = lay_out(groups, self.shares)
        with _seen(_head(self._model)) as seen:
            self._forward(model, made, device)
        return seen[-1][1][0, torch.tensor(self._places(made), device=device)].float()

    def _places(self, made: LaidGroups) -> list[int]:
        """Where in the sequence each completion is scored."""
        return [_last(place, self.pad) for place in made.places]

    def _forward(self, model: Any, made: LaidGroups, device: Any) -> Any:
        import torch

        piece = made.piece(torch.full((1, len(made.ids)), IGNORED, device=device), 0, device)
        inputs, _ = self._pieces.inputs(piece)
        with self._pieces.entered(piece), self._computing:
            return model(**inputs)

    def _padded(self, model: Any, groups: Sequence[PromptGroup], device: Any) -> Any:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rows = [torch.tensor([*prompt, *made]) for prompt, completions in groups for made in completions]
        if self.pad is None:
            with self._computing:
                return torch.cat([model(input_ids=row[None].to(device)).logits.float() for row in rows])
        ids = pad_sequence(rows, batch_first=True, padding_value=self.pad).to(device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        inputs = {"input_ids": ids}
        if int(lengths.min()) < ids.shape[1]:
            inputs["attention_mask"] = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
        with self._computing:
            return model(**inputs).logits.float()

    def scores(self, groups: Sequence[PromptGroup]) -> Any:
        """Outputs for the completions of any number of groups, in order, (completions, labels) float32 on the CPU; no
        gradient, evaluation mode. Call it outside of :meth:`attending` or inside."""
        import torch

        model = self._model
        found: list[Any] = [None] * len(groups)
        most = self._most if self._on_cpu else _TOKENS_AT_ONCE
        with evaluating(model), self.attending():
            for numbers in self._cut(groups, most):
                part = [groups[number] for number in numbers]
                made = self(model, part).cpu()
                for number, values in zip(numbers, made.split([len(g.completions) for g in part]), strict=True):
                    found[number] = values
        labels = int(getattr(_plain(model).config, "num_labels", 1))
        return torch.cat(found) if found else torch.zeros(0, labels)


def _last(place: Place, pad: int | None) -> int:
    at = _end(place.completion, pad)
    return place.begin + at if at >= 0 else place.front + max(_end(place.prompt, pad), 0)


def _end(tokens: Sequence[int], pad: int | None) -> int:
    """Number of the last token that is not the padding token, where the models of ``transformers`` look; -1: none."""
    at = len(tokens) - 1
    while at >= 0 and tokens[at] == pad:
        at -= 1
    return at


def _plain(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _head(model: Any) -> Any:
    """The layer that gives outputs at every token of a decoder; None for models that pool first."""
    plain = _plain(model)
    return getattr(plain, "score", None) if type(plain).__name__.endswith("ForSequenceClassification") else None


@contextlib.contextmanager
def _seen(layer: Any) -> Iterator[list[tuple[Any, Any]]]:
    """Inputs and outputs of a layer."""
    seen: list[tuple[Any, Any]] = []
    hook = layer.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    try:
        yield seen
    finally:
        hook.remove()


def _probes(groups: Sequence[PromptGroup]) -> list[PromptGroup]:
    """Short groups out of those that are asked for, one of which branches."""
    rows = [[*group.prompt, *group.completions[0]][:PROBE_TOKENS] for group in groups]
    rows = [row for row in rows if len(row) > 3] or [[1, 2, 3, 4, 5, 6, 7, 8]]
    first, last = rows[0], rows[-1]
    half = len(first) // 2
    branching = PromptGroup(first[:half], [[*first[half:], *last], last[::-1]])
    return [PromptGroup((), [last[: max(2, len(last) // 2)]]), branching, PromptGroup((), [first])]


def _problem(scorer: ScoreModel, groups: Sequence[PromptGroup]) -> str:
    """What is wrong when rows share a sequence; empty: nothing. Compared are the hidden states that the head is given,
    since the outputs of a new head are small, and the outputs."""
    import torch

    model = scorer._model
    device = next(model.parameters()).device
    head = _head(model)
    rows = [[*prompt, *made] for prompt, completions in groups for made in completions]
    try:
        with evaluating(model):
            alone, outputs = [], []
            for row in rows:
                with _seen(head) as seen, computing(model):
                    outputs.append(model(input_ids=torch.tensor([row], device=device)).logits[0].float())
                alone.append(seen[-1][0][0, _end(row, scorer.pad)])
            made = lay_out(groups, scorer.shares)
            with scorer.attending(), _seen(head) as seen:
                scorer._forward(model, made, device)
    except NotSegmentable as reason:
        return str(reason)
    places = torch.tensor(scorer._places(made), device=device)
    hidden = seen[-1][0]
    for what, found, expected in (
        ("hidden states", hidden[0, places], torch.stack(alone)),
        ("outputs", seen[-1][1][0, places].float(), torch.stack(outputs)),
    ):
        scale = max(1.0, float(expected.abs().max()))
        apart = float((found - expected).abs().max())
        if not apart <= tolerance(hidden.dtype) * scale:
            return f"its {what} differ by {apart:.3g} from those of the same row alone"
    return ""
