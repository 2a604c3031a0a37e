"""Rewards of tokens, generalised advantages, whitening, and the coefficient of the KL penalty. Float64 arithmetic on
the CPU: a rollout has a few thousand tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["KlController", "RunningScale", "advantages_of", "explained_variance", "kl_of", "token_rewards", "whiten"]

_SMALL = 1e-8


def kl_of(log_ratio: Any, estimator: str) -> Any:
    """Estimate of the KL divergence of the policy to the reference at each token that the policy drew.

    Args:
        log_ratio: (tokens,) log-probability under the policy less that under the reference.
        estimator: ``k1`` or ``k3`` of Schulman 2020, "Approximating KL divergence".
    """
    return log_ratio if estimator == "k1" else torch.expm1(-log_ratio) + log_ratio


def token_rewards(scores: Sequence[float], kl: Any, lengths: Sequence[int], coefficient: float) -> Any:
    """(tokens,) float64: each token pays for its divergence, and the last of a completion gets the score.

    Args:
        scores: one number for each completion.
        kl: (tokens,) divergences.
        lengths: tokens of each completion, at least one.
        coefficient: weight of the divergence.
    """
    rewards = -coefficient * kl.double()
    ends = torch.tensor(lengths).cumsum(0) - 1
    rewards[ends] += torch.tensor(scores, dtype=torch.float64)
    return rewards


def advantages_of(rewards: Any, values: Any, lengths: Sequence[int], gamma: float, lam: float) -> tuple[Any, Any]:
    """Generalised advantages (Schulman et al. 2016, arXiv:1506.02438) and the returns that values are fitted to.

    A completion ends its episode: nothing is expected after its last token, whether it ended by itself or not.

    Args:
        rewards: (tokens,) of all completions, one after the other.
        values: (tokens,) expected return before each token.
        lengths: tokens of each completion.
        gamma: discount.
        lam: lambda.

    Returns:
        (tokens,) advantages and (tokens,) returns, float64.
    """
    longest = max(lengths)
    width = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    reward, value = torch.zeros(width.shape, dtype=torch.float64), torch.zeros(width.shape, dtype=torch.float64)
    reward[width], value[width] = rewards.double(), values.double()
    made = torch.zeros_like(reward)
    following = torch.zeros(len(lengths), dtype=torch.float64)
    expected = torch.zeros_like(following)
    for at in reversed(range(longest)):
        # Behind the end of a completion reward and value are 0, and so stays everything.
        following = reward[:, at] + gamma * expected - value[:, at] + gamma * lam * following
        expected = value[:, at]
        made[:, at] = following
    found = made[width]
    return found, found + values.double()


def whiten(values: Any, *, shift: bool = True) -> Any:
    """Values divided by their standard deviation; with ``shift`` their mean becomes 0, otherwise it stays."""
    mean = values.mean()
    made = (values - mean) / (values.var(unbiased=False) + _SMALL).sqrt()
    return made if shift else made + mean


def explained_variance(values: Any, returns: Any) -> float:
    """Share of the variance of the returns that the values account for: 1 is perfect, 0 no better than their mean."""
    spread = float(returns.double().var(unbiased=False))
    if spread < _SMALL:
        return 0.0
    return 1.0 - float((returns.double() - values.double()).var(unbiased=False)) / spread


@dataclass
class KlController:
    """Coefficient of the KL penalty: fixed, or proportional to how far the divergence is from a target (Ziegler et al.
    2019, arXiv:1909.08593, section 2.2)."""

    coefficient: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, completions: int) -> None:
        """``kl``: mean divergence of the last ``completions`` completions, nats per completion."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coefficient *= 1 + error * completions / self.horizon


@dataclass
class RunningScale:
    """Mean and standard deviation of all scores so far (Welford)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, scores: Sequence[float]) -> None:
        """Take scores in."""
        for score in scores:
            self.count += 1
            away = score - self.mean
            self.mean += away / self.count
            self.squares += away * (score - self.mean)

    def scaled(self, scores: Sequence[float]) -> list[float]:
        """Scores less the mean, over the standard deviation."""
        spread = math.sqrt(self.squares / self.count) if self.count else 0.0
        return [(score - self.mean) / max(spread, _SMALL) if spread else 0.0 for score in scores]
