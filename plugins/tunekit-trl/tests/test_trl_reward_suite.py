"""The laws of trainers, for reward models, in full and through LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tunekit import lora
from tunekit.plan import AdapterPlan
from tunekit.testing import TrainerSuite
from tunekit.testing.fakes import tiny_pair
from tunekit_trl.reward_head import with_reward_head


class TestReward(TrainerSuite):
    name = "tunekit-trl/reward"
    steps_after_cancel = 0

    @pytest.fixture
    def model(self) -> Any:
        """With a head: what is compared is the model before and after, and not that there was none."""
        model, tokenizer = tiny_pair()
        return with_reward_head(model, 1)[0], tokenizer

    def loss_of_batch(self, parts: Sequence[tuple[float, float | None]]) -> float:
        """The mean over the pairs, whatever their lengths."""
        return sum(loss for loss, _ in parts) / len(parts)


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
