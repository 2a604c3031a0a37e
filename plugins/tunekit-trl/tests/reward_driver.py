"""Rows, models and contexts for the tests of reward models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tunekit.cancel import CancelToken
from tunekit.data import load_dataset
from tunekit.plugins import LoadedModel, hf
from tunekit.testing.beside import beside
from tunekit_peft.options import LoraOptions
from tunekit_trl.encoding import Encoder
from tunekit_trl.reward_head import give_padding, with_reward_head
from tunekit_trl.reward_losses import RewardObjective
from tunekit_trl.reward_options import RewardOptions
from tunekit_trl.reward_rows import RewardRows, Scale, encode_answers

driver = beside(__file__, "trl_driver")

ACCEPTS = ("preference", "ranked", "rated", "feedback", "regression")
PAIRS = [dict(row, margin=0.25 * (number % 3)) for number, row in enumerate(driver.PREFERENCES)]
RANKED = [
    {"prompt": f"Say {word}.", "completions": ["no", word, f"{word}!", "why not"], "ranks": ranks}
    for word, ranks in (("red", [3, 0, 1, 2]), ("green", [1, 0, 0, 1]), ("blue", [2, 0, 1, 2]), ("grey", [1, 0, 0, 0]))
] + [{"prompt": "Say it.", "completions": ["it", "no"], "ranks": [0, 1]}]
RATED = [
    {"prompt": row["prompt"], "completion": row[side], "score": score}
    for row in driver.PREFERENCES
    for side, score in (("chosen", 4.0 + len(row["chosen"]) % 2), ("rejected", 1.0))
]
THUMBS = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row in driver.PREFERENCES
    for side in ("chosen", "rejected")
]


def context(
    folder: Path,
    rows: Any,
    options: RewardOptions,
    *,
    held: Any = None,
    lora: LoraOptions | None = None,
    loaded: LoadedModel | None = None,
    cancel: CancelToken | None = None,
) -> Any:
    events = driver.Events()
    loaded = loaded or LoadedModel(model=driver.tiny_model(), tokenizer=driver.byte_tokenizer())
    ctx = driver.context("align", folder, loaded, driver.PREFERENCES, options, lora=lora, events=events, cancel=cancel)
    ctx.data = load_dataset(rows, accepts=ACCEPTS)
    ctx.validation = None if held is None else load_dataset(held, accepts=ACCEPTS)
    ctx.events = events
    return ctx


def losses(ctx: Any) -> list[float]:
    return [event["values"]["loss"] for event in ctx.events.named("metrics") if "loss" in event["values"]]


def reward_model(tokenizer: Any, seed: int = 1) -> Any:
    """A tiny reward model whose rewards are of the order of 1."""
    model, new = with_reward_head(driver.tiny_model(), seed)
    assert new and model.config.num_labels == 1
    give_padding(model, tokenizer, {tokenizer.eos_token_id})
    with torch.no_grad():
        model.score.weight.mul_(4)
    return model


def token_rows(rows: list[dict[str, Any]], tokenizer: Any, scale: Scale | None = None) -> list[dict[str, Any]]:
    data = load_dataset(rows, accepts=ACCEPTS)
    made = encode_answers(Encoder(tokenizer, 256), [row for _, row in data.read()], data.schema)
    return list(RewardRows(made, scale or Scale()))  # type: ignore[arg-type]


def one_step(model: Any, rows: list[dict[str, Any]], objective: str, folder: Path, center: float = 0.0) -> float:
    """Loss of one micro-batch of all rows; the gradients are on the model."""
    options = RewardOptions(batch_size=len(rows), learning_rate=1e-3, validation=2)
    ctx = context(folder, PAIRS, options, loaded=LoadedModel(model=model, tokenizer=driver.byte_tokenizer()))
    trainer = hf.CompletionTrainer(
        ctx, model, None, rows, RewardObjective(objective, center=center), puts=hf.ScoreModel
    )
    batch, _ = trainer.get_batch_samples(iter([rows]), 1, torch.device("cpu"))
    with trainer.completions.attending():
        assert trainer.completions.shares
        return float(trainer.training_step(model, batch[0]))


def norm(model: Any) -> float:
    return float(torch.stack([p.grad.double().norm() for p in model.parameters() if p.grad is not None]).norm())
