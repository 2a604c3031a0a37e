"""PPO reaches the known optimum of two toys, from three seeds, within a bound on the divergence."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tunekit.plugins import LoadedModel
from tunekit.testing import tiny_model, tiny_tokenizer
from tunekit.testing.beside import beside
from tunekit_ppo.ppo import PpoComponent

driver = beside(__file__, "ppo_driver")

TOKENS = 8


@pytest.fixture(scope="module")
def speller() -> Any:
    """A model that writes the letters a, b, c and d, each as often as the others."""
    model, tokenizer = tiny_model(), tiny_tokenizer(None)
    draw = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(60):
        texts = [draw.choice(driver.PROMPTS)["prompt"] + "".join(draw.choices("abcd", k=24)) for _ in range(16)]
        rows = [tokenizer(text)["input_ids"][-24:] for text in texts]
        ids = torch.tensor(rows)
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return model.eval()


def avoid(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
    """1 less the share of the letter b."""
    return [1 - text.count("b") / TOKENS for text in completions]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("task", ["emit", "avoid"])
def test_reward_reaches_nine_tenths_of_the_optimum(task: str, seed: int, speller: Any, tmp_path: Path) -> None:
    """The model begins with a share of about 0.15 of the letter a and 0.22 of b: always to write a costs
    8 log(1 / 0.15) = 15.2 nats, never to write b 8 log(1 / 0.78) = 2.0. The targets lie above that."""
    reward, target = (driver.share("a"), 20.0) if task == "emit" else (avoid, 4.0)
    events = driver.Events()
    ctx = driver.context(
        tmp_path,
        reward,
        start=LoadedModel(model=copy.deepcopy(speller), tokenizer=tiny_tokenizer(None)),
        events=events,
        seed=seed,
        rollout_size=64,
        batch_size=16 if task == "emit" else 32,
        gradient_accumulation=1,
        ppo_epochs=2,
        max_new_tokens=TOKENS,
        max_length=64,
        max_steps=8 * 20 if task == "emit" else 4 * 24,
        learning_rate=1.5e-3 if task == "emit" else 1e-3,
        value_coef=0.5,
        kl_coef=0.02,
        kl_target=target,
        kl_horizon=1000,
        samples=0,
        checkpoint_every=1000,
    )
    PpoComponent().run(ctx)
    rewards, divergences = events.values("reward"), events.values("kl")
    first, last = rewards[0], sum(rewards[-3:]) / 3
    # The best reward is 1 in both; where the beginning is near it, most of the way to it counts as well.
    assert last > 0.9 and 1 - last < 0.25 * (1 - first)
    assert max(divergences) < target
