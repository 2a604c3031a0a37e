"""What came out of a training of PPO, and how its rollouts went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunekit.plugins import hf

__all__ = ["Learned", "course", "joined"]

_LAST = ("reward", "kl", "completion_length", "finished", "explained_variance", "entropy")
_FIRST = ("reward_first", "reward_std_first")
_HIGHEST = ("reward_best", "kl_max")


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What came out of a training."""

    outcome: hf.TrainOutcome
    details: Mapping[str, Any]
    metrics: Mapping[str, Any]
    probes: list[list[int]]
    """Token ids to prove a merge on."""
    changed: bool = True
    """Whether the model is another than at the start."""


def course(rollouts: Sequence[Mapping[str, float]], kl: float | None) -> dict[str, float]:
    """How rollouts went, from the first to the last.

    Args:
        rollouts: what is known of each.
        kl: divergence of the model after the last, nats per completion; None: not measured.
    """
    if not rollouts:
        return {}
    made = {name: rollouts[-1][name] for name in _LAST}
    made |= {
        "reward_first": rollouts[0]["reward"],
        "reward_std_first": rollouts[0]["reward_std"],
        "reward_best": max(rollout["reward"] for rollout in rollouts),
        "kl_max": max(rollout["kl"] for rollout in rollouts),
    }
    if kl is not None:
        made["kl_final"] = kl
    return made


def joined(courses: Sequence[Mapping[str, float]], kept: Sequence[bool]) -> dict[str, float]:
    """The course of some rounds as one: what is last is that of the last round that was kept, or of the last."""
    known = [(one, stays) for one, stays in zip(courses, kept, strict=True) if one]
    if not known:
        return {}
    last = next((one for one, stays in reversed(known) if stays), known[-1][0])
    made = dict(last)
    made |= {name: known[0][0][name] for name in _FIRST}
    made |= {name: max(one[name] for one, _ in known) for name in _HIGHEST}
    return made
