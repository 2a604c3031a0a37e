"""Perplexity of a language model over token rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Perplexity", "measure_perplexity"]

_TOKENS = 2048
"""Tokens of rows that are put to the model together; what is measured does not depend on it."""


class Perplexity(NamedTuple):
    """What a model makes of a text."""

    value: float
    """exp(loss)."""
    loss: float
    """Mean cross-entropy per target, in nats."""
    tokens: int
    """Targets: tokens that were predicted."""


def measure_perplexity(
    model: Any, rows: Any, *, objective: str = "causal", tick: Callable[[int], None] | None = None
) -> Perplexity:
    """The perplexity of ``model`` over the targets of ``rows``.

    Every target counts once and all count alike: exp of the summed cross-entropy over their number. The context of a
    token is what stands before it in its own document and row; over rows of blocks of n tokens that is perplexity with
    windows of n tokens and a stride of n - 1. With the objective ``masked`` the targets are the tokens that the rows
    mask; such a value can be compared with others for the same mask only.

    Computed as training does: where :func:`compute_dtype` is bfloat16, with autocast to it, so that a model measured
    before training and with its weights in float32 after it are comparable.

    The model is put into evaluation mode meanwhile. No gradient, and logits of a bounded number of positions at a
    time.

    Args:
        model: a ``transformers`` model with an output layer, with or without an adapter.
        rows: token rows as :class:`TokenTrainer` takes them.
        objective: ``causal`` or ``masked``.
        tick: called with the number of rows that are done.

    Raises:
        ValueError: if there is no target.
    """
    import torch

    from tunekit.plugins.hf.arguments import compute_dtype, evaluating
    from tunekit.plugins.hf.batches import Collator
    from tunekit.plugins.hf.isolation import proven_layout
    from tunekit.plugins.hf.pieces import PieceLoss

    collate = Collator(objective)
    device = next(model.parameters()).device
    loss, targets = 0.0, 0
    with evaluating(model):
        measure = PieceLoss(model, proven_layout(model, rows))
        half = device.type == "cuda" and compute_dtype() == torch.bfloat16
        with measure.attending(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            begin = 0
            while begin < len(rows):
                group: list[Any] = []
                width = 0
                while begin < len(rows) and (not group or width + len(rows[begin]["input_ids"]) <= _TOKENS):
                    group.append(rows[begin])
                    width += len(group[-1]["input_ids"])
                    begin += 1
                batch = collate(group)
                batch = {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}
                targets += batch["target_count"]
                if batch["target_count"]:
                    for piece in measure.cut(batch):
                        loss += float(measure(model, piece).loss)
                if tick is not None:
                    tick(begin)
    if not targets:
        raise ValueError("the rows hold no target")
    mean = loss / targets
    return Perplexity(math.exp(min(mean, 700.0)), mean, targets)
