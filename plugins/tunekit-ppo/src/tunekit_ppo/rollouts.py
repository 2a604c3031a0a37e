"""What a policy wrote, what it is worth, and how that is kept with a checkpoint."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tunekit.plugins import hf

__all__ = ["Rollout", "grouped"]

FILE = "rollout.safetensors"
"""Name of the file in a checkpoint."""

_FLAT = ("logps", "values", "advantages", "returns")


@dataclass
class Rollout:
    """Completions that are learned from together. Tensors are over their tokens, one completion after the other."""

    index: int
    """Rollouts before it."""
    prompts: list[int]
    """For each completion the number of its prompt."""
    completions: list[list[int]]
    """Token ids, with the one that ended the completion."""
    logps: Any
    """(tokens,) float32 log-probabilities under the policy that wrote."""
    values: Any
    """(tokens,) float32 values when it was written."""
    advantages: Any
    """(tokens,) float32."""
    returns: Any
    """(tokens,) float32."""
    stopped: bool = False
    """Whether no more is to be learned from it."""
    facts: dict[str, float] = field(default_factory=dict)
    """Numbers about it, for the log of its first optimizer step."""

    def __post_init__(self) -> None:
        self._parts = {name: getattr(self, name).split(self.lengths) for name in _FLAT}

    @property
    def lengths(self) -> list[int]:
        """Tokens of each completion."""
        return [len(completion) for completion in self.completions]

    def tokens(self, numbers: Sequence[int]) -> int:
        """Tokens of some completions."""
        return sum(len(self.completions[number]) for number in numbers)

    def take(self, name: str, numbers: Sequence[int], device: Any) -> Any:
        """One of the tensors, for some completions in that order."""
        return torch.cat([self._parts[name][number] for number in numbers]).to(device)

    def minibatches(self, update: int, size: int, micro: int, seed: int) -> list[list[int]]:
        """Numbers of the completions of an optimizer step, micro-batch by micro-batch.

        A pass over the rollout takes it in an order of its own. Completions of one prompt stay together, so that they
        can share it.

        Args:
            update: optimizer steps of this rollout before it.
            size: completions of an optimizer step.
            micro: completions of a micro-batch.
            seed: of the orders.
        """
        steps = len(self.prompts) // size
        done, step = divmod(update, steps)
        by_prompt: list[list[int]] = []
        for number, prompt in enumerate(self.prompts):
            if by_prompt and self.prompts[by_prompt[-1][-1]] == prompt:
                by_prompt[-1].append(number)
            else:
                by_prompt.append([number])
        random.Random(f"{seed} {self.index} {done}").shuffle(by_prompt)
        order = [number for numbers in by_prompt for number in numbers]
        taken = order[step * size : (step + 1) * size]
        return [taken[begin : begin + micro] for begin in range(0, size, micro)]

    def save(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Write it, with ``state`` (JSON types), into a checkpoint."""
        tensors = {name: getattr(self, name).contiguous() for name in _FLAT}
        tensors["ids"] = torch.tensor([token for made in self.completions for token in made], dtype=torch.int64)
        tensors["lengths"] = torch.tensor(self.lengths, dtype=torch.int64)
        tensors["prompts"] = torch.tensor(self.prompts, dtype=torch.int64)
        said = {"index": self.index, "stopped": self.stopped, "facts": self.facts, "state": dict(state)}
        save_file(tensors, folder / FILE, metadata={"rollout": json.dumps(said)})

    @classmethod
    def load(cls, folder: Path) -> tuple[Rollout, dict[str, Any]]:
        """The rollout of a checkpoint, and the state that was saved with it."""
        with safe_open(folder / FILE, "pt") as stored:
            said = json.loads(stored.metadata()["rollout"])
            tensors = {name: stored.get_tensor(name) for name in (*_FLAT, "ids", "lengths", "prompts")}
        completions = [part.tolist() for part in tensors["ids"].split(tensors["lengths"].tolist())]
        made = cls(
            index=said["index"],
            prompts=tensors["prompts"].tolist(),
            completions=completions,
            stopped=said["stopped"],
            facts=said["facts"],
            **{name: tensors[name] for name in _FLAT},
        )
        return made, said["state"]


def grouped(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], numbers: Sequence[int], of: Sequence[int]
) -> tuple[list[hf.PromptGroup], list[list[int]]]:
    """Completions as groups that share their prompt.

    Args:
        prompts: token ids of all prompts.
        completions: token ids of all completions.
        numbers: the completions that are wanted; neighbours with one prompt become one group.
        of: for each completion the number of its prompt.

    Returns:
        The groups, and for each the numbers of its completions.
    """
    members: list[list[int]] = []
    for number in numbers:
        if members and of[members[-1][-1]] == of[number]:
            members[-1].append(number)
        else:
            members.append([number])
    return [hf.PromptGroup(prompts[of[part[0]]], [completions[number] for number in part]) for part in members], members
