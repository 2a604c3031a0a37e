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
