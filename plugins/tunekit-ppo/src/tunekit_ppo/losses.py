"""The clipped losses of PPO (Schulman et al. 2017, arXiv:1707.06347), summed over tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

__all__ = ["Clipped", "policy_loss", "value_loss"]


class Clipped(NamedTuple):
    """A loss and how often it was clipped."""

    loss: Any
    """Scalar, differentiable: the sum over the tokens."""
    clipped: Any
    """Scalar: tokens at which the clipped term is the one that counts."""


def policy_loss(logps: Any, old_logps: Any, advantages: Any, clip_range: float) -> Clipped:
    """The clipped surrogate, as a loss.

    Args:
        logps: (tokens,) log-probabilities under the policy.
        old_logps: (tokens,) under the policy that drew the tokens.
        advantages: (tokens,).
        clip_range: how far the ratio may be from 1.
    """
    ratio = torch.exp(logps - old_logps)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return Clipped(torch.maximum(plain, clipped).sum(), (clipped > plain).sum())


def value_loss(values: Any, old_values: Any, returns: Any, clip_range: float | None) -> Clipped:
    """Half the squared error; with ``clip_range`` the larger of it and that of the value clipped around the old one.

    Args:
        values: (tokens,) values now.
        old_values: (tokens,) values when the rollout was written.
        returns: (tokens,) what they should have been.
        clip_range: how far a value may go from the old one; None: anywhere.
    """
    plain = (values - returns) ** 2
    if clip_range is None:
        return Clipped(0.5 * plain.sum(), torch.zeros((), dtype=torch.int64, device=plain.device))
    near = old_values + (values - old_values).clamp(-clip_range, clip_range)
    clipped = (near - returns) ** 2
    return Clipped(0.5 * torch.maximum(plain, clipped).sum(), (clipped > plain).sum())
