"""What quantization costs: the same rows before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional

from tunekit.plugins import CancelToken

__all__ = ["Measurement", "compare", "measure"]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A model's predictions for rows of token ids."""

    nll: float
    """Mean negative log-likelihood per predicted token, natural logarithm."""
    tokens: int
    """Predicted tokens."""
    top1: list[torch.Tensor]
    """Per row: the most likely next token at each position."""


def measure(model: Any, rows: Sequence[Sequence[int]], cancel: CancelToken) -> Measurement:
    """Run ``model`` over ``rows``, one at a time. Raises ``RunCancelled``."""
    total, tokens = 0.0, 0
    top1: list[torch.Tensor] = []
    device = model.get_input_embeddings().weight.device
    with torch.inference_mode():
        for row in rows:
            cancel.raise_if_cancelled()
            ids = torch.tensor([list(row)], device=device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            total += float(functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            tokens += ids.shape[1] - 1
            top1.append(logits.argmax(-1).cpu())
    return Measurement(nll=total / max(1, tokens), tokens=tokens, top1=top1)


def compare(before: Measurement, after: Measurement) -> dict[str, Any]:
    """Both means, and the share of positions at which the most likely token is the same."""
    same = sum(int((a == b).sum()) for a, b in zip(before.top1, after.top1, strict=True))
    return {
        "rows": len(before.top1),
        "tokens": before.tokens,
        "nll_before": before.nll,
        "nll_after": after.nll,
        "top1_agreement": same / max(1, before.tokens),
    }
