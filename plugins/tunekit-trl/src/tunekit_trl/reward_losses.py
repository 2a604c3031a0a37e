"""Losses of reward models: comparisons, whole rankings, ratings and thumbs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from tunekit.plugins import hf

__all__ = ["RewardObjective"]

Row = Mapping[str, Any]


class RewardObjective:
    """A :class:`tunekit.plugins.hf.Objective` on the scores of a :class:`tunekit.plugins.hf.ScoreModel`.

    Rows have ``prompt_ids`` and ``completion_ids``, and what the objective learns from: ``pairs`` of (better, worse,
    margin) completions (``bradley-terry``), ``ranks`` (``plackett-luce``), or ``target`` (``regression``,
    ``logistic``). Each row counts once.

    Args:
        objective: its name.
        center: weight of the squared sum of the rewards of a pair.
    """

    def __init__(self, objective: str, *, center: float = 0.0) -> None:
        self.objective, self.center = objective, center

    def group(self, row: Row) -> hf.PromptGroup:
        """The prompt and all its completions."""
        return hf.PromptGroup(row["prompt_ids"], row["completion_ids"])

    def totals(self, rows: Sequence[Row], ask: Any) -> Mapping[str, float]:
        """Their number."""
        return {"rows": len(rows)}

    def loss(self, scores: Any, rows: Sequence[Row], totals: Mapping[str, float]) -> hf.ObjectiveLoss:
        """Part of the mean over all rows of the optimizer step. ``scores``: (completions, 1) float32."""
        rewards = scores[:, 0]
        if self.objective in ("regression", "logistic"):
            loss, measured = self._rated(rewards, rows)
        else:
            loss, measured = self._compared(rewards, rows)
        measured["mean_reward"] = (rewards.detach().sum(), float(len(rewards)))
        return hf.ObjectiveLoss(loss / max(totals["rows"], 1.0), measured)

    def _rated(self, rewards: Any, rows: Sequence[Row]) -> tuple[Any, dict[str, tuple[Any, float]]]:
        targets = torch.tensor([row["target"] for row in rows], dtype=rewards.dtype, device=rewards.device)
        count = float(len(rows))
        if self.objective == "regression":
            return (rewards - targets).square().sum(), {"mae": ((rewards - targets).detach().abs().sum(), count)}
        loss = binary_cross_entropy_with_logits(rewards, targets, reduction="sum")
        return loss, {"accuracy": (((rewards > 0) == (targets > 0.5)).sum(), count)}

    def _compared(self, rewards: Any, rows: Sequence[Row]) -> tuple[Any, dict[str, tuple[Any, float]]]:
        better, worse, margins, weights = [], [], [], []
        at = 0
        parts = []
        for row in rows:
            parts.append(rewards[at : at + len(row["completion_ids"])])
            for first, second, margin in row["pairs"]:
                better.append(at + first)
                worse.append(at + second)
                margins.append(margin)
                weights.append(1 / len(row["pairs"]))
            at += len(row["completion_ids"])
        upper, lower = rewards[torch.tensor(better)], rewards[torch.tensor(worse)]
        weight = torch.tensor(weights, dtype=rewards.dtype, device=rewards.device)
        if self.objective == "plackett-luce":
            loss = torch.stack([_plackett_luce(own, row["ranks"]) for own, row in zip(parts, rows, strict=True)]).sum()
        else:
            margin = torch.tensor(margins, dtype=rewards.dtype, device=rewards.device)
            loss = (weight * softplus(lower + margin - upper)).sum()
        if self.center:
            loss = loss + self.center * (weight * (upper + lower).square()).sum()
        difference = (upper - lower).detach()
        count = float(len(rows))
        return loss, {
            "accuracy": ((weight * (difference > 0)).sum(), count),
            "margin": ((weight * difference).sum(), count),
        }


def _plackett_luce(rewards: Any, ranks: Sequence[int]) -> Any:
    """Mean over the places of -log of the chance that each answer comes before all of higher rank (Plackett 1975; Luce
    1959). Answers of one rank do not compete."""
    lost = []
    for number, rank in enumerate(ranks):
        later = [other for other, place in enumerate(ranks) if place > rank]
        if later:
            field = rewards[torch.tensor([number, *later])]
            lost.append(torch.logsumexp(field, 0) - rewards[number])
    return torch.stack(lost).mean()
