"""The laws of trainers, for PPO."""

from __future__ import annotations

from typing import Any

import pytest

from tunekit.testing import TrainerSuite


class TestPpo(TrainerSuite):
    name = "tunekit-ppo/ppo"
    steps_after_cancel = 0

    # What is learned is written by the model itself: rows have neither labels nor ends.
    test_no_labels_is_an_error = None
    test_end_of_text_is_trained = None
    # What is written behind a prompt depends on the place it has in its rollout, and so does the loss.
    # test_ppo_training compares batches of unequal lengths with the formula.
    test_padding_does_not_change_the_loss = None
    test_order_in_the_batch_does_not_change_the_loss = None
    # Advantages are of mean 0 in every rollout, so the loss begins at 0; test_ppo_toys measures what is learned.
    test_loss_falls = None

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {
            "reward": {"name": "length", "unit": "characters", "target": 40},
            "ppo_epochs": 1,
            "max_new_tokens": 8,
            "samples": 0,
        }

    def batch_options(self, batch_size: int, gradient_accumulation: int) -> dict[str, Any]:
        """Two optimizer steps for each rollout."""
        size = batch_size * gradient_accumulation
        return {"batch_size": batch_size, "gradient_accumulation": gradient_accumulation, "rollout_size": 2 * size}
