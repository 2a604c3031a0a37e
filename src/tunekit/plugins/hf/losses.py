"""Cross-entropy over large vocabularies: logits only where something is learned, and one copy of them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["TokenLoss", "logits_at", "token_loss"]

_CHUNK_ELEMENTS = 2**20
"""Logits that are worked on at a time: 4 MB of float32, which stays in a processor's cache."""

# Results of these operations are not looked at again in the backward pass: the gradient can be written over them.
_VIEWS = frozenset(("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "SelectBackward0"))
_OVERWRITABLE = frozenset(
    ("MmBackward0", "AddmmBackward0", "BmmBackward0", "LinearBackward0", "MkldnnLinearBackward0", "AddBackward0",
     "ToCopyBackward0")
)  # fmt: skip


class TokenLoss(NamedTuple):
    """Sums over the targets of a forward pass."""

    loss: Any
    """Cross-entropy in nats, scalar float32 tensor; differentiable."""
    correct: Any
    """Targets that have the largest logit, scalar int64 tensor."""


def token_loss(logits: Any, targets: Any, *, smoothing: float = 0.0) -> TokenLoss:
    """The summed cross-entropy of ``targets``.

    With ``smoothing`` e the loss of a token is (1 - e) times its cross-entropy plus e times the mean over the
    vocabulary of the cross-entropies of all tokens (Szegedy et al. 2016, arXiv:1512.00567; as
    ``transformers.trainer_pt_utils.LabelSmoother``). The gradient is computed along with the loss, in place of the
    logits where that is safe, so that no second copy of (targets, vocabulary) exists. No second derivative.

    Args:
        logits: (targets, vocabulary). Must not be used by the caller afterwards.
        targets: (targets,) token ids, int64, none of them ignored. May be empty: the loss is 0 and has a gradient of 0.
        smoothing: share of the target that is spread over the vocabulary, from 0 to 1.
    """
    loss, correct = _function().apply(logits, targets, smoothing)
    return TokenLoss(loss, correct)


_made: Any = None


def _function() -> Any:
    """The autograd function; made at first use, since torch is not imported with this module."""
    global _made
    if _made is not None:
        return _made
    import torch
    from torch.autograd.function import once_differentiable

    class CrossEntropySum(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: Any, targets: Any, smoothing: float) -> Any:
            wanted = ctx.needs_input_grad[0]
            values = logits.detach()
            if wanted and _overwritable(logits):
                gradient = values
            elif wanted:
                gradient = torch.empty_like(values, dtype=_gradient_type(values.dtype))
            else:
                gradient = None
            loss = torch.zeros((), dtype=torch.float32, device=values.device)
            correct = torch.zeros((), dtype=torch.int64, device=values.device)
            size = values.shape[-1]
            step = max(1, _CHUNK_ELEMENTS // size)
            for begin in range(0, len(targets), step):
                part = values[begin : begin + step]
                aim = targets[begin : begin + step, None]
                if part.dtype != torch.float32:
                    work = part.float()
                elif gradient is values:
                    work = part
                elif gradient is not None:
                    work = gradient[begin : begin + step].copy_(part)
                else:
                    work = part.clone()
                top, best = work.max(-1, keepdim=True)
                correct += (best == aim).sum()
                work -= top
                hit = work.gather(1, aim)
                spread = work.sum() if smoothing else None
                work.exp_()
                total = work.sum(-1, keepdim=True)
                logs = total.log()
                loss += logs.sum() - (1 - smoothing) * hit.sum()
                if smoothing:
                    loss -= smoothing / size * spread
                if gradient is None:
                    continue
                work /= total
                if smoothing:
                    work -= smoothing / size
                work.scatter_add_(1, aim, work.new_full(aim.shape, smoothing - 1))
                if work.data_ptr() != gradient[begin : begin + step].data_ptr():
                    gradient[begin : begin + step] = work
            ctx.gradient, ctx.kind = gradient, values.dtype
            ctx.mark_non_differentiable(correct)
            return loss, correct

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, scale: Any, _: Any) -> Any:
            gradient, ctx.gradient = ctx.gradient, None
            return gradient.mul_(scale).to(ctx.kind), None, None

    _made = CrossEntropySum
    return _made


def _overwritable(logits: Any) -> bool:
    import torch

    # float16 has no room for the small gradients of unlikely tokens before the loss is scaled.
    if logits.dtype not in (torch.float32, torch.bfloat16):
        return False
    maker = logits.grad_fn
    while type(maker).__name__ in _VIEWS:
        maker = maker.next_functions[0][0]
    return type(maker).__name__ in _OVERWRITABLE


def _gradient_type(dtype: Any) -> Any:
    import torch

    return torch.float32 if dtype == torch.float16 else dtype


@contextlib.contextmanager
def logits_at(model: Any, where: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """Have a forward pass compute logits at some positions only.

    Gives keyword arguments for the forward pass, and a function from its logits to those at the positions,
    (targets, vocabulary). The model's own forward is used, so that scaling and capping of logits and adapters on the
    output layer are kept. A model that cannot be told positions has the input of its output layer narrowed.

    Args:
        model: a ``transformers`` model with an output layer, with or without an adapter.
        where: (rows, tokens) boolean tensor; True: a logit is needed.
    """
    rows, positions = where.nonzero(as_tuple=True)
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "logits_to_keep" in inspect.signature(plain.forward).parameters:
        if len(where) == 1:
            yield {"logits_to_keep": positions}, lambda logits: logits.flatten(0, 1)
            return
        kept, index = positions.unique(return_inverse=True)
        yield {"logits_to_keep": kept}, lambda logits: logits[rows, index]
        return
    head = plain.get_output_embeddings()
    if head is None:
        yield {}, lambda logits: logits[rows, positions]
        return
    shape = where.shape
    narrowed = False

    def narrow(module: Any, args: tuple[Any, ...]) -> Any:
        nonlocal narrowed
        hidden = args[0]
        if hidden.shape[: len(shape)] != shape:
            return None
        narrowed = True
        return (hidden[rows, positions][None], *args[1:])

    hook = head.register_forward_pre_hook(narrow)
    try:
        yield {}, lambda logits: logits[0] if narrowed else logits[rows, positions]
    finally:
        hook.remove()
