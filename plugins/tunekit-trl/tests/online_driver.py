"""Contexts of steps that learn from their own completions, and a model that can be taught to add."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tunekit.cancel import CancelToken
from tunekit.context import BoundReward
from tunekit.data import load_dataset
from tunekit.plugins import LoadedModel
from tunekit.testing.beside import beside
from tunekit.testing.contexts import BuiltContext, step_context
from tunekit_peft.adapter import LoraAdapter
from tunekit_peft.options import LoraOptions

_driver = beside(__file__, "trl_driver")
Events, byte_tokenizer, tiny_model = _driver.Events, _driver.byte_tokenizer, _driver.tiny_model

__all__ = ["SUMS", "Events", "answering_model", "online_context", "tiny_pair"]

SUMS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(5) for b in range(5)]
"""Sums of one digit."""


def tiny_pair(seed: int = 0, **settings: Any) -> LoadedModel:
    """A random model that reads bytes, without a chat template."""
    return LoadedModel(model=tiny_model(seed=seed, **settings), tokenizer=byte_tokenizer(None))


def answering_model(steps: int = 550, right: float = 0.17) -> LoadedModel:
    """A model that answers each sum with some digit and ends: with the right one at a probability of ``right``, with
    the other nine at equal ones."""
    loaded = tiny_pair(hidden=64)
    model, tokenizer = loaded.model, loaded.tokenizer
    digits = torch.tensor(tokenizer("0123456789")["input_ids"])
    prompts = torch.tensor([tokenizer(row["prompt"])["input_ids"] for row in SUMS])
    sums = torch.tensor([int(row["answer"]) for row in SUMS])
    wanted = torch.full((len(SUMS), 10), (1 - right) / 9)
    wanted[torch.arange(len(SUMS)), sums] = right
    ids = torch.cat([prompts, digits[sums][:, None]], 1)
    end = torch.full((len(SUMS),), tokenizer.eos_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        logits = model(input_ids=ids).logits.log_softmax(-1)
        loss = -(wanted * logits[:, -2, digits]).sum(-1).mean() - logits[:, -1].gather(1, end[:, None]).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loaded


def online_context(
    folder: Path,
    loaded: LoadedModel,
    rows: Any,
    options: Any,
    rewards: Sequence[BoundReward],
    *,
    validation: Any = None,
    lora: LoraOptions | None = None,
    seed: int = 7,
    events: Callable[..., None] | None = None,
    cancel: CancelToken | None = None,
) -> BuiltContext:
    """A context as the core builds it."""
    return step_context(
        folder,
        options.resolve(adapter="lora" if lora else None),
        kind="align",
        name="grpo",
        provider="tunekit-trl",
        loaded=loaded,
        adapter=LoraAdapter(lora) if lora else None,
        label=f"lora r={lora.r}" if lora else "",
        seed=seed,
        events=events,
        cancel=cancel,
        data=load_dataset(rows, accepts=("prompt",)),
        validation=None if validation is None else load_dataset(validation, accepts=("prompt",)),
        rewards=tuple(rewards),
    )
