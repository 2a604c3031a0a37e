"""Contexts of steps that learn from their own completions, and a model that can be taught to add."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tunekit.cancel import CancelToken
from tunekit.context import BoundReward, StepContext
from tunekit.data import load_dataset
from tunekit.plan import ComponentRef, ResolvedAdapter, ResolvedStep
from tunekit.plugins import LoadedModel
from tunekit_peft.adapter import LoraAdapter
from tunekit_peft.options import LoraOptions

_spec = importlib.util.spec_from_file_location("trl_driver", Path(__file__).with_name("trl_driver.py"))
assert _spec is not None and _spec.loader is not None
_driver = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_driver)
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
) -> StepContext:
    """A context as the core builds it."""
    component = ComponentRef(
        kind="trainer", name="grpo", provider="tunekit-trl", version="0", target="x:y", stage="align"
    )
    adapter = None
    if lora is not None:
        adapter = ResolvedAdapter(
            component=ComponentRef(kind="adapter", name="lora", provider="tunekit-peft", version="0", target="x:y"),
            options={},
            label=f"lora r={lora.r}",
        )
    folder.mkdir(parents=True, exist_ok=True)
    kept: list[LoadedModel] = []
    ctx = StepContext(
        run_id="test",
        step=ResolvedStep(
            index=1,
            kind="align",
            name="align",
            component=component,
            options={},
            input=None,
            adapter=adapter,
            trains=adapter.label if adapter else "full",
            data="list",
        ),
        options=options.resolve(adapter="lora" if lora else None),
        seed=seed,
        dir=folder,
        cancel=cancel or CancelToken(),
        input=None,
        adapter=LoraAdapter(lora) if lora else None,
        data=load_dataset(rows, accepts=("prompt",)),
        validation=None if validation is None else load_dataset(validation, accepts=("prompt",)),
        rewards=tuple(rewards),
        _component=lambda: None,
        _load=lambda: loaded,
        _keep=kept.append,
        _emit=Events() if events is None else events,
    )
    ctx.kept = kept  # type: ignore[attr-defined]
    return ctx
