"""The laws of trainers, for reward models, in full and through LoRA; and those of rewards, for what scores with one."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tunekit import lora
from tunekit.plan import AdapterPlan
from tunekit.plugins import hf
from tunekit.testing import RewardCase, RewardSuite, TrainerSuite
from tunekit.testing.fakes import tiny_pair
from tunekit_trl.reward_head import give_padding, with_reward_head


class TestReward(TrainerSuite):
    name = "tunekit-trl/reward"
    steps_after_cancel = 0

    @pytest.fixture
    def model(self) -> Any:
        """With a head: what is compared is the model before and after, and not that there was none."""
        model, tokenizer = tiny_pair()
        return with_reward_head(model, 1)[0], tokenizer

    def loss_of_batch(self, alone: Sequence[tuple[float, float | None]]) -> float:
        """The mean over the pairs, whatever their lengths."""
        return sum(loss for loss, _ in alone) / len(alone)


class TestRewardThroughLora(TestReward):
    @pytest.fixture
    def adapter(self) -> AdapterPlan:
        return lora(r=4)

    # Rows and batches are made before the adapter plays a part; a cancel shows that its checkpoints can be resumed.
    test_padding_does_not_change_the_loss = None
    test_order_in_the_batch_does_not_change_the_loss = None
    test_no_labels_is_an_error = None
    test_bad_option_is_refused_before_anything_runs = None
    test_killed_and_resumed_equals_uninterrupted = None
    test_through_an_adapter = None


@functools.cache
def scored() -> tuple[Any, Any, tuple[RewardCase, ...]]:
    """A reward model, and completions with the scores that plain transformers gives them."""
    model, tokenizer = tiny_pair()
    model = with_reward_head(model, 1)[0]
    give_padding(model, tokenizer, {tokenizer.eos_token_id})
    cases = []
    for prompt, completion in (("Say red.", "red"), ("Say red.", "red and blue"), ("Why?", "Because."), ("Why?", "")):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            score = model(input_ids=torch.tensor([ids])).logits.item()
        cases.append(RewardCase(prompt=prompt, completion=completion, score=score))
    return model, tokenizer, tuple(cases)


class TestRewardModel(RewardSuite):
    name = "tunekit-trl/reward-model"
    tolerance = 1e-4

    @pytest.fixture
    def options(self, tmp_path: Path) -> dict[str, Any]:
        model, tokenizer, _ = scored()
        return {"model": str(hf.save_model(model, tokenizer, tmp_path / "judge"))}

    def _cases(self) -> Sequence[RewardCase]:
        return scored()[2]
