"""What a causal model says about completions of prompts: the log-probability of each of their tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tunekit.plugins.hf.batches import IGNORED
from tunekit.plugins.hf.groups import GroupModel, PromptGroup, lay_out, longest
from tunekit.plugins.hf.isolation import branching_problem, proven_layout
from tunekit.plugins.hf.losses import logits_at, token_logps
from tunekit.plugins.hf.pieces import LOGITS, PADDED_TOKENS, Piece, PieceLoss

__all__ = ["CompletionModel", "CompletionLogps", "PromptGroup"]


class CompletionLogps(NamedTuple):
    """What :class:`CompletionModel` gives for some groups: one after the other, the completions of each in order."""

    logps: Any
    """(tokens,) float32: natural log-probability of each completion token, given what stands before it;
    differentiable."""
    lengths: tuple[int, ...]
    """Tokens per completion, those without a log-probability not counted."""
    correct: Any
    """(tokens,) bool: whether the token is the likeliest."""
    hidden: Any = None
    """(tokens, size): last hidden state at the position that predicts the token; differentiable. None: not asked
    for."""
    entropy: Any = None
    """(tokens,) float32: entropy in nats of the distribution that the token is from. None: not asked for."""
    routing: Any = None
    """Scalar float32: the loss of the balance of the experts, times its factor; differentiable. None: the model has
    none."""

    def sums(self) -> Any:
        """(completions,) float32: log-probability of each completion."""
        import torch

        return torch.stack([part.sum() for part in self.logps.split(self.lengths)])

    def means(self) -> Any:
        """(completions,) float32: mean log-probability of a token of each completion; 0 for one without tokens."""
        import torch

        return self.sums() / torch.tensor(self.lengths, device=self.logps.device).clamp(min=1)


class CompletionModel(GroupModel):
    """Puts prompts with completions to a causal model in as few tokens as it provably can take.

    Several groups share a sequence without padding, and the completions of a group share their prompt, which is
    computed once: each completion sees the prompt and itself. Both are proven on some groups before they are used
    (:func:`tunekit.plugins.hf.isolation.proven_layout`); otherwise each completion is a row with its prompt. Logits are
    computed at the completions only.

    Args:
        model: the model without the wrappers of a distributed run; with its adapter, if there is one.
        groups: some of the groups that will be asked for.
        temperature: what logits are divided by.
        share: compute a prompt once where that is exact.
        whole: never cut a batch into pieces, as when all processes must do the same number of forward passes.

    Raises:
        StepError: code ``virtual-tokens`` for an adapter that puts tokens of its own before a row.
    """

    def __init__(
        self,
        model: Any,
        groups: Sequence[PromptGroup],
        *,
        temperature: float = 1.0,
        share: bool = True,
        whole: bool = False,
    ) -> None:
        super().__init__(model, whole)
        probes = [{"input_ids": [*group.prompt, *group.completions[0]]} for group in groups[:8] if group.completions]
        self.layout = proven_layout(model, probes)
        self.temperature = temperature
        self._pieces = PieceLoss(model, self.layout, whole=whole)
        config = model.config.get_text_config()
        vocabulary = int(getattr(config, "vocab_size", 0) or 1)
        self._routing = float(getattr(config, "router_aux_loss_coef", 0.0) or 0.0)
        self._most_targets = max(1, LOGITS // vocabulary)
        self.shares = share and self.layout.kind == "segments" and not branching_problem(model, probes)
        """Whether the completions of a group share their prompt."""

    def pieces(self, groups: Sequence[PromptGroup]) -> list[list[int]]:
        """Numbers of the groups that are put to the model together, so that activations and logits stay small. The
        order of a batch may change: long groups with long ones."""
        if self._whole:
            return [list(range(len(groups)))] if groups else []
        made: list[list[int]] = []
        for number in self._ordered(groups):
            if made and self._fits([groups[other] for other in (*made[-1], number)]):
                made[-1].append(number)
            else:
                made.append([number])
        return made

    def _fits(self, groups: Sequence[PromptGroup]) -> bool:
        rows = sum(len(group.completions) for group in groups)
        if self.layout.packs:
            width = self.width(groups)
            targets = sum(len(completion) for group in groups for completion in group.completions)
        else:
            width = max(map(longest, groups)) * rows
            targets = width
        if not self._on_cpu:
            return targets <= self._most_targets and (self.layout.packs or width <= PADDED_TOKENS)
        return targets <= self._most_targets and width <= self._most

    def __call__(
        self, model: Any, groups: Sequence[PromptGroup], *, hidden: bool = False, entropy: bool = False
    ) -> CompletionLogps:
        """One forward pass over the groups. ``model`` may be wrapped; call it inside :meth:`attending`.

        Args:
            model: the model.
            groups: at least one completion among them.
            hidden: give hidden states as well.
            entropy: give entropies as well.
        """
        import torch

        device = next(self._model.parameters()).device
        piece, made = _asked(groups, self.shares, device)
        inputs, wanted = self._pieces.inputs(piece)
        # In a padded batch the order of the rows, and of the tokens in each, is that of the sequence.
        where = wanted != IGNORED
        with _caught(self._model, hidden) as caught, logits_at(self._model, where) as (arguments, select):
            with self._pieces.entered(piece), self._computing:
                outputs = model(**inputs, **arguments)
            logits = select(outputs.logits)
        rank = {position: number for number, position in enumerate(sorted(set(made.asked)))}
        rows = torch.tensor([rank[position] for position in made.asked], device=device, dtype=torch.long)
        targets = torch.tensor(made.targets, device=device, dtype=torch.long)
        states = None
        if hidden:
            kept = caught[-1]
            # The output layer was given all positions, or those asked for.
            states = (kept[where] if kept.shape[:2] == where.shape else select(kept))[rows]
        if self.temperature != 1.0:
            logits = logits.float() / self.temperature
        found = token_logps(logits, rows, targets, entropy=entropy)
        balance = getattr(outputs, "aux_loss", None)
        routing = self._routing * balance.float() if self._routing and balance is not None else None
        return CompletionLogps(found.logps, made.lengths, found.correct, states, found.entropy, routing)


class _Asked(NamedTuple):
    """What is asked about groups that are one sequence."""

    asked: list[int]
    """Positions in the sequence that predict a completion token, in the order of these tokens."""
    targets: list[int]
    lengths: tuple[int, ...]


def _asked(groups: Sequence[PromptGroup], share: bool, device: Any) -> tuple[Piece, _Asked]:
    import torch

    laid = lay_out(groups, share)
    asked: list[int] = []
    targets: list[int] = []
    lengths: list[int] = []
    for prompt, tokens, front, begin in laid.places:
        if prompt and tokens:
            asked.append(front + len(prompt) - 1)
        asked.extend(range(begin, begin + len(tokens) - 1))
        learned = tokens if prompt else tokens[1:]
        targets.extend(learned)
        lengths.append(len(learned))
    ids = torch.tensor(laid.ids, device=device)[None]
    where = torch.zeros_like(ids, dtype=torch.bool)
    where[0, torch.tensor(asked, device=device, dtype=torch.long)] = True
    piece = laid.piece(torch.where(where, ids, IGNORED), len(targets), device)
    return piece, _Asked(asked, targets, tuple(lengths))


@contextlib.contextmanager
def _caught(model: Any, wanted: bool) -> Iterator[list[Any]]:
    """What the output layer is given."""
    seen: list[Any] = []
    if not wanted:
        yield seen
        return
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model

    def catch(module: Any, args: tuple[Any, ...]) -> None:
        seen.append(args[0])

    hook = plain.get_output_embeddings().register_forward_pre_hook(catch)
    try:
        yield seen
    finally:
        hook.remove()
