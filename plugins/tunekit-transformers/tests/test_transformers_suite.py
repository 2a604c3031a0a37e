"""The laws of trainers, for pretraining and continued pretraining."""

from __future__ import annotations

from typing import Any

import pytest

from tunekit.testing import TrainerSuite


class TestPretrain(TrainerSuite):
    name = "tunekit-transformers/causal"
    stage = "pretrain"
    steps_after_cancel = 0

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"vocab_size": 300, "hidden_size": 32, "layers": 2, "max_length": 32, "context": 256}


class TestPostPretrain(TrainerSuite):
    name = "tunekit-transformers/causal"
    stage = "post_pretrain"
    steps_after_cancel = 0


class TestMaskedPretrain(TrainerSuite):
    """What is hidden in a row depends on its number, so rows the other way round are other targets; no answer is
    generated, so no end of one is learned; and few of the tokens are targets, so that few steps show little."""

    name = "tunekit-transformers/mlm"
    stage = "pretrain"
    steps_after_cancel = 0
    loss_falls_to = 0.99
    test_order_in_the_batch_does_not_change_the_loss = None  # type: ignore[assignment]
    test_end_of_text_is_trained = None  # type: ignore[assignment]

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"vocab_size": 400, "hidden_size": 32, "heads": 2, "layers": 2, "max_length": 32, "context": 256}
