"""A policy and what says how much reward is still to come."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch

from tunekit.errors import ArtifactError
from tunekit.plugins import StepContext

__all__ = ["ActorCritic", "Outputs", "separate_critic"]


class Outputs(NamedTuple):
    """What is known of some completions: tensors over their tokens, one completion after the other, and a scalar."""

    logps: Any
    """(tokens,) log-probabilities under the policy."""
    values: Any
    """(tokens,) rewards expected from the token on, before it is known."""
    entropy: Any = None
    """(tokens,) entropy of the policy in nats."""
    routing: Any = None
    """Scalar: the loss of the balance of experts in policy and separate critic, times its factor; None: no experts."""


class ActorCritic(torch.nn.Module):
    """The policy, a value head, and with ``critic="separate"`` the model that the head sits on.

    The head is linear and begins at zero (as in Ziegler et al. 2019), or as the head of the reward model that the
    critic starts from.
    """

    def __init__(self, policy: Any, critic: Any = None, head: Any = None) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic
        size = int(policy.get_input_embeddings().weight.shape[1])
        hidden = getattr(policy.config.get_text_config(), "hidden_size", size)
        self.value_head = torch.nn.Linear(hidden, 1)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)
        if head is not None:
            self.value_head.weight.data.copy_(head.reshape(1, -1))

    @property
    def config(self) -> Any:
        """That of the policy."""
        return self.policy.config

    def forward(self, **inputs: Any) -> Any:
        """The policy's own forward pass."""
        return self.policy(**inputs)

    def bodies(self) -> list[Any]:
        """Policy, and critic if it is a model of its own."""
        return [self.policy] if self.critic is None else [self.policy, self.critic]

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Recompute activations in the backward pass."""
        for body in self.bodies():
            if hasattr(body, "activation_checkpointing_enable"):
                body.activation_checkpointing_enable(*args, **kwargs)
            else:
                body.gradient_checkpointing_enable(*args, **kwargs)

    gradient_checkpointing_enable = activation_checkpointing_enable

    def value(self, hidden: Any) -> Any:
        """(tokens,) float32 values at hidden states (tokens, size)."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.value_head(hidden.to(self.value_head.weight.dtype))[:, 0]


def separate_critic(ctx: StepContext, policy: Any) -> tuple[Any, Any]:
    """A model for the critic, and the head to begin with (None: zero). Call it before the policy gets its adapter.

    Raises:
        ArtifactError: if the model of ``critic_init`` is not of the policy's architecture.
    """
    critic = copy.deepcopy(policy)
    ref = ctx.options.critic_init
    if ref is None:
        return critic, None
    other = ctx.load_model(ref).model
    body, source = critic.base_model, other.base_model
    ours, theirs = body.state_dict(), source.state_dict()
    different = sorted(
        name
        for name in ours.keys() | theirs.keys()
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape
    )
    if type(body) is not type(source) or different:
        raise ArtifactError(
            f"The critic cannot start from {ref}: its model is not of the architecture of the policy.",
            code="critic-init",
            asked=type(body).__name__,
            found=f"{type(source).__name__}" + (f", other weights: {', '.join(different[:3])}" if different else ""),
            fix="train the reward model from the same model, or leave critic_init out",
        )
    body.load_state_dict(theirs)
    head = getattr(other, "score", None)
    weight = getattr(head, "weight", None)
    return critic, weight.detach().clone() if weight is not None and weight.shape[0] == 1 else None
