"""Cross-entropy over large vocabularies: logits only where something is learned, and one copy of them."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["TokenLogps", "TokenLoss", "logits_at", "token_logps", "token_loss"]

_CHUNK_ELEMENTS = 2**20
"""Logits that are worked on at a time: 4 MB of float32, which stays in a processor's cache."""

# Results of these operations are not looked at again in the backward pass: the gradient can be written over them.
_VIEWS = frozenset(("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "SelectBackward0"))
_OVERWRITABLE = frozenset(
    ("MmBackward0", "AddmmBackward0", "BmmBackward0", "LinearBackward0", "MkldnnLinearBackward0", "AddBackward0",
     "ToCopyBackward0", "FastLinearBackward", "LowRankLinearBackward")
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


@functools.cache
def _function() -> Any:
    """The autograd function; made at first use, since torch is not imported with this module."""
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

    return CrossEntropySum


class TokenLogps(NamedTuple):
    """Of each token asked for."""

    logps: Any
    """(tokens,) float32: natural log-probability; differentiable."""
    correct: Any
    """(tokens,) bool: whether it has the largest logit."""
    entropy: Any = None
    """(tokens,) float32: entropy in nats of the distribution it is from; differentiable. None: not asked for."""


def token_logps(logits: Any, rows: Any, targets: Any, *, entropy: bool = False) -> TokenLogps:
    """Log-probabilities of tokens.

    The gradient is made in place of the logits where that is safe, so that no second copy of (rows, vocabulary) exists.
    No second derivative.

    Args:
        logits: (rows, vocabulary). Must not be used by the caller afterwards.
        rows: (tokens,) int64: the row of the logits that each token is from; several tokens may be from one.
        targets: (tokens,) int64 token ids.
        entropy: give entropies as well.
    """
    made, correct, spread = _logps_function().apply(logits, rows, targets, entropy)
    return TokenLogps(made, correct, spread if entropy else None)


@functools.cache
def _logps_function() -> Any:
    """The autograd function; made at first use, since torch is not imported with this module."""
    import torch
    from torch.autograd.function import once_differentiable

    class TokenLogProbabilities(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: Any, rows: Any, targets: Any, entropy: bool) -> Any:
            wanted = ctx.needs_input_grad[0]
            values = logits.detach()
            if wanted and _overwritable(logits):
                shares = values
            elif wanted:
                shares = torch.empty_like(values, dtype=_gradient_type(values.dtype))
            else:
                shares = None
            count, size = values.shape
            own = torch.empty(count, dtype=torch.float32, device=values.device)
            best = torch.empty(count, dtype=torch.int64, device=values.device)
            spread = torch.empty(count if entropy else 0, dtype=torch.float32, device=values.device)
            aims = values[rows, targets].float()
            step = max(1, _CHUNK_ELEMENTS // size)
            for begin in range(0, count, step):
                part = values[begin : begin + step]
                if part.dtype != torch.float32:
                    work = part.float()
                elif shares is values:
                    work = part
                elif shares is not None:
                    work = shares[begin : begin + step].copy_(part)
                else:
                    work = part.clone()
                top, best[begin : begin + step] = work.max(-1)
                work -= top[:, None]
                shifted = work.clone() if entropy else None
                work.exp_()
                total = work.sum(-1)
                own[begin : begin + step] = top + total.log()
                work /= total[:, None]
                if shifted is not None:
                    # A token without probability adds nothing, whatever its logarithm.
                    mean = (shifted.clamp_(min=-1e4) * work).sum(-1)
                    spread[begin : begin + step] = total.log() - mean
                if shares is not None and work.data_ptr() != shares[begin : begin + step].data_ptr():
                    shares[begin : begin + step] = work
            ctx.shares, ctx.kind = shares, values.dtype
            ctx.save_for_backward(rows, targets, spread)
            ctx.set_materialize_grads(False)
            correct = best[rows] == targets
            if not entropy:
                ctx.mark_non_differentiable(correct, spread)
                return aims - own[rows], correct, spread
            ctx.mark_non_differentiable(correct)
            return aims - own[rows], correct, spread[rows]

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, gradient: Any, _: Any, of_entropy: Any) -> Any:
            rows, targets, spread = ctx.saved_tensors
            shares, ctx.shares = ctx.shares, None
            none = torch.zeros(len(shares), dtype=shares.dtype, device=shares.device)
            gradient = torch.zeros_like(rows, dtype=shares.dtype) if gradient is None else gradient.to(shares.dtype)
            of_rows = none.index_add(0, rows, gradient)
            if of_entropy is None:
                shares.mul_(-of_rows[:, None])
            else:
                # The entropy H of shares p has the gradient -p (log p + H).
                of_spread = none.index_add(0, rows, of_entropy.to(shares.dtype))
                both = of_rows + of_spread * spread.to(shares.dtype)
                step = max(1, _CHUNK_ELEMENTS // shares.shape[1])
                for begin in range(0, len(shares), step):
                    part = shares[begin : begin + step]
                    own = torch.special.entr(part).mul_(of_spread[begin : begin + step, None])
                    part.mul_(-both[begin : begin + step, None]).add_(own)
            shares.index_put_((rows, targets), gradient, accumulate=True)
            return shares.to(ctx.kind), None, None, None

    return TokenLogProbabilities


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
