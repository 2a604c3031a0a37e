"""What a training of PPO is besides its optimizer: weights, and the numbers that follow its rollouts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tunekit_ppo.actor_critic import ActorCritic
from tunekit_ppo.advantages import KlController, RunningScale

__all__ = ["Carried", "load_weights", "trained_weights"]


class Carried:
    """The coefficient of the KL penalty and the running scale of the scores: what goes on from round to round."""

    def __init__(self, options: Any) -> None:
        self.kl = KlController(options.kl_coef, options.kl_target, options.kl_horizon)
        self.scale = RunningScale()

    def state_dict(self) -> dict[str, Any]:
        """Both, in JSON types."""
        return {
            "kl_coef": self.kl.coefficient,
            "scale": [self.scale.count, self.scale.mean, self.scale.squares],
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Put back what :meth:`state_dict` gave; the objects stay the same."""
        count, mean, squares = state["scale"]
        self.kl.coefficient = float(state["kl_coef"])
        self.scale.count, self.scale.mean, self.scale.squares = int(count), float(mean), float(squares)


def trained_weights(model: ActorCritic) -> dict[str, Any]:
    """Name to weight of all that is trained; tied weights once."""
    return {
        name: parameter.detach().contiguous() for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def load_weights(model: ActorCritic, path: Path) -> None:
    """Put back what :func:`trained_weights` gave."""
    stored: Mapping[str, Any] = load_file(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(stored[name])
